"""Whole answers: the attempt that the scheduler chose, and the one that it may send beside it.

The first runs in the client's handler, as any other attempt does, so that a request that is never
hedged costs nothing more. A second one gets a task of its own when the scheduler asks for it. Who
has a whole answer tells the scheduler, which has the other cancelled; so only one answer can ever
go to the client, and nothing of it has gone before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web

from herd.core.actions import Dispatch
from herd.core.request import Failure
from herd.fleet.driver import Ticket
from herd.gateway.exchange import Exchange
from herd.gateway.relay import AttemptFailed, Beaten, Relay, Whole

#: Tells the log and the scheduler of an attempt that came to nothing.
Report = Callable[[Dispatch, AttemptFailed], None]
#: A second attempt: its answer, its failure, or None if it was beaten.
_Second = asyncio.Task[Whole | AttemptFailed | None]


class Race:
    """Gets one whole answer to the client."""

    def __init__(self, relay: Relay, exchange: Exchange, ticket: Ticket, report: Report) -> None:
        self._relay = relay
        self._exchange = exchange
        self._ticket = ticket
        self._report = report
        self._second: _Second | None = None
        self._number = 0

    async def run(self, dispatch: Dispatch) -> web.StreamResponse:
        """Answer the client from this attempt or from one that joins it.

        Raises like `Relay.attempt`. All failures have been reported by then; the one that is
        raised is that of the last attempt that was left.
        """
        self._ticket.on_beside(self._start)
        try:
            number, whole = await self._winner(dispatch)
            response = await self._relay.deliver(self._exchange, whole)
            # At once: a client that has all it wanted may hang up, which cancels whatever waits.
            self._ticket.finished(number, whole.result)
        finally:
            self._ticket.on_beside(None)
            await self._stop()
        return response

    async def _winner(self, dispatch: Dispatch) -> tuple[int, Whole]:
        """Return the number and the answer of the attempt that goes to the client."""
        try:
            whole = await self._relay.fetch(self._exchange, dispatch, self._ticket)
        except AttemptFailed as failed:
            self._report(dispatch, failed)
            if self._second is None or _has_failed(self._second):
                raise
            return await self._of(self._second)
        except Beaten:
            if self._second is None:
                raise RuntimeError("beaten by no other attempt") from None
            return await self._of(self._second)
        self._ticket.answered(dispatch.attempt)
        return dispatch.attempt, whole

    async def _of(self, second: _Second) -> tuple[int, Whole]:
        ended = await second
        if isinstance(ended, Whole):
            return self._number, ended
        if ended is None:
            raise RuntimeError("both attempts were beaten")
        raise ended

    def _start(self, dispatch: Dispatch) -> None:
        self._number = dispatch.attempt
        self._second = asyncio.create_task(self._beside(dispatch))

    async def _beside(self, dispatch: Dispatch) -> Whole | AttemptFailed | None:
        """Return the whole answer, why there is none, or None if the first attempt won."""
        try:
            whole = await self._relay.fetch(self._exchange, dispatch, self._ticket)
        except AttemptFailed as failed:
            self._report(dispatch, failed)
            return failed
        except Beaten:
            return None
        except Exception as error:  # noqa: BLE001 - told like any failure, and the first goes on
            fault = Failure(kind="protocol", message=f"internal error: {error!r}")
            broken = AttemptFailed(fault)
            self._report(dispatch, broken)
            return broken
        self._ticket.answered(dispatch.attempt)
        return whole

    async def _stop(self) -> None:
        """Let no attempt outlive the request."""
        if self._second is not None:
            self._second.cancel()
            await asyncio.wait([self._second])


def _has_failed(second: _Second) -> bool:
    """Whether it came to nothing before the first did, which is then the last one left."""
    return second.done() and isinstance(second.result(), AttemptFailed)
