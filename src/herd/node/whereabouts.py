"""Where the router may be: as told, where it was last, on this machine, or wherever mDNS says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
from msgspec import Struct

from herd.fleet.discovery import Finder, answers
from herd.node.identity import IdentityError, write_private
from herd.node.link import router_url
from herd.ops.logs import logger
from herd.ops.settings import ROUTER_PORT

#: Seconds that one search may take; the agent searches again and again.
SEARCH = 5.0
_FILE = "router.json"

_log = logger("discovery")


class Whereabouts(Struct, frozen=True):
    """A place to dial; `router` is the id that must answer there, empty if any may."""

    url: str
    router: str = ""


class _Remembered(Struct):
    url: str
    fleet: str = ""


class RouterSearch:
    """Yields places to dial, the first to answer first. A given URL rules out all others."""

    def __init__(
        self, *, url: str, fleet: str, data_dir: Path, finder: Finder, local_port: int = ROUTER_PORT
    ) -> None:
        self._url = router_url(url) if url else ""
        self._fleet = fleet
        self._path = data_dir / _FILE
        self._finder = finder
        self._local = f"http://127.0.0.1:{local_port}"

    @property
    def given(self) -> str:
        """The URL that the owner gave; empty if the router is to be found."""
        return self._url

    @property
    def unreachable(self) -> tuple[str, ...]:
        """URLs that the last search heard announced and got no answer from."""
        return self._finder.unreachable

    async def places(self) -> AsyncGenerator[Whereabouts, None]:
        """One round of looking; afresh each time, because interfaces come and go."""
        if self._url:
            yield Whereabouts(self._url)
            return
        loop = asyncio.get_running_loop()
        known = dict.fromkeys(url for url in (self._recall(), self._local) if url)
        tasks = [loop.create_task(_if_it_answers(url)) for url in known]
        tasks.append(loop.create_task(self._discovered()))
        tried: set[str] = set()
        try:
            for next_done in asyncio.as_completed(tasks):
                for place in await next_done:
                    if place.url not in tried:
                        tried.add(place.url)
                        yield place
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def remember(self, url: str) -> None:
        """Keep the address of a router that welcomed us, for when mDNS does not get through."""
        if url in (self._url, self._local) or url == self._recall():
            return
        try:
            text = msgspec.json.encode(_Remembered(url, self._fleet)).decode()
            write_private(self._path, text)
        except IdentityError as error:
            _log.warning("cannot remember the router", cause=str(error))

    def _recall(self) -> str:
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=_Remembered)
            return router_url(kept.url) if kept.fleet == self._fleet else ""
        except (OSError, msgspec.DecodeError, ValueError):
            # Nothing is kept yet, or nothing of use: the search goes on without.
            return ""

    async def _discovered(self) -> list[Whereabouts]:
        found = await self._finder.find(SEARCH)
        return [Whereabouts(router.url, router.id) for router in found]


async def _if_it_answers(url: str) -> list[Whereabouts]:
    host, _, port = url.rpartition("//")[2].rpartition(":")
    if not port.isdecimal():
        return [Whereabouts(url)]
    return [Whereabouts(url)] if await answers(host.strip("[]"), int(port)) else []
