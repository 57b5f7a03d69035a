"""The hot path: one attempt, from the engine's socket to the client's, for all dialects.

Frames are forwarded as bytes. Nothing is parsed, logged, timed or allocated per chunk that is not
needed there. The client sees nothing of an attempt before the engine's first bytes, so until then
another attempt can take its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from aiohttp import web
from msgspec import Struct

from herd.core.actions import Dispatch, Stay, Target
from herd.core.request import Failure, Result
from herd.engines.upstream import Upstream, UpstreamAnswer, UpstreamError
from herd.fleet.driver import Ticket
from herd.gateway.exchange import Exchange, Outbound, attempt_headers
from herd.gateway.watch import Watch, Watchdog
from herd.ops.clock import Clock
from herd.wire import errors
from herd.wire.link import DOOR_ERROR_HEADER
from herd.wire.meter import Filter
from herd.wire.ollama_request import Untranslatable
from herd.wire.ollama_response import BadAnswer

#: Statuses after which another replica may do better. 404: it no longer has the model, or, as
#: vLLM words it, never had; the router knows the model, so this replica is out of date.
_RETRYABLE: Final = frozenset({404, 408, 409, 425, 429, 500, 502, 503, 504})
#: Engines that close the connection after a stream without having said so: a next request that is
#: put on it at that moment would be lost.
_CLOSE_AFTER_STREAM: Final = frozenset({"llamacpp"})
_OK: Final = 200
_ERROR: Final = 400
_JSON: Final[Mapping[str, str]] = MappingProxyType(
    {"content-type": "application/json; charset=utf-8"}
)
_DOOR_ERROR: Final = DOOR_ERROR_HEADER.lower()
#: Headers of an engine that mean its connection, not its answer, or that Herd sets itself.
_DROPPED: Final = frozenset(
    {
        "connection",
        "content-length",
        "date",
        "keep-alive",
        "proxy-authenticate",
        "server",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


class Limits(Struct, frozen=True, kw_only=True):
    """How long an attempt waits for what, in seconds."""

    first_byte: float
    idle: float
    client: float


class ClientGone(Exception):
    """The client hung up, or reads no more."""


class EngineAnswer(Struct, frozen=True):
    """An error that an engine answered with, in the client's dialect."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class AttemptFailed(Exception):
    """The attempt came to nothing. `began`: bytes of it have gone to the client."""

    def __init__(
        self,
        failure: Failure,
        *,
        began: bool = False,
        result: Result | None = None,
        answer: EngineAnswer | None = None,
        response: web.StreamResponse | None = None,
    ) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.began = began
        self.result = result or Result()
        #: What the engine said, where it answered with an error.
        self.answer = answer
        #: The response that has begun and ended in an error.
        self.response = response


class Relay:
    """Carries out attempts."""

    def __init__(
        self,
        upstream: Upstream,
        clock: Clock,
        limits: Limits,
        *,
        credentials: Callable[[Target], Mapping[str, str]],
    ) -> None:
        self.upstream = upstream
        self.clock = clock
        self.limits = limits
        #: What authenticates the router at a target.
        self.credentials = credentials
        self._watchdog = Watchdog(clock)

    async def attempt(
        self, exchange: Exchange, dispatch: Dispatch, ticket: Ticket
    ) -> web.StreamResponse:
        """Put the request to the target and answer the client from it.

        Raises `AttemptFailed`, `ClientGone`, or `CancelledError` when the client has left. In every
        case the engine's connection is closed when this returns, unless it can be used again.
        """
        started = self.clock()
        watch = self._watchdog.start(started + self.limits.first_byte)
        ticket.on_abort(watch.break_off)
        run = _Run(self, exchange, dispatch, ticket, watch, started)
        try:
            return await run.run()
        except asyncio.CancelledError:
            failure = watch.caught()
            if failure is None:
                raise
            if watch.blame == "client":
                raise ClientGone(failure.message) from None
            raise await run.broken(failure) from None
        except UpstreamError as error:
            failure = Failure(kind=error.kind, message=str(error), retryable=True)
            raise await run.broken(failure) from error
        except ConnectionError as error:
            # The engine's side raises `UpstreamError`, so this is the client's.
            raise ClientGone(str(error) or "the client closed the connection") from error
        finally:
            ticket.on_abort(None)
            watch.end()
            run.close()

    def close(self) -> None:
        """Stop watching; attempts under way are not touched."""
        self._watchdog.close()


class _Run:
    """The state of one attempt."""

    def __init__(
        self,
        relay: Relay,
        exchange: Exchange,
        dispatch: Dispatch,
        ticket: Ticket,
        watch: Watch,
        started: float,
    ) -> None:
        self._relay = relay
        self._exchange = exchange
        self._dispatch = dispatch
        self._ticket = ticket
        self._watch = watch
        self._started = started
        self._limits = relay.limits
        self._clock = relay.clock
        self._answer: UpstreamAnswer | None = None
        self._response: web.StreamResponse | None = None
        self._filter: Filter | None = None
        self._said = Stay()

    async def run(self) -> web.StreamResponse:
        try:
            trivial = self._exchange.trivial(self._dispatch.target, self._started)
            if trivial is not None:
                return await self._whole(trivial, {**self._herd_headers(), **_JSON}, Result())
            outbound = self._exchange.outbound(self._dispatch.target, self._dispatch.stay)
            self._said = outbound.stay
        except Untranslatable as error:
            raise self._untranslatable(error) from error
        answer = await self._send(outbound)
        if answer.status >= _ERROR:
            raise await self._refused(answer, outbound)
        if self._exchange.request.stream and not _is_whole(answer):
            return await self._stream(answer, outbound)
        body = await answer.read()
        try:
            text, result = outbound.whole(body, self._started, self._clock())
        except BadAnswer as error:
            failure = Failure(kind="protocol", message=str(error), retryable=True)
            raise AttemptFailed(failure) from error
        return await self._whole(text, self._headers(answer, outbound.whole_type), result)

    async def broken(self, failure: Failure) -> AttemptFailed:
        """Tell a client that has seen bytes that no more will come, and say so to the caller."""
        if self._response is None:
            return AttemptFailed(failure)
        problem = errors.Problem(status=502, message=failure.message)
        request = self._exchange.request
        result = self._filter.result if self._filter is not None else None
        try:
            await self._response.write(errors.frame(request.dialect, problem, request.id))
            await self._response.write_eof()
        except ConnectionError:
            raise ClientGone("the client closed the connection") from None
        return AttemptFailed(failure, began=True, result=result, response=self._response)

    def close(self) -> None:
        """Let go of the engine; one that still generates is cut off at once."""
        if self._answer is not None:
            self._answer.close()

    def _untranslatable(self, error: Untranslatable) -> AttemptFailed:
        request = self._exchange.request
        problem = errors.Problem(status=_ERROR, message=str(error))
        body = errors.body(request.dialect, problem, request.id)
        failure = Failure(kind="status", message=str(error), status=_ERROR)
        answer = EngineAnswer(_ERROR, {**self._herd_headers(), **_JSON}, body)
        return AttemptFailed(failure, answer=answer)

    async def _send(self, outbound: Outbound) -> UpstreamAnswer:
        target = self._dispatch.target
        headers = self._exchange.headers()
        headers.update(self._relay.credentials(target))
        if self._exchange.request.stream and target.kind in _CLOSE_AFTER_STREAM:
            headers["Connection"] = "close"
        self._answer = await self._relay.upstream.send(
            "POST", target.url + outbound.path, headers, outbound.body
        )
        return self._answer

    async def _refused(self, answer: UpstreamAnswer, outbound: Outbound) -> AttemptFailed:
        """The engine answered with an error: keep it, as it is what the client should see."""
        door = answer.headers.get(_DOOR_ERROR)
        if door is not None:
            # The agent's door speaks, not the engine: another replica may well be reached.
            message = f"the node's door: {door}: {_excerpt(answer.status, await answer.read())}"
            return AttemptFailed(Failure(kind="connect", message=message, retryable=True))
        body = outbound.error(answer.status, await answer.read())
        failure = Failure(
            kind="status",
            message=_excerpt(answer.status, body),
            status=answer.status,
            retryable=answer.status in _RETRYABLE,
        )
        headers = self._headers(answer, outbound.whole_type)
        return AttemptFailed(failure, answer=EngineAnswer(answer.status, headers, body))

    async def _whole(
        self, text: bytes, headers: Mapping[str, str], result: Result
    ) -> web.StreamResponse:
        self._watch.blame = "client"
        self._watch.deadline = self._clock() + self._limits.client
        status = self._answer.status if self._answer is not None else _OK
        response = web.Response(status=status, headers=headers, body=text)
        await response.prepare(self._exchange.inbound)
        await response.write_eof()
        self._ticket.finished(result)
        return response

    async def _stream(self, answer: UpstreamAnswer, outbound: Outbound) -> web.StreamResponse:
        clock, watch, limits = self._clock, self._watch, self._limits
        stream = self._filter = outbound.filter(self._started)
        data = b""
        while not data:
            # Not a byte goes out before there is a whole frame, so that a retry stays possible.
            chunk = await answer.chunk()
            data = stream.feed(chunk, clock()) if chunk else stream.finish(clock())
            if not chunk:
                break
        if not chunk and not data and not stream.complete:
            message = stream.error or "the engine closed the connection without an answer"
            raise AttemptFailed(Failure(kind="broken", message=message, retryable=True))
        response = await self._begin(answer, outbound)
        write, idle, client = response.write, limits.idle, limits.client
        watch.what = f"no data for {idle:g} s"
        while chunk:
            now = clock()
            if data:
                watch.blame = "client"
                watch.deadline = now + client
                await write(data)
                watch.blame = "engine"
            watch.deadline = now + idle
            chunk = await answer.chunk()
            data = stream.feed(chunk, clock()) if chunk else stream.finish(clock())
        return await self._ended(data, stream, response)

    async def _begin(self, answer: UpstreamAnswer, outbound: Outbound) -> web.StreamResponse:
        response = web.StreamResponse(
            status=answer.status, headers=self._headers(answer, outbound.stream_type)
        )
        self._ticket.first_frame()
        await response.prepare(self._exchange.inbound)
        self._response = response
        return response

    async def _ended(
        self, data: bytes, stream: Filter, response: web.StreamResponse
    ) -> web.StreamResponse:
        """The engine closed the stream: complete, or not, which must not look like it."""
        if data:
            await response.write(data)
        if stream.complete:
            await response.write_eof()
            self._ticket.finished(stream.result)
            return response
        if stream.error is not None:
            # Its frame is among those that have gone out.
            await response.write_eof()
            failure = Failure(kind="engine", message=stream.error)
            raise AttemptFailed(failure, began=True, result=stream.result, response=response)
        message = "the engine ended the answer before it was complete"
        raise await self.broken(Failure(kind="broken", message=message, retryable=True))

    def _headers(self, answer: UpstreamAnswer, content_type: str) -> dict[str, str]:
        headers = {
            name: value
            for name, value in answer.headers.items()
            if name not in _DROPPED and not name.startswith("access-control-")
        }
        if content_type:
            headers["content-type"] = content_type
        return headers | self._herd_headers()

    def _herd_headers(self) -> dict[str, str]:
        return attempt_headers(
            self._exchange,
            self._dispatch.target,
            attempt=self._dispatch.attempt,
            dispatched=self._dispatch.decision.at,
            stay=self._said,
        )


def _is_whole(answer: UpstreamAnswer) -> bool:
    """A stream was asked for, and the engine answered in one piece, as Ollama does to a load."""
    return answer.headers.get("content-type", "").startswith("application/json")


def _excerpt(status: int, body: bytes) -> str:
    return f"the engine answered {status}: {body[:300].decode('utf-8', 'replace').strip()}"
