"""The choice among replicas: the soonest, ties, exclusions, and what is kept of it."""

from __future__ import annotations

import pytest

from herd.core.placement import KEPT, TIE, Choice, choose
from tests.core.playbook import Play, model


def decided(play: Play, name: str) -> Choice:
    """What would be chosen for the request now."""
    scheduler = play.scheduler
    task = scheduler.tasks[name]
    choice = choose(task, scheduler.replicas(task.request.model), play.now)
    assert isinstance(choice, Choice)
    return choice


def test_the_soonest_is_chosen(play: Play) -> None:
    play.node("slow", model(), speed=50.0)
    play.node("fast", model(), speed=100.0)
    play.ask("r")

    assert play.where("r") == "fast"
    assert play.dispatch("r").decision.reason.endswith("1.00 s sooner than the next")


@pytest.mark.parametrize(("slower", "second"), [(TIE / 2, "b"), (2.0, "a")])
def test_those_that_are_as_good_take_turns(play: Play, slower: float, second: str) -> None:
    play.node("a", model(), speed=100.0)
    play.node("b", model(), speed=100.0 / (1.0 + slower))
    play.ask("r1")
    assert play.where("r1") == "a"
    play.client_leaves("r1")
    play.ask("r2")

    assert play.where("r2") == second


def test_it_is_told_that_the_choice_was_between_equals(play: Play) -> None:
    play.node("a", model())
    play.node("b", model())
    play.ask("r")

    assert "equal to the next, and rested longest" in play.dispatch("r").decision.reason


def test_it_is_told_that_there_was_no_choice(play: Play) -> None:
    play.node("a", model())
    play.ask("r")

    assert "the only candidate" in play.dispatch("r").decision.reason


def test_who_could_start_at_once_may_be_passed_over(play: Play) -> None:
    play.node("fast", model(), speed=1000.0)
    play.ask("r1", answer=100)
    play.ask("r2", answer=100)
    assert not decided(play, "r2").passed_over
    play.node("slow", model(), speed=10.0)

    assert decided(play, "r2").passed_over
    assert decided(play, "r2").best.replica.key.node == "fast"


def test_those_that_cannot_are_named_with_the_cause(play: Play) -> None:
    play.node("able", model(capabilities=("completion", "vision")), speed=10.0)
    play.node("blind", model(), speed=1000.0)
    play.ask("r", needs=("completion", "vision"))

    assert play.where("r") == "able"
    excluded = play.estimate("r", "blind").excluded
    assert excluded is not None
    assert (excluded.kind, excluded.reason) == ("incapable", "model lacks vision")


def test_where_nobody_is_known_to_be_able_the_engine_has_the_last_word(play: Play) -> None:
    play.node("blind", model(), kind="ollama")
    play.ask("r", needs=("completion", "vision"))

    assert play.where("r") == "blind"


def test_without_a_candidate_all_causes_are_returned(play: Play) -> None:
    play.node("a", model())
    play.ask("r1")
    play.ask("r2")
    task = play.scheduler.tasks["r2"]
    task.tried.update(replica.key for replica in play.scheduler.replicas("m:latest"))
    found = choose(task, play.scheduler.replicas("m:latest"), play.now)

    assert isinstance(found, list)
    assert [each.excluded.kind for each in found if each.excluded is not None] == ["tried"]


def test_of_a_large_fleet_the_best_are_kept_and_the_others_counted(play: Play) -> None:
    for number in range(KEPT + 8):
        play.node(f"n{number:02}", model(), speed=100.0 + number)
    for number in range(20):
        play.node(f"down{number:02}", model(), down="no connection")
    play.ask("r1")
    choice = decided(play, "r1")
    decision = choice.decision(play.now)

    kept = [each for each in decision.estimates if each.excluded is None]
    everybody = len(choice.candidates) + len(choice.excluded)
    assert len(kept) == min(KEPT, len(choice.candidates))
    assert len(decision.estimates) + decision.more == everybody
    assert decision.chosen in {each.replica for each in kept}
    soonest = sorted(choice.candidates, key=lambda each: each.total)[: len(kept) - 1]
    assert {each.replica.key for each in soonest} <= {each.replica for each in kept}
