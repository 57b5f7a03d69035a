"""Attempts: what their beginning and end change, on the device and in the request's record."""

from __future__ import annotations

import pytest

from herd.core import actions as ac
from herd.core.request import Timings
from herd.core.state import NodeState, ReplicaState
from tests.core.playbook import GB, Play, cold, model


def node(play: Play, name: str = "a") -> NodeState:
    return play.scheduler.nodes[name]


def replica(play: Play, name: str = "a", of: str = "m") -> ReplicaState:
    (found,) = [r for k, r in node(play, name).replicas.items() if k.model == f"{of}:latest"]
    return found


def test_an_attempt_occupies_its_slot_until_it_ends(play: Play) -> None:
    play.node("a", model())
    play.ask("r")
    assert node(play).running == 1
    assert len(replica(play).running) == 1
    play.finish("r", tokens=100)

    assert node(play).running == 0
    assert not replica(play).running


def test_the_record_tells_when_it_began_answered_and_ended(play: Play) -> None:
    play.node("a", model())
    play.ask("r")
    began = play.now
    play.wait(0.5)
    play.first("r")
    play.wait(1.0)
    play.finish("r", tokens=100)
    (attempt,) = play.outcomes["r"].attempts

    assert (attempt.number, attempt.ending) == (1, "completed")
    assert attempt.started == began
    assert attempt.first_frame == pytest.approx(began + 0.5)
    assert attempt.ended == pytest.approx(began + 1.5)
    assert attempt.predicted == pytest.approx(1.0, rel=0.1)


def test_each_attempt_has_its_own_record(play: Play) -> None:
    play.node("a", model())
    play.node("b", model())
    play.ask("r")
    first = play.where("r")
    play.fail("r", "no connection")
    second = play.where("r")
    play.finish("r", tokens=100)
    attempts = play.outcomes["r"].attempts

    assert [each.number for each in attempts] == [1, 2]
    assert [each.ending for each in attempts] == ["failed", "completed"]
    assert [each.replica.node for each in attempts] == [first, second]
    assert attempts[0].failure is not None
    assert attempts[0].failure.message == "no connection"
    assert attempts[1].failure is None


def test_a_cold_start_is_a_load_until_the_answer_begins(play: Play) -> None:
    play.node("a", cold(slots=2))
    play.ask("r")
    assert replica(play).loading_until == pytest.approx(play.now + 6.0)
    play.wait(6.0)
    play.first("r")

    assert replica(play).loading_until == 0.0
    assert replica(play).resident


def test_a_load_puts_others_out_of_memory_at_once(play: Play) -> None:
    play.node("a", model("old", size=40 * GB), cold("new", size=40 * GB))
    assert replica(play, of="old").resident
    play.ask("r", "new")

    assert not replica(play, of="old").resident


def test_where_placement_takes_part_they_are_told_to_leave() -> None:
    play = Play(placement=True, context_plan=True)
    play.node("a", model("old", size=40 * GB), cold("new", size=40 * GB))
    play.ask("r", "new")

    (unload,) = play.all(ac.Unload)
    assert unload.target.model == "old"
    kinds = [type(action) for action in play.actions]
    assert kinds.index(ac.Unload) < kinds.index(ac.Dispatch)


def test_hindsight_tells_what_the_true_number_of_tokens_would_have_predicted(play: Play) -> None:
    play.node("a", model())
    play.ask("r", answer=1000)
    rate = replica(play).learning.rates.decode
    play.wait(2.0)
    play.finish("r", tokens=200, timings=Timings(decode=2.0))
    (attempt,) = play.outcomes["r"].attempts

    assert attempt.hindsight == pytest.approx(200 / rate, rel=0.05)
    assert attempt.predicted > attempt.hindsight


def test_a_completed_attempt_teaches_and_one_that_failed_does_not(play: Play) -> None:
    play.node("a", model())
    play.node("b", model())
    play.ask("r")
    first = play.where("r")
    assert first is not None
    play.fail("r")
    second = play.where("r")
    assert second is not None
    play.wait(4.0)
    play.finish("r", tokens=100, timings=Timings(decode=4.0))

    assert replica(play, first).learning.outcomes == 0
    assert replica(play, second).learning.outcomes == 1
    assert replica(play, second).learning.rates.decode < 100.0


def test_a_client_that_leaves_has_its_attempt_cancelled(play: Play) -> None:
    play.node("a", model())
    play.ask("r")
    play.skip()
    play.client_leaves("r")

    assert play.outcomes["r"].attempts[0].ending == "cancelled"
    assert node(play).running == 0
    assert replica(play).learning.outcomes == 0


def test_the_latest_dispatched_rests_least(play: Play) -> None:
    play.node("a", model())
    play.node("b", model())
    play.ask("r1")
    play.ask("r2")
    first, second = play.where("r1"), play.where("r2")
    assert first is not None
    assert second is not None

    assert replica(play, first).last_used < replica(play, second).last_used


def test_what_was_deleted_meanwhile_goes_with_the_last_that_ran_on_it(play: Play) -> None:
    play.node("a", model("m"), model("n"))
    play.ask("r")
    play.node("a", model("n"))
    assert "m:latest" in {key.model for key in node(play).replicas}
    play.finish("r", tokens=10)

    assert "m:latest" not in {key.model for key in node(play).replicas}
    assert list(play.scheduler.replicas("m:latest")) == []
