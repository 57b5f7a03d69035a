"""One clock for everything that does I/O."""

from __future__ import annotations

import datetime as dt
import time

import pytest

from herd.ops.clock import unix_clock


def test_it_reads_as_unix_time() -> None:
    wall = dt.datetime.now(dt.UTC).timestamp()  # noqa: TID251 - what it is compared to
    assert unix_clock()() == pytest.approx(wall, abs=1.0)


def test_it_never_jumps_with_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = unix_clock()
    before = clock()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert 0.0 <= clock() - before < 5.0
