"""Time-outs of running attempts, watched by one timer for all of them.

A timer per chunk would cost more than forwarding the chunk. So each attempt just notes by when it
must have got further, and a tick looks at all of them.
"""

from __future__ import annotations

import asyncio
from typing import Literal

from herd.core.request import Failure
from herd.ops.clock import Clock

#: Seconds between two looks; a time-out is late by no more than this.
TICK = 0.25
#: "rival": nobody is at fault, another attempt has answered.
Blame = Literal["engine", "client", "rival"]


class Watch:
    """One attempt under watch. `broken_off` says why its task was cancelled, if it was by us."""

    __slots__ = ("_task", "_watchdog", "blame", "broken_off", "deadline", "what")

    def __init__(self, watchdog: Watchdog, task: asyncio.Task[object], deadline: float) -> None:
        #: When it must have got further; absolute.
        self.deadline = deadline
        #: Whose fault it is if not.
        self.blame: Blame = "engine"
        #: What is being waited for, in words.
        self.what = "no first byte"
        self.broken_off: Failure | None = None
        self._watchdog = watchdog
        self._task = task

    def break_off(self, failure: Failure) -> None:
        """Cancel the attempt's task, once; it tells this from its client's leaving by the watch."""
        if self.broken_off is None:
            self.broken_off = failure
            self._task.cancel()

    def beaten(self) -> None:
        """Cancel the attempt's task, as another attempt has answered the request."""
        self.blame = "rival"
        self.break_off(Failure(kind="broken", message="another attempt answered first"))

    def caught(self) -> Failure | None:
        """To be called on `CancelledError`: why we cancelled it ourselves, None if we did not."""
        if self.broken_off is None or self._task.uncancel() > 0:
            return None
        return self.broken_off

    def end(self) -> None:
        """The attempt is over."""
        self._watchdog.forget(self)


class Watchdog:
    """Watches all attempts of a relay."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._watches: set[Watch] = set()
        self._handle: asyncio.TimerHandle | None = None

    def start(self, deadline: float) -> Watch:
        """Watch the current task until `Watch.end`."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("an attempt runs in a task")
        watch = Watch(self, task, deadline)
        self._watches.add(watch)
        if self._handle is None:
            self._schedule()
        return watch

    def forget(self, watch: Watch) -> None:
        """Stop watching it."""
        self._watches.discard(watch)

    def close(self) -> None:
        """Stop the timer."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _schedule(self) -> None:
        self._handle = asyncio.get_running_loop().call_later(TICK, self._tick)

    def _tick(self) -> None:
        self._handle = None
        now = self._clock()
        for watch in [watch for watch in self._watches if watch.deadline < now]:
            watch.break_off(
                Failure(kind="timeout", message=watch.what, retryable=watch.blame == "engine")
            )
        if self._watches:
            self._schedule()
