from __future__ import annotations

import contextlib
import math
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from herd.core.request import Outcome
from herd.store import outcomes
from herd.store.retention import Pruning, Retention
from herd.store.schema import connect_writer

Make = Callable[..., Outcome]

DAY = 86400


@pytest.fixture
def connection(prepared: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(connect_writer(prepared)) as connection:
        yield connection


def _keep(connection: sqlite3.Connection, *kept: Outcome) -> None:
    outcomes.insert(connection, map(outcomes.to_row, kept))


def _ids(connection: sqlite3.Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT id FROM outcomes ORDER BY seq")]


def test_what_ended_longer_ago_than_the_days_to_keep_is_deleted(
    connection: sqlite3.Connection, make: Make
) -> None:
    _keep(connection, make(0), make(10 * DAY - 3), make(10 * DAY - 2), make(11 * DAY))
    pruning = Pruning(Retention(keep_days=90), clock=lambda: 100.0 * DAY)

    pruning.step(connection)

    assert _ids(connection) == [f"r{10 * DAY - 2}", f"r{11 * DAY}"]
    assert pruning.deleted == 2


def test_endless_days_keep_everything(connection: sqlite3.Connection, make: Make) -> None:
    _keep(connection, make(0))
    pruning = Pruning(Retention(keep_days=math.inf), clock=lambda: 1e12)

    pruning.step(connection)

    assert _ids(connection) == ["r0"]


def test_the_oldest_of_too_many_are_deleted(connection: sqlite3.Connection, make: Make) -> None:
    _keep(connection, *(make(n) for n in range(10)))
    pruning = Pruning(Retention(max_rows=3), clock=lambda: 0.0)

    pruning.step(connection)

    assert _ids(connection) == ["r7", "r8", "r9"]


def test_much_is_deleted_in_small_steps_and_then_there_is_a_pause(
    connection: sqlite3.Connection, make: Make
) -> None:
    _keep(connection, *(make(n) for n in range(1200)))
    pruning = Pruning(Retention(every=3600), clock=lambda: 1000.0 * DAY)
    left = []
    while pruning.wait() == 0:
        pruning.step(connection)
        left.append(len(_ids(connection)))

    assert left == [700, 200, 0]
    assert 3500 < pruning.wait() <= 3600


def test_a_request_comes_out_of_turn_with_its_own_limits(
    connection: sqlite3.Connection, make: Make
) -> None:
    _keep(connection, *(make(n) for n in range(10)))
    pruning = Pruning(Retention(), clock=lambda: 0.0)
    pruning.step(connection)
    assert pruning.wait() > 0

    pruning.request(older_than=4.0, max_rows=None)
    pruning.request(older_than=-math.inf, max_rows=5)

    assert pruning.wait() == 0
    pruning.step(connection)
    assert _ids(connection) == [f"r{n}" for n in range(2, 10)]
    pruning.step(connection)
    assert _ids(connection) == [f"r{n}" for n in range(5, 10)]
    assert pruning.wait() > 0


def test_a_step_that_cannot_begin_is_still_due(prepared: Path) -> None:
    pruning = Pruning(Retention(), clock=lambda: 0.0)
    closed = connect_writer(prepared)
    closed.close()

    with pytest.raises(sqlite3.ProgrammingError):
        pruning.step(closed)

    assert pruning.wait() == 0


def test_a_step_that_fails_is_still_due(
    connection: sqlite3.Connection, prepared: Path, make: Make
) -> None:
    _keep(connection, make(0))
    pruning = Pruning(Retention(), clock=lambda: 1000.0 * DAY)
    connection.execute("PRAGMA query_only = 1")
    with pytest.raises(sqlite3.OperationalError):
        pruning.step(connection)
    assert pruning.wait() == 0

    connection.execute("PRAGMA query_only = 0")
    pruning.step(connection)

    assert _ids(connection) == []
