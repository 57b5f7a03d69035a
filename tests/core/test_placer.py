"""Who of those that wait is started when, and who is looked at again."""

from __future__ import annotations

import pytest

from herd.core.placer import LOOKED_AT, SOON
from tests.core.playbook import Play, model


def waiting(play: Play) -> list[str]:
    """Who waits, first who is to be served first."""
    line = play.scheduler.line
    return [task.request.id for task in line.ordered(list(line.models))]


def test_who_can_start_does_not_wait(play: Play) -> None:
    play.node("a", model())
    play.ask("r")

    play.then("r runs on a")
    assert waiting(play) == []


def test_who_waits_is_told_once_for_whom(play: Play) -> None:
    play.node("a", model())
    play.ask("r1")
    play.ask("r2")
    play.then("r1 runs on a", "r2 waits for a")
    play.beat("a")
    play.wait(0.5)

    play.then()
    assert [step.state for step in play.scheduler.tasks["r2"].story] == ["arrived", "waiting"]


def test_a_slot_that_comes_free_starts_the_first_in_the_line(play: Play) -> None:
    play.node("a", model())
    for name in ("r1", "r2", "r3"):
        play.ask(name)
    play.skip()
    play.finish("r1", tokens=100)

    play.then("r1 completed", "r2 runs on a")
    assert waiting(play) == ["r3"]


def test_a_device_that_changes_starts_those_who_waited_for_another(play: Play) -> None:
    play.node("fast", model(), speed=100.0)
    play.node("slow", model(), speed=90.0)
    for name in ("r1", "r2", "r3"):
        play.ask(name, answer=300)
    planned = {
        name: task.booking.replica.key.node
        for name, task in play.scheduler.tasks.items()
        if task.booking is not None
    }
    play.skip()
    # The device that r3 is not planned for is free long before the other.
    other = next(node for node in ("fast", "slow") if node != planned["r3"])
    play.wait(0.1)
    play.finish("r1" if play.where("r1") == other else "r2", tokens=10)

    assert play.where("r3") == other


def test_requests_of_other_models_do_not_start_what_cannot_run_there(play: Play) -> None:
    play.node("a", model("m"))
    play.node("b", model("n"))
    play.ask("m1", "m")
    play.ask("m2", "m")
    play.ask("n1", "n")
    play.skip()
    play.finish("n1", tokens=100)

    play.then("n1 completed")
    assert waiting(play) == ["m2"]


def test_all_slots_that_come_free_at_once_are_used(play: Play) -> None:
    play.node("a", model(slots=2))
    for number in range(2 * LOOKED_AT):
        play.ask(f"r{number}")
    assert [name for name in play.scheduler.tasks if play.where(name)] == ["r0", "r1"]
    play.node("a", model(slots=6))

    assert [name for name in play.scheduler.tasks if play.where(name)] == [
        f"r{number}" for number in range(6)
    ]


def test_a_plan_that_proves_too_hopeful_is_looked_at_again_by_then(play: Play) -> None:
    play.node("fast", model(), speed=1000.0)
    play.node("slow", model(), speed=20.0)
    play.ask("r1", answer=1000)
    play.ask("r2", answer=100)
    assert play.where("r2") is None
    assert play.timer is not None
    assert play.now + SOON <= play.timer <= play.now + play.hold("r2").expected_wait + SOON
    # The fast one is stuck: at last the slow one is the better choice.
    for _ in range(60):
        play.wait(1.0)
        play.beat("fast")
        play.beat("slow")

    assert play.where("r2") == "slow"


def test_who_comes_back_after_a_failure_has_its_place_again(play: Play) -> None:
    play.node("a", model())
    play.node("b", model(), speed=99.0)
    for name in ("r1", "r2", "r3"):
        play.ask(name)
    play.skip()
    failed = "r1" if play.where("r1") == "a" else "r2"
    play.fail(failed)

    assert waiting(play)[0] == failed
    assert play.scheduler.tasks[failed].state == "waiting"


def test_who_has_lost_all_hope_is_refused(play: Play) -> None:
    play.node("a", model("m"), model("n"))
    play.ask("m1", "m")
    play.ask("m2", "m")
    play.skip()
    play.node("a", model("n"))

    play.then("m2 is refused: unreachable", "m2 rejected")


@pytest.mark.parametrize("number", [1, LOOKED_AT, 4 * LOOKED_AT])
def test_nobody_is_forgotten_however_many_wait(play: Play, number: int) -> None:
    play.node("a", model(slots=2))
    for each in range(number + 2):
        play.ask(f"r{each}", answer=10)
    for each in range(number + 2):
        assert play.where(f"r{each}") == "a"
        play.finish(f"r{each}", tokens=10)

    assert len(play.outcomes) == number + 2
    assert waiting(play) == []
