"""The one thread that writes: outcomes go in without waiting, and reach the disk in batches."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from herd.core.learned import Learned
from herd.core.request import Outcome
from herd.ops.clock import Clock, unix_clock
from herd.store import learned as learned_state
from herd.store import outcomes
from herd.store.backlog import Backlog
from herd.store.retention import Pruning, Retention
from herd.store.schema import connect_writer

#: Seconds between two messages about outcomes that were lost.
_LOSSES_EVERY = 60.0
#: Seconds after which deleting old outcomes is tried again when it failed.
_PRUNE_AGAIN = 60.0
#: Seconds more than its time-out that closing waits for a statement which is under way.
_GRACE = 2.0


class Pace(Struct, frozen=True, kw_only=True):
    """How the writer works. Times are seconds."""

    #: Outcomes that may wait; beyond, the oldest are dropped.
    capacity: int = 10_000
    #: Rows of one transaction.
    batch: int = 500
    #: An outcome waits no longer than this for others to share its transaction.
    interval: float = 0.25
    #: Pause after a failed write, doubled for each further one up to the longest.
    first_pause: float = 0.1
    longest_pause: float = 5.0


class Stats(Struct, frozen=True, kw_only=True):
    """Counts since the start."""

    written: int
    #: Outcomes in memory that are not yet taken up for writing.
    waiting: int
    #: Lost: the queue was full, or the disk did not take them before the end.
    dropped: int
    #: Lost: a second outcome for a request that had one.
    duplicates: int
    #: Lost: there is no row that could hold them.
    unwritable: int
    #: Writes that failed and were tried again.
    failures: int
    #: Old outcomes that were deleted.
    pruned: int


class Writer:
    """Owns the connection that writes. Starts its thread at once; `close` ends it.

    `on_problem` is called from that thread, with a sentence, when writing begins to fail for a new
    cause and when outcomes are lost.
    """

    def __init__(
        self,
        path: Path,
        *,
        pace: Pace | None = None,
        retention: Retention | None = None,
        clock: Clock | None = None,
        on_problem: Callable[[str], None] | None = None,
        connect: Callable[[Path], sqlite3.Connection] = connect_writer,
    ) -> None:
        self._path = path
        self._pace = pace or Pace()
        self._on_problem = on_problem
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._backlog = Backlog(
            capacity=self._pace.capacity, batch=self._pace.batch, interval=self._pace.interval
        )
        self._pruning = Pruning(retention or Retention(), clock or unix_clock())
        # The newest alone is worth writing. Filled by any thread, emptied by the writer's.
        self._learned: deque[Learned] = deque(maxlen=1)
        self._problem: str | None = None
        self._pause = self._pace.first_pause
        self._written = 0
        self._duplicates = 0
        self._unwritable = 0
        self._failures = 0
        self._last_loss = ""
        self._losses_told = 0
        self._tell_losses_at = 0.0
        self._thread = threading.Thread(target=self._run, name="herd-store", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str | None:
        """Why outcomes do not reach the disk at present; None while they do."""
        return self._problem

    @property
    def stats(self) -> Stats:
        """What became of everything so far."""
        return Stats(
            written=self._written,
            waiting=len(self._backlog),
            dropped=self._backlog.dropped,
            duplicates=self._duplicates,
            unwritable=self._unwritable,
            failures=self._failures,
            pruned=self._pruning.deleted,
        )

    def put(self, outcome: Outcome) -> None:
        """Have it written soon; never waits for the disk and never raises."""
        self._backlog.put(outcome)

    def keep(self, learned: Learned) -> None:
        """Have this written in place of what was learned before; never waits and never raises.

        If the disk does not take it, it is not tried again: newer will come.
        """
        self._learned.append(learned)
        self._backlog.nudge()

    def prune(self, older_than: float, *, max_rows: int | None = None) -> None:
        """Have outcomes deleted that ended before a time, or are more than `max_rows`."""
        self._pruning.request(older_than, max_rows)
        self._backlog.nudge()

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until everything put before is written, or lost for good; False if that is late."""
        return self._backlog.flush(timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Write what waits, for at most so many seconds, and end the thread."""
        self._backlog.close(timeout)
        self._thread.join(timeout + _GRACE)

    def _run(self) -> None:
        held = 0
        resume = 0.0  # when pruning may go on after it failed
        while True:
            idle = max(self._pruning.wait(), resume - time.monotonic())
            batch = self._backlog.take(idle)
            if batch is None:
                break
            if batch and not self._write(batch):
                held = len(batch)
                break
            self._write_learned()
            if self._pruning.wait() <= 0 and time.monotonic() >= resume:
                succeeded = self._attempt(self._pruning.step)
                resume = 0.0 if succeeded else time.monotonic() + _PRUNE_AGAIN
        self._write_learned()
        self._backlog.abandon(held)
        self._tell_losses(0.0)
        self._disconnect()

    def _write(self, batch: list[Outcome]) -> bool:
        """Try until it is written; False if the writer is closed before."""
        rows = self._rows(batch)
        while not self._attempt(lambda connection: self._insert(connection, rows)):
            self._tell_losses()
            if not self._backlog.rest(self._pause):
                return False
            self._pause = min(2 * self._pause, self._pace.longest_pause)
        self._pause = self._pace.first_pause
        self._backlog.done()
        self._tell_losses()
        return True

    def _write_learned(self) -> None:
        if self._learned:
            learned = self._learned.pop()
            self._attempt(lambda connection: learned_state.write(connection, learned))

    def _rows(self, batch: list[Outcome]) -> list[outcomes.Row]:
        rows = []
        for outcome in batch:
            try:
                rows.append(outcomes.to_row(outcome))
            except Exception as error:  # noqa: BLE001 - one odd outcome must not cost the others
                self._unwritable += 1
                self._last_loss = f"{outcome!r:.200}: {error}"
        return rows

    def _insert(self, connection: sqlite3.Connection, rows: list[outcomes.Row]) -> None:
        inserted = outcomes.insert(connection, rows)
        self._written += inserted.written
        self._duplicates += len(inserted.duplicates)
        self._unwritable += len(inserted.rejected)
        for request in inserted.duplicates:
            self._last_loss = f"request {request} already had an outcome, which stays"
        for reason in inserted.rejected:
            self._last_loss = reason

    def _attempt(self, work: Callable[[sqlite3.Connection], None]) -> bool:
        """Do something with the connection; False, and a problem, if it fails."""
        try:
            if self._connection is None:
                self._connection = self._connect(self._path)
            work(self._connection)
        except Exception as error:  # noqa: BLE001 - the thread must outlive any failure, and tells it
            self._failures += 1
            self._disconnect()
            self._set_problem(f"{self._path} cannot be written: {error}")
            return False
        self._problem = None
        return True

    def _set_problem(self, text: str) -> None:
        if text != self._problem:
            self._problem = text
            self._tell(f"{text}; outcomes wait in memory until it can")

    def _tell_losses(self, every: float = _LOSSES_EVERY) -> None:
        """Tell what was lost since the last time, but not again and again."""
        stats = self.stats
        lost = stats.dropped + stats.duplicates + stats.unwritable
        now = time.monotonic()
        if lost == self._losses_told or (every and now < self._tell_losses_at):
            return
        self._tell(
            f"{lost - self._losses_told} outcomes were not kept; since the start {stats.dropped} "
            f"were dropped, {stats.duplicates} were duplicates, {stats.unwritable} had no row that "
            f"could hold them" + (f" (last: {self._last_loss})" if self._last_loss else "")
        )
        self._losses_told = lost
        self._tell_losses_at = now + every

    def _tell(self, text: str) -> None:
        if self._on_problem is None:
            return
        try:
            self._on_problem(text)
        except Exception:  # noqa: BLE001 - reported as Python reports what fails in a thread
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), self._thread)))

    def _disconnect(self) -> None:
        """Close the connection; the next attempt opens it anew, whatever state it was in."""
        if self._connection is not None:
            # A connection that failed may fail to close as well; why it failed is told already.
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
