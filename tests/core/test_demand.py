"""Demand: what was asked says what will be, at the scales of minutes, hours and weeks."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.core.demand import HOURS, MINUTES, MODELS_MOST, Demand, ModelDemand
from herd.core.priors import ANSWER_TOKENS, Rates

HOUR, DAY, WEEK = 3600.0, 86400.0, 7 * 86400.0
#: A Monday at midnight, in seconds since 1970.
MONDAY = 4 * DAY + 2900 * WEEK


def steady(every: float, seconds: float, *, start: float = MONDAY) -> tuple[Demand, float]:
    """Ask for `m` at equal distances; also returns the time of the last request."""
    demand, at = Demand(), start
    while at < start + seconds:
        demand.arrived("m", at)
        at += every
    return demand, at - every


def test_a_steady_stream_is_expected_to_go_on() -> None:
    demand, now = steady(20.0, 12 * HOUR)

    assert demand.expected("m", now, 60.0) == pytest.approx(3.0, rel=0.1)
    assert demand.expected("m", now, HOUR) == pytest.approx(180.0, rel=0.1)
    assert demand.chance("m", now, HOUR) == pytest.approx(1.0, abs=2e-3)


def test_nothing_is_expected_of_what_nobody_asks_for() -> None:
    demand = Demand()

    assert demand.expected("m", MONDAY, HOUR) == 0.0
    assert demand.chance("m", MONDAY, HOUR) == 0.0


def test_a_burst_says_much_of_the_next_minute_and_little_of_the_next_hours() -> None:
    demand, now = steady(600.0, 6 * HOUR)
    usual = demand.expected("m", now, 4 * HOUR)
    for second in range(60):
        demand.arrived("m", now + second)
    now += 60.0

    assert demand.expected("m", now, 60.0) > 8.0
    assert demand.expected("m", now, 4 * HOUR) < usual + 60.0 * (MINUTES / 60.0)
    later = now + 4 * MINUTES
    assert demand.expected("m", later, 60.0) < 1.0


def test_a_model_that_nobody_asks_for_any_more_is_forgotten() -> None:
    demand, now = steady(60.0, 4 * HOUR)

    assert demand.expected("m", now + 6 * HOURS, HOUR) < 1.0
    assert demand.chance("m", now + 6 * HOURS, HOUR) < 0.5


def test_one_request_is_no_lasting_rate() -> None:
    demand = Demand()
    demand.arrived("m", MONDAY)

    assert demand.expected("m", MONDAY, HOUR) < 5.0


def test_what_happens_each_monday_at_nine_is_expected_on_mondays_at_nine() -> None:
    demand = Demand()
    for week in range(4):
        for number in range(30):
            demand.arrived("m", MONDAY + week * WEEK + 9 * HOUR + 100.0 * number)
    before = MONDAY + 4 * WEEK + 9 * HOUR - 60.0

    # Four such hours have been seen: four fifths of trust in them.
    assert demand.expected("m", before, HOUR) == pytest.approx(30.0 * 4 / 5, rel=0.1)
    assert demand.expected("m", before - DAY, HOUR) < 1.0
    assert demand.expected("m", before - 3 * HOUR, HOUR) < 1.0


def test_weeks_of_silence_count_against_an_hour_of_the_week() -> None:
    demand = Demand()
    for number in range(30):
        demand.arrived("m", MONDAY + 9 * HOUR + 100.0 * number)
    at_nine = 9 * HOUR - 60.0
    first = demand.expected("m", MONDAY + WEEK + at_nine, HOUR)
    for week in range(2, 9):
        demand.expected("m", MONDAY + week * WEEK, HOUR)

    assert demand.expected("m", MONDAY + 9 * WEEK + at_nine, HOUR) < 0.3 * first


def test_requests_in_visits_are_less_likely_to_come_at_all() -> None:
    visits, spread = Demand(), Demand()
    for number in range(24):
        spread.arrived("m", MONDAY + number * HOUR / 2)
    for visit in range(3):
        for number in range(8):
            visits.arrived("m", MONDAY + visit * 4 * HOUR + 5.0 * number)
    now = MONDAY + 12 * HOUR

    assert visits.chance("m", now, HOUR) < 0.5 * spread.chance("m", now, HOUR)


def test_a_visit_under_way_is_likely_to_go_on_until_its_pause_is_longer_than_any() -> None:
    demand = Demand()
    for number in range(10):
        demand.arrived("m", MONDAY + 20.0 * number)
    end = MONDAY + 180.0

    soon = demand.chance("m", end, MINUTES)
    assert soon > 0.8
    assert demand.chance("m", end + 200.0, MINUTES) < 0.4 * soon


def test_who_comes_at_equal_distances_is_sure_to_come_again() -> None:
    demand, now = steady(240.0, 6 * HOUR)

    assert demand.chance("m", now + 230.0, HOUR) > 0.8
    assert demand.chance("m", now, 60.0) < 0.3


def test_the_work_of_a_request_is_learned() -> None:
    rates = Rates(prefill=1000.0, decode=50.0, load=5.0, overhead=0.02)
    demand = Demand()
    unknown = 0.02 + ANSWER_TOKENS / 1000.0 + ANSWER_TOKENS / 50.0
    assert demand.work("m", rates) == pytest.approx(unknown)
    demand.arrived("m", MONDAY)
    for number in range(200):
        demand.answered("m", fresh=4000, answer=100, now=MONDAY + number)
    demand.answered("stranger", fresh=4000, answer=100, now=MONDAY)

    assert demand.work("m", rates) == pytest.approx(0.02 + 4.0 + 2.0, rel=0.02)
    assert "stranger" not in demand.models


def test_the_number_of_models_is_bounded_and_the_longest_unasked_goes() -> None:
    demand = Demand()
    for number in range(MODELS_MOST):
        demand.arrived(f"m{number}", MONDAY + number)
    demand.arrived("m0", MONDAY + MODELS_MOST)
    demand.arrived("new", MONDAY + MODELS_MOST)

    assert len(demand.models) == MODELS_MOST
    assert "m1" not in demand.models
    assert {"m0", "new"} <= demand.models.keys()


def test_it_survives_being_stored() -> None:
    demand, now = steady(20.0, 3 * HOUR)
    stored = msgspec.json.encode(demand.models)
    again = Demand(msgspec.json.decode(stored, type=dict[str, ModelDemand]))

    assert again.expected("m", now, HOUR) == demand.expected("m", now, HOUR)


@given(
    pauses=st.lists(st.floats(0.0, 3e6), max_size=40),
    ahead=st.floats(0.0, 1e6),
    seconds=st.floats(0.0, 1e6),
)
def test_chances_are_chances_and_expectations_grow_with_time(
    pauses: list[float], ahead: float, seconds: float
) -> None:
    demand, now = Demand(), MONDAY
    for pause in pauses:
        now += pause
        demand.arrived("m", now)
    now += ahead

    chance, expected = demand.chance("m", now, seconds), demand.expected("m", now, seconds)
    assert 0.0 <= chance <= 1.0
    assert 0.0 <= expected < 1e6 * (len(pauses) + 1)
    assert demand.chance("m", now, seconds * 2) >= chance - 1e-9
