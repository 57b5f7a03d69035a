"""Drives the scheduler with real time: feeds it events, carries its actions out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from herd.core import actions as ac
from herd.core import events as ev
from herd.core.request import Failure, Outcome, Prefix, Refusal, Request, Result
from herd.core.scheduler import Scheduler
from herd.ops.clock import Clock
from herd.ops.logs import logger

Grant = ac.Dispatch | Refusal
NO_PREFIX: Final = Prefix()


class Ticket:
    """One open request, in the hands of whoever serves it.

    `next` waits for what the scheduler decides: a `Dispatch` to carry out, or a `Refusal`, which
    ends it. After each dispatch exactly one of `finished`, `failed` or `left` must follow.
    """

    __slots__ = ("_abort", "_driver", "_grant", "_waiter", "attempt", "expected_wait", "request")

    def __init__(self, driver: Driver, request: Request) -> None:
        self.request = request
        #: Number of the attempt under way.
        self.attempt = 0
        #: Seconds that it was expected to wait when it was held; None if it was not.
        self.expected_wait: float | None = None
        self._driver = driver
        self._grant: Grant | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._abort: Callable[[Failure], None] | None = None

    async def next(self) -> Grant:
        """Wait for the next grant."""
        if self._grant is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        grant = self._grant
        if grant is None:
            raise RuntimeError("woken without a grant")
        self._grant = None
        if isinstance(grant, ac.Dispatch):
            self.attempt = grant.attempt
        return grant

    def on_abort(self, abort: Callable[[Failure], None] | None) -> None:
        """Say how the attempt under way can be broken off from outside."""
        self._abort = abort

    def first_frame(self) -> None:
        """The first frame of a streamed answer goes to the client."""
        self._driver.feed(ev.FirstFrame(self.request.id, self.attempt))

    def finished(self, result: Result) -> None:
        """The answer is complete and went to the client."""
        self._driver.feed(ev.Finished(self.request.id, self.attempt, result))

    def failed(self, failure: Failure, *, began: bool, result: Result | None = None) -> None:
        """The attempt failed; unless bytes went out, `next` says what comes now."""
        event = ev.Failed(self.request.id, self.attempt, failure, began, result or Result())
        self._driver.feed(event)

    def left(self) -> None:
        """The client hung up."""
        self._driver.feed(ev.ClientLeft(self.request.id))

    def grant(self, grant: Grant) -> None:
        """Called by the driver alone."""
        self._grant = grant
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def abort(self, failure: Failure) -> None:
        """Called by the driver alone."""
        if self._abort is not None:
            self._abort(failure)


class Driver:
    """Owns the scheduler. All events of a process go through `feed`, on its event loop."""

    def __init__(
        self,
        scheduler: Scheduler,
        clock: Clock,
        *,
        record: Callable[[Outcome], None],
        release: Callable[[str], None],
        load: Callable[[ac.Preload | ac.Unload], None],
    ) -> None:
        self.scheduler = scheduler
        self.clock = clock
        self._record = record
        self._release = release
        self._load = load
        self._tickets: dict[str, Ticket] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._log = logger("scheduler")

    def submit(self, request: Request, prefix: Prefix = NO_PREFIX) -> Ticket:
        """Let a request in; its ticket may have a grant at once."""
        ticket = self._tickets[request.id] = Ticket(self, request)
        self.feed(ev.RequestArrived(request, prefix))
        return ticket

    def feed(self, event: ev.Event) -> None:
        """Tell the scheduler what happened and carry out what follows."""
        for action in self.scheduler.handle(event, self.clock()):
            self._carry_out(action)

    async def drained(self) -> None:
        """Wait until no request is open."""
        while self._tickets:
            self._idle.clear()
            await self._idle.wait()

    @property
    def open(self) -> int:
        """Requests that have not ended."""
        return len(self.scheduler.tasks)

    def close(self) -> None:
        """Stop the timer; no event may come after."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _carry_out(self, action: ac.Action) -> None:
        match action:
            case ac.Dispatch(request=request):
                self._tickets[request].grant(action)
            case ac.Record(outcome=outcome):
                self._tickets.pop(outcome.request.id, None)
                self._record(outcome)
                if not self._tickets:
                    self._idle.set()
            case ac.Refuse(request=request, refusal=refusal):
                self._tickets[request].grant(refusal)
            case ac.Hold(request=request, expected_wait=wait):
                self._tickets[request].expected_wait = wait
            case ac.SetTimer(at=at):
                self._set_timer(at)
            case ac.Abort(request=request, failure=failure):
                self._tickets[request].abort(failure)
            case ac.Release(node=node):
                self._release(node)
            case ac.Preload() | ac.Unload():
                self._load(action)

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, at - self.clock()), self._due)

    def _due(self) -> None:
        self._timer = None
        self.feed(ev.TimerDue())
