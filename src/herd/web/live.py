"""The live page: what the fleet does now, one snapshot a second for all who watch."""

from __future__ import annotations

import asyncio
from importlib import resources
from typing import Final

import msgspec
from aiohttp import web
from msgspec import Struct

from herd.core.request import Outcome
from herd.core.view import FleetView, view
from herd.fleet.driver import Driver
from herd.gateway.recent import Recent
from herd.ops.clock import Clock

#: Seconds between two snapshots; none is made while nobody watches.
INTERVAL: Final = 1.0
_SHOWN: Final = 25
_TYPES: Final = {
    "index.html": "text/html; charset=utf-8",
    "live.css": "text/css; charset=utf-8",
    "live.js": "text/javascript; charset=utf-8",
}
#: Scripts and styles from this router alone, nothing inline, nothing from elsewhere.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


class Answered(Struct, frozen=True, kw_only=True):
    """A line of the page's list of requests."""

    id: str
    model: str
    endpoint: str
    ending: str
    node: str
    #: Seconds from arrival to the first attempt, and to the end.
    waited: float
    took: float
    tokens: int | None
    why: str


class Snapshot(Struct, frozen=True, kw_only=True):
    """What the page shows."""

    fleet: FleetView
    answered: tuple[Answered, ...]
    total: int


class LivePage:
    """Serves the page and its stream of snapshots."""

    def __init__(self, driver: Driver, recent: Recent, clock: Clock) -> None:
        self._driver = driver
        self._recent = recent
        self._clock = clock
        self._viewers: set[asyncio.Queue[bytes]] = set()
        self._task: asyncio.Task[None] | None = None

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the page and its stream."""
        return [
            web.get("/dashboard", _to_page),
            web.get("/dashboard/", self._page),
            web.get("/dashboard/{name}", self._page),
            web.get("/herd/v1/events", self._events),
        ]

    async def close(self) -> None:
        """End all streams."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _page(self, request: web.Request) -> web.Response:
        name = request.match_info.get("name", "index.html")
        if name not in _TYPES:
            raise web.HTTPNotFound
        text = resources.files("herd.web").joinpath("static", name).read_bytes()
        headers = {
            "Content-Type": _TYPES[name],
            "Content-Security-Policy": _POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        }
        return web.Response(body=text, headers=headers)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        await response.prepare(request)
        await response.write(self._snapshot())
        # One place: a viewer that is too slow for a second's snapshot misses it.
        viewer: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)
        self._viewers.add(viewer)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._tick(), name="live page")
        try:
            while True:
                await response.write(await viewer.get())
        finally:
            self._viewers.discard(viewer)

    async def _tick(self) -> None:
        while self._viewers:
            await asyncio.sleep(INTERVAL)
            event = self._snapshot()
            for viewer in self._viewers:
                if not viewer.full():
                    viewer.put_nowait(event)

    def _snapshot(self) -> bytes:
        snapshot = Snapshot(
            fleet=view(self._driver.scheduler, self._clock()),
            answered=tuple(self._line(outcome) for outcome in self._recent.latest(_SHOWN)),
            total=self._recent.total,
        )
        return b"data: " + msgspec.json.encode(snapshot) + b"\n\n"

    def _line(self, outcome: Outcome) -> Answered:
        last = outcome.attempts[-1] if outcome.attempts else None
        node = self._driver.scheduler.nodes.get(last.replica.node) if last else None
        first = outcome.attempts[0].started if outcome.attempts else outcome.ended
        refusal = outcome.refusal.message if outcome.refusal is not None else ""
        failure = last.failure.message if last is not None and last.failure is not None else ""
        decision = outcome.decision.reason if outcome.decision is not None else ""
        return Answered(
            id=outcome.request.id,
            model=outcome.request.model,
            endpoint=outcome.request.endpoint,
            ending=outcome.ending,
            node=node.report.name if node is not None else (last.replica.node if last else ""),
            waited=first - outcome.arrived,
            took=outcome.ended - outcome.arrived,
            tokens=outcome.result.usage.completion_tokens if outcome.result else None,
            why=refusal or failure or decision,
        )


async def _to_page(_: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("/dashboard/")
