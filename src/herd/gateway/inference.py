"""Serves the inference endpoints: from a client's bytes to a request, through its attempts."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import Final

from aiohttp import web

from herd.core import refusals
from herd.core.fleet import Capability
from herd.core.names import canonical
from herd.core.request import Dialect, Failure, Refusal, Request
from herd.fleet.driver import Driver, Ticket
from herd.gateway.endpoints import ENDPOINTS, Endpoint
from herd.gateway.exchange import Exchange
from herd.gateway.problems import problem_response
from herd.gateway.relay import AttemptFailed, ClientGone, EngineAnswer, Relay
from herd.ops.clock import Clock
from herd.ops.logs import logger
from herd.wire import errors
from herd.wire.caller import BadHeader, Caller, read_caller
from herd.wire.errors import Problem
from herd.wire.peek import BadBody, Peek, peek

_NOT_FOUND: Final = 404
_BAD_REQUEST: Final = 400


class Inference:
    """Answers requests on the inference endpoints."""

    def __init__(
        self, driver: Driver, relay: Relay, clock: Clock, *, overrule: bool = False
    ) -> None:
        self._driver = driver
        self._relay = relay
        self._clock = clock
        #: The scheduler's word on how long a model stays goes before the client's.
        self._overrule = overrule
        self._log = logger("gateway")

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of all inference endpoints."""
        return [
            web.post(path, partial(self._serve, endpoint)) for path, endpoint in ENDPOINTS.items()
        ]

    async def _serve(self, endpoint: Endpoint, inbound: web.Request) -> web.StreamResponse:
        arrived = self._clock()
        body = await inbound.read()
        try:
            peeked = peek(body)
            caller = read_caller(
                inbound.headers, inbound.remote or "", tier=peeked.tier, session=peeked.session
            )
        except (BadBody, BadHeader) as error:
            return problem_response(endpoint.dialect, Problem(status=400, message=str(error)))
        if not peeked.model:
            return problem_response(endpoint.dialect, _no_model(endpoint))
        request = _request(endpoint, peeked, caller, arrived)
        exchange = Exchange(
            endpoint=endpoint,
            request=request,
            inbound=inbound,
            body=body,
            arrived=arrived,
            unloads=peeked.empty and peeked.unload,
            overrule=self._overrule,
        )
        ticket = self._driver.submit(request, peeked.prefix)
        try:
            return await self._answer(exchange, ticket)
        except asyncio.CancelledError:
            ticket.left()
            raise
        except ClientGone as gone:
            ticket.left()
            self._log.info("client left", request=request.id, cause=str(gone))
            if inbound.transport is not None:
                # Closing would wait until a client that does not read has read what it was sent.
                inbound.transport.abort()
            raise asyncio.CancelledError from gone
        except Exception as error:
            # A fault of our own: end the request's life before it becomes a 500.
            failure = Failure(kind="protocol", message=f"internal error: {error!r}")
            ticket.failed(failure, began=True)
            ticket.left()  # where no attempt was under way that could fail
            raise

    async def _answer(self, exchange: Exchange, ticket: Ticket) -> web.StreamResponse:
        said: EngineAnswer | None = None
        while True:
            grant = await ticket.next()
            if isinstance(grant, Refusal):
                return self._refused(exchange, grant, said)
            try:
                return await self._relay.attempt(exchange, grant, ticket)
            except AttemptFailed as failed:
                self._log.warning(
                    "attempt failed",
                    request=exchange.request.id,
                    node=grant.target.node_name,
                    engine=grant.target.replica.engine,
                    attempt=grant.attempt,
                    cause=failed.failure.message,
                )
                said = failed.answer or said
                ticket.failed(failed.failure, began=failed.began, result=failed.result)
                if failed.response is not None:
                    return failed.response
                if not failed.failure.retryable:
                    return self._refused(exchange, refusals.engine_failed(failed.failure), said)

    def _refused(
        self, exchange: Exchange, refusal: Refusal, said: EngineAnswer | None
    ) -> web.StreamResponse:
        """Tell the client; what an engine itself said of its failure says more than we could."""
        if refusal.kind == "engine_failed" and said is not None:
            return _as_engine_said(said)
        request = exchange.request
        self._log.info("refused", request=request.id, kind=refusal.kind, cause=refusal.message)
        problem = errors.from_refusal(refusal)
        return problem_response(request.dialect, problem, request_id=request.id)


def _as_engine_said(answer: EngineAnswer) -> web.Response:
    return web.Response(status=answer.status, headers=answer.headers, body=answer.body)


def _no_model(endpoint: Endpoint) -> Problem:
    """Ollama's own words, which its `/api/generate` does not share with the rest."""
    if endpoint.path == "/api/generate":
        return Problem(status=_NOT_FOUND, message="model '' not found")
    return Problem(status=_BAD_REQUEST, message="model is required")


def _request(endpoint: Endpoint, peeked: Peek, caller: Caller, arrived: float) -> Request:
    needs: set[Capability] = {endpoint.needs}
    if peeked.images:
        needs.add("vision")
    if peeked.tools:
        needs.add("tools")
    stream = endpoint.streams if peeked.stream is None else peeked.stream
    if endpoint.operation == "embedding" or (endpoint.dialect == "ollama" and peeked.empty):
        stream = False
    return Request(
        id=_request_id(arrived),
        dialect=endpoint.dialect,
        operation=endpoint.operation,
        endpoint=endpoint.path,
        asked=peeked.model,
        model=canonical(peeked.model),
        stream=stream,
        needs=frozenset(needs),
        kinds=endpoint.kinds,
        prompt_tokens=peeked.prompt_tokens,
        max_tokens=peeked.max_tokens,
        context=peeked.context,
        client=caller.client,
        priority=caller.priority,
        deadline=caller.deadline,
        session=caller.session,
    )


def _request_id(arrived: float) -> str:
    """Milliseconds and 48 random bits: like UUIDv7 (RFC 9562) it sorts by time.

    What came together so stands together in the store's index, however long that has grown.
    """
    return f"req_{int(arrived * 1000):012x}{random.getrandbits(48):012x}"


def dialect_of(path: str) -> Dialect:
    """In which dialect errors on this path are worded."""
    if path.startswith("/v1/messages"):
        return "anthropic"
    return "openai" if path.startswith(("/v1/", "/herd/")) else "ollama"
