"""The owner's own orders: have a node load a model, or let it go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
from aiohttp import web

from herd.core.actions import Preload, Stay, Target, Unload
from herd.core.names import canonical
from herd.engines.registry import LOADERS
from herd.fleet.driver import Driver
from herd.gateway import owner
from herd.gateway.openapi import LoadOrder, Ordered, UnloadOrder
from herd.gateway.problems import problem_response
from herd.wire.errors import Problem

_BAD_REQUEST: Final = 400
_FORBIDDEN: Final = 403
_NOT_FOUND: Final = 404
_ACCEPTED: Final = 202
_REASON: Final = "the owner wants it"

T = TypeVar("T", LoadOrder, UnloadOrder)


class ModelsApi:
    """Serves `/herd/v1/models/`. `order` begins to carry an order out."""

    def __init__(self, driver: Driver, order: Callable[[Preload | Unload], None]) -> None:
        self._driver = driver
        self._order = order

    def routes(self) -> list[web.RouteDef]:
        """Return the routes; a model's name may have slashes."""
        return [
            web.post("/herd/v1/models/{model:.+}/load", self._load),
            web.post("/herd/v1/models/{model:.+}/unload", self._unload),
        ]

    async def _load(self, request: web.Request) -> web.Response:
        try:
            wanted = await _wanted(request, LoadOrder)
            target = self._target(request, wanted.node)
        except _RefusedError as refused:
            return problem_response("openai", refused.problem)
        stay = Stay(context=wanted.context, keep_alive=wanted.keep_alive)
        self._order(Preload(target, stay, _REASON))
        return _accepted(target)

    async def _unload(self, request: web.Request) -> web.Response:
        try:
            wanted = await _wanted(request, UnloadOrder)
            target = self._target(request, wanted.node)
        except _RefusedError as refused:
            return problem_response("openai", refused.problem)
        self._order(Unload(target, _REASON))
        return _accepted(target)

    def _target(self, request: web.Request, node: str) -> Target:
        """Return the model on the node, on an engine that can be told; raises `_RefusedError`."""
        model = request.match_info["model"]
        found = [
            replica.target()
            for replica in self._driver.scheduler.replicas(canonical(model))
            if node in {replica.key.node, replica.node.report.name} and replica.up
        ]
        if not found:
            raise _RefusedError(_NOT_FOUND, f"no engine on a node {node!r} has a model {model!r}")
        able = [target for target in found if target.kind in LOADERS]
        if not able:
            kind = found[0].kind
            raise _RefusedError(_BAD_REQUEST, f"{kind} cannot be told what to load")
        return able[0]


class _RefusedError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.problem = Problem(status=status, message=message)


async def _wanted(request: web.Request, shape: type[T]) -> T:
    """Return what the owner wants; raises `_RefusedError`, to anybody else too."""
    why = owner.refusal(request)
    if why:
        raise _RefusedError(_FORBIDDEN, why)
    try:
        return msgspec.json.decode(await request.read(), type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _RefusedError(_BAD_REQUEST, str(error)) from error


def _accepted(target: Target) -> web.Response:
    ordered = Ordered(
        node=target.replica.node, engine=target.replica.engine, model=target.replica.model
    )
    return web.Response(
        status=_ACCEPTED,
        body=msgspec.json.encode(ordered),
        headers={"Content-Type": "application/json", "Cache-Control": "no-store"},
    )
