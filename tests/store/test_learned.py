"""What was learned is kept, newest only, and nonsense is told apart."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from herd.core.fleet import ReplicaKey
from herd.core.learned import Learned, LearnedReplica
from herd.core.learning import LearningState
from herd.core.lengths import LengthsState
from herd.core.shared import SharedState
from herd.core.statistics import LineState
from herd.store import learned as learned_state
from herd.store.schema import StoreError
from herd.store.store import Store
from herd.store.writer import Writer
from tests.store.test_store import Make


def some(at: float) -> Learned:
    line = LineState((3.0, 0.0, 0.0, 1.5, 0.0), 0.1, at, 3)
    return Learned(
        at=at,
        replicas=(
            LearnedReplica(ReplicaKey("n", "e", "m"), 3, LearningState(lines={"decode": line})),
        ),
        devices={"n": SharedState({"decode": (3.0, 1.5)}, (0.1, 0.02, at))},
        models={"m": SharedState({"decode": (3.0, 0.5)})},
        lengths=(LengthsState(("chat",), at, 3, {50: 3.0}),),
    )


def test_the_newest_is_there_after_it_is_opened_again(path: Path, make: Make) -> None:
    with Store.open(path) as store:
        assert store.reader.learned() is None
        store.keep(some(1.0))
        store.put(make(1))
        assert store.flush()
        store.keep(some(2.0))
    with Store.open(path) as store:
        assert store.reader.learned() == some(2.0)


def test_it_is_written_without_an_outcome_and_without_closing(path: Path, until: object) -> None:
    with Store.open(path) as store:
        store.keep(some(5.0))
        until(lambda: store.reader.learned() == some(5.0))  # type: ignore[operator]


@pytest.mark.parametrize("data", [b"", b"\xc1", b"nonsense", b"\x81\xa7version\xa3two"])
def test_spoilt_data_is_an_error_that_says_so(prepared: Path, data: bytes) -> None:
    with sqlite3.connect(prepared) as connection:
        connection.execute("INSERT INTO learned VALUES (1, 0.0, ?)", (data,))
    connection.close()
    with Store.open(prepared) as store, pytest.raises(StoreError, match="learned cannot be read"):
        store.reader.learned()


def test_a_failed_write_leaves_what_was_kept(prepared: Path) -> None:
    def broken(path: Path) -> sqlite3.Connection:
        raise sqlite3.OperationalError(f"{path.name} is locked")

    with Store.open(prepared) as store:
        store.keep(some(1.0))
    told: list[str] = []
    writer = Writer(prepared, connect=broken, on_problem=told.append)
    writer.keep(some(2.0))
    writer.close(0.2)
    assert "locked" in told[0]
    with Store.open(prepared) as store:
        assert store.reader.learned() == some(1.0)


def test_there_is_one_row_only(prepared: Path) -> None:
    connection = sqlite3.connect(prepared, isolation_level=None)
    for at in (1.0, 2.0, 3.0):
        learned_state.write(connection, some(at))
    assert connection.execute("SELECT count(*), max(taken) FROM learned").fetchone() == (1, 3.0)
    connection.close()
