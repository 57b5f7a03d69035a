"""A second attempt beside a late one: when it is sent, who wins, and what is left of the loser."""

from __future__ import annotations

from typing import Any

import pytest

from herd.core import events as ev
from herd.core.actions import Dispatch
from herd.core.request import Failure, Result
from tests.core.playbook import Play, model

#: By the priors an embedding of 1000 tokens takes 2.52 s here, and is late after 7.9 s.
LATE = 8.0


def asked(play: Play, name: str = "a", **changes: Any) -> None:
    play.ask(name, **{"operation": "embedding", "stream": False, "prompt": 1000, **changes})


def staged(**limits: Any) -> Play:
    """The left node is asked first; the right one is as fast."""
    play = Play(silence=1e6, **limits)
    play.node("left", model())
    play.node("right", model())
    return play


@pytest.fixture
def late() -> Play:
    """A request runs on both nodes, as the first has let it wait."""
    play = staged()
    asked(play)
    play.wait(LATE)
    play.then("a runs on left", "a runs on right too")
    return play


def answers(play: Play, attempt: int, name: str = "a") -> None:
    play.feed(ev.Answered(name, attempt))


def finishes(play: Play, attempt: int, name: str = "a") -> None:
    play.feed(ev.Finished(name, attempt, Result()))


def fails(play: Play, attempt: int, **changes: Any) -> None:
    given: dict[str, Any] = {"kind": "broken", "message": "fell over", "retryable": True}
    play.feed(ev.Failed("a", attempt, Failure(**{**given, **changes}), began=False))


def test_who_answers_in_time_is_asked_alone() -> None:
    play = staged()
    asked(play)
    play.wait(7.5)
    play.finish("a")
    play.wait(100.0)
    play.then("a runs on left", "a completed")


@pytest.mark.parametrize("winner", [1, 2])
def test_the_first_answer_wins_and_the_other_attempt_is_cancelled(late: Play, winner: int) -> None:
    answers(late, winner)
    late.then(f"attempt {3 - winner} of a is cancelled")
    assert late.scheduler.tasks["a"].state == "streaming"
    finishes(late, winner)
    late.then("a completed")
    outcome = late.outcomes["a"]
    assert outcome.ending == "completed"
    endings = {attempt.number: attempt.ending for attempt in outcome.attempts}
    assert endings == {winner: "completed", 3 - winner: "cancelled"}
    assert outcome.dispatched == outcome.attempts[winner - 1].started
    assert outcome.decision is not None
    assert outcome.decision.chosen == outcome.attempts[winner - 1].replica


def test_the_loser_gives_its_slot_back_before_the_client_has_read_the_answer(late: Play) -> None:
    answers(late, 1)
    asked(late, "b")
    late.then("attempt 2 of a is cancelled", "b runs on right")


def test_an_end_that_nobody_announced_cancels_the_other_too(late: Play) -> None:
    finishes(late, 2)
    late.then("attempt 1 of a is cancelled", "a completed")


def test_the_story_tells_of_both(late: Play) -> None:
    answers(late, 2)
    finishes(late, 2)
    states = [step.state for step in late.outcomes["a"].story]
    assert states == ["arrived", "running", "hedged", "beaten", "completed"]


@pytest.mark.parametrize(("first", "last"), [(1, 2), (2, 1)])
def test_when_one_fails_the_other_is_waited_for(late: Play, first: int, last: int) -> None:
    fails(late, first)
    late.then()
    finishes(late, last)
    late.then("a completed")
    endings = [attempt.ending for attempt in late.outcomes["a"].attempts]
    assert endings == (["failed", "completed"] if first == 1 else ["completed", "failed"])


def test_a_failure_that_cannot_be_mended_elsewhere_is_not_believed_yet(late: Play) -> None:
    fails(late, 1, kind="status", status=400, retryable=False)
    late.then()
    finishes(late, 2)
    late.then("a completed")


def test_when_both_fail_it_is_tried_on_a_third(late: Play) -> None:
    late.node("third", model())
    fails(late, 2)
    late.then()
    fails(late, 1)
    late.then("a runs on third, attempt 3")


def test_when_both_fail_and_there_is_no_third_the_last_cause_is_told(late: Play) -> None:
    fails(late, 1)
    fails(late, 2, message="no memory")
    late.then("a is refused: engine_failed", "a failed")
    assert late.refusal("a").message == "no memory"


def test_a_fault_of_our_own_ends_both(late: Play) -> None:
    late.feed(ev.Failed("a", 2, Failure(kind="protocol", message="bug"), began=True))
    late.then("attempt 1 of a is cancelled", "a failed")


def test_a_client_that_leaves_frees_both(late: Play) -> None:
    late.client_leaves("a")
    late.then("a cancelled")
    assert [node.running for node in late.scheduler.nodes.values()] == [0, 0]
    assert [a.ending for a in late.outcomes["a"].attempts] == ["cancelled", "cancelled"]


def test_a_node_that_goes_takes_its_own_attempt_alone(late: Play) -> None:
    late.gone("left")
    late.then("a is aborted")
    fails(late, 1, kind="node_lost")
    late.then()
    finishes(late, 2)
    late.then("a completed")


def test_an_answer_on_its_way_to_the_client_outlives_its_node(late: Play) -> None:
    answers(late, 1)
    late.skip()
    late.gone("left")
    late.then()
    finishes(late, 1)
    late.then("a completed")


def test_news_of_the_loser_change_nothing(late: Play) -> None:
    answers(late, 2)
    late.skip()
    answers(late, 1)
    fails(late, 1)
    finishes(late, 1)
    late.then()


@pytest.mark.parametrize(
    "changes",
    [
        {"stream": True, "operation": "chat", "answer": 10, "prompt": 900},
        {"operation": "chat", "answer": 65},
        {"operation": "chat", "answer": None},
    ],
    ids=["streamed", "long", "without a limit"],
)
def test_long_and_streamed_work_is_never_doubled(changes: dict[str, Any]) -> None:
    play = staged()
    asked(play, **changes)
    play.wait(500.0)
    play.then("a runs on left")


def test_a_few_tokens_in_one_piece_are_short() -> None:
    play = staged()
    asked(play, operation="chat", answer=10, prompt=900)
    play.wait(20.0)
    play.then("a runs on left", "a runs on right too")


def test_the_owner_may_want_none() -> None:
    play = staged(hedge=False)
    asked(play)
    play.wait(500.0)
    play.then("a runs on left")


def test_another_model_of_the_same_node_is_no_help() -> None:
    play = Play(silence=1e6)
    play.node("left", model(slots=2))
    asked(play)
    play.wait(500.0)
    play.then("a runs on left")


def test_a_slow_second_is_asked_once_as_long_was_waited_as_it_takes() -> None:
    play = Play(silence=1e6)
    play.node("left", model(), speed=100.0)
    play.node("right", model(), speed=10.0)
    asked(play)
    play.wait(25.0)
    play.then("a runs on left")
    play.wait(2.0)
    play.then("a runs on right too")


def test_a_second_that_is_busy_is_asked_when_it_is_free() -> None:
    play = staged()
    asked(play)
    play.ask("b")
    play.wait(20.0)
    play.skip()
    play.finish("b")
    play.skip()
    play.wait(10.0)
    play.then("a runs on right too")


def test_hedges_have_a_budget() -> None:
    """Both nodes are mute: one request of five is asked for twice, then none."""
    play = Play(silence=1e6)
    for name in ("left", "right"):
        play.node(name, model(slots=10))
    for number in range(5):
        asked(play, f"r{number}")
    play.wait(LATE * 20)
    beside = [a for a in play.actions if isinstance(a, Dispatch) and a.beside]
    minutes = LATE * 20 / 60
    assert 1 <= len(beside) <= 1 + minutes


def test_hedges_count_as_attempts() -> None:
    play = staged(max_attempts=1)
    asked(play)
    play.wait(500.0)
    play.then("a runs on left")


def test_a_stopping_router_sends_nothing_twice() -> None:
    play = staged()
    asked(play)
    play.stop()
    play.wait(500.0)
    play.then("a runs on left")


def test_a_node_that_needs_help_is_asked_less(late: Play) -> None:
    """It has not failed; but it was late, and time was lost there."""
    answers(late, 2)
    finishes(late, 2)
    late.wait(1.0)
    late.skip()
    asked(late, "b")
    late.then("b runs on right")
    lost = late.signals("b", "left").availability
    assert LATE / 3 < lost < (LATE + 2.52) / 3
    assert late.signals("b", "right").availability == 0.0


def test_a_hedge_that_loses_is_no_loss(late: Play) -> None:
    answers(late, 1)
    finishes(late, 1)
    asked(late, "b")
    assert late.signals("b", "right").availability == 0.0
