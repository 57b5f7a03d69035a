"""Small statistics: they follow what changes, shrug off what is odd, and never grow."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.core.statistics import (
    BUCKETS,
    RATIO,
    WEIGHT_MOST,
    Belief,
    Line,
    Mean,
    Sketch,
    bucket,
    lognormal,
    middle,
)

VALUES = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.lists(VALUES, min_size=1, max_size=50))
def test_a_mean_lies_among_its_values(values: list[float]) -> None:
    mean = Mean()
    for value in values:
        mean.add(value)
    assert min(values) - 1e-6 <= mean.value <= max(values) + 1e-6


def test_the_first_values_of_a_mean_weigh_the_same() -> None:
    mean = Mean()
    for value in (1.0, 2.0, 6.0):
        mean.add(value)
    assert mean.value == pytest.approx(3.0)


def test_a_belief_forgets_by_time() -> None:
    slow, fast = Belief(100.0), Belief(100.0)
    for belief, pause in ((slow, 0.0), (fast, 1000.0)):
        for _ in range(10):
            belief.add(0.0, 0.0, expected=0.0)
        belief.add(0.1, pause, expected=0.0)
    assert slow.value == pytest.approx(0.1 / 11)
    assert fast.value == pytest.approx(0.1, rel=0.02)


@given(st.lists(st.tuples(VALUES, st.floats(0.0, 1e9)), max_size=60))
def test_a_belief_stays_finite_and_bounded(seen: list[tuple[float, float]]) -> None:
    belief, now = Belief(3600.0, 1.0), 0.0
    for value, pause in seen:
        now += pause
        belief.add(value, now, expected=belief.value)
    assert math.isfinite(belief.value)
    assert 0.0 <= belief.weight <= WEIGHT_MOST
    again = Belief(3600.0, 1.0)
    again.restore(belief.state())
    assert (again.value, again.spread, again.state()) == (
        belief.value,
        belief.spread,
        belief.state(),
    )


def test_an_outlier_hardly_moves_a_belief() -> None:
    belief = Belief(1e9)
    for _ in range(30):
        belief.add(1.0, 0.0, expected=1.0)
    belief.add(1e9, 0.0, expected=1.0)
    assert belief.value == pytest.approx(1.0, abs=0.02)


def test_a_line_is_found_among_noise() -> None:
    chance = random.Random(1)
    line = Line(1e9, 3.0, slope=0.9, slope_variance=0.09)
    for _ in range(50):
        x = chance.uniform(0.0, 3.0)
        fit = line.fit(0.0, 0.25)
        y = 0.4 + 0.5 * x + chance.gauss(0.0, 0.05)
        line.add(x, y, 0.0, expected=fit.at(x), doubt=fit.doubt(x))
    fit = line.fit(0.0, 0.25)
    assert (fit.level, fit.slope) == pytest.approx((0.4, 0.5), abs=0.05)
    assert fit.doubt(1.0) < 0.01 < fit.doubt(30.0)
    assert line.spread == pytest.approx(0.06, abs=0.03)


def test_a_line_without_values_is_what_was_believed() -> None:
    fit = Line(1e9, slope=0.9, slope_variance=0.09).fit(0.2, 0.25)
    assert (fit.level, fit.slope, fit.variance, fit.slope_variance) == (0.2, 0.9, 0.25, 0.09)


POINTS = st.tuples(st.floats(0.0, 5.0), st.floats(-50.0, 50.0), st.floats(0.0, 1e7))


@given(st.lists(POINTS, max_size=60))
def test_a_line_stays_finite_and_its_doubt_falls_below_the_prior(
    seen: list[tuple[float, float, float]],
) -> None:
    line, now = Line(86400.0, 3.0, slope=0.9, slope_variance=0.09), 0.0
    for x, y, pause in seen:
        now += pause
        fit = line.fit(0.0, 0.25)
        line.add(x, y, now, expected=fit.at(x), doubt=fit.doubt(x))
    fit = line.fit(0.0, 0.25)
    assert math.isfinite(fit.level)
    assert math.isfinite(fit.slope)
    assert 0.0 < fit.variance <= 0.25 + 1e-9
    assert 0.0 < fit.slope_variance <= 0.09 + 1e-9
    assert line.weight <= WEIGHT_MOST
    again = Line(86400.0, 3.0, slope=0.9, slope_variance=0.09)
    again.restore(line.state())
    assert again.fit(0.0, 0.25) == fit


@given(st.floats(1.0, 200_000.0))
def test_a_bucket_stands_for_its_numbers(value: float) -> None:
    assert middle(bucket(value)) == pytest.approx(value, rel=RATIO - 1.0)


def test_what_is_beyond_the_buckets_counts_as_the_last_or_first() -> None:
    assert (bucket(0.0), bucket(-5.0), bucket(1e300)) == (0, 0, BUCKETS - 1)


@given(st.lists(st.tuples(st.integers(0, 10**7), st.floats(0.0, 1e9)), min_size=1, max_size=80))
def test_a_sketch_holds_shares_and_no_more_than_its_buckets(seen: list[tuple[int, float]]) -> None:
    sketch, now = Sketch(3600.0), 0.0
    for value, pause in seen:
        now += pause
        sketch.add(value, now)
    assert math.fsum(shares(sketch)) == pytest.approx(1.0)
    assert len(sketch.counts) <= BUCKETS
    assert 0.9 < sketch.weight(now) <= len(seen) * 1.001
    again = Sketch(3600.0)
    again.restore(*sketch.state())
    assert shares(again) == pytest.approx(shares(sketch))


def test_a_sketch_forgets_by_time_and_does_not_overflow() -> None:
    sketch = Sketch(10.0)
    for _ in range(100):
        sketch.add(10, 0.0)
    sketch.add(1000, 100.0)
    assert shares(sketch)[bucket(1000)] == pytest.approx(1 / (1 + 100 / 1024))
    assert sketch.weight(110.0) == pytest.approx((1 + 100 / 1024) / 2)
    sketch.add(500, 1e12)
    assert shares(sketch)[bucket(500)] == 1.0
    assert sketch.weight(1e12) == 1.0


def test_a_sketch_does_not_go_on_from_nonsense() -> None:
    for counts in ({BUCKETS: 1.0}, {-1: 1.0}, {3: -1.0}, {3: math.nan}):
        with pytest.raises(ValueError, match="no counts"):
            Sketch(1.0).restore(0.0, 1, counts)


def test_a_lognormal_has_its_median_and_mean() -> None:
    shares = lognormal(200.0, 0.8)
    assert math.fsum(shares) == pytest.approx(1.0)
    assert math.fsum(shares[: bucket(200.0)]) == pytest.approx(0.5, abs=0.03)
    mean = math.fsum(share * middle(place) for place, share in enumerate(shares))
    assert mean == pytest.approx(200.0 * math.exp(0.32), rel=0.01)


def test_a_blend_is_a_weighted_mean() -> None:
    sketch = Sketch(1.0)
    others = [1.0] + [0.0] * (BUCKETS - 1)
    assert sketch.blend(others, 0.0) == others
    sketch.add(100, 0.0)
    found = sketch.blend(others, 0.25)
    assert (found[0], found[bucket(100)]) == (0.75, 0.25)


def shares(sketch: Sketch) -> list[float]:
    return sketch.blend([0.0] * BUCKETS, 1.0)
