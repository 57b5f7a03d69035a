"""Serves the listings: what models there are, in Ollama's and OpenAI's dialect."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
from aiohttp import web

from herd.core.names import canonical
from herd.core.scheduler import Scheduler
from herd.engines.upstream import UpstreamError
from herd.gateway import listings
from herd.gateway.problems import problem_response
from herd.gateway.relay import Relay
from herd.ops.clock import Clock
from herd.wire.errors import Problem

_NO_SUCH = 404


class Catalogue:
    """Answers from what the nodes report; asks an engine only for `/api/show`."""

    def __init__(self, scheduler: Scheduler, relay: Relay, clock: Clock) -> None:
        self._scheduler = scheduler
        self._relay = relay
        self._since = int(clock())

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of all listings."""
        return [
            web.get("/api/version", self._version),
            web.get("/api/tags", self._tags),
            web.get("/api/ps", self._ps),
            web.post("/api/show", self._show),
            web.get("/v1/models", self._models),
            web.get("/v1/models/{name:.+}", self._model),
        ]

    async def _version(self, _: web.Request) -> web.Response:
        return _ollama_json({"version": listings.version(self._scheduler)})

    async def _tags(self, _: web.Request) -> web.Response:
        since = datetime.fromtimestamp(self._since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return _ollama_json(listings.tags(self._scheduler, since=since))

    async def _ps(self, _: web.Request) -> web.Response:
        return _ollama_json(listings.resident(self._scheduler))

    async def _models(self, _: web.Request) -> web.Response:
        return _json(listings.openai_models(self._scheduler, since=self._since))

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        entry = listings.openai_model(self._scheduler, name, since=self._since)
        if entry is None:
            problem = Problem(
                status=_NO_SUCH, message=f"model '{name}' not found", code="model_not_found"
            )
            return problem_response("openai", problem)
        return _json(entry)

    async def _show(self, request: web.Request) -> web.Response:
        body = await request.read()
        try:
            asked = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
            name = msgspec.json.decode(asked.get("model") or asked.get("name") or b'""', type=str)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return problem_response("ollama", Problem(status=400, message=str(error)))
        if not name:
            return problem_response("ollama", Problem(status=400, message="model is required"))
        model = canonical(name)
        found = [r for r in listings.reachable(self._scheduler) if r.key.model == model]
        for replica in found:
            if replica.engine.kind == "ollama":
                target = replica.target()
                try:
                    answer = await self._relay.upstream.send(
                        "POST",
                        target.url + "/api/show",
                        {
                            "Content-Type": "application/json",
                            **self._relay.credentials(target),
                        },
                        body,
                    )
                    text = await answer.read()
                except UpstreamError:
                    continue  # the next node has the same model
                kind = answer.headers.get("content-type", "application/json")
                return web.Response(status=answer.status, body=text, headers={"Content-Type": kind})
        if found:
            return _ollama_json(listings.synthetic_show(found[0]))
        return problem_response(
            "ollama", Problem(status=_NO_SUCH, message=f"model '{name}' not found")
        )


def _ollama_json(value: Any) -> web.Response:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    return web.Response(body=msgspec.json.encode(value), headers=headers)


def _json(value: Any) -> web.Response:
    headers = {"Content-Type": "application/json"}
    return web.Response(body=msgspec.json.encode(value), headers=headers)
