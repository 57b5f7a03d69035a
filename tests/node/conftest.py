"""A small Ollama on a real socket, and ways to wait for what happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

DIGEST = "a" * 64


class TinyOllama:
    """Answers what an agent asks an Ollama, and streams on `/api/chat` as it is told."""

    def __init__(self) -> None:
        self.models = ["tiny:latest"]
        self.healthy = True
        self.requests: list[web.Request] = []
        self.bodies: list[bytes] = []
        #: What came on paths that Ollama does not have, as other engines are told what to load.
        self.instructions: list[tuple[str, bytes]] = []
        #: Lines of the next answer; None breaks the connection off.
        self.lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.cancelled = asyncio.Event()
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{any:.*}", self._answer)
        self._runner = web.AppRunner(
            app, handler_cancellation=True, auto_decompress=False, shutdown_timeout=0.1
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/api/chat":
            return await self._chat(request)
        if not self.healthy:
            return web.Response(status=500, text="out of order")
        rows = [
            {
                "name": name,
                "model": name,
                "size": 7,
                "digest": DIGEST,
                "modified_at": "2026-01-01T00:00:00Z",
                "details": {"family": "llama", "parameter_size": "1B"},
            }
            for name in self.models
        ]
        known: dict[str, Any] = {
            "/api/version": {"version": "0.33.0"},
            "/api/tags": {"models": rows},
            "/api/ps": {"models": []},
            "/api/show": {"details": {}, "model_info": {}, "capabilities": ["completion"]},
        }
        if request.path == "/":
            return web.Response(text="Ollama is running")
        if request.path in known:
            return web.json_response(known[request.path])
        self.instructions.append((request.path, await request.read()))
        return web.Response(status=404, text="404 page not found")

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        try:
            self.bodies.append(await request.read())
            response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
            line = await self.lines.get()  # nothing goes out during the prefill
            await response.prepare(request)
            while line != b"":
                if line is None:
                    assert request.transport is not None
                    request.transport.abort()
                    return response
                await response.write(line)
                line = await self.lines.get()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return response


@pytest.fixture
async def ollama() -> AsyncIterator[TinyOllama]:
    engine = TinyOllama()
    await engine.start()
    yield engine
    await engine.stop()


Until = Callable[..., Awaitable[None]]


@pytest.fixture
def until() -> Until:
    """Wait until a condition holds; fails after `within` seconds."""

    async def wait(condition: Callable[[], object], within: float = 5.0) -> None:
        async with asyncio.timeout(within):
            while not condition():  # noqa: ASYNC110 - has a deadline
                await asyncio.sleep(0.01)

    return wait


@pytest.fixture
async def dead_port() -> int:
    """A port on which nobody listens."""
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    number: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return number
