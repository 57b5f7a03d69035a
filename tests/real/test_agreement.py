"""The simulator tells what the real router does with emulated engines over HTTP."""

from __future__ import annotations

import sys

import pytest

from benchmarks.agreement import Scale, pair

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(sys.platform != "linux", reason="clients need addresses of their own"),
]


def test_a_short_run_takes_about_as_long_as_simulated() -> None:
    """Chance weighs more in a short run than in the benchmark's, so it may be off by more."""
    found = pair("five", "chat", seed=2, scale=Scale(requests=60, seconds=25.0, ahead=True))

    assert (found.real.lost, found.simulated.lost) == (0, 0)
    assert 0.75 < found.real.mean / found.simulated.mean < 1.33
