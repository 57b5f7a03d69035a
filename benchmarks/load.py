"""The load: keeps connections busy for a while, counts what comes back and how late."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Literal, cast

import uvloop
from msgspec import Struct

from benchmarks import traffic
from benchmarks.framing import Answer
from benchmarks.traffic import Form

_OK: Final = 200
_NS: Final = 1e-9


class Scenario(Struct, frozen=True, kw_only=True):
    """One kind of load. It is put on each proxy, and on the backend itself, in the same way."""

    name: str
    title: str
    unit: Literal["request", "frame"]
    form: Form = "sse"
    connections: int
    #: Requests a second over all connections, or frames a second of each stream; 0 for one
    #: request after the other.
    rate: int = 0

    def request(self) -> bytes:
        """Return what is sent again and again."""
        stream = self.unit == "frame"
        model = traffic.frames_model(self.rate) if stream else traffic.SHORT_MODEL
        body = traffic.request_body(model, stream=stream)
        head = f"POST {traffic.PATHS[self.form]} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body


class Sample(Struct, frozen=True, kw_only=True):
    """What one run of a scenario gave."""

    #: Requests or frames that were answered while it was measured, and for how long that was.
    count: int
    seconds: float
    #: CPU seconds that the measured process used meanwhile.
    cpu: float
    #: Of a request from its start to its last byte, or of a frame from the backend's write to our
    #: read; seconds, sorted.
    delays: list[float]


class LoadError(Exception):
    """The answers were not what they should be: nothing was measured."""


def run(
    scenario: Scenario, port: int, *, cpu: Callable[[], float], warm_up: float, seconds: float
) -> Sample:
    """Put the load on a port of loopback for a while; raises `LoadError`."""
    load = _Load(scenario)
    return uvloop.run(load.run(port, cpu, warm_up, seconds))


class _Load:
    """All connections of one run, and what they have counted."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.request = scenario.request()
        self.count = 0
        self.delays: list[float] | None = None
        self.over = False
        self._failed: asyncio.Future[None]

    async def run(
        self, port: int, cpu: Callable[[], float], warm_up: float, seconds: float
    ) -> Sample:
        loop = asyncio.get_running_loop()
        self._failed = loop.create_future()
        factory = _Stream if self.scenario.unit == "frame" else _Requests
        connections: list[_Connection] = []
        try:
            for number in range(self.scenario.connections):
                made = await loop.create_connection(lambda: factory(self), "127.0.0.1", port)
                connections.append(made[1])
                made[1].start(after=number * _stagger(self.scenario))
            return await self._measure(cpu, warm_up, seconds)
        finally:
            self.over = True
            for connection in connections:
                connection.close()
            await asyncio.sleep(0)  # lets the sockets go before their loop does

    async def _measure(self, cpu: Callable[[], float], warm_up: float, seconds: float) -> Sample:
        await self._wait(warm_up)
        delays: list[float] = []
        self.delays = delays
        count, used, begun = self.count, cpu(), time.monotonic()
        await self._wait(seconds)
        sample = Sample(
            count=self.count - count,
            cpu=cpu() - used,
            seconds=time.monotonic() - begun,
            delays=sorted(delays),
        )
        if not sample.count:
            raise LoadError(f"no answer within {seconds:g} s")
        return sample

    def fail(self, why: str) -> None:
        """End the run: what it measured is not what it should measure."""
        if not self.over and not self._failed.done():
            self._failed.set_exception(LoadError(why))

    async def _wait(self, seconds: float) -> None:
        await asyncio.wait([self._failed], timeout=seconds)
        if self._failed.done():
            self._failed.result()


class _Connection(asyncio.Protocol):
    """Sends requests, one after the other."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._transport: asyncio.Transport
        self._answer = Answer()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.fail(f"a connection was closed: {exc or 'by the other side'}")

    def start(self, *, after: float) -> None:
        """Begin after so many seconds."""
        asyncio.get_running_loop().call_later(after, self.send)

    def send(self) -> None:
        """Send the next request."""
        self._answer = Answer()
        if not self._load.over:
            self._transport.write(self._load.request)

    def close(self) -> None:
        """Hang up."""
        self._transport.abort()


class _Requests(_Connection):
    """Short requests, at once one after the other or each at its time."""

    def __init__(self, load: _Load) -> None:
        super().__init__(load)
        rate, connections = load.scenario.rate, load.scenario.connections
        self._interval = connections / rate if rate else 0.0
        self._due = 0.0
        self._begun = 0.0
        self._size = 0

    def start(self, *, after: float) -> None:
        self._due = time.monotonic() + after
        super().start(after=after)

    def send(self) -> None:
        self._begun = time.monotonic()
        self._size = 0
        super().send()

    def data_received(self, data: bytes) -> None:
        answer, load = self._answer, self._load
        self._size += len(answer.feed(data))
        if not answer.done:
            return
        if answer.status != _OK or self._size != traffic.ANSWER_BYTES:
            load.fail(f"answered {answer.status} with {self._size} bytes: {data[-300:]!r}")
            return
        now = time.monotonic()
        load.count += 1
        if load.delays is not None:
            load.delays.append(now - self._begun)
        self._next(now)

    def _next(self, now: float) -> None:
        """Send when it is time; if that has passed, the wait for it counts as delay."""
        if not self._interval:
            self.send()
            return
        self._due += self._interval
        if self._due > now:
            asyncio.get_running_loop().call_later(self._due - now, self.send)
        else:
            self.send()
            self._begun = self._due


class _Stream(_Connection):
    """Streams, one after the other; each must come whole."""

    def __init__(self, load: _Load) -> None:
        super().__init__(load)
        self._separator = traffic.SEPARATORS[load.scenario.form]
        self._frames = 0

    def send(self) -> None:
        self._frames = 0
        super().send()

    def data_received(self, data: bytes) -> None:
        answer, load = self._answer, self._load
        body = answer.feed(data)
        count = body.count(self._separator)
        self._frames += count
        load.count += count
        if load.delays is not None and (sent := traffic.sent_at(body)) is not None:
            load.delays.append((time.monotonic_ns() - sent) * _NS)
        if not answer.done:
            return
        if answer.status != _OK or self._frames != traffic.FRAMES:
            load.fail(f"answered {answer.status} with {self._frames} frames: {data[-300:]!r}")
            return
        self.send()


def _stagger(scenario: Scenario) -> float:
    """Seconds from one connection's begin to the next one's, so that they do not go in step."""
    if scenario.unit == "frame":
        interval = 1.0 / scenario.rate
        return interval + interval / scenario.connections
    return 1.0 / scenario.rate if scenario.rate else 0.0
