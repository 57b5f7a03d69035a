"""The store as the rest of the router sees it: put, read, flush, close."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from herd.core.learned import Learned
from herd.core.request import Outcome
from herd.ops.clock import Clock
from herd.store.reader import Reader
from herd.store.retention import Retention
from herd.store.schema import prepare
from herd.store.writer import Pace, Stats, Writer


class Store:
    """Every request's outcome on disk, and what was learned from them.

    Open it with `Store.open`, close it at the end.
    """

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self.reader = reader
        self._writer = writer

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        retention: Retention | None = None,
        pace: Pace | None = None,
        clock: Clock | None = None,
        on_problem: Callable[[str], None] | None = None,
    ) -> Self:
        """Make or upgrade the file and start the writer; raises `StoreError`. Waits for the disk.

        `on_problem` is called from the writer's thread, with a sentence for the log.
        """
        prepare(path)
        writer = Writer(path, pace=pace, retention=retention, clock=clock, on_problem=on_problem)
        return cls(Reader(path), writer)

    @property
    def problem(self) -> str | None:
        """Why outcomes do not reach the disk at present; None while they do."""
        return self._writer.problem

    @property
    def stats(self) -> Stats:
        """What became of everything so far."""
        return self._writer.stats

    def put(self, outcome: Outcome) -> None:
        """Have it written soon; never waits for the disk and never raises."""
        self._writer.put(outcome)

    def keep(self, learned: Learned) -> None:
        """Have this written in place of what was learned before; never waits and never raises."""
        self._writer.keep(learned)

    def prune(self, older_than: float, *, max_rows: int | None = None) -> None:
        """Have outcomes deleted that ended before a time, or are more than `max_rows`."""
        self._writer.prune(older_than, max_rows=max_rows)

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until everything put before is written, or lost for good; False if that is late."""
        return self._writer.flush(timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Write what waits, for at most so many seconds, and end; closing twice does no harm."""
        # The writer closes the last connection, which folds SQLite's log into the file.
        self.reader.close()
        self._writer.close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
