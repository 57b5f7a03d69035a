from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Until = Callable[[Callable[[], object]], None]

CHILD = Path(__file__).with_name("crash_child.py")
#: Seconds that an outcome may take to the disk.
LATEST = 1.0


def _lines(log: Path) -> dict[str, float]:
    """What the child put and when; its last line may be half a line."""
    if not log.exists():
        return {}
    lines = log.read_text().split("\n")[:-1]
    return {f"r{number}": float(at) for number, at in (line.split() for line in lines)}


def _kept(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [row[0] for row in connection.execute("SELECT id FROM outcomes ORDER BY seq")]


def test_a_killed_process_loses_the_last_second_at_most(
    path: Path, tmp_path: Path, until: Until
) -> None:
    """Several times on the same file, at different points between two transactions."""
    for run, seconds in enumerate((1.6, 1.7, 1.85)):
        log = tmp_path / f"log{run}"

        def long_enough(log: Path = log, seconds: float = seconds) -> bool:
            times = list(_lines(log).values())
            return bool(times) and times[-1] - times[0] > seconds

        child = subprocess.Popen([sys.executable, CHILD, "steady", path, log])
        try:
            until(long_enough)
        finally:
            child.kill()
            child.wait()

        put = _lines(log)
        end = max(put.values())
        due = {name for name, at in put.items() if at < end - LATEST}
        assert len(due) > 20
        kept = _kept(path)
        assert due <= set(kept)
        # In order and without a hole: only the end can be missing.
        assert kept == [f"r{number}" for number in range(len(kept))]


@pytest.mark.skipif(os.name == "nt", reason="there is no such limit on Windows")
def test_a_disk_that_fills_up_costs_no_outcome_once_there_is_room(
    path: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"

    child = subprocess.run(
        [sys.executable, CHILD, "full", path, log],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )

    problem, recovered = child.stdout.splitlines()
    assert "cannot be written: disk I/O error" in problem
    assert recovered == "True None"
    assert child.stderr == ""
    assert _kept(path) == list(_lines(log))
