"""Answers requests from an emulated engine in real time, in whatever shape a dialect gives them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

from aiohttp import web
from msgspec import Struct

from herd.ops.clock import Clock
from herd.sim import ollama
from herd.sim.ask import Ask, Lengths, Shape
from herd.sim.engines import emulate
from herd.sim.faults import Break, Faults
from herd.sim.gowords import Problem
from herd.sim.live import Handle, LiveEngine
from herd.sim.spec import EngineSpec, Finished, Job

#: Bytes up to which Go's HTTP server sends an answer in one piece, with its length.
GO_BUFFER = 2048
_GIB = 2**30

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Counters(Struct):
    """What became of the requests for work."""

    #: Answered completely.
    served: int = 0
    #: Given up because the client left.
    cancelled: int = 0
    #: Spoilt by a fault.
    broken: int = 0


class _Plan(Struct, frozen=True):
    """How far a stream gets: after `stop` tokens it breaks or stalls; None is never."""

    stop: int | None
    breaks: bool
    how: Break


class Answering:
    """An engine with its faults and counters, behind an HTTP server."""

    def __init__(
        self,
        spec: EngineSpec,
        clock: Clock,
        *,
        lengths: Lengths,
        faults: Faults,
        counters: Counters,
        resident: tuple[str, ...] = (),
        chunk_above: int | None = GO_BUFFER,
    ) -> None:
        self.spec = spec
        self.clock = clock
        self.lengths = lengths
        self.faults = faults
        self.counters = counters
        self.engine = emulate(spec, now=clock(), resident=resident)
        self.live = LiveEngine(self.engine, clock)
        self._chunk_above = chunk_above
        self._ids = itertools.count(1)

    async def answer(
        self, request: web.Request, ask: Ask, model: str, shape: Shape
    ) -> web.StreamResponse:
        """Answer with generated text; raises `Problem` if there is none to come."""
        await self._fail()
        job = Job(
            id=f"job-{next(self._ids)}",
            model=model,
            prompt_tokens=len(ask.tokens),
            output_tokens=ask.output_tokens,
            prompt=ask.tokens,
            produced=ask.produced,
            context=ask.context,
            keep_alive=ask.keep_alive,
        )
        breaks = self.faults.break_after is not None
        handle = self.live.submit(job, watch=ask.stream or breaks)
        try:
            self._check(handle)
            if ask.stream:
                return await self._stream(request, ask, shape, handle)
            return await self._whole(request, shape, handle)
        finally:
            self._close(handle)

    async def compute(
        self,
        model: str,
        prompt_tokens: int,
        *,
        context: int | None = None,
        keep_alive: float | None = None,
    ) -> Finished:
        """Read a prompt (or just load the model) without generating; raises `Problem`."""
        await self._fail()
        job = Job(
            id=f"job-{next(self._ids)}",
            model=model,
            prompt_tokens=prompt_tokens,
            context=context,
            keep_alive=keep_alive,
        )
        handle = self.live.submit(job, watch=False)
        try:
            self._check(handle)
            finished = await self._done(handle)
            self.counters.served += 1
            return finished
        finally:
            self._close(handle)

    async def _stream(
        self, request: web.Request, ask: Ask, shape: Shape, handle: Handle
    ) -> web.StreamResponse:
        plan = _plan(self.faults)
        if not shape.headers_first:
            await handle.more(0)
        response = web.StreamResponse(
            headers={"Content-Type": shape.stream_type, **shape.stream_headers}
        )
        response.enable_chunked_encoding()
        await response.prepare(request)
        opening = True
        seen = sent = 0
        while plan.stop is None or sent < plan.stop:
            await handle.more(seen)
            seen = handle.tokens
            now = self.clock()
            ready = min(seen, ask.pieces, seen if plan.stop is None else plan.stop)
            parts = [shape.opening(now)] if opening else []
            parts += [shape.token(number, now) for number in range(sent, ready)]
            opening, sent = False, ready
            if handle.finished is not None and (plan.stop is None or sent < plan.stop):
                await response.write(b"".join((*parts, shape.closing(handle.finished, now))))
                await response.write_eof()
                self.counters.served += 1
                return response
            if parts:
                await response.write(b"".join(parts))
        if not plan.breaks:
            await for_ever()
        handle.spoilt = True
        return await self._break(request, response, shape, plan.how)

    async def _break(
        self, request: web.Request, response: web.StreamResponse, shape: Shape, how: Break
    ) -> web.StreamResponse:
        """End a stream as a dying engine does."""
        self.counters.broken += 1
        if how == "cut":
            await _cut(request)
        if how == "error":
            await response.write(shape.broken(self.clock()))
        await response.write_eof()
        return response

    async def _whole(self, request: web.Request, shape: Shape, handle: Handle) -> web.Response:
        faults = self.faults
        if faults.break_after is not None:
            await handle.more(faults.break_after)
            self.counters.broken += 1
            handle.spoilt = True
            if faults.how == "error":
                raise Problem(500, ollama.MODEL_DIED)
            await _cut(request)
        body = shape.whole(await self._done(handle), self.clock())
        self.counters.served += 1
        return reply(body, shape.whole_type, chunk_above=self._chunk_above)

    async def _done(self, handle: Handle) -> Finished:
        """Wait for the end of a job that the engine has taken."""
        await handle.done()
        if handle.finished is None:
            raise RuntimeError(f"{handle.job.id} was rejected after it was taken")
        return handle.finished

    def _check(self, handle: Handle) -> None:
        """Raise `Problem` if the engine does not take the job."""
        if handle.rejected is None:
            return
        if handle.rejected.reason == "queue_full":
            raise Problem(503, ollama.QUEUE_FULL)
        if handle.rejected.reason == "too_big":
            memory = self.spec.memory_bytes / _GIB
            raise Problem(
                500, f"model requires more system memory than is available ({memory:.1f} GiB)"
            )
        raise Problem(404, f"model '{handle.job.model}' not found")

    def _close(self, handle: Handle) -> None:
        if self.live.close(handle) and not handle.spoilt:
            self.counters.cancelled += 1

    async def _fail(self) -> None:
        """Let a fault strike that comes before any work."""
        if self.faults.status:
            self.counters.broken += 1
            raise Problem(self.faults.status, "emulated failure")
        if self.faults.mute:
            self.counters.broken += 1
            await for_ever()


def reply(
    body: bytes,
    content_type: str,
    *,
    status: int = 200,
    chunk_above: int | None = GO_BUFFER,
) -> web.Response:
    """Return a whole answer, chunked if it has more bytes than a server holds back (None: all)."""
    response = web.Response(body=body, status=status, headers={"Content-Type": content_type})
    if chunk_above is not None and len(body) > chunk_above:
        response.enable_chunked_encoding()
    return response


def guarded(handler: Handler, refuse: Callable[[Problem], web.Response]) -> Handler:
    """Return a handler that answers its problems in the way of its dialect."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except Problem as problem:
            return refuse(problem)

    return answer


def _plan(faults: Faults) -> _Plan:
    """Fix what befalls a stream when it begins, whatever is switched later."""
    limits = [at for at in (faults.break_after, faults.stall_after) if at is not None]
    stop = min(limits, default=None)
    return _Plan(stop, stop is not None and stop == faults.break_after, faults.how)


async def for_ever() -> None:
    """Wait until the client leaves, which cancels the handler."""
    await asyncio.get_running_loop().create_future()


async def _cut(request: web.Request) -> None:
    """Break the connection off."""
    if request.transport is not None:
        request.transport.abort()
    await for_ever()
