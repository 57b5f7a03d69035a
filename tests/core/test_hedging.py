"""Which requests may have a second attempt beside the first, and when it is worth it."""

from __future__ import annotations

import math

import pytest

from herd.core import hedging
from herd.core.hedging import LEAST, PRIOR_SPREAD, Spread, due, hedge_at, hedgeable
from herd.core.request import Operation, Request


def request(
    operation: Operation = "chat", *, stream: bool = False, limit: int | None = None
) -> Request:
    return Request(
        id="a",
        dialect="openai",
        operation=operation,
        endpoint="/",
        asked="m",
        model="m:latest",
        stream=stream,
        max_tokens=limit,
    )


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (request("embedding"), True),
        (request("chat", limit=64), True),
        (request("completion", limit=1), True),
        (request("chat", limit=65), False),
        (request("chat"), False),
        (request("chat", limit=8, stream=True), False),
    ],
)
def test_only_short_whole_answers_are_hedged(asked: Request, answer: bool) -> None:
    assert hedgeable(asked) is answer


def test_a_hedge_waits_for_the_slowest_twentieth() -> None:
    """Of a lognormal time, 5 % are longer than the median times e to the 1.645 sigma."""
    assert hedge_at(2.0, 0.0) == 2.0
    assert hedge_at(2.0, 0.7) == pytest.approx(2.0 * math.exp(1.645 * 0.7))
    assert hedge_at(2.0, 0.7) > hedge_at(2.0, 0.3)


def test_a_hedge_never_comes_at_once() -> None:
    assert hedge_at(0.0, 0.0) == LEAST
    assert hedge_at(0.001, 0.5) == LEAST


def test_a_slow_second_is_worth_it_only_after_as_long_a_wait() -> None:
    assert due(1.0, 0.0, 0.5) == 1.0
    assert due(1.0, 0.0, 30.0) == 30.0


def test_nothing_known_is_within_a_factor_of_two() -> None:
    assert Spread().value == pytest.approx(PRIOR_SPREAD)


def test_good_predictions_narrow_the_spread_and_bad_ones_widen_it() -> None:
    good, bad = Spread(), Spread()
    for second in range(100):
        good.add(1.05, 1.0, float(second))
        bad.add(4.0, 1.0, float(second))
    assert good.value < 0.25
    assert 1.2 < bad.value < math.log(4.0)


def test_too_short_and_too_long_count_the_same() -> None:
    short, long = Spread(), Spread()
    short.add(0.5, 1.0, 0.0)
    long.add(2.0, 1.0, 0.0)
    assert short.value == pytest.approx(long.value)


def test_old_outcomes_fade() -> None:
    spread = Spread()
    for _ in range(100):
        spread.add(20.0, 1.0, 0.0)
    before = spread.value
    spread.add(1.0, 1.0, 20 * hedging.HALF_LIFE)
    assert before > 2.5
    assert spread.value < PRIOR_SPREAD


def test_age_changes_what_all_weigh_not_the_spread_of_many() -> None:
    """Time alone brings the belief back to the prior, not below it."""
    spread = Spread()
    for _ in range(50):
        spread.add(1.0, 1.0, 0.0)
    tight = spread.value
    spread.add(1.0, 1.0, 5 * hedging.HALF_LIFE)
    assert tight < spread.value < PRIOR_SPREAD


@pytest.mark.parametrize(("actual", "predicted"), [(0.0, 1.0), (1.0, 0.0)])
def test_nothing_is_learned_from_nothing(actual: float, predicted: float) -> None:
    spread = Spread()
    spread.add(actual, predicted, 0.0)
    assert spread.value == pytest.approx(PRIOR_SPREAD)
