"""Router and agents find each other on the LAN by mDNS, as service type `_herd._tcp`.

Nothing here is remembered between two searches or two sets of addresses: sockets that joined the
multicast group on an interface that has since gone away hear nothing more, so every change and
every search begins with a fresh responder.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Sequence

import psutil
from msgspec import Struct
from zeroconf import Error as ZeroconfError
from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from herd.ops.logs import logger
from herd.wire.link import PROTOCOL

SERVICE = "_herd._tcp.local."
#: Seconds between two looks at this machine's addresses.
POLL = 2.0
#: Seconds that a connection to an announced address may take; a LAN answers in milliseconds.
CONNECT_WITHIN = 1.5
#: Announcements that one search follows up; a neighbour can make any number of them.
MAX_ANNOUNCED = 64

_log = logger("discovery")


class FoundRouter(Struct, frozen=True, kw_only=True):
    """A router that announced itself and accepted a connection."""

    id: str
    fleet: str
    version: str
    #: Link protocol that it speaks; 0 if it did not say.
    protocol: int
    #: The address that answered, without a trailing slash.
    url: str


class Announcer:
    """Announces a router on the addresses given, or on whatever this machine has at the time."""

    def __init__(
        self,
        *,
        router: str,
        port: int,
        version: str,
        fleet: str = "",
        interfaces: Sequence[str] = (),
        poll: float = POLL,
    ) -> None:
        self._router = router
        self._port = port
        self._properties = {
            "id": router,
            "version": version,
            "protocol": str(PROTOCOL),
            "fleet": fleet,
        }
        self._fixed = tuple(interfaces)
        self._poll = poll
        self._zeroconf: AsyncZeroconf | None = None
        self._task: asyncio.Task[None] | None = None
        #: Addresses announced now; empty while there is no network.
        self.addresses: tuple[str, ...] = ()

    def start(self) -> None:
        """Begin; the first announcement follows in the background."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="announcer")

    async def close(self) -> None:
        """Say goodbye and stop."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await self._withdraw()

    async def _run(self) -> None:
        while True:
            addresses = _usable(self._fixed)
            if addresses != self.addresses:
                await self._withdraw()
                await self._announce(addresses)
            await asyncio.sleep(self._poll)

    async def _announce(self, addresses: tuple[str, ...]) -> None:
        if not addresses:
            _log.debug("no network interface to announce on")
            return
        info = AsyncServiceInfo(
            SERVICE,
            f"herd-{self._router[:16]}.{SERVICE}",
            port=self._port,
            properties=self._properties,
            server=f"{self._router}.local.",
            parsed_addresses=list(addresses),
        )
        try:
            self._zeroconf = AsyncZeroconf(interfaces=list(addresses), ip_version=IPVersion.V4Only)
            # The router's id is random, so nobody else can hold the name: no probing.
            sent = await self._zeroconf.async_register_service(info, cooperating_responders=True)
            await sent
        except (OSError, ZeroconfError) as error:
            # An address can go away between reading and using it; the next round sees that.
            _log.debug("cannot announce yet", addresses=addresses, error=str(error))
            await self._withdraw()
            return
        self.addresses = addresses
        _log.info("announcing the router", addresses=addresses, port=self._port)

    async def _withdraw(self) -> None:
        zeroconf, self._zeroconf = self._zeroconf, None
        self.addresses = ()
        if zeroconf is not None:
            await _close(zeroconf)


class Finder:
    """Looks for routers of a fleet; an empty fleet name takes any."""

    def __init__(self, *, fleet: str = "", interfaces: Sequence[str] = ()) -> None:
        self._fleet = fleet
        self._fixed = tuple(interfaces)
        #: URLs that the last search heard of and that did not answer: most often a firewall.
        self.unreachable: tuple[str, ...] = ()

    async def find(self, within: float) -> list[FoundRouter]:
        """Return as soon as a reachable router appears; empty after `within` seconds without."""
        self.unreachable = ()
        interfaces = _usable(self._fixed)
        if not interfaces:
            return []
        try:
            zeroconf = AsyncZeroconf(interfaces=list(interfaces), ip_version=IPVersion.V4Only)
        except OSError as error:
            _log.debug("cannot search", interfaces=interfaces, error=str(error))
            return []
        search = _Search(zeroconf.zeroconf, self._fleet)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within):
                    await search.run()
        finally:
            await search.close()
            await _close(zeroconf)
        self.unreachable = tuple(sorted(search.unreachable))
        return search.found


class _Search:
    """One search: follows announcements up until one of them holds."""

    def __init__(self, zeroconf: Zeroconf, fleet: str) -> None:
        self._zeroconf = zeroconf
        self._fleet = fleet
        self._hit = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.found: list[FoundRouter] = []
        self.unreachable: set[str] = set()

    async def run(self) -> None:
        await self._zeroconf.async_wait_for_start()
        browser = AsyncServiceBrowser(self._zeroconf, SERVICE, handlers=[self._changed])
        try:
            await self._hit.wait()
        finally:
            await browser.async_cancel()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _changed(
        self,
        zeroconf: Zeroconf,
        service_type: str,
        name: str,
        state_change: ServiceStateChange,
    ) -> None:
        del zeroconf, service_type
        if state_change is ServiceStateChange.Removed or len(self._tasks) >= MAX_ANNOUNCED:
            return
        task = asyncio.get_running_loop().create_task(self._examine(name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _examine(self, name: str) -> None:
        info = AsyncServiceInfo(SERVICE, name)
        try:
            known = await info.async_request(self._zeroconf, 3000)
        except (OSError, ZeroconfError) as error:
            _log.debug("cannot resolve", name=name, error=str(error))
            return
        if not known or not info.port:
            return
        said = info.decoded_properties
        if self._fleet and said.get("fleet") != self._fleet:
            return
        addresses = info.parsed_addresses(IPVersion.V4Only)
        urls = [f"http://{address}:{info.port}" for address in addresses]
        reached = await asyncio.gather(*(answers(host, info.port) for host in addresses))
        url = next((url for url, ok in zip(urls, reached, strict=True) if ok), None)
        if url is None:
            self.unreachable.update(urls)
            return
        protocol = said.get("protocol") or ""
        self.found.append(
            FoundRouter(
                id=said.get("id") or "",
                fleet=said.get("fleet") or "",
                version=said.get("version") or "",
                protocol=int(protocol) if protocol.isdecimal() else 0,
                url=url,
            )
        )
        self._hit.set()


def interface_addresses() -> tuple[str, ...]:
    """IPv4 addresses of all interfaces that are up, without loopback, in a stable order."""
    return tuple(sorted(address for address in _addresses() if not is_loopback(address)))


def is_loopback(host: str) -> bool:
    """Whether `host`, an address or a name, means this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


async def answers(host: str, port: int, *, within: float = CONNECT_WITHIN) -> bool:
    """Whether something accepts a TCP connection there."""
    try:
        async with asyncio.timeout(within):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.transport.abort()
    return True


def _usable(fixed: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the given addresses that this machine has now; all it has if none are given."""
    if not fixed:
        return interface_addresses()
    present = _addresses()
    return tuple(address for address in fixed if address in present)


def _addresses() -> set[str]:
    states = psutil.net_if_stats()
    return {
        entry.address
        for name, entries in psutil.net_if_addrs().items()
        if name in states and states[name].isup
        for entry in entries
        if entry.family == socket.AF_INET
    }


async def _close(zeroconf: AsyncZeroconf) -> None:
    # The goodbye cannot be sent where the interface is already gone.
    with contextlib.suppress(OSError, ZeroconfError):
        await zeroconf.async_close()
