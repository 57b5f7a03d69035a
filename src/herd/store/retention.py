"""What is kept and for how long: the writer deletes the rest, a small batch at a time."""

from __future__ import annotations

import sqlite3
import time
from collections import deque

from msgspec import Struct

from herd.ops.clock import Clock
from herd.store import outcomes

_DAY = 86400.0
#: Rows that one transaction deletes, so that outcomes do not wait long behind it.
_BATCH = 500


class Retention(Struct, frozen=True, kw_only=True):
    """How much is kept."""

    keep_days: float = 90.0
    #: The oldest go when there are more; 2 kB each with four candidates in the decision.
    max_rows: int = 1_000_000
    #: Seconds between two looks.
    every: float = 3600.0


class _Cut(Struct, frozen=True):
    older_than: float
    max_rows: int


class Pruning:
    """Decides when to delete and does it step by step; all but `request` in the writer's thread."""

    def __init__(self, retention: Retention, clock: Clock) -> None:
        self._retention = retention
        self._clock = clock
        self._next = time.monotonic()
        # Filled by any thread, emptied by the writer's: a deque needs no lock for that.
        self._requested: deque[_Cut] = deque()
        self._current: _Cut | None = None
        self._up_to = 0
        self._deleted = 0

    @property
    def deleted(self) -> int:
        """How many outcomes were deleted so far."""
        return self._deleted

    def request(self, older_than: float, max_rows: int | None) -> None:
        """Ask for a look out of turn; from any thread."""
        rows = self._retention.max_rows if max_rows is None else max_rows
        self._requested.append(_Cut(older_than, rows))

    def wait(self) -> float:
        """Return the seconds until there is something to do."""
        if self._current is not None or self._requested:
            return 0.0
        return max(0.0, self._next - time.monotonic())

    def step(self, connection: sqlite3.Connection) -> None:
        """Delete one batch; raises `sqlite3.Error`, after which the same step may be repeated."""
        cut = self._current or self._begin(connection)
        deleted = outcomes.delete(connection, cut.older_than, self._up_to, _BATCH)
        self._deleted += deleted
        if deleted < _BATCH:
            self._current = None
            connection.execute("PRAGMA analysis_limit = 400").fetchall()
            connection.execute("PRAGMA optimize").fetchall()

    def _begin(self, connection: sqlite3.Connection) -> _Cut:
        requested = bool(self._requested)
        cut = self._requested[0] if requested else self._regular()
        self._up_to = outcomes.last_beyond(connection, cut.max_rows)
        # Only now is it taken on: had the line above failed, it would still be due.
        self._current = cut
        if requested:
            self._requested.popleft()
        else:
            self._next = time.monotonic() + self._retention.every
        return cut

    def _regular(self) -> _Cut:
        oldest = self._clock() - self._retention.keep_days * _DAY
        return _Cut(oldest, self._retention.max_rows)
