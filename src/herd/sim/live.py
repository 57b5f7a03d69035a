"""Runs an emulated engine in real time: one timer for all its jobs, and a handle for each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from herd.ops.clock import Clock
from herd.sim.emulated import Engine
from herd.sim.spec import Event, Finished, FirstToken, Job, Rejected

#: Seconds between looks at the tokens of all streams: at the least, and for each stream, so that
#: looking stays a small share of a core however many there are. Tokens between two looks go out
#: together.
_LOOK = 0.004
_LOOK_PER_STREAM = 2e-5


class Handle:
    """One job as the one who waits for it sees it."""

    def __init__(self, job: Job, *, watch: bool) -> None:
        self.job = job
        #: Whether single tokens are wanted, not just the end.
        self.watch = watch
        self.tokens = 0
        self.finished: Finished | None = None
        self.rejected: Rejected | None = None
        #: A fault ends it, not its client.
        self.spoilt = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.finished is not None or self.rejected is not None

    async def more(self, seen: int) -> None:
        """Wait until there are more tokens than `seen`, or it is over."""
        while self.tokens <= seen and not self.over:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    async def done(self) -> None:
        """Wait until it is over."""
        while not self.over:
            await self.more(self.tokens)

    def wake(self) -> None:
        """Let whoever waits look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class LiveEngine:
    """An engine whose time is the clock's."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self.engine = engine
        #: Gets every event, where somebody wants to know.
        self.hear: Callable[[Event], None] | None = None
        self._clock = clock
        self._handles: dict[str, Handle] = {}
        #: Jobs in decode of which somebody wants every token.
        self._streams: dict[str, Handle] = {}
        self._timer: asyncio.Handle | None = None
        self._soon = False
        self._stopped = False

    def submit(self, job: Job, *, watch: bool) -> Handle:
        """Take a job, or reject it at once.

        The handle must be given to `close` in the end, whatever happens.
        """
        handle = Handle(job, watch=watch)
        self._handles[job.id] = handle
        now = self._clock()
        self.engine.submit(job, now)
        for event in self.engine.advance(now):
            self._tell(event)
        self._look_soon()
        return handle

    def close(self, handle: Handle) -> bool:
        """Forget a job; True if that cancelled it."""
        job = handle.job.id
        self._handles.pop(job, None)
        self._streams.pop(job, None)
        cancelled = self.engine.cancel(job, self._clock())
        if cancelled:
            self._look_soon()
        return cancelled

    def unload(self, model: str) -> None:
        """Let a model go as soon as it is idle."""
        self.engine.unload(model, self._clock())
        self._look()

    def refresh(self) -> None:
        """Bring the engine to the present, for whoever asks about its state."""
        self._look()

    def stop(self) -> None:
        """Stop the timer; the engine stands still from here."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def _look_soon(self) -> None:
        """Look once, however many jobs come and go in this turn of the event loop."""
        if not self._soon and not self._stopped:
            self._soon = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        """Tell what happened until now and set the timer for what comes next."""
        self._soon = False
        if self._stopped:
            return
        now = self._clock()
        for event in self.engine.advance(now):
            self._tell(event)
        for job, handle in self._streams.items():
            tokens = self.engine.tokens(job, now)
            if tokens > handle.tokens:
                handle.tokens = tokens
                handle.wake()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.engine.next_due()
        if self._streams:
            look = now + max(_LOOK, _LOOK_PER_STREAM * len(self._streams))
            due = look if due is None else max(min(due, look), now + _LOOK / 4)
        if due is not None:
            delay = max(0.0, due - now)
            self._timer = asyncio.get_running_loop().call_later(delay, self._look)

    def _tell(self, event: Event) -> None:
        if self.hear is not None:
            self.hear(event)
        if not isinstance(event, FirstToken | Finished | Rejected):
            return
        handle = self._handles.get(event.job)
        if handle is None:
            return
        if isinstance(event, FirstToken):
            if handle.watch:
                self._streams[event.job] = handle
            return
        if isinstance(event, Finished):
            handle.finished = event
            handle.tokens = event.output_tokens
        else:
            handle.rejected = event
        self._streams.pop(event.job, None)
        handle.wake()
