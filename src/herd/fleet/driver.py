"""Drives the scheduler with real time: feeds it events, carries its actions out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from herd.core import actions as ac
from herd.core import events as ev
from herd.core.request import Failure, Outcome, Prefix, Refusal, Request, Result
from herd.core.scheduler import Scheduler
from herd.ops.clock import Clock
from herd.ops.logs import logger

Grant = ac.Dispatch | Refusal
NO_PREFIX: Final = Prefix()


class Breakable(Protocol):
    """An attempt under way, as the scheduler may end it."""

    def break_off(self, failure: Failure) -> None:
        """It has failed, whatever it waits for; this failure is to be told."""

    def beaten(self) -> None:
        """Another attempt has answered: stop, and tell nothing."""


class Ticket:
    """One open request, in the hands of whoever serves it.

    `next` waits for what the scheduler decides: a `Dispatch` to carry out, or a `Refusal`, which
    ends it. After each dispatch exactly one of `finished`, `failed` or `left` must follow, unless
    the attempt was beaten. Whoever has set `on_beside` is called with a `Dispatch` of a second
    attempt that is to run beside the first.
    """

    __slots__ = (
        "_beside",
        "_driver",
        "_ended",
        "_grant",
        "_joining",
        "_under_way",
        "_waiter",
        "attempt",
        "expected_wait",
        "request",
    )

    def __init__(self, driver: Driver, request: Request) -> None:
        self.request = request
        #: Number of the latest attempt.
        self.attempt = 0
        #: Seconds that it was expected to wait when it was held; None if it was not.
        self.expected_wait: float | None = None
        self._driver = driver
        self._grant: Grant | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._beside: Callable[[ac.Dispatch], None] | None = None
        #: A second attempt that nobody has been there to start yet.
        self._joining: ac.Dispatch | None = None
        self._under_way: dict[int, Breakable] = {}
        #: Attempts that were ended before they got under way: by a failure, or beaten.
        self._ended: dict[int, Failure | None] = {}

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

    def on_beside(self, start: Callable[[ac.Dispatch], None] | None) -> None:
        """Say who starts an attempt beside the one under way; None where nobody can."""
        self._beside = start
        if start is not None and self._joining is not None:
            joining, self._joining = self._joining, None
            start(joining)

    def under_way(self, attempt: int, how: Breakable) -> None:
        """The attempt has begun, and can be ended from outside."""
        if attempt in self._ended:
            _end(how, self._ended.pop(attempt))
        else:
            self._under_way[attempt] = how

    def over(self, attempt: int) -> None:
        """The attempt cannot be ended from outside any more."""
        self._under_way.pop(attempt, None)

    def first_frame(self, attempt: int) -> None:
        """The first frame of a streamed answer goes to the client."""
        self._driver.feed(ev.FirstFrame(self.request.id, attempt))

    def answered(self, attempt: int) -> None:
        """A whole answer is there and goes to the client; an attempt beside it is beaten."""
        self._driver.feed(ev.Answered(self.request.id, attempt))

    def finished(self, attempt: int, result: Result) -> None:
        """The answer is complete and went to the client."""
        self._driver.feed(ev.Finished(self.request.id, attempt, result))

    def failed(
        self, attempt: int, failure: Failure, *, began: bool, result: Result | None = None
    ) -> None:
        """The attempt failed; unless bytes went out, `next` says what comes now.

        Nothing comes as long as another attempt runs beside it.
        """
        event = ev.Failed(self.request.id, attempt, failure, began, result or Result())
        self._driver.feed(event)

    def broken(self, failure: Failure) -> None:
        """A fault of the router itself ends the request, whatever was under way."""
        for attempt in range(self.attempt, 0, -1):
            self.failed(attempt, failure, began=True)
        self.left()  # where no attempt was under way that could fail

    def left(self) -> None:
        """The client hung up."""
        self._driver.feed(ev.ClientLeft(self.request.id))

    def grant(self, grant: Grant) -> None:
        """Called by the driver alone."""
        if isinstance(grant, ac.Dispatch) and grant.beside:
            self._join(grant)
            return
        self._grant = grant
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def end(self, attempt: int, failure: Failure | None) -> None:
        """Called by the driver alone. Without a failure it is beaten."""
        how = self._under_way.get(attempt)
        if how is None:
            self._ended[attempt] = failure
        else:
            _end(how, failure)

    def _join(self, dispatch: ac.Dispatch) -> None:
        self.attempt = dispatch.attempt
        if self._beside is not None:
            self._beside(dispatch)
        else:
            self._joining = dispatch


def _end(how: Breakable, failure: Failure | None) -> None:
    if failure is None:
        how.beaten()
    else:
        how.break_off(failure)


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
                self._over(outcome)
            case ac.Refuse(request=request, refusal=refusal):
                self._tickets[request].grant(refusal)
            case ac.Hold(request=request, expected_wait=wait):
                self._tickets[request].expected_wait = wait
            case ac.SetTimer(at=at):
                self._set_timer(at)
            case ac.Abort(request=request, attempt=attempt, failure=failure):
                self._tickets[request].end(attempt, failure)
            case ac.Cancel(request=request, attempt=attempt):
                self._tickets[request].end(attempt, None)
            case ac.Release(node=node):
                self._release(node)
            case ac.Preload() | ac.Unload():
                self._load(action)

    def _over(self, outcome: Outcome) -> None:
        self._tickets.pop(outcome.request.id, None)
        self._record(outcome)
        if not self._tickets:
            self._idle.set()

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, at - self.clock()), self._due)

    def _due(self) -> None:
        self._timer = None
        self.feed(ev.TimerDue())
