"""Finds the engines on this machine by asking at their ports, and keeps an eye on each.

Every port is watched by a task of its own, so that an engine that hangs delays no other. Ports are
asked on 127.0.0.1 only: an agent lends its own machine, and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from herd.core.fleet import EngineReport
from herd.engines.adapter import Adapter, SurveyCache
from herd.engines.http import Http
from herd.engines.registry import ADAPTERS, controls, detect
from herd.engines.survey import survey_engine
from herd.fleet.discovery import answers, is_loopback
from herd.fleet.reported import HERE
from herd.ops.logs import logger
from herd.wire.link import DOOR_PREFIX

#: Seconds between two looks at a port.
INTERVAL = 2.0
#: Seconds after which an engine that does not answer is forgotten.
FORGET = 30.0
#: Most seconds before a server that was no engine is asked again; it may be starting, or it may
#: be somebody's web server whose log we fill.
MAX_PAUSE = 30.0
LOCAL = "127.0.0.1"

_log = logger("engines")


class Reach(Struct, frozen=True, kw_only=True):
    """How the router gets to this machine over the present link."""

    #: This machine's address on the link; empty without a link.
    address: str = ""
    #: The router runs on this machine too.
    local: bool = False
    door_port: int = 0
    door: Literal["auto", "always"] = "auto"


class LocalEngine(Struct, frozen=True, kw_only=True):
    """An engine that the door may forward to."""

    url: str
    paths: frozenset[str]
    #: Paths on which it is told what to load, each with the only shape of body that it gets.
    controls: Mapping[str, type[Struct]] = {}


class Engines:
    """All engines of this machine."""

    def __init__(
        self,
        http: Http,
        *,
        ports: Sequence[int],
        slots: Mapping[str, int],
        interval: float = INTERVAL,
        forget: float = FORGET,
    ) -> None:
        self._watches = [_Watch(http, port, slots, forget) for port in dict.fromkeys(ports)]
        self._interval = interval
        self._unseen = len(self._watches)
        #: Set once every port was looked at.
        self.surveyed = asyncio.Event()

    async def run(self, on_change: Callable[[], None]) -> None:
        """Watch for ever; `on_change` is called after every look that saw something new."""
        async with asyncio.TaskGroup() as group:
            for watch in self._watches:
                group.create_task(self._watch(watch, on_change))

    async def reports(self, reach: Reach) -> tuple[EngineReport, ...]:
        """Return what is known now, with URLs for a router that reaches this machine so."""
        known = [(watch.port, watch.report) for watch in self._watches if watch.report]
        urls = await asyncio.gather(*(public_url(port, report.id, reach) for port, report in known))
        return tuple(
            msgspec.structs.replace(report, url=url)
            for (_, report), url in zip(known, urls, strict=True)
        )

    def local(self, engine: str) -> LocalEngine | None:
        """Return the engine that is reported under this id; None if there is none."""
        for watch in self._watches:
            if watch.report is not None and watch.report.id == engine:
                return watch.local
        return None

    async def _watch(self, watch: _Watch, on_change: Callable[[], None]) -> None:
        first = True
        while True:
            before = watch.report
            await watch.look()
            if first:
                first = False
                self._unseen -= 1
                if not self._unseen:
                    self.surveyed.set()
                    on_change()
            if watch.report != before:
                on_change()
            await asyncio.sleep(self._interval)


class _Watch:
    """One port: nothing there, something else there, or an engine."""

    def __init__(self, http: Http, port: int, slots: Mapping[str, int], forget: float) -> None:
        self.port = port
        self.report: EngineReport | None = None
        self._http = http
        self._url = f"http://{LOCAL}:{port}"
        self._slots = slots
        self._forget = forget
        self._adapter: Adapter | None = None
        self._cache = SurveyCache()
        #: When the engine last answered; when a server that was no engine is asked again.
        self._seen = 0.0
        self._again = 0.0
        self._pause = 0.0

    @property
    def local(self) -> LocalEngine | None:
        if self._adapter is None:
            return None
        return LocalEngine(
            url=self._url, paths=self._adapter.paths, controls=controls(self._adapter.kind)
        )

    async def look(self) -> None:
        if self._adapter is None:
            self._adapter = await self._detect()
        if self._adapter is None:
            return
        engine = f"{self._adapter.kind}-{self.port}"
        report = await survey_engine(
            self._http,
            self._adapter,
            self._url,
            engine_id=engine,
            public_url=self._url,
            slots=self._slots.get(engine, self._slots.get(self._adapter.kind)),
            cache=self._cache,
        )
        now = asyncio.get_running_loop().time()
        if report.up:
            self._seen = now
        elif self.report is None or now - self._seen > self._forget:
            self._adapter = self.report = None
            return
        self.report = report

    async def _detect(self) -> Adapter | None:
        now = asyncio.get_running_loop().time()
        if not await answers(LOCAL, self.port):
            self._pause = self._again = 0.0
            return None
        if now < self._again:
            return None
        adapter = await detect(self._http, self._url)
        if adapter is None:
            self._pause = min(MAX_PAUSE, max(INTERVAL, self._pause * 2.0))
            self._again = now + self._pause
            _log.debug("no engine that we know", url=self._url, again_in=self._pause)
        return adapter


def candidate_ports(extra: Sequence[str], *, scan: bool = True) -> tuple[int, ...]:
    """Ports to look at: the owner's own and, to `scan`, those of all known engines.

    Raises `ValueError` for an entry that is neither a port nor a URL on this machine, and if
    nothing is left to look at.
    """
    known = [port for adapter in ADAPTERS for port in adapter.ports if scan]
    if not known and not extra:
        raise ValueError("without scanning, at least one engine's port has to be given")
    return tuple(dict.fromkeys([*(_port(text) for text in extra), *known]))


async def public_url(port: int, engine: str, reach: Reach) -> str:
    """Decide where the router reaches an engine: itself where it can, else through the door.

    `HERE` as the host leaves it to the router to put in the address that it sees us at.
    """
    if reach.door == "auto":
        if reach.local:
            return f"http://{LOCAL}:{port}"
        # An engine that listens beyond loopback accepts connections to the machine's own address.
        if reach.address and await answers(reach.address, port):
            return f"http://{HERE}:{port}"
    return f"http://{HERE}:{reach.door_port}{DOOR_PREFIX}{engine}"


def _port(text: str) -> int:
    parts = urlsplit(text if "//" in text else f"http://{LOCAL}:{text.rpartition(':')[2]}")
    host = parts.hostname or ""
    if "//" not in text and ":" in text:
        host = text.rpartition(":")[0]
    if parts.scheme != "http" or not is_loopback(host) or parts.path not in ("", "/"):
        raise ValueError(
            f"engine {text!r} is no port of this machine (such as 8080 or http://127.0.0.1:8080); "
            "an engine on another machine needs its own herd-node, or its URL in the router's "
            "settings"
        )
    try:
        port = parts.port
    except ValueError:
        port = None
    if not port:
        raise ValueError(f"engine {text!r} needs a port from 1 to 65535, such as 8080")
    return port
