"""The agent's end of the link: dial, say hello, report, beat, and notice when nobody answers."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
from aiohttp import WSMsgType
from msgspec import Struct

from herd.core.fleet import Load, NodeReport
from herd.node.tasks import first_to_end
from herd.ops.settings import ROUTER_PORT
from herd.wire.link import (
    HEARTBEAT,
    MAX_FRAME,
    PATH,
    PROTOCOL,
    SILENCE,
    Beat,
    FromAgent,
    FromRouter,
    Hello,
    Leaving,
    Rejected,
    Released,
    Report,
    Welcome,
    decode_from_router,
    encode,
)


class LinkError(Exception):
    """There is no link, or no longer; the text says why."""


class LinkRefusedError(LinkError):
    """The router does not want this node, and asking again soon will not change that."""


class Pace(Struct, frozen=True, kw_only=True):
    """Seconds between heartbeats, and after how many without a sign the router counts as gone."""

    heartbeat: float = HEARTBEAT
    silence: float = SILENCE


class Link:
    """A link that the router has welcomed; made by `dial`."""

    def __init__(
        self, socket: aiohttp.ClientWebSocketResponse, welcome: Welcome, pace: Pace
    ) -> None:
        self._socket = socket
        self._pace = pace
        self._report: NodeReport | None = None
        self._said: NodeReport | None = None
        self._leaving: Leaving | None = None
        self._wake = asyncio.Event()
        self.router = welcome.router
        self.router_version = welcome.version
        #: This machine's and the router's address on the link.
        self.address = _host(socket.get_extra_info("sockname"))
        self.router_address = _host(socket.get_extra_info("peername"))
        #: Set when the router has nothing more running here.
        self.released = asyncio.Event()

    @property
    def local(self) -> bool:
        """Whether the router runs on this machine."""
        return bool(self.address) and self.address == self.router_address

    def update(self, report: NodeReport) -> None:
        """Take over what is true now; goes out at once if more than the load has changed."""
        self._report = report
        if self._unsaid():
            self._wake.set()

    def leave(self, reason: str) -> None:
        """Tell the router to send no more; `released` is set when the last has ended."""
        self._leaving = Leaving(reason)
        self._wake.set()

    async def run(self) -> None:
        """Keep the link until it is lost, and raise the `LinkError` that says how."""
        try:
            await first_to_end(self._listen(), self._talk())
        except (ConnectionError, aiohttp.ClientError) as error:
            raise LinkError(
                f"the connection broke: {str(error) or type(error).__name__}"
            ) from error

    async def _listen(self) -> None:
        while True:
            message = await _receive(self._socket, self._pace.silence)
            if isinstance(message, Rejected):
                raise LinkRefusedError(f"the router ended the link: {message.reason}")
            if isinstance(message, Released):
                self.released.set()

    async def _talk(self) -> None:
        loop = asyncio.get_running_loop()
        beat_due = loop.time() + self._pace.heartbeat
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(beat_due):
                    await self._wake.wait()
            self._wake.clear()
            await self._catch_up()
            if loop.time() >= beat_due:
                beat_due = loop.time() + self._pace.heartbeat
                await self._send(Beat(self._report.load if self._report else Load()))

    async def _catch_up(self) -> None:
        report = self._report
        if report is not None and self._unsaid():
            self._said = report
            await self._send(Report(report))
        if self._leaving is not None:
            leaving, self._leaving = self._leaving, None
            await self._send(leaving)

    def _unsaid(self) -> bool:
        return self._report is not None and (
            self._said is None or _steady(self._report) != _steady(self._said)
        )

    async def _send(self, message: FromAgent) -> None:
        await _send(self._socket, message, self._pace.silence)


@asynccontextmanager
async def dial(
    url: str, hello: Hello, *, fleet: str = "", expected: str = "", pace: Pace | None = None
) -> AsyncIterator[Link]:
    """Connect to the router at `url` and be welcomed.

    Raises `LinkRefusedError` if it rejects this node, is of another fleet than `fleet` or speaks
    another protocol, and `LinkError` if it does not answer, or is not the router `expected`.
    """
    pace = pace or Pace()
    # One session per link: closing it closes the connection, whatever state the link is in.
    async with aiohttp.ClientSession(
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=pace.silence),
        trust_env=False,
    ) as session:
        socket = await _connect(session, url)
        try:
            await _send(socket, hello, pace.silence)
            yield Link(socket, await _welcome(socket, pace, fleet, expected), pace)
        except (ConnectionError, aiohttp.ClientError) as error:
            raise LinkError(f"the connection to {url} broke: {error}") from error
        finally:
            with contextlib.suppress(ConnectionError, TimeoutError, aiohttp.ClientError):
                async with asyncio.timeout(1.0):
                    await socket.close()


def router_url(text: str) -> str:
    """Complete what people write for a router's URL: `host`, `host:port`, `http://host:port`.

    Raises `ValueError` if it cannot be one.
    """
    parts = urlsplit(text if "//" in text else f"http://{text}")
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError(f"router {text!r} is no URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"router {text!r} is no URL such as http://192.168.1.10:{ROUTER_PORT}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    if parts.scheme == "https":
        return f"https://{host}" + (f":{port}" if port else "")
    return f"http://{host}:{port or ROUTER_PORT}"


async def _connect(session: aiohttp.ClientSession, url: str) -> aiohttp.ClientWebSocketResponse:
    try:
        return await session.ws_connect(
            url + PATH,
            max_msg_size=MAX_FRAME,
            # Closing waits for nobody: the peer may be the reason.
            timeout=aiohttp.ClientWSTimeout(ws_close=0.1),
        )
    except aiohttp.WSServerHandshakeError as error:
        raise LinkError(f"{url} is no Herd router (it answered {error.status})") from error
    except TimeoutError as error:
        raise LinkError(f"{url} does not answer") from error
    except (aiohttp.ClientError, OSError) as error:
        raise LinkError(f"{url} cannot be reached: {error}") from error


async def _welcome(
    socket: aiohttp.ClientWebSocketResponse, pace: Pace, fleet: str, expected: str
) -> Welcome:
    message = await _receive(socket, pace.silence)
    if isinstance(message, Rejected):
        raise LinkRefusedError(message.reason)
    if not isinstance(message, Welcome):
        raise LinkError("the router's first message is no welcome")
    if message.protocol != PROTOCOL:
        raise LinkRefusedError(
            f"the router (version {message.version}) speaks link protocol {message.protocol}, this "
            f"agent speaks {PROTOCOL}: update the older one"
        )
    if fleet and message.fleet != fleet:
        raise LinkRefusedError(f"the router's fleet is {message.fleet!r}, not {fleet!r}")
    if expected and message.router != expected:
        raise LinkError("another router than the one announced answers at this address")
    return message


async def _receive(socket: aiohttp.ClientWebSocketResponse, silence: float) -> FromRouter:
    """Return the next message; raises `LinkError` if none comes, or nothing that can be read."""
    try:
        async with asyncio.timeout(silence):
            message = await socket.receive()
    except TimeoutError as error:
        raise LinkError(f"the router has been silent for {silence:g} s") from error
    if message.type is WSMsgType.BINARY:
        try:
            return decode_from_router(message.data)
        except msgspec.DecodeError as error:
            raise LinkError(f"the router sent what cannot be read: {error}") from error
    if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
        reason = message.extra if message.type is WSMsgType.CLOSE else ""
        raise LinkError(f"the router closed the link{f': {reason}' if reason else ''}")
    raise LinkError(f"the link broke: {message.data}")


async def _send(
    socket: aiohttp.ClientWebSocketResponse, message: FromAgent, silence: float
) -> None:
    data = encode(message)
    if len(data) > MAX_FRAME:
        raise LinkError(f"the report has {len(data)} bytes, more than a router takes")
    try:
        async with asyncio.timeout(silence):
            await socket.send_bytes(data)
    except TimeoutError as error:
        raise LinkError(f"the router has read nothing for {silence:g} s") from error


def _steady(report: NodeReport) -> NodeReport:
    """Return the report without what beats carry."""
    return msgspec.structs.replace(report, load=Load())


def _host(name: Any) -> str:
    host = str(name[0]) if isinstance(name, tuple) and name else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
