"""Loads, evictions and reservations: what a device's memory does to the choice."""

from __future__ import annotations

import pytest

from herd.core.signals import RELOADED
from tests.core.playbook import GB, Play, cold, model


def test_a_cold_load_is_shared_by_those_who_come_while_it_goes_on(play: Play) -> None:
    play.node("n", cold(slots=4))
    play.node("other", cold())
    play.ask("a")
    play.wait(4.0)
    play.ask("b")
    play.then("a runs on n", "b runs on n")
    assert play.signals("a", "n").residency == pytest.approx(6.0)
    assert play.signals("b", "n").residency == pytest.approx(2.0)
    assert play.signals("b", "other").residency == pytest.approx(6.0)


def test_a_load_that_takes_longer_than_predicted_is_due_any_moment(play: Play) -> None:
    play.node("n", cold(slots=4))
    play.ask("a")
    play.wait(60.0)
    play.node("n", cold(slots=4))
    play.ask("b")
    assert play.signals("b", "n").residency == pytest.approx(0.1)


def test_the_load_goes_on_while_a_request_is_held_back_for_it(play: Play) -> None:
    """The wait for the slot has the rest of the load in it; it is not counted twice."""
    play.node("n", cold())
    play.node("slow", model(), speed=5)
    play.ask("a")
    play.ask("b")
    play.then("a runs on n", "b waits for n")
    assert play.hold("b").expected_wait == pytest.approx(7.02)
    play.wait(7.0)
    play.finish("a")
    play.then("a completed", "b runs on n")


def test_a_model_that_has_answered_is_in_memory_before_a_report_says_so(play: Play) -> None:
    play.node("n", cold(slots=2))
    play.ask("a")
    play.first("a")
    play.ask("b")
    assert play.signals("b", "n").residency == 0.0


def test_a_load_that_nobody_waits_for_any_more_is_forgotten(play: Play) -> None:
    play.node("n", cold(slots=2))
    play.ask("a")
    play.wait(1.0)
    play.client_leaves("a")
    play.ask("b")
    assert play.signals("b", "n").residency == pytest.approx(6.0)


def test_evicting_an_idle_model_costs_its_reload(play: Play) -> None:
    play.node("n", model("hot"), cold("m"), memory=16)
    play.ask("a", "m")
    play.then("a runs on n")
    signals = play.signals("a", "n")
    assert [signals.residency, signals.memory] == pytest.approx([6.0, RELOADED * 6.0])


def test_only_as_much_is_evicted_as_the_load_needs_and_the_longest_unused_first(play: Play) -> None:
    play.node("n", model("x", size=2 * GB), model("y", size=4 * GB), cold("m"), memory=16)
    play.ask("y", "y")
    play.finish("y")
    play.ask("x", "x")
    play.finish("x")
    play.ask("a", "m")
    # 12 GB may be filled; x, y and m would take 14.4. Without y, which x has outlived, they fit.
    assert play.signals("a", "n").memory == pytest.approx(RELOADED * 4.0)


def test_an_idle_model_is_evicted_before_a_busy_one_however_long_that_runs(play: Play) -> None:
    play.node("n", model("busy", size=4 * GB), model("idle", size=4 * GB), cold("m"), memory=20)
    play.ask("b", "busy")
    play.ask("i", "idle")
    play.finish("i")
    play.skip()
    play.ask("a", "m")
    play.then("a runs on n")


def test_no_memory_is_reserved_where_its_size_is_unknown(play: Play) -> None:
    play.node("n", model("hot"), cold("m"), memory=0)
    play.ask("h", "hot")
    play.ask("a", "m")
    play.then("h runs on n", "a runs on n")
    assert play.signals("a", "n").memory == 0.0


def test_a_load_counts_as_memory_from_the_moment_it_is_planned(play: Play) -> None:
    play.node("n", cold("x"), cold("y"), memory=16)
    play.ask("x1", "x")
    play.ask("y1", "y")
    play.then("x1 runs on n", "y1 waits for n")


def test_a_cold_model_gets_its_turn_on_a_device_that_is_never_idle(play: Play) -> None:
    play.node("n", model("hot", slots=2), cold("rare"), memory=16)
    play.ask("h0", "hot")
    play.wait(0.5)
    play.ask("h1", "hot")
    play.ask("rare", "rare")
    play.then("h0 runs on n", "h1 runs on n", "rare waits for n")
    play.ask("h2", "hot")
    play.then("h2 waits for n")
    play.finish("h0")
    play.then("h0 completed")
    play.finish("h1")
    play.then("h1 completed", "rare runs on n")


def test_a_model_that_was_let_in_is_not_thrown_out_while_it_runs(play: Play) -> None:
    play.node("n", model("hot"), cold("rare"), memory=16)
    play.ask("h0", "hot")
    play.ask("rare", "rare")
    play.ask("h1", "hot")
    play.finish("h0")
    play.then(
        "h0 runs on n", "rare waits for n", "h1 waits for n", "h0 completed", "rare runs on n"
    )
    play.node("n", cold("hot"), model("rare"), memory=16)
    play.ask("h2", "hot")
    play.then("h2 waits for n")
    play.finish("rare")
    play.then("rare completed", "h1 runs on n")


def test_those_who_came_first_do_not_stand_back(play: Play) -> None:
    """A reservation binds only later requests: the queue that stood before it goes on."""
    play.node("n", model("hot"), cold("rare"), memory=16)
    play.ask("h0", "hot")
    play.ask("h1", "hot")
    play.ask("rare", "rare")
    play.skip()
    play.finish("h0")
    play.then("h0 completed", "h1 runs on n")


def test_a_reservation_ends_with_the_client_that_caused_it(play: Play) -> None:
    play.node("n", model("hot", slots=2), cold("rare"), memory=16)
    play.ask("h0", "hot")
    play.ask("rare", "rare")
    play.ask("h1", "hot")
    play.then("h0 runs on n", "rare waits for n", "h1 waits for n")
    play.client_leaves("rare")
    play.wait(10.0)
    play.then("rare cancelled", "h1 runs on n")


def test_a_reservation_ends_with_the_model_that_it_is_for(play: Play) -> None:
    """The cold model is deleted from the device while its request has hope elsewhere."""
    play.node("n", model("hot", slots=2), cold("rare"), memory=16)
    play.node("far", model("rare"), speed=1)
    play.ask("far", "rare", answer=250)
    play.finish("far")
    play.ask("h0", "hot", answer=200)
    play.ask("r0", "rare", answer=250)
    play.skip()
    play.node("n", model("hot", slots=2), memory=16)
    play.ask("h1", "hot")
    assert play.where("h1") == "n"


def test_a_replica_that_rests_reserves_nothing(play: Play) -> None:
    """A model that fails to load must not keep the device from those that work."""
    play.node("n", model("hot", slots=2), cold("broken"), memory=16)
    for number in range(6):
        play.ask(f"b{number}", "broken")
        play.fail(f"b{number}", "out of memory", kind="status")
        play.wait(40.0 if number < 5 else 0.0)
        play.node("n", model("hot", slots=2), cold("broken"), memory=16)
    play.skip()
    play.ask("b6", "broken")
    play.ask("h0", "hot")
    play.then("b6 waits for n", "h0 runs on n")


def test_another_context_than_the_loaded_one_costs_a_reload(play: Play) -> None:
    play.node("small", model(loaded_context=4096))
    play.node("large", model(loaded_context=32768), speed=50)
    play.ask("a", context=32768)
    play.then("a runs on large")
    assert play.signals("a", "small").context == pytest.approx(6.0)
    assert play.signals("a", "large").context == 0.0


def test_a_request_that_asks_for_no_context_is_happy_with_any(play: Play) -> None:
    play.node("n", model(loaded_context=4096))
    play.ask("a")
    assert play.signals("a", "n").context == 0.0
