"""The agent: finds the router, keeps the link, reports, and leaves in good order.

It never gives up. Whatever ends a link, the agent looks for the router afresh, because after a
sleep, a new Wi-Fi or a new DHCP lease neither side need have the address that it had.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections.abc import Callable

from msgspec import Struct

from herd.core.fleet import EngineReport, Hardware, NodeReport
from herd.node import telling
from herd.node.door import Door
from herd.node.engines import INTERVAL, Engines, Reach
from herd.node.hardware import LoadSensor
from herd.node.link import Link, LinkError, LinkRefusedError, Pace, dial
from herd.node.tasks import first_to_end
from herd.node.whereabouts import RouterSearch, Whereabouts
from herd.ops.logs import logger
from herd.ops.settings import NodeSettings
from herd.wire.link import PROTOCOL, Hello

#: Seconds: the shortest and the longest upper bound of the pause between two rounds of looking,
#: each drawn at random below its bound so that a fleet does not come back as one.
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 10.0

_log = logger("agent")


class Node(Struct, frozen=True, kw_only=True):
    """What the agent says it is, for as long as it runs."""

    node: str
    name: str
    version: str
    hardware: Hardware


class Agent:
    """One node's agent. `say` gets what the owner should know, a sentence at a time."""

    def __init__(
        self,
        me: Node,
        settings: NodeSettings,
        *,
        engines: Engines,
        door: Door,
        search: RouterSearch,
        say: Callable[[str], None],
        pace: Pace | None = None,
    ) -> None:
        self._me = me
        self._settings = settings
        self._engines = engines
        self._door = door
        self._search = search
        self._say = say
        self._pace = pace
        self._load = LoadSensor()
        self._link: Link | None = None
        self._changed = asyncio.Event()
        self._leaving = False
        self._told: tuple[EngineReport, ...] = ()
        self._complaint = ""

    async def run(self) -> None:
        """Serve for ever; cancel it, after `leave`, to stop."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._engines.run(self._changed.set))
            group.create_task(self._tell())
            group.create_task(self._stay_linked())

    async def leave(self, reason: str) -> None:
        """Take no more work, and wait until the last is done; give up after `drain_timeout`."""
        self._leaving = True
        link = self._link
        if link is not None:
            link.leave(reason)
        if link is not None or self._door.in_flight:
            self._say("Leaving: waiting for running requests to end. Press Ctrl-C to stop now.")
        try:
            async with asyncio.timeout(self._settings.drain_timeout):
                while link is not None and link is self._link and not link.released.is_set():
                    with contextlib.suppress(TimeoutError):
                        # A lost link is never released: look now and then whether it stands.
                        async with asyncio.timeout(0.2):
                            await link.released.wait()
                await self._door.idle()
        except TimeoutError:
            _log.warning("requests still run", in_flight=self._door.in_flight)
            self._say(f"Requests still run after {self._settings.drain_timeout:g} s: leaving them.")

    async def _stay_linked(self) -> None:
        bound = FIRST_PAUSE
        while True:
            try:
                linked = await self._round()
                refused = False
            except LinkRefusedError as error:
                linked, refused = False, True
                self._complain(f"The router does not take this node: {error}.")
            bound = FIRST_PAUSE if linked else min(LONGEST_PAUSE, bound * 2.0)
            if refused:
                await asyncio.sleep(random.uniform(LONGEST_PAUSE / 2, LONGEST_PAUSE))  # noqa: S311 - no secret
            else:
                await asyncio.sleep(random.uniform(0.0, bound))  # noqa: S311 - no secret
            if self._leaving:
                return

    async def _round(self) -> bool:
        """Look for a router and stay with it; whether there was a link. Raises if none wants us."""
        refused: LinkRefusedError | None = None
        cause = ""
        places = self._search.places()
        async with contextlib.aclosing(places):
            async for place in places:
                try:
                    await self._serve_one(place)
                except LinkRefusedError as error:
                    refused = error
                except LinkError as error:
                    cause = str(error)
                    _log.debug("no link", url=place.url, cause=cause)
                else:
                    return True
        if refused is not None:
            raise refused
        self._complain(telling.not_found(self._search.given, self._search.unreachable, cause))
        return False

    async def _serve_one(self, place: Whereabouts) -> None:
        """Stay with the router at this place; raises `LinkError` if it takes us not even once."""
        token = secrets.token_urlsafe(32)
        self._door.admit(token)
        async with dial(
            place.url,
            self._hello(token),
            fleet=self._settings.fleet,
            expected=place.router,
            pace=self._pace,
        ) as link:
            self._search.remember(place.url)
            self._link = link
            self._complaint = ""
            self._say(f"Joined the router at {place.url} (version {link.router_version}).")
            try:
                await first_to_end(link.run(), self._keep_reporting(link))
            except LinkError as error:
                if not self._leaving:
                    self._say(f"Lost the router at {place.url}: {error}. Looking for it again.")
                if isinstance(error, LinkRefusedError):
                    raise
            finally:
                self._link = None

    def _hello(self, token: str) -> Hello:
        return Hello(
            protocol=PROTOCOL,
            node=self._me.node,
            name=self._me.name,
            version=self._me.version,
            door_port=self._door.port,
            door_token=token,
            advertise=self._settings.advertise,
        )

    async def _keep_reporting(self, link: Link) -> None:
        await self._engines.surveyed.wait()
        reach = Reach(
            address=link.address,
            local=link.local,
            door_port=self._door.port,
            door=self._settings.door,
        )
        while True:
            self._changed.clear()
            link.update(
                NodeReport(
                    node=self._me.node,
                    name=self._me.name,
                    hardware=self._me.hardware,
                    load=self._load.read(),
                    engines=await self._engines.reports(reach),
                    agent=self._me.version,
                )
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL):
                    await self._changed.wait()

    async def _tell(self) -> None:
        """Tell the owner of engines that come and go, linked or not."""
        self._say(telling.machine(self._me.name, self._me.hardware))
        await self._engines.surveyed.wait()
        if not await self._engines.reports(Reach()):
            self._say(telling.NO_ENGINE)
        while True:
            now = await self._engines.reports(Reach())
            for line in telling.engine_changes(self._told, now):
                self._say(line)
            self._told = now
            await asyncio.sleep(INTERVAL)

    def _complain(self, text: str) -> None:
        """Say a trouble once, not at every round."""
        if text != self._complaint:
            self._complaint = text
            self._say(text)
