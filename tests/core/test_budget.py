"""Second attempts are a share of the requests, and a floor for those who ask for little."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from herd.core import budget
from herd.core.budget import WINDOW, Budget

SHARE, FLOOR = 0.2, 0.05


def spent(purse: Budget, now: float, wanted: int = 10_000) -> int:
    return sum(purse.spend(now) for _ in range(wanted))


def test_a_quiet_fleet_may_retry_what_the_floor_of_a_window_allows() -> None:
    assert spent(Budget(share=0.0, floor=0.5), 0.0) == int(0.5 * WINDOW)


def test_requests_pay_for_retries() -> None:
    purse = Budget(share=0.25, floor=0.0)
    assert not purse.spend(0.0)
    for _ in range(40):
        purse.deposit(0.0)
    assert spent(purse, 0.0) == 10


def test_what_is_not_spent_is_lost_in_time() -> None:
    purse = Budget(share=1.0, floor=0.0)
    for _ in range(100):
        purse.deposit(0.0)
    assert purse.left(WINDOW) == pytest.approx(100 / 2.718281828)
    assert purse.left(20 * WINDOW) < 0.001


def test_a_spent_budget_fills_again_from_the_floor() -> None:
    purse = Budget(share=0.0, floor=1.0)
    assert spent(purse, 0.0) == 60
    assert not purse.spend(0.5)
    assert purse.spend(1.5)
    assert purse.left(100 * WINDOW) == pytest.approx(60.0)


def test_in_the_long_run_a_storm_is_held_to_the_share() -> None:
    """Every request fails, and so does every retry: the fleet gets a fifth more, not thrice."""
    purse, retried = Budget(share=0.2, floor=0.0), 0
    for second in range(600):
        for _ in range(100):
            purse.deposit(float(second))
            retried += spent(purse, float(second), 2)
    assert 0.19 * 60_000 < retried <= 0.2 * 60_000


def test_time_that_falls_changes_nothing() -> None:
    purse = Budget(share=0.0, floor=1.0)
    spent(purse, 100.0)
    assert purse.left(50.0) == purse.left(100.0) < 1.0


def test_a_budget_that_starts_late_is_as_full_as_one_that_starts_early() -> None:
    assert Budget(share=0.0, floor=1.0, now=5e8).left(5e8) == pytest.approx(60.0)
    assert Budget(share=0.0, floor=1.0).left(5e8) == pytest.approx(60.0)


@pytest.mark.parametrize(("share", "floor"), [(-0.1, 0.0), (0.0, -1.0)])
def test_a_negative_budget_is_a_mistake(share: float, floor: float) -> None:
    with pytest.raises(ValueError, match="not negative"):
        Budget(share=share, floor=floor)


def test_the_fleets_budgets() -> None:
    """60 retries and one hedge out of nothing; then a fifth and a fiftieth of the requests."""
    assert spent(budget.retries(), 0.0) == 60
    assert spent(budget.hedges(), 0.0) == 1
    for purse, most in ((budget.retries(), 60 + 200), (budget.hedges(), 1 + 20)):
        for _ in range(1000):
            purse.deposit(0.0)
        assert spent(purse, 0.0) == pytest.approx(most, abs=1)


class Purse(RuleBasedStateMachine):
    """Deposits, spending and time in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.purse = Budget(share=SHARE, floor=FLOOR)
        self.twin = Budget(share=SHARE, floor=FLOOR)
        self.now = 0.0
        self.deposits = 0
        self.spent = 0

    @rule(seconds=st.floats(0.0, 1000.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(requests=st.integers(1, 30))
    def requests_come(self, requests: int) -> None:
        for _ in range(requests):
            self.purse.deposit(self.now)
            self.twin.deposit(self.now)
        self.deposits += requests

    @rule(wanted=st.integers(1, 10))
    def attempts_fail(self, wanted: int) -> None:
        for _ in range(wanted):
            there = self.purse.left(self.now)
            granted = self.purse.spend(self.now)
            assert granted == self.twin.spend(self.now), "the same calls, the same answers"
            assert granted == (there >= 1.0)
            self.spent += granted

    @invariant()
    def it_is_never_negative(self) -> None:
        assert self.purse.left(self.now) >= 0.0

    @invariant()
    def nobody_spends_what_was_not_given(self) -> None:
        given = SHARE * self.deposits + FLOOR * (WINDOW + self.now)
        assert self.spent <= given + 1e-6


TestPurse = Purse.TestCase
TestPurse.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
