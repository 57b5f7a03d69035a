"""What waits to be written: a bounded queue between those who put and the one who writes."""

from __future__ import annotations

import threading
import time
from collections import deque

from herd.core.request import Outcome


class Backlog:
    """Outcomes in the order in which they came; when it is full, the oldest gives way.

    Every outcome has a number, its place in the order of all that ever came. `_taken` and `_done`
    are the numbers up to which the writer has taken outcomes and is done with them, dropped ones
    included. The lock is never held during anything slower than moving references, so whoever puts
    does not wait for the disk.
    """

    def __init__(self, *, capacity: int, batch: int, interval: float) -> None:
        self._capacity = capacity
        self._batch = batch
        self._interval = interval
        self._queue: deque[Outcome] = deque()
        lock = threading.Lock()
        self._lock = lock
        self._work = threading.Condition(lock)
        self._progress = threading.Condition(lock)
        self._accepted = 0
        self._taken = 0
        self._done = 0
        self._wanted = 0
        self._nudged = False
        self._deadline: float | None = None
        self._dropped = 0

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def dropped(self) -> int:
        """How many gave way, came after the end, or were given up at it."""
        return self._dropped

    def put(self, outcome: Outcome) -> None:
        """Add at the end; from any thread."""
        with self._lock:
            if self._deadline is not None:
                self._dropped += 1
                return
            if len(self._queue) >= self._capacity:
                self._queue.popleft()
                self._dropped += 1
            self._queue.append(outcome)
            self._accepted += 1
            if len(self._queue) in {1, self._batch}:
                self._work.notify()

    def take(self, idle: float) -> list[Outcome] | None:
        """Return the next batch, in order, or None when it is over.

        Waits until a batch is full, its first has waited for the interval, or somebody wants it
        now; after `idle` seconds without any, or when nudged, returns an empty one.
        """
        with self._lock:
            self._work.wait_for(self._has_work, max(0.0, idle))
            if self._queue:
                self._work.wait_for(self._is_urgent, self._interval)
            self._nudged = False
            if self._is_over():
                return None
            count = min(self._batch, len(self._queue))
            batch = [self._queue.popleft() for _ in range(count)]
            self._taken = self._accepted - len(self._queue)
            return batch

    def done(self) -> None:
        """Say that the batch last taken is written, or never will be."""
        with self._lock:
            self._done = self._taken
            self._progress.notify_all()

    def rest(self, seconds: float) -> bool:
        """Wait before another try, less if nudged; False if it is over and there is no other."""
        with self._lock:
            if self._deadline is not None:
                seconds = min(seconds, self._deadline - time.monotonic())
            self._work.wait_for(lambda: self._nudged, max(0.0, seconds))
            self._nudged = False
            return self._deadline is None or time.monotonic() < self._deadline

    def nudge(self) -> None:
        """Wake the writer, whatever it waits for."""
        with self._lock:
            self._nudged = True
            self._work.notify()

    def flush(self, timeout: float) -> bool:
        """Wait until the writer is done with everything put before; False if it takes longer."""
        with self._lock:
            target = self._wanted = self._accepted
            self._nudged = True
            self._work.notify()
            return self._progress.wait_for(lambda: self._done >= target, timeout)

    def close(self, timeout: float) -> None:
        """Accept nothing more; what is here may be taken for so many seconds."""
        with self._lock:
            if self._deadline is None:
                self._deadline = time.monotonic() + timeout
            self._nudged = True
            self._work.notify()

    def abandon(self, held: int) -> None:
        """Drop what is left, and so many that were taken and not written."""
        with self._lock:
            self._dropped += len(self._queue) + held
            self._queue.clear()
            self._taken = self._done = self._accepted
            self._progress.notify_all()

    def _has_work(self) -> bool:
        return bool(self._queue) or self._nudged or self._deadline is not None

    def _is_urgent(self) -> bool:
        full = len(self._queue) >= self._batch
        return full or self._wanted > self._taken or self._deadline is not None

    def _is_over(self) -> bool:
        if self._deadline is None:
            return False
        return not self._queue or time.monotonic() >= self._deadline
