from __future__ import annotations

import contextlib
import math
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from herd.core.request import Outcome
from herd.store.retention import Retention
from herd.store.schema import StoreError
from herd.store.store import Store
from herd.store.writer import Pace

Make = Callable[..., Outcome]
Until = Callable[[Callable[[], object]], None]

DAY = 86400.0


def _start_of_time() -> float:
    return 0.0


def test_what_was_put_is_there_after_it_is_opened_again(path: Path, make: Make) -> None:
    with Store.open(path, clock=_start_of_time) as store:
        store.put(make(1))
    with Store.open(path, clock=_start_of_time) as store:
        store.put(make(2))
        assert store.flush()

        assert [store.reader.get(f"r{n}") for n in (1, 2)] == [make(1), make(2)]
        assert store.problem is None
        assert store.stats.written == 1


def test_closing_leaves_one_file_and_no_thread(path: Path, make: Make) -> None:
    with Store.open(path, clock=_start_of_time) as store:
        store.put(make(1))
        store.flush()
        store.reader.get("r1")

    assert [file.name for file in path.parent.iterdir()] == ["herd.db"]
    assert "herd-store" not in {thread.name for thread in threading.enumerate()}
    store.close()


def test_a_file_that_cannot_be_used_is_an_error_and_starts_no_thread(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be used"):
        Store.open(tmp_path)

    assert "herd-store" not in {thread.name for thread in threading.enumerate()}


def test_old_outcomes_are_deleted_from_the_start_on(path: Path, make: Make, until: Until) -> None:
    with Store.open(path, clock=_start_of_time) as store:
        for n in range(1200):
            store.put(make(n))
    now = 1000.0 + 2 * DAY

    with Store.open(path, retention=Retention(keep_days=2), clock=lambda: now) as store:
        until(lambda: store.stats.pruned == 998)

        assert store.reader.counts(-math.inf)["completed"] == 202
        assert store.reader.get("r998") == make(998)
        assert store.reader.get("r997") is None


def test_pruning_on_demand(path: Path, make: Make, until: Until) -> None:
    with Store.open(path, clock=_start_of_time) as store:
        for n in range(10):
            store.put(make(n))
        store.flush()

        store.prune(older_than=5.0)
        until(lambda: store.stats.pruned == 3)
        store.prune(older_than=-math.inf, max_rows=4)
        until(lambda: store.stats.pruned == 6)

        ids = [summary.id for summary in store.reader.recent(10)]
        assert ids == ["r9", "r8", "r7", "r6"]


def test_a_problem_is_told_and_goes_away(path: Path, make: Make, until: Until) -> None:
    told: list[str] = []
    pace = Pace(interval=0.01, first_pause=0.01, longest_pause=0.02)
    with (
        Store.open(path, pace=pace, clock=_start_of_time, on_problem=told.append) as store,
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        other.execute("BEGIN EXCLUSIVE")
        store.put(make(1))
        until(lambda: store.problem)
        other.execute("ROLLBACK")
        assert store.flush()

        assert store.problem is None
        assert store.reader.get("r1") == make(1)
    (text,) = told
    assert (
        text
        == f"{path} cannot be written: database is locked; outcomes wait in memory until it can"
    )
