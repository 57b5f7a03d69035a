"""Clients that leave free the engine at once; clients that do not read hold it back, not the router."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import psutil
import pytest
from aiohttp import web

from devtools.testbed import CHAT, Testbed, until
from herd.core.request import Outcome
from tests.gateway.bodies import body, each_dialect, streamed_or_not

#: Seconds within which the engine must know.
SOON = 1.0


class Client:
    """A client on a raw socket that can leave at any moment."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self._writer = writer
        self.port: int = writer.get_extra_info("sockname")[1]

    @classmethod
    async def ask(cls, bed: Testbed, path: str, **changes: object) -> Client:
        # A small window: what is not read soon reaches the router.
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", bed.router.port))
        reader, writer = await asyncio.open_connection(sock=raw, limit=16 * 1024)
        text = msgspec.json.encode(body(path, **changes))
        head = f"POST {path} HTTP/1.1\r\nHost: herd\r\nContent-Length: {len(text)}\r\n\r\n"
        writer.write(head.encode() + text)
        await writer.drain()
        return cls(reader, writer)

    def leave(self) -> None:
        self._writer.close()

    def crash(self) -> None:
        self._writer.transport.abort()


LEAVING: list[Callable[[Client], None]] = [Client.leave, Client.crash]
leaving = pytest.mark.parametrize("leave", LEAVING, ids=["closed", "reset"])


async def check_cancelled(bed: Testbed, attempts: int) -> Outcome:
    outcome = await bed.only_outcome()
    assert outcome.ending == "cancelled"
    assert [attempt.ending for attempt in outcome.attempts] == ["cancelled"] * attempts
    assert not bed.router.driver.scheduler.tasks
    return outcome


@each_dialect
@streamed_or_not
@leaving
async def test_leaving_before_the_first_byte(
    bed: Testbed, path: str, stream: bool, leave: Callable[[Client], None]
) -> None:
    engine = await bed.add(prefill_rate=1.0)
    client = await Client.ask(bed, path, stream=stream)
    await until(lambda: engine.server.running == 1, "the job")
    leave(client)
    await until(lambda: engine.server.running == 0, "the end of the job", within=SOON)
    assert (engine.server.cancelled, engine.server.served) == (1, 0)
    await check_cancelled(bed, attempts=1)


@each_dialect
@leaving
async def test_leaving_in_the_middle_of_a_stream(
    bed: Testbed, path: str, leave: Callable[[Client], None]
) -> None:
    engine = await bed.add(decode_rate=10.0, answer_tokens=(100, 100))
    client = await Client.ask(bed, path, stream=True)
    await client.reader.readuntil(b"\r\n\r\n")
    await client.reader.readline()
    leave(client)
    await until(lambda: engine.server.running == 0, "the end of the job", within=SOON)
    assert (engine.server.cancelled, engine.server.served) == (1, 0)
    outcome = await check_cancelled(bed, attempts=1)
    assert outcome.first_frame is not None


@pytest.mark.parametrize("dialect", ["ollama", "openai"])
@leaving
async def test_leaving_the_queue(
    tmp_path: Path, leave: Callable[[Client], None], dialect: str
) -> None:
    async with Testbed(tmp_path) as bed:
        engine = await bed.add(dialect=dialect, slots=1, decode_rate=4.0)  # type: ignore[arg-type]
        path = "/api/chat"
        runs = await Client.ask(bed, path)
        await until(lambda: engine.server.running == 1, "the job")
        asked = len(engine.tap.all)
        waits = await Client.ask(bed, path)
        scheduler = bed.router.driver.scheduler
        await until(lambda: scheduler.waiting_count == 1, "the queue")
        leave(waits)
        await until(lambda: scheduler.waiting_count == 0, "the empty queue", within=SOON)
        outcome = await check_ended(bed)
        assert (outcome.ending, outcome.attempts) == ("cancelled", ())
        assert not [one for one in engine.tap.all[asked:] if b"POST" in bytes(one.sent)[:4]]
        runs.leave()
        await until(lambda: bed.router.recent.total == 2, "the end of the other")


async def check_ended(bed: Testbed) -> Outcome:
    await until(lambda: bed.router.recent.total == 1, "the outcome")
    return bed.router.recent.latest(1)[0]


async def test_the_slot_of_one_who_left_goes_to_the_next(bed: Testbed) -> None:
    engine = await bed.add(slots=1, prefill_rate=4.0)
    first = await Client.ask(bed, "/api/chat")
    await until(lambda: engine.server.running == 1, "the job")
    second = await Client.ask(bed, "/v1/chat/completions", stream=True)
    await until(lambda: bed.router.driver.scheduler.waiting_count == 1, "the queue")
    first.leave()
    head = await asyncio.wait_for(second.reader.readuntil(b"\r\n\r\n"), 10)
    assert b"200 OK" in head
    second.leave()
    await until(lambda: bed.router.recent.total == 2, "both ends")


class Firehose:
    """An Ollama that streams lines without end, as fast as they are taken."""

    LINE = msgspec.json.encode({"message": {"content": "x" * 65_000}, "done": False}) + b"\n"

    def __init__(self) -> None:
        self.port = 0
        self.written = 0
        self.streaming = False

    async def answer(self, request: web.Request) -> web.StreamResponse:
        row = {"name": CHAT, "model": CHAT, "digest": "a" * 64, "size": 7, "details": {}}
        known = {
            "/api/version": {"version": "0.33.0"},
            "/api/tags": {"models": [row]},
            "/api/ps": {"models": []},
            "/api/show": {"details": {}, "model_info": {}, "capabilities": ["completion"]},
        }
        if request.path == "/":
            return web.Response(text="Ollama is running")
        if request.path in known:
            return web.json_response(known[request.path])
        return await self._stream(request)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        self.streaming = True
        try:
            while True:
                await response.write(self.LINE)
                self.written += len(self.LINE)
        finally:
            self.streaming = False


@asynccontextmanager
async def firehose() -> AsyncIterator[Firehose]:
    engine = Firehose()
    app = web.Application()
    app.router.add_route("*", "/{any:.*}", engine.answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    engine.port = runner.addresses[0][1]
    try:
        yield engine
    finally:
        await runner.cleanup()


async def stands_still(engine: Firehose) -> int:
    """Wait until the engine gets nothing written any more; returns how much that was."""
    loop = asyncio.get_running_loop()
    seen, since = -1, loop.time()
    async with asyncio.timeout(10):
        while seen < 0 or loop.time() - since < 0.3:
            if engine.written != seen:
                seen, since = engine.written, loop.time()
            await asyncio.sleep(0.02)
    return seen


async def test_a_client_that_does_not_read_holds_the_engine_back(bed: Testbed) -> None:
    async with firehose() as engine:
        await bed.declare(f"http://127.0.0.1:{engine.port}")
        process = psutil.Process()
        before = process.memory_info().rss
        client = await Client.ask(bed, "/api/chat")
        await until(lambda: engine.streaming, "the stream")
        written = await stands_still(engine)
        assert engine.streaming
        # What fits into the sockets on the way, which the kernel lets grow to some megabytes.
        assert written < 40_000_000
        assert process.memory_info().rss - before < 30_000_000
        await client.reader.readexactly(2 * written)
        assert engine.written > 2 * written
        client.leave()
        await until(lambda: not engine.streaming, "the end of the stream", within=SOON)
        await check_cancelled(bed, attempts=1)


async def test_a_client_that_never_reads_is_let_go(tmp_path: Path) -> None:
    async with Testbed(tmp_path, client_timeout=0.5) as bed, firehose() as engine:
        await bed.declare(f"http://127.0.0.1:{engine.port}")
        client = await Client.ask(bed, "/api/chat")
        await until(lambda: engine.streaming, "the stream")
        await until(lambda: not engine.streaming, "the end of the stream")
        await check_cancelled(bed, attempts=1)
        await until(lambda: not held(client.port), "the end of the connection", within=SOON)
        client.crash()


def held(port: int) -> list[object]:
    """The router's end of a client's connection, while it is open."""
    connections = psutil.Process().net_connections("tcp")
    return [one for one in connections if one.raddr[1:] == (port,)]


async def test_a_client_that_reads_slower_than_the_engine_writes_is_not_let_go(
    tmp_path: Path,
) -> None:
    async with Testbed(tmp_path, client_timeout=0.5) as bed, firehose() as engine:
        await bed.declare(f"http://127.0.0.1:{engine.port}")
        client = await Client.ask(bed, "/api/chat")
        await until(lambda: engine.streaming, "the stream")
        await stands_still(engine)
        for _ in range(10):
            await client.reader.readexactly(1_000_000)
            await asyncio.sleep(0.1)
        assert engine.streaming
        client.leave()
        await until(lambda: not engine.streaming, "the end of the stream")
