"""Attempts that fail, replicas that rest, clients that leave."""

from __future__ import annotations

import pytest

from herd.core import events as ev
from herd.core.actions import Dispatch
from herd.core.request import Failure, Result
from tests.core.playbook import Play, model


@pytest.fixture
def twins(play: Play) -> Play:
    """Two equal nodes; the first request runs on the left one."""
    play.node("left", model())
    play.node("right", model())
    return play


# Retries


def test_a_failed_attempt_is_retried_on_another_replica(twins: Play) -> None:
    twins.ask("a")
    twins.fail("a")
    twins.then("a runs on left", "a runs on right, attempt 2")
    twins.finish("a")
    outcome = twins.outcomes["a"]
    assert outcome.ending == "completed"
    first, second = outcome.attempts
    assert (first.number, first.replica.node, first.ending) == (1, "left", "failed")
    assert first.failure is not None
    assert first.failure.message == "connection refused"
    assert (second.number, second.replica.node, second.ending) == (2, "right", "completed")
    assert outcome.decision is not None
    assert outcome.decision.chosen.node == "right"


def test_the_story_of_a_retry_names_the_cause(twins: Play) -> None:
    twins.ask("a")
    twins.fail("a", "no route to host")
    twins.finish("a")
    story = [(step.state, step.note) for step in twins.outcomes["a"].story]
    assert [state for state, _ in story] == ["arrived", "running", "failed", "running", "completed"]
    assert story[2] == ("failed", "left: no route to host")


def test_the_retry_knows_why_the_first_replica_is_out(twins: Play) -> None:
    twins.ask("a")
    twins.fail("a")
    excluded = twins.estimate("a", "left").excluded
    assert excluded is not None
    assert (excluded.kind, excluded.reason) == ("tried", "has failed this request")


def test_nothing_is_retried_once_bytes_have_gone_out(twins: Play) -> None:
    twins.ask("a")
    twins.first("a")
    twins.fail("a", kind="broken", began=True)
    twins.then("a runs on left", "a failed")
    assert twins.outcomes["a"].first_frame == 1000.0


def test_a_failure_that_the_request_itself_causes_is_not_retried(twins: Play) -> None:
    twins.ask("a")
    twins.fail("a", "bad request", kind="status", retryable=False)
    twins.then("a runs on left", "a failed")
    assert twins.outcomes["a"].refusal is None


def test_a_failure_that_the_request_itself_causes_gives_the_replica_no_rest(play: Play) -> None:
    play.node("n", model())
    play.ask("a")
    play.fail("a", "bad request", kind="status", retryable=False)
    play.skip()
    play.ask("b")
    play.then("b runs on n")


def test_attempts_are_bounded() -> None:
    play = Play(max_attempts=2)
    for name in ("one", "two", "three"):
        play.node(name, model())
    play.ask("a")
    play.fail("a")
    play.fail("a", "connection reset")
    play.then(
        "a runs on one", "a runs on three, attempt 2", "a is refused: engine_failed", "a failed"
    )
    refusal = play.refusal("a")
    assert refusal.message == "connection reset"
    assert refusal.failure is not None
    assert refusal.failure.kind == "connect"
    assert len(play.outcomes["a"].attempts) == 2


def test_no_replica_is_left_to_try(play: Play) -> None:
    """The client is told what the engine said, not that there is no candidate."""
    play.node("n", model())
    play.ask("a")
    play.fail("a", "out of memory", kind="status")
    play.then("a runs on n", "a is refused: engine_failed", "a failed")
    assert play.refusal("a").message == "out of memory"


def test_a_retry_keeps_its_place_in_the_queue(twins: Play) -> None:
    for name in "abcd":
        twins.ask(name)
    twins.then("a runs on left", "b runs on right", "c waits for left", "d waits for right")
    twins.fail("a")
    waiting = [task.request.id for task in twins.scheduler.line.ordered(["m:latest"])]
    assert waiting == ["a", "c", "d"]
    twins.skip()
    twins.finish("b")
    twins.then("b completed", "a runs on right, attempt 2")


def test_a_retry_that_waits_has_its_patience_from_then_on() -> None:
    """The time in which an engine kept it is not time for which it waited."""
    play = Play(patience=10.0, silence=1000.0)
    play.node("left", model())
    play.node("right", model())
    play.ask("a")
    play.wait(9.0)
    play.ask("b")
    play.wait(3.0)
    play.fail("a", kind="timeout")
    play.skip()
    play.wait(9.9)
    play.then()
    play.wait(0.2)
    play.then("a is refused: expired", "a failed")
    assert play.refusal("a").message == "no device came free within 10 s"


# Rest


def test_a_replica_that_failed_rests_and_is_then_tried_again(play: Play) -> None:
    play.node("n", model())
    play.ask("a")
    play.fail("a")
    play.skip()
    play.ask("b")
    play.then("b waits for n")
    play.wait(0.9)
    play.then()
    play.wait(0.2)
    play.then("b runs on n")


def test_each_further_failure_doubles_the_rest_up_to_a_bound() -> None:
    play = Play(rest=1.0, rest_most=5.0, silence=1e6)
    play.node("n", model())
    rests = []
    for number in range(5):
        play.ask(f"r{number}")
        play.fail(f"r{number}")
        until = play.scheduler.replicas("m:latest")[0].guard.rest_until
        rests.append(until - play.now)
        play.wait(5.0)
    assert rests == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_a_success_ends_the_back_off(play: Play) -> None:
    play.node("n", model(slots=2))
    for name in "ab":
        play.ask(name)
    play.fail("a")
    play.finish("b")
    play.skip()
    play.ask("c")
    play.then("c runs on n")
    play.finish("c")
    play.ask("d")
    play.fail("d")
    assert play.scheduler.replicas("m:latest")[0].guard.rest_until == play.now + 1.0


def test_after_a_rest_one_request_tries_and_the_others_wait_for_what_becomes_of_it(
    play: Play,
) -> None:
    play.node("n", model(slots=4))
    play.ask("a")
    play.fail("a")
    for name in "bcd":
        play.ask(name)
    play.skip()
    play.wait(1.0)
    play.then("b runs on n")
    play.first("b")
    play.then("c runs on n", "d runs on n")


def test_a_probe_that_fails_lengthens_the_rest_for_all(play: Play) -> None:
    play.node("n", model(slots=4))
    play.ask("a")
    play.fail("a")
    for name in "bc":
        play.ask(name)
    play.wait(1.0)
    play.fail("b")
    play.skip()
    play.wait(1.9)
    play.then()
    play.wait(0.2)
    play.then("c runs on n")


def test_the_next_one_tries_if_the_probes_client_leaves(play: Play) -> None:
    play.node("n", model(slots=4))
    play.ask("a")
    play.fail("a")
    for name in "bc":
        play.ask(name)
    play.wait(1.0)
    play.skip()
    play.client_leaves("b")
    play.then("b cancelled", "c runs on n")


def test_no_connection_for_one_model_is_none_for_the_others_of_its_engine(play: Play) -> None:
    play.node("left", model("m"), model("other"))
    play.node("right", model("other"), speed=10.0)
    play.ask("a")
    play.fail("a")
    play.skip()
    play.ask("b", "other")
    play.then("b waits for left")
    play.wait(1.0)
    play.then("b runs on left")


def test_an_error_of_one_model_is_none_of_the_others(play: Play) -> None:
    play.node("left", model("m"), model("other"))
    play.ask("a")
    play.fail("a", "out of memory", kind="status")
    play.skip()
    play.ask("b", "other")
    play.then("b runs on left")


def test_a_busy_engine_is_left_alone_for_as_long_as_it_says(play: Play) -> None:
    play.node("n", model(slots=2))
    play.ask("a")
    busy = Failure(kind="status", message="busy", status=503, retryable=True, retry_after=4.0)
    play.feed(ev.Failed("a", 1, busy, began=False))
    play.skip()
    for name in "bc":
        play.ask(name)
    play.wait(3.9)
    play.then("b waits for n", "c waits for n")
    play.wait(0.2)
    play.then("b runs on n", "c runs on n")
    assert play.signals("c", "n").availability == 0.0


def test_who_fails_every_third_request_is_passed_over_for_one_a_little_slower() -> None:
    play = Play(silence=1e6)
    play.node("fast", model(), speed=100.0)
    play.node("steady", model(), speed=95.0)
    for number in range(30):
        play.ask(f"r{number}")
        if play.where(f"r{number}") == "fast" and number % 3 == 0:
            play.fail(f"r{number}", kind="broken")
        play.finish(f"r{number}")
        play.wait(2.0)
    play.ask("a")
    assert play.where("a") == "steady"
    assert 0.3 < play.signals("a", "fast").availability < 1.0
    assert play.signals("a", "steady").availability == 0.0


def test_what_is_lost_to_failures_is_no_part_of_an_attempts_own_time(play: Play) -> None:
    play.node("n", model())
    play.ask("a")
    whole = play.scheduler.tasks["a"].attempts[0].predicted
    play.fail("a", kind="broken")
    play.wait(1.0)
    play.ask("b")
    assert play.signals("b", "n").availability > 0.2
    assert play.scheduler.tasks["b"].attempts[0].predicted == pytest.approx(whole, rel=0.01)


# Budget


def test_a_spent_budget_refuses_with_the_true_cause() -> None:
    """Everything fails: the first 60 get their second attempt, the others get the cause."""
    play = Play(silence=1e6)
    for name in ("one", "two", "three"):
        play.node(name, model(slots=100))
    for number in range(80):
        play.ask(f"r{number}")
    for number in range(80):
        play.fail(f"r{number}", kind="broken")
    retried = [a for a in play.actions if isinstance(a, Dispatch) and a.attempt > 1]
    refused = [n for n in range(80) if f"r{n}" in play.outcomes]
    waiting = play.scheduler.waiting_count
    # 80 requests, a fifth of which may be retried beyond the floor.
    assert len(retried) + waiting == 60 + 16
    assert len(refused) == 4
    refusal = play.refusal(f"r{refused[0]}")
    assert (refusal.kind, refusal.message) == ("engine_failed", "connection refused")
    assert refusal.retry_after is not None


def test_a_replica_may_fail_for_days(play: Play) -> None:
    play = Play(silence=1e9)
    play.node("n", model())
    for number in range(1100):
        play.ask(f"r{number}")
        play.fail(f"r{number}")
        play.wait(30.0)
    assert len(play.outcomes) == 1100


def test_the_end_of_a_rest_is_not_put_off_by_those_who_come_later(play: Play) -> None:
    play.node("n", model())
    play.ask("a")
    play.fail("a")
    for name in "bcd":
        play.ask(name, answer=250)
    play.skip()
    play.wait(1.0)
    play.then("b runs on n")


def test_others_go_elsewhere_while_a_replica_rests(twins: Play) -> None:
    twins.ask("a")
    twins.fail("a")
    twins.finish("a")
    twins.skip()
    twins.ask("b")
    twins.then("b runs on right")


# Clients that leave


def test_a_client_leaves_while_queued(play: Play) -> None:
    play.node("n", model())
    play.ask("a")
    play.ask("b")
    play.client_leaves("b")
    play.finish("a")
    play.then("a runs on n", "b waits for n", "b cancelled", "a completed")
    assert play.outcomes["b"].attempts == ()


def test_a_client_leaves_while_it_runs_and_the_next_takes_its_slot(play: Play) -> None:
    play.node("n", model())
    play.ask("a")
    play.ask("b")
    play.client_leaves("a")
    play.then("a runs on n", "b waits for n", "a cancelled", "b runs on n")
    (attempt,) = play.outcomes["a"].attempts
    assert attempt.ending == "cancelled"


def test_a_client_leaves_while_it_is_answered(play: Play) -> None:
    play.node("n", model())
    play.ask("a")
    play.wait(0.5)
    play.first("a")
    play.client_leaves("a")
    outcome = play.outcomes["a"]
    assert (outcome.ending, outcome.first_frame) == ("cancelled", 1000.5)


def test_a_client_that_leaves_teaches_nothing_and_blames_nobody(play: Play) -> None:
    play.node("n", model())
    play.ask("a")
    play.wait(10.0)
    play.client_leaves("a")
    (replica,) = play.scheduler.replicas("m:latest")
    assert replica.guard.loss(100.0, play.now) == 0.0
    assert (replica.guard.hold(play.now), replica.learning.outcomes) == (0.0, 0)


# News that come late


@pytest.mark.parametrize(
    "event",
    [
        ev.FirstFrame("a", 1),
        ev.Finished("a", 1, Result()),
        ev.ClientLeft("a"),
        ev.FirstFrame("never", 1),
    ],
)
def test_news_of_a_request_that_has_ended_change_nothing(play: Play, event: ev.Event) -> None:
    play.node("n", model())
    play.ask("a")
    play.finish("a")
    play.skip()
    play.feed(event)
    play.then()


def test_news_of_an_attempt_that_is_over_change_nothing(twins: Play) -> None:
    twins.ask("a")
    twins.fail("a")
    twins.skip()
    twins.feed(ev.Finished("a", 1, Result()))
    twins.feed(ev.FirstFrame("a", 1))
    twins.then()
    assert twins.where("a") == "right"


def test_a_failure_that_is_told_twice_counts_once(twins: Play) -> None:
    twins.ask("a")
    failed = twins.dispatch("a").attempt
    twins.fail("a")
    twins._attempts["a"] = failed
    twins.fail("a")
    twins.then("a runs on left", "a runs on right, attempt 2")
