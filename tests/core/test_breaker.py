"""Breakers: rests that double, one real request as the probe, losses in seconds."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from herd.core import breaker
from herd.core.breaker import Blame, Breaker, Guard, Losses, Rests, Who, blame
from herd.core.request import Failure, FailureKind

RESTS = Rests(first=1.0, most=30.0)
REFUSED = Failure(kind="connect", message="connection refused", retryable=True)


def status(code: int, *, retryable: bool = True, after: float | None = None) -> Failure:
    return Failure(
        kind="status", message=str(code), status=code, retryable=retryable, retry_after=after
    )


def who(name: str) -> Who:
    return (name, 1)


@pytest.fixture
def one() -> Breaker:
    return Breaker(RESTS)


def opened(one: Breaker, now: float = 0.0) -> None:
    one.begin(who("first"), now, 1.0)
    one.failed(who("first"), 0.5, now)


# One breaker


def test_all_may_start_while_nothing_fails(one: Breaker) -> None:
    for name in "abc":
        one.begin(who(name), 0.0, 1.0)
    assert (one.state(0.0), one.hold(0.0), one.probing) == ("closed", 0.0, False)


def test_a_fault_opens_it_and_time_lets_one_through(one: Breaker) -> None:
    opened(one)
    assert (one.state(0.9), one.state(1.0)) == ("open", "half_open")
    assert one.hold(0.25) == 0.75
    assert one.hold(1.0) == 0.0
    assert one.rest_until == 1.0


def test_nobody_starts_while_it_is_open(one: Breaker) -> None:
    opened(one)
    with pytest.raises(RuntimeError):
        one.begin(who("b"), 0.5, 1.0)


def test_while_the_probe_is_out_the_others_wait_for_it(one: Breaker) -> None:
    opened(one)
    one.begin(who("probe"), 2.0, 3.0)
    assert one.probing
    assert one.hold(2.0) == 3.0
    assert one.hold(4.0) == 1.0
    with pytest.raises(RuntimeError):
        one.begin(who("b"), 2.0, 1.0)


def test_a_probe_that_is_overdue_is_waited_for_by_its_age(one: Breaker) -> None:
    opened(one)
    one.begin(who("probe"), 2.0, 0.0)
    assert one.hold(2.0) == 0.05
    assert one.hold(10.0) == 2.0


def test_the_probes_first_sign_of_life_closes_it(one: Breaker) -> None:
    opened(one)
    one.begin(who("probe"), 2.0, 3.0)
    assert one.answered(who("probe"), 2.5)
    assert (one.state(2.5), one.hold(2.5)) == ("closed", 0.0)
    assert not one.answered(who("probe"), 2.6)


def test_a_probe_that_fails_opens_it_for_longer_up_to_a_bound(one: Breaker) -> None:
    opened(one)
    rests, now = [], 0.0
    for number in range(7):
        now = one.rest_until
        one.begin(who(str(number)), now, 1.0)
        one.failed(who(str(number)), 0.1, now)
        rests.append(one.rest_until - now)
    assert rests == [2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_it_may_fail_for_ever(one: Breaker) -> None:
    for number in range(2000):
        now = one.rest_until
        one.begin(who(str(number)), now, 1.0)
        one.failed(who(str(number)), 0.1, now)
    assert one.rest_until - now == 30.0


def test_who_has_answered_and_then_breaks_rests_longer_still(one: Breaker) -> None:
    """Only a whole success starts the count anew: an engine that dies in each answer is not well."""
    opened(one)
    one.begin(who("probe"), 1.0, 1.0)
    one.answered(who("probe"), 1.5)
    one.failed(who("probe"), 1.0, 2.0)
    assert one.rest_until == 4.0


def test_a_success_starts_the_count_anew(one: Breaker) -> None:
    opened(one)
    one.begin(who("probe"), 1.0, 1.0)
    one.succeeded(who("probe"), 2.0)
    one.begin(who("b"), 2.0, 1.0)
    one.failed(who("b"), 1.0, 3.0)
    assert one.rest_until == 4.0


def test_a_probe_whose_client_leaves_makes_room_for_the_next(one: Breaker) -> None:
    opened(one)
    one.begin(who("probe"), 1.0, 5.0)
    one.left(who("probe"))
    assert (one.state(1.0), one.hold(1.0)) == ("half_open", 0.0)
    one.begin(who("next"), 1.0, 5.0)
    assert one.probing


def test_those_that_fail_together_count_as_one_fault(one: Breaker) -> None:
    """Eight requests on an engine that dies tell once that it is dead, not eight times."""
    for number in range(8):
        one.begin(who(str(number)), 0.0, 1.0)
    for number in range(8):
        one.failed(who(str(number)), 0.1, 0.1 * number)
    assert one.rest_until == 1.0
    assert one.losses.probability(0.7) > 0.75


def test_a_late_fault_from_before_does_not_disturb_the_probe(one: Breaker) -> None:
    one.begin(who("old"), 0.0, 1.0)
    opened(one)
    one.begin(who("probe"), 1.0, 1.0)
    one.failed(who("old"), 1.5, 1.5)
    assert one.probing
    assert one.answered(who("probe"), 1.6)


def test_a_success_from_before_the_fault_ends_the_rest_and_no_more(one: Breaker) -> None:
    one.begin(who("old"), 0.0, 1.0)
    opened(one)
    one.succeeded(who("old"), 0.5)
    assert one.state(0.5) == "half_open"
    one.begin(who("probe"), 0.5, 1.0)
    one.failed(who("probe"), 0.1, 0.6)
    assert one.rest_until == pytest.approx(2.6)


def test_a_sign_of_life_from_before_leaves_the_probe_alone(one: Breaker) -> None:
    one.begin(who("old"), 0.0, 1.0)
    opened(one)
    one.begin(who("probe"), 1.0, 1.0)
    assert not one.answered(who("old"), 1.1)
    assert one.probing


def test_busy_is_no_fault(one: Breaker) -> None:
    one.begin(who("a"), 0.0, 1.0)
    one.busy(who("a"), None, 0.0)
    assert (one.state(0.5), one.hold(0.5)) == ("closed", 0.5)
    for name in "bc":
        one.begin(who(name), 1.0, 1.0)
    assert one.losses.expected(10.0, 1.0) == 0.0
    one.failed(who("b"), 0.1, 1.0)
    assert one.rest_until == 2.0


@pytest.mark.parametrize(("wish", "rest"), [(None, 1.0), (7.5, 7.5), (3600.0, 30.0), (-1.0, 0.0)])
def test_a_busy_engine_says_for_how_long_within_bounds(
    one: Breaker, wish: float | None, rest: float
) -> None:
    one.busy(who("a"), wish, 0.0)
    assert one.hold(0.0) == rest


def test_a_busy_probe_proves_nothing(one: Breaker) -> None:
    opened(one)
    one.begin(who("probe"), 1.0, 1.0)
    one.busy(who("probe"), 2.0, 1.5)
    assert (one.probing, one.hold(1.5), one.state(3.5)) == (False, 2.0, "half_open")


# What is lost


def test_nothing_lost_costs_nothing() -> None:
    losses = Losses()
    losses.kept(0.0)
    assert (losses.probability(0.0), losses.expected(100.0, 0.0)) == (0.0, 0.0)


def test_every_third_lost_is_about_a_third() -> None:
    losses = Losses()
    for second in range(300):
        if second % 3 == 0:
            losses.lost(4.0, second / 10)
        else:
            losses.kept(second / 10)
    assert losses.probability(30.0) == pytest.approx(1 / 3, abs=0.01)
    assert losses.expected(11.0, 30.0) == pytest.approx((4.0 + 11.0) / 3, abs=0.2)


def test_one_loss_among_nothing_is_not_believed_to_be_all() -> None:
    losses = Losses()
    losses.lost(1.0, 0.0)
    assert losses.probability(0.0) == pytest.approx(1 / 3)


def test_losses_are_forgotten_in_time() -> None:
    losses = Losses()
    for _ in range(20):
        losses.lost(1.0, 0.0)
    assert losses.probability(0.0) > 0.9
    assert losses.probability(20 * breaker.HALF_LIFE) < 0.001
    losses.kept(10 * breaker.HALF_LIFE)
    assert losses.probability(10 * breaker.HALF_LIFE) < 0.01


def test_the_mean_loss_follows_the_last_ones() -> None:
    losses = Losses()
    losses.lost(100.0, 0.0)
    losses.lost(2.0, 10 * breaker.HALF_LIFE)
    p = losses.probability(10 * breaker.HALF_LIFE)
    assert losses.expected(0.0, 10 * breaker.HALF_LIFE) / p == pytest.approx(2.1, abs=0.01)


# Whose failure


@pytest.mark.parametrize(
    ("failure", "whose"),
    [
        (REFUSED, "engine"),
        (status(500), "replica"),
        (status(502), "replica"),
        (status(504), "replica"),
        (status(404), "replica"),
        (status(408), "replica"),
        (status(429), "busy"),
        (status(503), "busy"),
        (status(425), "busy"),
        (status(400, retryable=False), "request"),
        (status(422, retryable=False), "request"),
        (status(501, retryable=False), "request"),
    ],
)
def test_whose_failure_a_status_is(failure: Failure, whose: Blame) -> None:
    assert blame(failure) == whose


@pytest.mark.parametrize(
    ("kind", "retryable", "whose"),
    [
        ("timeout", True, "replica"),
        ("broken", True, "replica"),
        ("protocol", True, "replica"),
        ("protocol", False, "request"),
        ("engine", False, "lost"),
        ("node_lost", True, "lost"),
    ],
)
def test_whose_failure_another_kind_is(kind: FailureKind, retryable: bool, whose: Blame) -> None:
    assert blame(Failure(kind=kind, message="", retryable=retryable)) == whose


def test_two_who_answer_the_same_blame_the_request() -> None:
    assert blame(status(500), status(500)) == "request"
    assert blame(status(500), status(502)) == "replica"
    assert blame(status(500), REFUSED) == "replica"
    assert blame(REFUSED, REFUSED) == "engine"
    assert blame(status(503), status(503)) == "busy"


# Replica and engine


class Twins:
    """Two models on one engine."""

    def __init__(self) -> None:
        engine = Breaker(RESTS)
        self.a, self.b = Guard(Breaker(RESTS), engine), Guard(Breaker(RESTS), engine)


@pytest.fixture
def twins() -> Twins:
    return Twins()


def test_no_connection_for_one_model_is_none_for_the_other(twins: Twins) -> None:
    twins.a.begin(who("x"), 0.0, 1.0)
    twins.a.failed(who("x"), REFUSED, 0.1, 0.0)
    assert twins.a.hold(0.0) == twins.b.hold(0.0) == 1.0
    assert twins.b.state(0.0) == "open"
    assert twins.a.rest_until == twins.b.rest_until == 1.0
    assert twins.b.loss(10.0, 0.0) == pytest.approx((0.1 + 10.0) / 3)


def test_one_probe_tries_the_engine_for_all_models(twins: Twins) -> None:
    twins.a.begin(who("x"), 0.0, 1.0)
    twins.a.failed(who("x"), REFUSED, 0.1, 0.0)
    twins.b.begin(who("y"), 1.0, 2.0)
    assert twins.a.hold(1.0) == 2.0
    assert twins.b.answered(who("y"), 1.5)
    assert twins.a.hold(1.5) == 0.0
    assert twins.a.state(1.5) == "closed"


def test_a_model_that_fails_leaves_the_others_alone(twins: Twins) -> None:
    twins.a.begin(who("x"), 0.0, 1.0)
    twins.a.failed(who("x"), status(500), 3.0, 3.0)
    assert (twins.a.state(3.0), twins.b.state(3.0)) == ("open", "closed")
    assert twins.b.loss(10.0, 3.0) == 0.0
    assert twins.a.loss(10.0, 3.0) == pytest.approx(13.0 / 3)


def test_an_engine_that_answers_with_an_error_can_be_reached(twins: Twins) -> None:
    twins.a.begin(who("x"), 0.0, 1.0)
    twins.a.failed(who("x"), REFUSED, 0.1, 0.0)
    twins.a.begin(who("y"), 1.0, 1.0)
    twins.a.failed(who("y"), status(500), 0.1, 1.1)
    assert twins.b.state(1.1) == "closed"
    assert twins.a.state(1.1) == "open"


def test_a_probe_that_breaks_off_says_nothing_of_the_engine(twins: Twins) -> None:
    twins.a.begin(who("x"), 0.0, 1.0)
    twins.a.failed(who("x"), REFUSED, 0.1, 0.0)
    twins.a.begin(who("y"), 1.0, 1.0)
    broken = Failure(kind="broken", message="reset", retryable=True)
    twins.a.failed(who("y"), broken, 0.1, 1.1)
    assert (twins.b.state(1.1), twins.b.hold(1.1)) == ("half_open", 0.0)
    assert twins.a.state(1.1) == "open"


@pytest.mark.parametrize(
    "failure", [status(429, after=5.0), status(503, after=5.0)], ids=["429", "503"]
)
def test_back_pressure_is_heeded(twins: Twins, failure: Failure) -> None:
    twins.a.begin(who("x"), 0.0, 1.0)
    twins.a.failed(who("x"), failure, 0.1, 0.0)
    assert (twins.a.hold(0.0), twins.b.hold(0.0)) == (5.0, 0.0)
    assert twins.a.loss(10.0, 0.0) == 0.0


def test_a_request_at_fault_costs_its_replica_nothing(twins: Twins) -> None:
    twins.a.begin(who("x"), 0.0, 1.0)
    twins.a.failed(who("x"), status(500), 1.0, 1.0, before=status(500))
    assert (twins.a.state(1.0), twins.a.loss(10.0, 1.0)) == ("closed", 0.0)


def test_a_probe_with_a_request_at_fault_has_shown_that_it_works(twins: Twins) -> None:
    twins.a.begin(who("x"), 0.0, 1.0)
    twins.a.failed(who("x"), status(500), 0.1, 0.0)
    twins.a.begin(who("y"), 1.0, 1.0)
    twins.a.failed(who("y"), status(400, retryable=False), 0.1, 1.1)
    assert twins.a.state(1.1) == "closed"


def test_who_is_beaten_has_lost_time_and_needs_no_rest(twins: Twins) -> None:
    twins.a.begin(who("x"), 0.0, 1.0)
    twins.a.beaten(who("x"), 6.0, 6.0)
    assert (twins.a.hold(6.0), twins.a.loss(0.0, 6.0)) == (0.0, 2.0)


def test_a_node_that_is_lost_needs_no_rest_when_it_is_back(twins: Twins) -> None:
    twins.a.begin(who("x"), 0.0, 1.0)
    lost = Failure(kind="node_lost", message="lid closed", retryable=True)
    twins.a.failed(who("x"), lost, 6.0, 6.0)
    assert (twins.a.hold(6.0), twins.a.loss(0.0, 6.0)) == (0.0, 2.0)


def test_a_load_that_failed_opens_it(twins: Twins) -> None:
    twins.a.faulted(0.0)
    assert (twins.a.state(0.0), twins.b.state(0.0)) == ("open", "closed")


def test_successes_heal_both(twins: Twins) -> None:
    for name, failure in (("x", REFUSED), ("y", status(500))):
        now = twins.a.rest_until
        twins.a.begin(who(name), now, 1.0)
        twins.a.failed(who(name), failure, 1.0, now)
    before, now = twins.a.loss(10.0, 3.0), 3.0
    for number in range(50):
        twins.a.begin(who(str(number)), now, 1.0)
        twins.a.succeeded(who(str(number)), now)
    assert twins.a.loss(10.0, 3.0) < before / 10


def test_a_probe_that_leaves_leaves_both(twins: Twins) -> None:
    twins.a.begin(who("x"), 0.0, 1.0)
    twins.a.failed(who("x"), REFUSED, 0.1, 0.0)
    twins.a.begin(who("y"), 1.0, 9.0)
    twins.a.left(who("y"))
    assert twins.b.hold(1.0) == 0.0


# Whatever comes


class Storm(RuleBasedStateMachine):
    """One breaker under every order of events, beside our own account of it."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(RESTS)
        self.twin = Breaker(RESTS)
        self.now = 1000.0
        self.ids = itertools.count()
        self.out: list[Who] = []
        #: Started since the breaker opened last and was not closed again.
        self.probes: set[Who] = set()

    def both(self, call: str, *arguments: object) -> None:
        first = getattr(self.breaker, call)(*arguments)
        assert first == getattr(self.twin, call)(*arguments)

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.5, 1.0, 7.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(burst=st.integers(1, 4), expected=st.sampled_from([0.0, 2.0]))
    def some_want_to_start(self, burst: int, expected: float) -> None:
        was_open = self.breaker.state(self.now) != "closed"
        started = 0
        for _ in range(burst):
            if self.breaker.hold(self.now) <= 0.0:
                name = (f"r{next(self.ids)}", 1)
                self.both("begin", name, self.now, expected)
                self.out.append(name)
                started += 1
                if was_open:
                    self.probes.add(name)
        if was_open:
            assert started <= 1, "half-open lets exactly one through"
        elif self.breaker.hold(self.now) <= 0.0:
            assert started == burst, "closed lets all through"

    def take(self, data: st.DataObject) -> Who:
        return self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def one_answers(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.out))
        self.both("answered", name, self.now)
        if name in self.probes:
            assert self.breaker.state(self.now) == "closed"
            self.probes.clear()

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def one_succeeds(self, data: st.DataObject) -> None:
        name = self.take(data)
        self.both("succeeded", name, self.now)
        if name in self.probes:
            assert self.breaker.state(self.now) == "closed"
            self.probes.clear()

    @precondition(lambda self: self.out)
    @rule(data=st.data(), seconds=st.sampled_from([0.0, 5.0]))
    def one_fails(self, data: st.DataObject, seconds: float) -> None:
        name, closed = self.take(data), self.breaker.state(self.now) == "closed"
        self.both("failed", name, seconds, self.now)
        if closed or name in self.probes:
            assert self.breaker.state(self.now) == "open"
            assert 1.0 <= self.breaker.rest_until - self.now <= 30.0
        self.probes.discard(name)

    @precondition(lambda self: self.out)
    @rule(data=st.data(), wish=st.sampled_from([None, 0.0, 4.0, 1e9]))
    def one_is_told_to_wait(self, data: st.DataObject, wish: float | None) -> None:
        name = self.take(data)
        self.both("busy", name, wish, self.now)
        self.probes.discard(name)

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def one_leaves(self, data: st.DataObject) -> None:
        name = self.take(data)
        self.both("left", name)
        self.probes.discard(name)

    @invariant()
    def at_most_one_probe_is_out(self) -> None:
        assert len(self.probes) <= 1
        assert self.breaker.probing == bool(self.probes)
        if self.probes:
            assert self.breaker.hold(self.now) > 0.0

    @invariant()
    def nobody_waits_for_ever(self) -> None:
        assert self.breaker.rest_until <= self.now + 30.0
        if not self.breaker.probing:
            assert self.breaker.hold(self.now + 30.0) == 0.0

    @invariant()
    def losses_are_a_probability(self) -> None:
        assert 0.0 <= self.breaker.losses.probability(self.now) < 1.0
        assert self.breaker.losses.expected(1.0, self.now) >= 0.0


TestStorm = Storm.TestCase
TestStorm.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
