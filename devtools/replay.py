"""A server that answers what it is told to, byte for byte: recorded engines for tests.

It writes its own HTTP, so that nothing is added to what the real engine sent: no header of a
server library, and HTTP/1.0 where the engine speaks that.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

RECORDINGS: Final = Path(__file__).parent.parent / "tests" / "recordings"
#: Headers that belong to one connection, and are written anew.
_FRAMING: Final = frozenset({"content-length", "transfer-encoding", "connection", "keep-alive"})


class Reply(NamedTuple):
    """What is answered to a request."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    http: str = "1.1"
    #: Seconds before it is sent.
    delay: float = 0.0


def json_reply(value: object, status: int = 200, **headers: str) -> Reply:
    """Return a reply with JSON in it; underscores in header names stand for hyphens."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Reply(status, json.dumps(value).encode(), tuple(named.items()))


def recording(engine: str) -> list[dict[str, Any]]:
    """Return all exchanges recorded from an engine."""
    exchanges: list[dict[str, Any]] = json.loads((RECORDINGS / f"{engine}.json").read_text())[
        "exchanges"
    ]
    return exchanges


def recorded(exchange: dict[str, Any]) -> Reply:
    """Return the reply of one recorded exchange."""
    response = exchange["response"]
    headers = tuple((n, v) for n, v in response["headers"].items() if n not in _FRAMING)
    return Reply(response["status"], response["body"].encode(), headers, response["http"])


class Replay:
    """Answers on 127.0.0.1 by `"GET /path"`; use as an async context manager.

    `replies` may be changed at any time. What is not in it gets `default`, or no answer at all
    where that is None: the connection is closed.
    """

    def __init__(
        self, replies: dict[str, Reply] | None = None, default: Reply | None = None
    ) -> None:
        self.replies = dict(replies or {})
        self.default = default
        #: Request lines that came, such as `GET /health`, with the headers of each.
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[Any]] = set()

    @classmethod
    def of(cls, engine: str, **later: int) -> Self:
        """Return a server that answers as the recorded engine did, the first time each was asked.

        `later` picks another exchange by number, under any name.
        """
        exchanges = recording(engine)
        replies: dict[str, Reply] = {}
        for exchange in [exchanges[number] for number in later.values()] + exchanges:
            request = exchange["request"]
            replies.setdefault(f"{request['method']} {request['path']}", recorded(exchange))
        missing = [r for key, r in replies.items() if key.startswith("GET") and r.status == 404]  # noqa: PLR2004 - "not found"
        return cls(replies, missing[-1])

    @property
    def url(self) -> str:
        """Where it listens, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    def lines(self) -> list[str]:
        """Return the request lines that came."""
        return [line for line, _ in self.asked]

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

    async def start(self) -> None:
        """Listen, on the old port if it had one."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening, and end what is open."""
        if self._server is not None:
            self._server.close()
            for task in self._serving:
                task.cancel()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)
        try:
            await self._answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            return  # the client left, or `stop` was called
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *rest = head.strip().split("\r\n")
        headers = {name.lower(): text.strip() for name, _, text in (h.partition(":") for h in rest)}
        await reader.readexactly(int(headers.get("content-length", "0")))
        line = first.rsplit(" ", 1)[0]
        self.asked.append((line, headers))
        reply = self.replies.get(line, self.default)
        if reply is None:
            return
        await asyncio.sleep(reply.delay)
        writer.write(_bytes(reply))
        await writer.drain()


def _bytes(reply: Reply) -> bytes:
    lines = [f"HTTP/{reply.http} {reply.status} Recorded"]
    lines += [f"{name}: {text}" for name, text in reply.headers]
    lines += [f"Content-Length: {len(reply.body)}", "Connection: close"]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + reply.body
