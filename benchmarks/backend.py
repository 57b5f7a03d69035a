"""The engine behind the proxies: answers like Ollama, at once, with no work of its own.

Run as `python -m benchmarks.backend PORT`. It is an `asyncio.Protocol` that writes bytes made
beforehand: whatever it takes is taken from the same two cores as the proxy under test.
"""

from __future__ import annotations

import asyncio
import heapq
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, cast

import msgspec
import uvloop

from benchmarks import traffic
from benchmarks.traffic import Form
from devtools.processes import Process, free_port, wait_until

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_FORMS: Final[dict[bytes, Form]] = {path.encode(): form for form, path in traffic.PATHS.items()}
_STREAM_TYPES: Final[dict[Form, bytes]] = {
    "sse": b"text/event-stream",
    "ndjson": b"application/x-ndjson",
}
_asked = msgspec.json.Decoder(traffic.Asked)


class BackendProcess(Process):
    """The backend on a free port of loopback."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "benchmarks.backend", str(self.port)]
        super().__init__("backend", command, folder=folder)

    def wait_ready(self) -> None:
        """Return when it listens."""

        def listens() -> bool:
            self.check()
            return listening(self.port)

        wait_until(listens, "the backend")


def listening(port: int) -> bool:
    """Whether somebody listens on this port of loopback."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def main() -> None:
    """Serve until a signal."""
    uvloop.run(_serve(int(sys.argv[1])))


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    known, pacer = _known(), _Pacer()
    loop.add_signal_handler(signal.SIGALRM, pacer.ring)
    server = await loop.create_server(
        lambda: _Connection(known, pacer), "127.0.0.1", port, backlog=1024
    )
    await server.serve_forever()


class _Connection(asyncio.Protocol):
    """Answers one request after the other."""

    def __init__(self, known: dict[bytes, bytes], pacer: _Pacer) -> None:
        self._known = known
        self._pacer = pacer
        self._buffer = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = _LENGTH.search(head)
        size = int(length[1]) if length is not None else 0
        if len(rest) < size:
            return
        self._buffer = rest[size:]
        target = head[: head.index(b" HTTP/1.")]
        form = _FORMS.get(target.removeprefix(b"POST "))
        if form is None:
            self._transport.write(self._known.get(target) or self._known[b""])
            return
        asked = _asked.decode(rest[:size])
        rate = traffic.rate_of(asked.model)
        if rate is None:
            self._transport.write(self._known[b"short " + form.encode()])
        else:
            self._stream(form, rate)

    def _stream(self, form: Form, rate: int) -> None:
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: " + _STREAM_TYPES[form] + b"\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        self._pacer.start(partial(self._tick, form), 1.0 / rate)

    def _tick(self, form: Form, number: int) -> bool:
        """Write one frame, as an engine writes one token; return whether more are to come."""
        if self._transport.is_closing():
            return False
        text = traffic.frame(form, number)
        last = number + 1 == traffic.FRAMES
        self._transport.write(b"%x\r\n%b\r\n%b" % (len(text), text, b"0\r\n\r\n" if last else b""))
        return not last


class _Pacer:
    """Calls each stream at its times, to the microsecond.

    The event loop's own timers have a resolution of a millisecond, which makes frames of different
    streams go out together, and a proxy then finds several whenever it wakes. The process's
    interval timer is finer.
    """

    def __init__(self) -> None:
        #: When, an ever new number, and what to call with the number of its call.
        self._due: list[tuple[float, int, Callable[[int], bool], int, float]] = []
        self._sequence = 0

    def start(self, tick: Callable[[int], bool], interval: float) -> None:
        """Call `tick` with 0, 1, 2... every so many seconds until it returns False."""
        self._push(time.monotonic() + interval, tick, 0, interval)
        self.ring()

    def ring(self) -> None:
        """Call what is due and set the timer for what is next."""
        while self._due:
            pause = self._due[0][0] - time.monotonic()
            if pause > 0.0:
                signal.setitimer(signal.ITIMER_REAL, pause)
                return
            due, _, tick, number, interval = heapq.heappop(self._due)
            if tick(number):
                self._push(due + interval, tick, number + 1, interval)

    def _push(self, due: float, tick: Callable[[int], bool], number: int, interval: float) -> None:
        self._sequence += 1
        heapq.heappush(self._due, (due, self._sequence, tick, number, interval))


def _known() -> dict[bytes, bytes]:
    """Return answers by request line; the one of the empty line is for all others."""
    models = [traffic.SHORT_MODEL, *(traffic.frames_model(rate) for rate in traffic.RATES)]
    rows = [
        {
            "name": model,
            "model": model,
            "size": 1_000_000_000,
            "digest": f"{number:064x}",
            "details": {
                "families": ["llama"],
                "parameter_size": "1B",
                "context_length": 8192,
            },
            "context_length": 8192,
            "capabilities": ["completion"],
        }
        for number, model in enumerate(models, 1)
    ]
    listing = msgspec.json.encode({"models": rows})
    return {
        b"": _http(b'{"error":"not found"}', status=b"404 Not Found"),
        b"GET /": _http(b"Ollama is running", kind=b"text/plain"),
        b"GET /api/version": _http(b'{"version":"0.33.0"}'),
        b"GET /api/tags": _http(listing),
        b"GET /api/ps": _http(listing),
        b"short sse": _http(traffic.whole_answer("sse")),
        b"short ndjson": _http(traffic.whole_answer("ndjson")),
    }


def _http(
    body: bytes, *, status: bytes = b"200 OK", kind: bytes = b"application/json; charset=utf-8"
) -> bytes:
    head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
    return head % (status, kind, len(body)) + body


if __name__ == "__main__":
    main()
