"""The routes of an emulated vLLM: one model, in memory from the start."""

from __future__ import annotations

import msgspec
from aiohttp import web

from herd.sim import vllm
from herd.sim.answering import Answering, guarded, reply
from herd.sim.ask import Ask
from herd.sim.batching import BatchingEngine
from herd.sim.gowords import Problem
from herd.sim.openai import ChatRequest, CompletionRequest
from herd.sim.spec import Event, Finished, FirstToken


class VllmRoutes:
    """What vLLM's API does, over one emulated engine. Serves the first model of its spec."""

    def __init__(self, answering: Answering) -> None:
        if not isinstance(answering.engine, BatchingEngine):
            raise TypeError("vLLM batches: its spec says how")
        self._answering = answering
        self._engine = answering.engine
        self._model = answering.spec.models[0]
        self._started = answering.clock()
        self._counts = {"prompt_tokens": 0.0, "generation_tokens": 0.0, "request_success": 0.0}
        self._counts["prefix_cache_hits"] = 0.0
        answering.live.hear = self._hear

    def add_to(self, app: web.Application) -> None:
        """Register all routes."""
        for path, handler in (
            ("/health", self._health),
            ("/version", self._version),
            ("/load", self._load),
            ("/metrics", self._metrics),
            ("/v1/models", self._models),
        ):
            app.router.add_get(path, handler, allow_head=False)
        app.router.add_post("/v1/chat/completions", guarded(self._chat, self._refuse))
        app.router.add_post("/v1/completions", guarded(self._completion, self._refuse))

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, _: web.Request) -> web.Response:
        return _reply(msgspec.json.encode({"version": vllm.VERSION}), vllm.JSON)

    async def _load(self, _: web.Request) -> web.Response:
        engine = self._engine
        load = engine.running + engine.waiting
        return _reply(msgspec.json.encode({"server_load": load}), vllm.JSON)

    async def _metrics(self, _: web.Request) -> web.Response:
        self._answering.live.refresh()
        engine = self._engine
        gauges = {
            "num_requests_running": engine.running,
            "num_requests_waiting": engine.waiting,
            "kv_cache_usage_perc": engine.kv_usage,
        }
        counters = {**self._counts, "num_preemptions": float(engine.preemptions)}
        pool = vllm.cache_config(engine.block, engine.pool.blocks)
        return _reply(vllm.metrics(self._model.name, gauges, counters) + pool, vllm.METRICS)

    async def _models(self, _: web.Request) -> web.Response:
        return _reply(vllm.models(self._model, self._context, self._started), vllm.JSON)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        asked = vllm.decode(await _json(request), ChatRequest, "messages")
        ask = vllm.chat_ask(asked, self._answering.lengths)
        shape = vllm.Chat(ask, self._answering.clock())
        return await self._answering.answer(request, ask, self._check(ask), shape)

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        asked = vllm.decode(await _json(request), CompletionRequest, "prompt")
        ask = vllm.completion_ask(asked, self._answering.lengths)
        shape = vllm.Completion(ask, self._answering.clock())
        return await self._answering.answer(request, ask, self._check(ask), shape)

    @property
    def _context(self) -> int:
        return self._engine.context

    def _check(self, ask: Ask) -> str:
        """Return the model's name; raises `Problem` if another is asked for, or too much."""
        if ask.model and ask.model != self._model.name:
            raise vllm.unknown_model(ask.model, self._model.name)
        if len(ask.tokens) >= self._context:
            raise vllm.too_long(self._context, len(ask.tokens))
        return self._model.name

    def _refuse(self, problem: Problem) -> web.Response:
        return _reply(vllm.error(problem), vllm.JSON, status=problem.status)

    def _hear(self, event: Event) -> None:
        if isinstance(event, FirstToken):
            self._counts["generation_tokens"] += 1
        elif isinstance(event, Finished):
            self._counts["prompt_tokens"] += event.prompt_tokens
            self._counts["generation_tokens"] += max(0, event.output_tokens - 1)
            self._counts["prefix_cache_hits"] += event.cached_tokens
            self._counts["request_success"] += 1


async def _json(request: web.Request) -> bytes:
    if request.content_type != "application/json":
        raise vllm.not_json()
    return await request.read()


def _reply(body: bytes, content_type: str, *, status: int = 200) -> web.Response:
    return reply(body, content_type, status=status, chunk_above=None)
