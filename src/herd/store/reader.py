"""Questions to the store. Everything here waits for the disk: call it in a thread."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from herd.core.learned import Learned
from herd.core.request import Ending, Outcome
from herd.store import learned, outcomes
from herd.store.outcomes import Summary
from herd.store.schema import StoreError, connect_reader, explained

#: Connections that stay open between questions.
_IDLE_CONNECTIONS = 4

_COLUMNS = ", ".join(outcomes.SUMMARY_COLUMNS)
_GET = "SELECT record FROM outcomes WHERE id = ?"
_SINCE = "SELECT record FROM outcomes WHERE ended >= ? ORDER BY arrived, seq"
_COUNTS = "SELECT ending, count(*) FROM outcomes WHERE ended >= ? GROUP BY ending"
# total() rather than sum(): it does not fail where an engine claimed an absurd count.
_TOTALS = """
SELECT model, node, count(*) AS requests, sum(ending = 'failed') AS failures,
  CAST(total(prompt_tokens) AS INTEGER) AS prompt_tokens,
  CAST(total(completion_tokens) AS INTEGER) AS completion_tokens,
  avg(waited) AS mean_wait,
  avg(CASE WHEN ending = 'completed' THEN ended - arrived END) AS mean_duration
FROM outcomes WHERE ended >= ? GROUP BY model, node ORDER BY model, node
"""


T = TypeVar("T", bound=Struct)


class Total(Struct, frozen=True, kw_only=True):
    """Sums over the requests for one model that ended on one node."""

    model: str
    #: Empty for requests that no node was tried for.
    node: str
    requests: int
    failures: int
    prompt_tokens: int
    completion_tokens: int
    #: Seconds until the first attempt, over all requests.
    mean_wait: float
    #: Seconds from arrival to end, over the completed ones; None if there are none.
    mean_duration: float | None


class Reader:
    """Reads on connections of its own, each used by one thread at a time and unable to write.

    Its methods may be called from any number of threads at once; they see what has been written
    before they were called. They raise `StoreError` if the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # A pool, as threads of an executor come and go and would leave their connections open.
        self._idle: deque[sqlite3.Connection] = deque()
        self._closed = threading.Event()

    def learned(self) -> Learned | None:
        """Return what was learned before the last end; None if nothing was kept."""
        rows = self._ask(learned.READ, ())
        return learned.decode(rows[0][0]) if rows else None

    def get(self, request_id: str) -> Outcome | None:
        """Return the outcome of a request; None if it has none or it is no longer kept."""
        rows = self._ask(_GET, (request_id,))
        return outcomes.decode(rows[0][0]) if rows else None

    def since(self, time: float) -> list[Outcome]:
        """Return all outcomes that ended from a time on, in the order of their arrival."""
        return [outcomes.decode(row[0]) for row in self._ask(_SINCE, (time,))]

    def recent(
        self,
        limit: int,
        before: int | None = None,
        *,
        model: str | None = None,
        node: str | None = None,
        ending: Ending | None = None,
        client: str | None = None,
    ) -> list[Summary]:
        """Return the newest outcomes that match, newest first.

        `before` is the `seq` of the last summary of the page before this one.
        """
        wanted = {
            "seq < ?": before,
            "model = ?": model,
            "node = ?": node,
            "ending = ?": ending,
            "client = ?": client,
        }
        given = {clause: value for clause, value in wanted.items() if value is not None}
        where = f"WHERE {' AND '.join(given)}" if given else ""
        rows = self._ask(
            f"SELECT {_COLUMNS} FROM outcomes {where} "  # noqa: S608 - names from this module
            "ORDER BY seq DESC LIMIT ?",
            (*given.values(), max(0, limit)),
        )
        return [_convert(outcomes.SUMMARY_COLUMNS, row, Summary) for row in rows]

    def counts(self, since: float) -> dict[Ending, int]:
        """Return how many requests ended in which way from a time on."""
        counts: dict[Ending, int] = {"completed": 0, "failed": 0, "cancelled": 0, "rejected": 0}
        counts.update(self._ask(_COUNTS, (since,)))
        return counts

    def totals(self, since: float) -> list[Total]:
        """Return the sums over the requests that ended from a time on, by model and node."""
        rows = self._ask(_TOTALS, (since,))
        return [_convert(Total.__struct_fields__, row, Total) for row in rows]

    def close(self) -> None:
        """Close the connections; those in use are closed when their question is answered."""
        self._closed.set()
        while self._idle:
            with contextlib.suppress(IndexError):  # whoever asks may have taken the last one
                self._idle.pop().close()

    def _ask(self, sql: str, values: tuple[Any, ...]) -> list[Any]:
        with explained(self._path), self._connection() as connection:
            return connection.execute(sql, values).fetchall()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        if self._closed.is_set():
            raise StoreError(f"the store {self._path} is closed")
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = connect_reader(self._path)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        # Looked at after the connection went back, so that one of the two sees the other's doing.
        if self._closed.is_set() or len(self._idle) > _IDLE_CONNECTIONS:
            with contextlib.suppress(IndexError):
                self._idle.pop().close()


def _convert(names: tuple[str, ...], row: tuple[Any, ...], kind: type[T]) -> T:
    """Check what came from the file; SQLite has no booleans and keeps any type in any column."""
    try:
        return msgspec.convert(dict(zip(names, row, strict=True)), kind, strict=False)
    except msgspec.ValidationError as error:
        raise StoreError(f"a row of the store cannot be read: {error}") from error
