"""Herd's own API under `/herd/v1/`: the fleet, requests with their decisions, engines by URL."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
from aiohttp import web

from herd import __version__
from herd.core import explain
from herd.core.events import NodeGone
from herd.core.request import Ending, Outcome
from herd.core.view import OpenRequest, view
from herd.engines.declared import DeclaredEngine, parse_engine_url
from herd.fleet.driver import Driver
from herd.fleet.probing import UrlNodes
from herd.gateway import openapi, owner
from herd.gateway.openapi import (
    EngineEntry,
    EngineList,
    Health,
    NewEngine,
    RequestDetail,
    RequestPage,
)
from herd.gateway.problems import problem_response
from herd.gateway.recent import Recent
from herd.store.store import Store
from herd.wire.errors import Problem

_MOST: Final = 500
#: What SQLite's integers do not reach.
_BEYOND: Final = 2**63


class OwnApi:
    """Serves Herd's own API."""

    def __init__(self, driver: Driver, engines: UrlNodes, store: Store, recent: Recent) -> None:
        self._driver = driver
        self._engines = engines
        self._store = store
        self._recent = recent

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.get("/herd/v1/health", self._health),
            web.get("/herd/v1/fleet", self._fleet),
            web.get("/herd/v1/requests", self._requests),
            web.get("/herd/v1/requests/{id}", self._request),
            web.get("/herd/v1/engines", self._list_engines),
            web.post("/herd/v1/engines", self._add_engine),
            web.delete("/herd/v1/engines/{node}", self._remove_engine),
            web.get("/herd/v1/openapi.json", self._openapi),
        ]

    async def _health(self, _: web.Request) -> web.Response:
        problems = tuple(problem for problem in (self._store.problem,) if problem)
        nodes = len(self._driver.scheduler.nodes)
        status = "degraded" if problems else "ok"
        return _json(Health(status=status, version=__version__, nodes=nodes, problems=problems))

    async def _fleet(self, _: web.Request) -> web.Response:
        return _json(view(self._driver.scheduler, self._driver.clock()))

    async def _requests(self, request: web.Request) -> web.Response:
        query = request.query
        try:
            limit = min(_MOST, int(query.get("limit", "100")))
            before = int(query["before"]) if "before" in query else None
        except ValueError:
            return _bad("limit and before must be whole numbers")
        if limit < 1 or not -_BEYOND < (before or 0) < _BEYOND:
            return _bad("limit must be at least 1, and before a number that was given as next")
        try:
            ending = msgspec.convert(query.get("ending"), Ending | None)
        except msgspec.ValidationError as error:
            return _bad(f"ending: {error}")
        filters = {name: query.get(name) for name in ("model", "node", "client")}
        rows = await asyncio.to_thread(
            self._store.reader.recent, limit, before, ending=ending, **filters
        )
        following = rows[-1].seq if rows and len(rows) == limit else None
        return _json(RequestPage(tuple(rows), following))

    async def _request(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        outcome: Outcome | None = self._recent.get(name)
        if outcome is None:
            task = self._driver.scheduler.tasks.get(name)
            if task is not None:
                made = task.decision
                why = explain.decision(task.request, made, self._names()) if made else None
                return _json(RequestDetail(_open(name, self._driver), None, why))
            outcome = await asyncio.to_thread(self._store.reader.get, name)
        if outcome is None:
            return _no_such(f"there is no request {name!r}")
        return _json(RequestDetail(None, outcome, explain.outcome(outcome, self._names())))

    def _names(self) -> dict[str, str]:
        nodes = self._driver.scheduler.nodes
        return {node: state.report.name for node, state in nodes.items()}

    async def _list_engines(self, _: web.Request) -> web.Response:
        entries = [_entry(declared) for declared in self._engines.all()]
        return _json(EngineList(tuple(entries)))

    async def _add_engine(self, request: web.Request) -> web.Response:
        refused = _not_owner(request)
        if refused is not None:
            return refused
        try:
            new = msgspec.json.decode(await request.read(), type=NewEngine)
            declared = parse_engine_url(new.url)
            self._engines.add(declared)
        except (msgspec.DecodeError, ValueError) as error:
            return _bad(str(error))
        return _json(_entry(declared), status=201)

    async def _remove_engine(self, request: web.Request) -> web.Response:
        refused = _not_owner(request)
        if refused is not None:
            return refused
        node = request.match_info["node"]
        try:
            await self._engines.remove(node)
        except KeyError:
            return _no_such(f"no engine was added as {node!r}")
        self._driver.feed(NodeGone(node, "its owner has removed it"))
        return web.Response(status=204)

    async def _openapi(self, _: web.Request) -> web.Response:
        return _json(openapi.document())


def _open(name: str, driver: Driver) -> OpenRequest | None:
    snapshot = view(driver.scheduler, driver.clock())
    return next((entry for entry in snapshot.requests if entry.id == name), None)


def _entry(declared: DeclaredEngine) -> EngineEntry:
    return EngineEntry(node=declared.node, name=declared.name, url=declared.url)


def _not_owner(request: web.Request) -> web.Response | None:
    why = owner.refusal(request)
    return problem_response("openai", Problem(status=403, message=why)) if why else None


def _bad(message: str) -> web.Response:
    return problem_response("openai", Problem(status=400, message=message))


def _no_such(message: str) -> web.Response:
    return problem_response("openai", Problem(status=404, message=message))


def _json(value: Any, *, status: int = 200) -> web.Response:
    return web.Response(
        status=status,
        body=msgspec.json.encode(value),
        headers={"Content-Type": "application/json", "Cache-Control": "no-store"},
    )
