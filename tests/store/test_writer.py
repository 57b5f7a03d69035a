from __future__ import annotations

import contextlib
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from herd.core.request import Outcome
from herd.store.reader import Reader
from herd.store.schema import connect_writer, prepare
from herd.store.writer import Pace, Writer

Make = Callable[..., Outcome]
Until = Callable[[Callable[[], object]], None]
Start = Callable[..., Writer]

#: Without long pauses, so that what recovers does so soon.
QUICK = Pace(interval=0.01, first_pause=0.01, longest_pause=0.02)


class Disk:
    """Connects to the real file, in a way that makes SQLite fail for real where told so."""

    def __init__(self) -> None:
        self.pragma = ""
        self.missing = False

    def connect(self, path: Path) -> sqlite3.Connection:
        connection = connect_writer(path.with_suffix(".gone") if self.missing else path)
        if self.pragma:
            connection.execute(self.pragma).fetchall()
        return connection


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def told() -> list[str]:
    """What the writer said of problems."""
    return []


@pytest.fixture
def start(prepared: Path, disk: Disk, told: list[str]) -> Iterator[Start]:
    """Start a writer with `pace`; it is closed at the end."""
    with contextlib.ExitStack() as stack:

        def begin(pace: Pace = QUICK, on_problem: Callable[[str], None] = told.append) -> Writer:
            writer = Writer(
                prepared,
                pace=pace,
                clock=lambda: 0.0,
                on_problem=on_problem,
                connect=disk.connect,
            )
            stack.callback(writer.close, 1.0)
            return writer

        yield begin


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Another process's write lock; it ends only with the block."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


def _kept(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM outcomes ORDER BY seq")]


def test_outcomes_reach_the_disk_by_themselves(
    prepared: Path, start: Start, make: Make, until: Until
) -> None:
    writer = start()
    writer.put(make(1))

    until(lambda: _kept(prepared) == ["r1"])


def test_flush_does_not_wait_for_the_interval(prepared: Path, start: Start, make: Make) -> None:
    writer = start(Pace(interval=3600))
    for n in range(1200):
        writer.put(make(n))

    assert writer.flush(10)
    assert len(_kept(prepared)) == 1200
    assert writer.stats.written == 1200


def test_close_writes_what_waits_and_leaves_no_thread(
    prepared: Path, start: Start, make: Make
) -> None:
    writer = start(Pace(interval=3600))
    for n in range(1200):
        writer.put(make(n))
    writer.close()

    assert len(_kept(prepared)) == 1200
    assert "herd-store" not in {thread.name for thread in threading.enumerate()}
    assert [file.name for file in prepared.parent.iterdir()] == ["herd.db"]


def test_closing_twice_does_no_harm(start: Start) -> None:
    writer = start()

    writer.close()
    writer.close()


def test_put_after_close_is_counted_and_raises_nothing(start: Start, make: Make) -> None:
    writer = start()
    writer.close()
    writer.put(make(1))

    assert writer.stats.dropped == 1


def test_a_second_outcome_is_counted_and_told_and_changes_nothing(
    prepared: Path, start: Start, make: Make, told: list[str]
) -> None:
    writer = start()
    writer.put(make(1))
    writer.put(make(1, ending="failed"))
    assert writer.flush()

    kept = Reader(prepared)
    assert kept.get("r1") == make(1)
    kept.close()
    assert (writer.stats.written, writer.stats.duplicates) == (1, 1)
    writer.close()
    assert len(told) == 1
    assert "request r1 already had an outcome" in told[0]


@pytest.mark.parametrize(
    "odd",
    [
        {"arrived": math.nan},
        {"story": "\ud800"},
        {"request": None},
        {"story": object()},
        {"ending": object()},
    ],
    ids=["no time", "no text", "no request", "no story", "no ending"],
)
def test_an_outcome_without_a_row_is_counted_and_does_not_cost_the_others(
    prepared: Path, start: Start, make: Make, odd: dict[str, object], told: list[str]
) -> None:
    writer = start(Pace(interval=3600))
    writer.put(make(1))
    writer.put(msgspec.structs.replace(make(2), **odd))
    writer.put(make(3))
    assert writer.flush()

    assert _kept(prepared) == ["r1", "r3"]
    assert writer.stats.unwritable == 1
    assert writer.problem is None
    writer.close()
    assert "1 had no row" in told[0]


def test_put_does_not_wait_while_the_database_is_locked(
    prepared: Path, start: Start, make: Make, until: Until, told: list[str]
) -> None:
    """Were it to wait, this would hang: the lock goes only after the last put."""
    writer = start(Pace(capacity=50, interval=0.01, first_pause=0.01, longest_pause=0.02))
    with _locked(prepared):
        writer.put(make(0))
        until(lambda: writer.problem and writer.stats.waiting == 0)
        for n in range(1, 200):
            writer.put(make(n))
        assert "database is locked" in str(writer.problem)
        assert writer.stats.waiting == 50
        assert writer.stats.dropped == 149
        assert writer.flush(0) is False

    assert writer.flush(10)
    assert _kept(prepared) == ["r0", *(f"r{n}" for n in range(150, 200))]
    assert writer.problem is None
    assert writer.stats.failures >= 1
    writer.close()
    assert "database is locked" in told[0]
    assert "149 were dropped" in told[-1]


@pytest.mark.parametrize(
    ("pragma", "cause"),
    [
        ("PRAGMA max_page_count = 1", "database or disk is full"),
        ("PRAGMA query_only = 1", "attempt to write a readonly database"),
    ],
)
def test_a_disk_that_takes_nothing_is_told_and_recovers(
    prepared: Path,
    disk: Disk,
    start: Start,
    make: Make,
    until: Until,
    told: list[str],
    pragma: str,
    cause: str,
) -> None:
    disk.pragma = pragma
    writer = start()
    # Much more than the pages that the empty tables have.
    for n in range(500):
        writer.put(make(n))
    until(lambda: cause in str(writer.problem))
    until(lambda: writer.stats.failures > 3)
    assert _kept(prepared) == []

    disk.pragma = ""

    assert writer.flush(10)
    assert writer.problem is None
    assert len(_kept(prepared)) == 500
    assert writer.stats.duplicates == 0
    assert [text for text in told if cause in text] == told[-1:]


def test_a_file_that_goes_missing_is_told_and_not_replaced(
    prepared: Path, disk: Disk, start: Start, make: Make, until: Until
) -> None:
    disk.missing = True
    writer = start()
    writer.put(make(1))
    until(lambda: "unable to open database file" in str(writer.problem))

    disk.missing = False

    assert writer.flush(10)
    assert _kept(prepared) == ["r1"]
    assert [file.suffix for file in prepared.parent.iterdir() if file.suffix == ".gone"] == []


def test_a_damaged_file_is_told_and_the_thread_lives_on(
    path: Path, make: Make, until: Until, told: list[str]
) -> None:
    prepare(path)
    damaged = bytearray(path.read_bytes())
    damaged[4096:] = b"\xff" * (len(damaged) - 4096)
    path.write_bytes(damaged)
    writer = Writer(path, pace=QUICK, on_problem=told.append)
    writer.put(make(1))

    until(lambda: writer.stats.failures > 3)
    assert "malformed" in str(writer.problem)
    writer.close(timeout=0.1)
    assert writer.stats.dropped == 1


def test_close_gives_up_on_a_disk_that_takes_nothing_and_tells_what_is_lost(
    disk: Disk, start: Start, make: Make, until: Until, told: list[str]
) -> None:
    disk.pragma = "PRAGMA query_only = 1"
    writer = start(Pace(batch=10, interval=0.01, first_pause=0.01, longest_pause=0.02))
    for n in range(95):
        writer.put(make(n))
    until(lambda: writer.problem)

    writer.close(timeout=0.1)

    assert "herd-store" not in {thread.name for thread in threading.enumerate()}
    assert writer.stats.dropped == 95
    assert "95 were dropped" in told[-1]
    assert writer.flush(0) is True


def test_close_still_writes_if_the_disk_recovers_in_time(
    prepared: Path, disk: Disk, start: Start, make: Make, until: Until
) -> None:
    disk.pragma = "PRAGMA query_only = 1"
    writer = start()
    writer.put(make(1))
    until(lambda: writer.problem)
    failures = writer.stats.failures
    closing = threading.Thread(target=writer.close, args=(10.0,))
    closing.start()
    until(lambda: writer.stats.failures > failures + 2)

    disk.pragma = ""
    closing.join(10)

    assert _kept(prepared) == ["r1"]


def test_a_listener_that_raises_does_not_stop_the_writing(
    prepared: Path, start: Start, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", reported.append)

    def broken(_text: str) -> None:
        raise RuntimeError("nobody listens")

    writer = start(on_problem=broken)
    for n in (1, 1, 2):
        writer.put(make(n))
    assert writer.flush()
    writer.put(make(3))
    assert writer.flush()

    assert _kept(prepared) == ["r1", "r2", "r3"]
    assert [str(each.exc_value) for each in reported] == ["nobody listens"]


def test_losses_are_told_once_and_not_with_every_batch(
    start: Start, make: Make, told: list[str]
) -> None:
    writer = start()
    for _ in range(5):
        writer.put(make(1))
        assert writer.flush()
    writer.put(make(2))
    assert writer.flush()
    assert len(told) == 1

    writer.close()

    assert len(told) == 2
    assert "4 were duplicates" in told[1]


def test_many_threads_may_put(prepared: Path, start: Start, make: Make) -> None:
    writer = start()

    def put(first: int) -> None:
        for n in range(first, first + 250):
            writer.put(make(n))

    threads = [threading.Thread(target=put, args=(250 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert writer.flush(10)
    assert set(_kept(prepared)) == {f"r{n}" for n in range(1000)}


def test_ten_thousand_outcomes_cost_little_processor_time(
    prepared: Path, start: Start, make: Make
) -> None:
    """Compared with the time that the same machine takes to print them; twice that is usual."""
    many = [make(n) for n in range(10_000)]
    begun = time.process_time()
    for outcome in many:
        repr(outcome)
    calibration = time.process_time() - begun

    writer = start(Pace())
    begun = time.process_time()
    for outcome in many:
        writer.put(outcome)
    assert writer.flush(60)
    spent = time.process_time() - begun

    assert len(_kept(prepared)) == 10_000
    assert spent < 8 * calibration
