"""A router with emulated engines, all in this process and on loopback, for tests of the whole."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from http.client import HTTPMessage, parse_headers
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec
from msgspec import Struct

from herd.app.router import Router
from herd.core.fleet import Capability
from herd.core.request import Outcome
from herd.engines.declared import parse_engine_url
from herd.ops.settings import RouterSettings
from herd.sim.server import EmulatedServer, EngineDialect
from herd.sim.spec import EngineSpec, ModelSpec
from herd.store.reader import Reader

CHAT = "llama3.2:3b"
EMBEDDER = "embedder:latest"
MB = 1_000_000
#: What is declared of an engine so that it is asked first, or last, while nothing is learned.
FAST = "&bandwidth=1000GB/s"
SLOW = "&bandwidth=1GB/s"
#: Limits that let a test see a time-out, and are far from what an unspoilt answer takes.
QUICK: dict[str, Any] = {
    "connect_timeout": 2.0,
    "first_byte_timeout": 20.0,
    "idle_timeout": 20.0,
    "client_timeout": 20.0,
    "patience": 20.0,
}


async def until(
    condition: Callable[[], object], what: str = "the condition", *, within: float = 5.0
) -> None:
    """Poll until a condition holds; raises `TimeoutError` that says what did not come."""
    try:
        async with asyncio.timeout(within):
            while not condition():  # noqa: ASYNC110 - has a deadline
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise TimeoutError(f"{what} did not come within {within:g} s") from None


def engine_spec(**changes: Any) -> EngineSpec:
    """Describe a fast engine with a chat model and an embedder."""
    talks: tuple[Capability, ...] = ("completion", "tools")
    given: dict[str, Any] = {
        "models": (
            ModelSpec(name=CHAT, weight_bytes=10 * MB, capabilities=talks),
            ModelSpec(
                name=EMBEDDER,
                weight_bytes=MB,
                capabilities=("embedding",),
                embedding_length=32,
            ),
        ),
        "memory_bytes": 100 * MB,
        "load_rate": 10_000.0 * MB,
        "prefill_rate": 100_000.0,
        "decode_rate": 400.0,
        "alpha": 0.0,
        "slots": 4,
    }
    return EngineSpec(**{**given, **changes})


class Message(Struct, frozen=True):
    """One HTTP message as it was on the wire."""

    #: Request line or status line.
    first: str
    headers: HTTPMessage
    #: Without the chunks' framing.
    body: bytes


class Traffic(Struct):
    """A request that went through a tap, and what came back."""

    sent: bytearray
    came: bytearray
    #: Number of the connection that it went over.
    connection: int

    @property
    def request(self) -> Message:
        """What the engine received."""
        return parse_message(bytes(self.sent))

    @property
    def answer(self) -> Message:
        """What the engine answered."""
        return parse_message(bytes(self.came))


class Tap:
    """A relay of bytes before an engine that keeps all that passes."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self.all: list[Traffic] = []
        self._engine_port = port
        self._connections = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where it stands in for the engine."""
        return f"http://127.0.0.1:{self.port}"

    def on(self, path: str) -> list[Traffic]:
        """Return what passed for a path, whatever its query."""
        return [one for one in self.all if one.request.first.split()[1].split("?")[0] == path]

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close all connections."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a connection is served in a task")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        engine_reader, engine_writer = await asyncio.open_connection("127.0.0.1", self._engine_port)
        passing: list[Traffic] = []
        self._connections += 1
        number = self._connections

        def sent(data: bytes) -> None:
            if not passing or passing[-1].came:
                passing.append(Traffic(bytearray(), bytearray(), number))
                self.all.append(passing[-1])
            passing[-1].sent += data

        def came(data: bytes) -> None:
            passing[-1].came += data

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_carry(reader, engine_writer, sent))
                group.create_task(_carry(engine_reader, writer, came))
        finally:
            for end in (writer, engine_writer):
                end.transport.abort()


async def _carry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, keep: Callable[[bytes], None]
) -> None:
    """Pass on until the one side ends, then end the other too."""
    try:
        while data := await reader.read(65536):
            keep(data)
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()


def parse_message(data: bytes) -> Message:
    """Take one HTTP/1.1 message apart."""
    head, _, rest = data.partition(b"\r\n\r\n")
    first, _, lines = head.partition(b"\r\n")
    headers = parse_headers(io.BytesIO(lines + b"\r\n\r\n"))
    if headers.get("Transfer-Encoding", "").lower() == "chunked":
        rest = _unchunked(rest)
    return Message(first.decode(), headers, rest)


def _unchunked(data: bytes) -> bytes:
    """Undo chunked transfer coding (RFC 9112, 7.1), as far as it came."""
    parts = []
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        parts.append(data[:length])
        data = data[length + 2 :]
    return b"".join(parts)


class Engine(Struct):
    """An emulated engine in the fleet."""

    server: EmulatedServer
    tap: Tap
    name: str
    #: The node's id in the router.
    node: str


class Testbed:
    """A router, and engines that are added to it by URL. An async context manager.

    After an undisturbed end it checks that the store has exactly one record of every request.
    `settings` are the router's; those that are not given are `QUICK`'s.
    """

    __test__ = False

    def __init__(self, folder: Path, **settings: Any) -> None:
        values = {**QUICK, "host": "127.0.0.1", "port": 0, "data_dir": folder / "data", **settings}
        self.router = Router(RouterSettings(**values))
        self.http: aiohttp.ClientSession
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self.router.start(self._stack)
            self.http = await self._stack.enter_async_context(
                aiohttp.ClientSession(self.url, auto_decompress=False)
            )
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()
        if exc_type is None:
            self._check_store()

    @property
    def url(self) -> str:
        """Where clients point."""
        return f"http://127.0.0.1:{self.router.port}"

    async def add(
        self,
        name: str = "one",
        *,
        dialect: EngineDialect = "ollama",
        answer_tokens: tuple[int, int] = (8, 8),
        facts: str = "",
        **spec: Any,
    ) -> Engine:
        """Start an engine, with a tap before it, and wait until the router knows it.

        `facts` goes into the query of its URL; `spec` changes what it is.
        """
        described = engine_spec(**spec)
        server = EmulatedServer(described, dialect=dialect, answer_tokens=answer_tokens)
        await self._stack.enter_async_context(server)
        tap = Tap(server.port)
        await tap.start()
        self._stack.push_async_callback(tap.stop)
        node = await self.declare(f"{tap.url}?name={name}&slots={described.slots}{facts}")
        return Engine(server, tap, name, node)

    async def declare(self, url: str) -> str:
        """Add an engine that runs already, and wait until the router knows it."""
        node = self.router.engines.add(parse_engine_url(url))
        nodes = self.router.driver.scheduler.nodes
        await until(lambda: node in nodes and nodes[node].replicas, f"the engine at {url}")
        return node

    async def ask(self, path: str, body: Any, **options: Any) -> Answer:
        """Post JSON and return the whole answer."""
        async with self.http.post(path, json=body, **options) as response:
            return Answer(response.status, dict(response.headers), await response.read())

    async def get(self, path: str, **options: Any) -> Answer:
        """Fetch a path."""
        async with self.http.get(path, **options) as response:
            return Answer(response.status, dict(response.headers), await response.read())

    async def outcome(self, request_id: str) -> Outcome:
        """Wait for a request's end, and return its record."""
        recent = self.router.recent
        await until(lambda: recent.get(request_id), f"the outcome of {request_id}")
        detail = (await self.get(f"/herd/v1/requests/{request_id}")).json()
        return msgspec.convert(detail["outcome"], Outcome)

    async def only_outcome(self) -> Outcome:
        """Return the outcome of the only request that there was."""
        recent = self.router.recent
        await until(lambda: recent.total, "the first outcome")
        if recent.total != 1:
            raise AssertionError(f"{recent.total} requests have ended")
        return await self.outcome(recent.latest(1)[0].request.id)

    def _check_store(self) -> None:
        """Every request that ended is on disk, once and as it was told."""
        reader = Reader(self.router.settings.data_dir / "herd.db")
        stored = [row.id for row in reader.recent(500)]
        told = self.router.recent.latest(500)
        if sorted(stored) != sorted(outcome.request.id for outcome in told):
            raise AssertionError(f"on disk are {stored}, and ended have {told}")
        for outcome in told:
            if reader.get(outcome.request.id) != outcome:
                raise AssertionError(f"{outcome.request.id} is not on disk as it was told")
        reader.close()


class Answer(Struct, frozen=True):
    """An answer that a client got."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Read the body."""
        return msgspec.json.decode(self.body)

    def lines(self) -> list[Any]:
        """Read a body of lines of JSON."""
        return [msgspec.json.decode(line) for line in self.body.splitlines()]

    def events(self) -> list[Any]:
        """Read the data of an event stream; `[DONE]` stays as it is."""
        data = [line[5:].strip() for line in self.body.splitlines() if line.startswith(b"data:")]
        return [text.decode() if text == b"[DONE]" else msgspec.json.decode(text) for text in data]


async def until_async(
    condition: Callable[[], Awaitable[object]], what: str, *, within: float = 5.0
) -> None:
    """Poll until a condition that has to be asked for holds."""
    try:
        async with asyncio.timeout(within):
            while not await condition():  # noqa: ASYNC110 - has a deadline
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise TimeoutError(f"{what} did not come within {within:g} s") from None
