"""Nodes that join, change, leave, vanish and come back."""

from __future__ import annotations

import pytest

from herd.core.actions import Abort
from herd.core.fleet import EngineReport
from herd.core.signals import RELOADED
from tests.core.playbook import GB, Play, cold, hardware, model


def test_a_node_that_leaves_gets_no_new_work(play: Play) -> None:
    play.node("left", model())
    play.node("right", model(), speed=10)
    play.leaving("left")
    play.ask("a")
    play.then("left is released", "a runs on right")


def test_a_node_is_released_when_the_last_of_its_work_has_ended(play: Play) -> None:
    play.node("n", model(slots=2))
    play.ask("a")
    play.ask("b")
    play.leaving("n")
    play.finish("a")
    play.then("a runs on n", "b runs on n", "a completed")
    play.client_leaves("b")
    play.then("b cancelled", "n is released")


def test_a_node_that_is_not_known_may_leave(play: Play) -> None:
    play.leaving("stranger")
    play.then("stranger is released")


def test_what_waits_for_a_leaving_node_alone_is_refused(play: Play) -> None:
    play.node("n", model())
    play.ask("a")
    play.ask("b")
    play.leaving("n")
    play.then("a runs on n", "b waits for n", "b is refused: unreachable", "b rejected")
    assert play.refusal("b").message == "no device can serve 'm': node is leaving"


def test_what_waits_for_the_only_capable_node_is_refused_when_that_is_lost(play: Play) -> None:
    """Though other replicas of its model are there, and busy."""
    play.node("blind", model(), kind="llamacpp")
    play.node("able", model(capabilities=("completion", "vision")), kind="llamacpp")
    play.ask("a", needs=("completion", "vision"))
    play.ask("b")
    play.ask("c", needs=("completion", "vision"))
    play.first("a")
    play.gone("able")
    play.then(
        "a runs on able",
        "b runs on blind",
        "c waits for able",
        "c is refused: incapable",
        "c rejected",
    )


def test_what_waits_for_a_leaving_node_goes_elsewhere(play: Play) -> None:
    play.node("fast", model())
    play.node("slow", model(), speed=10)
    play.ask("a")
    play.ask("b")
    play.leaving("fast")
    play.then("a runs on fast", "b waits for fast", "b runs on slow")


def test_a_node_that_reports_again_after_leaving_is_back(play: Play) -> None:
    play.node("n", model())
    play.leaving("n")
    play.node("n", model())
    play.ask("a")
    play.then("n is released", "a runs on n")


def test_silent_attempts_of_a_lost_node_are_aborted_and_retried(play: Play) -> None:
    play.node("left", model())
    play.ask("a")
    play.node("right", model())
    play.gone("left", "link lost")
    play.then("a runs on left", "a is aborted")
    (abort,) = play.all(Abort)
    assert (abort.attempt, abort.failure.kind) == (1, "node_lost")
    assert abort.failure.message == "node left went away: link lost"
    play.fail("a", abort.failure.message, kind="node_lost")
    play.then("a runs on right, attempt 2")


def test_a_stream_of_a_lost_node_is_left_alone(play: Play) -> None:
    play.node("n", model())
    play.ask("a")
    play.first("a")
    play.gone("n")
    play.finish("a")
    play.then("a runs on n", "a completed")


def test_a_node_may_be_lost_twice(play: Play) -> None:
    play.node("n", model())
    play.gone("n")
    play.gone("n")
    play.then()


def test_what_waits_for_a_lost_node_alone_is_refused(play: Play) -> None:
    play.node("n", model())
    play.ask("a")
    play.first("a")
    play.ask("b")
    play.gone("n")
    play.then("a runs on n", "b waits for n", "b is refused: unreachable", "b rejected")


def test_a_stream_still_has_its_slot_when_its_node_comes_back(play: Play) -> None:
    play.node("n", model())
    play.ask("a")
    play.first("a")
    play.gone("n")
    play.node("n", model())
    play.ask("b")
    play.then("a runs on n", "b waits for n")
    play.finish("a")
    play.then("a completed", "b runs on n")


def test_a_lost_node_is_forgotten_with_the_last_of_its_work(play: Play) -> None:
    play.node("n", model())
    play.ask("a")
    play.first("a")
    play.gone("n")
    play.finish("a")
    assert play.scheduler.board.ghosts == {}


def test_a_lost_node_that_was_leaving_is_released_all_the_same(play: Play) -> None:
    play.node("n", model())
    play.ask("a")
    play.first("a")
    play.leaving("n")
    play.gone("n")
    play.finish("a")
    play.then("a runs on n", "a completed", "n is released")


def test_a_reservation_is_not_kept_over_a_loss(play: Play) -> None:
    """A node that comes back must not stand still for a request that was served elsewhere."""
    play.node("n", model("hot"), cold("rare"), memory=16)
    play.ask("h0", "hot")
    play.first("h0")
    play.ask("rare", "rare")
    play.gone("n")
    play.node("n", model("hot", slots=2), cold("rare"), memory=16)
    play.skip()
    play.ask("h1", "hot")
    play.then("h1 runs on n")


def test_a_silent_node_is_gone_after_the_limit() -> None:
    play = Play(silence=15.0)
    play.node("n", model())
    play.ask("a")
    play.wait(14.9)
    play.then("a runs on n")
    play.wait(0.2)
    play.then("a is aborted")
    assert play.scheduler.nodes == {}
    (abort,) = play.all(Abort)
    assert abort.failure.message == "node n went away: silent for 15 s"


def test_a_heartbeat_keeps_a_node(play: Play) -> None:
    play.node("n", model())
    for _ in range(10):
        play.wait(10.0)
        play.beat("n")
    assert "n" in play.scheduler.nodes
    assert play.scheduler.nodes["n"].load.cpu == 0.1


def test_a_heartbeat_of_a_stranger_changes_nothing(play: Play) -> None:
    play.beat("stranger")
    assert play.scheduler.nodes == {}


@pytest.mark.parametrize("start", [3.3, 1000.51, 1_795_428_345.123456])
def test_rounding_of_times_does_not_make_a_silent_node_due_for_ever(start: float) -> None:
    play = Play(silence=15.3)
    play.now = start
    play.node("n", model())
    play.wait(60.0)
    assert play.scheduler.nodes == {}


def test_nothing_is_moved_to_a_node_that_is_found_silent_at_the_same_moment(play: Play) -> None:
    """As after a sleep of the router's own machine."""
    play.node("left", model())
    play.node("right", model(), speed=20)
    play.ask("a")
    play.ask("b")
    play.skip()
    play.sleep(20.0)
    play.then("a is aborted", "b is refused: unreachable", "b rejected")


def test_a_model_that_is_gone_from_a_report_gets_nothing_new(play: Play) -> None:
    play.node("n", model(), model("other"))
    play.node("n", model("other"))
    play.ask("a")
    play.then("a is refused: unknown_model", "a rejected")


def test_a_model_that_is_deleted_while_it_runs_ends_with_its_last_request(play: Play) -> None:
    play.node("n", model(slots=2), model("other"))
    play.ask("a")
    play.node("n", model("other"))
    play.ask("b")
    play.then("a runs on n", "b is refused: unreachable", "b rejected")
    assert "model is no longer there" in play.refusal("b").message
    play.finish("a")
    assert play.scheduler.replicas("m:latest") == []


def test_a_model_that_comes_back_while_it_runs_is_used_again(play: Play) -> None:
    play.node("n", model(slots=2))
    play.ask("a")
    play.node("n")
    play.node("n", model(slots=2))
    play.ask("b")
    play.then("a runs on n", "b runs on n")


def test_an_engine_that_is_down_does_not_take_the_others_of_its_node_with_it(play: Play) -> None:
    engine = EngineReport(id="one", kind="ollama", url="http://n:1", replicas=(model(),))
    other = EngineReport(id="two", kind="ollama", url="http://n:2", replicas=(model(),))
    play.report("n", engine, other, hardware=hardware())
    down = EngineReport(id="one", kind="ollama", url="http://n:1", up=False, error="refused")
    play.report("n", down, other, hardware=hardware())
    play.ask("a")
    assert play.dispatch("a").target.url == "http://n:2"


def test_an_engine_that_comes_back_with_fewer_slots(play: Play) -> None:
    """The first to end free nothing; the next starts when there is room under the new bound."""
    play.node("n", model(slots=3))
    for name in "abc":
        play.ask(name)
    play.node("n", model(slots=1))
    play.ask("d")
    play.skip()
    play.finish("a")
    play.then("a completed")
    play.finish("b")
    play.then("b completed")
    play.finish("c")
    play.then("c completed", "d runs on n")


def test_a_report_that_makes_waiting_requests_hopeless_has_them_refused(play: Play) -> None:
    play.node("n", model())
    play.ask("a")
    play.ask("b")
    play.node("n", down="connection refused")
    play.then("a runs on n", "b waits for n", "b is refused: unreachable", "b rejected")


def test_what_becomes_known_of_the_hardware_changes_the_estimates(play: Play) -> None:
    play.node("n", model(slots=2), speed=10)
    play.ask("a")
    play.finish("a")
    assert play.signals("a", "n").speed == pytest.approx(10.02)
    play.node("n", model(slots=2), speed=100)
    play.ask("b")
    assert play.signals("b", "n").speed == pytest.approx(1.02)


def test_each_engine_of_a_device_shares_its_memory(play: Play) -> None:
    one = EngineReport(
        id="one", kind="vllm", url="http://n:1", replicas=(model("hot", size=9 * GB),)
    )
    two = EngineReport(id="two", kind="lmstudio", url="http://n:2", replicas=(cold("m"),))
    play.report("n", one, two, hardware=hardware(memory=16))
    play.ask("a", kinds=("lmstudio",))
    assert play.signals("a", "n").memory == pytest.approx(RELOADED * 9.0)
