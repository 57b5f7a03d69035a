"""An HTTP server that behaves like a machine's inference engine, without a model."""

from __future__ import annotations

from types import TracebackType
from typing import Literal, Self

import msgspec
from aiohttp import web

from herd.ops.clock import Clock, unix_clock
from herd.sim import vllm
from herd.sim.answering import GO_BUFFER, Answering, Counters, Handler, for_ever, reply
from herd.sim.ask import Lengths
from herd.sim.callers import refused
from herd.sim.emulated import Engine
from herd.sim.faults import Faults
from herd.sim.routes_ollama import OllamaRoutes
from herd.sim.routes_vllm import VllmRoutes
from herd.sim.spec import Batching, EngineSpec

EngineDialect = Literal["ollama", "openai"]

#: Bytes of a request that engines take: pictures travel inside.
_MAX_BODY = 64 * 1024 * 1024
#: Version that an emulated Ollama tells unless it is given another.
_OLLAMA_VERSION = "0.33.0"


class EmulatedServer:
    """Serves one emulated engine in real time; an async context manager.

    `dialect` is "ollama", or "openai" for a vLLM with the first model of the spec. Answers have
    `answer_tokens` (shortest, longest) tokens unless the request sets a lower limit. `faults` may
    be changed at any time and holds for requests that begin from then on.
    """

    def __init__(
        self,
        spec: EngineSpec,
        *,
        dialect: EngineDialect = "ollama",
        host: str = "127.0.0.1",
        port: int = 0,
        answer_tokens: Lengths = (16, 128),
        gpu: bool = True,
        version: str = _OLLAMA_VERSION,
        faults: Faults | None = None,
        clock: Clock | None = None,
    ) -> None:
        if not 1 <= answer_tokens[0] <= answer_tokens[1]:
            raise ValueError("answer_tokens must be at least 1, and the shortest first")
        if dialect == "openai" and spec.batching is None:
            spec = msgspec.structs.replace(spec, batching=Batching())
        self.spec = spec
        self.dialect = dialect
        self.host = host
        self.port = port
        self.faults = faults or Faults()
        self.counters = Counters()
        self._lengths = answer_tokens
        self._gpu = gpu
        self._version = version
        self._clock = clock or unix_clock()
        self._answering: Answering | None = None
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """Where it is, or was before it stopped."""
        return f"http://{self.host}:{self.port}"

    @property
    def engine(self) -> Engine:
        """The engine as it is now; raises RuntimeError while stopped."""
        if self._answering is None:
            raise RuntimeError("the emulated engine is stopped")
        self._answering.live.refresh()
        return self._answering.engine

    @property
    def running(self) -> int:
        """Jobs with a slot now."""
        return self.engine.running if self._answering else 0

    @property
    def waiting(self) -> int:
        """Jobs that wait for a slot or a load now."""
        return self.engine.waiting if self._answering else 0

    @property
    def served(self) -> int:
        """Requests for work that were answered completely."""
        return self.counters.served

    @property
    def cancelled(self) -> int:
        """Jobs given up because their clients left."""
        return self.counters.cancelled

    def throttle(self, speed: float) -> None:
        """Run at this share of the rates from now on."""
        self.engine.throttle(speed, self._clock())

    async def start(self) -> None:
        """Listen, with nothing in memory as after a reboot. A port of 0 is chosen once."""
        if self._runner is not None:
            raise RuntimeError("the emulated engine is started already")
        app = self._application()
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await runner.setup()
        self._runner = runner
        site = web.TCPSite(runner, self.host, self.port, reuse_address=True)
        await site.start()
        self.port = runner.addresses[0][1]

    async def stop(self) -> None:
        """Refuse connections and break those that are; may be started again."""
        runner, self._runner = self._runner, None
        answering, self._answering = self._answering, None
        if runner is None:
            return
        for site in list(runner.sites):
            await site.stop()
        if runner.server is not None:
            for connection in runner.server.connections:
                if connection.transport is not None:
                    connection.transport.abort()
        await runner.cleanup()
        if answering is not None:
            answering.live.stop()

    def _application(self) -> web.Application:
        app = web.Application(
            client_max_size=_MAX_BODY, middlewares=[self._at_the_door, self._missing_routes]
        )
        is_vllm = self.dialect == "openai"
        self._answering = Answering(
            self.spec,
            self._clock,
            lengths=self._lengths,
            faults=self.faults,
            counters=self.counters,
            chunk_above=None if is_vllm else GO_BUFFER,
        )
        if is_vllm:
            VllmRoutes(self._answering).add_to(app)
        else:
            OllamaRoutes(self._answering, version=self._version, gpu=self._gpu).add_to(app)
        app.on_response_prepare.append(self._dress)
        return app

    @web.middleware
    async def _at_the_door(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self.faults.frozen:
            await for_ever()
        if self.dialect == "ollama" and refused(request.host, request.headers.get("Origin")):
            return web.Response(status=403)
        return await handler(request)

    @web.middleware
    async def _missing_routes(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPNotFound:
            if self.dialect == "openai":
                return reply(vllm.NOT_FOUND, vllm.JSON, status=404)
            return reply(b"404 page not found", "text/plain", status=404)
        except web.HTTPMethodNotAllowed as error:
            if self.dialect == "openai":
                response = reply(vllm.NOT_ALLOWED, vllm.JSON, status=405)
            else:
                response = reply(b"405 method not allowed", "text/plain", status=405)
            response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
            return response

    async def _dress(self, _: web.Request, response: web.StreamResponse) -> None:
        """Send the headers of the engine that this one plays, and no others."""
        if self.dialect == "openai":
            response.headers["Server"] = "uvicorn"
            response.headers["Vary"] = "Origin"
        else:
            response.headers.popall("Server", None)
        if isinstance(response, web.Response) and not response.body:
            response.headers.popall("Content-Type", None)
