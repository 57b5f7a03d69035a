"""How crowded a device was."""

from __future__ import annotations

import pytest

from herd.core import crowd
from herd.core.crowd import Crowd


def test_it_is_the_harmonic_mean_over_time() -> None:
    here = Crowd()
    start = here.enter(10.0)
    assert crowd.mean(5.0, here.reading(15.0) - start) == pytest.approx(1.0)
    here.enter(15.0)
    here.enter(15.0)
    assert crowd.mean(10.0, here.reading(20.0) - start) == pytest.approx(1.5)
    later = here.leave(20.0)
    assert crowd.mean(10.0, here.reading(30.0) - later) == pytest.approx(2.0)
    assert here.count == 2


def test_nobody_takes_no_share_and_no_time_is_alone() -> None:
    here = Crowd()
    assert here.reading(100.0) == 0.0
    assert crowd.mean(0.0, 0.0) == 1.0
