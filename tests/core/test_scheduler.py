"""Who runs where, when, and what is refused: events in, actions out."""

from __future__ import annotations

import itertools

import pytest

from herd.core import actions as ac
from tests.core.playbook import ENGINE, Play, cold, model

# Where a request runs


def test_a_request_runs_on_the_idle_replica_that_is_done_first(play: Play) -> None:
    play.node("slow", model(), speed=20)
    play.node("fast", model(), speed=100)
    play.ask("a")
    play.then("a runs on fast")


def test_a_warm_slow_device_beats_a_cold_fast_one_for_a_short_answer(play: Play) -> None:
    play.node("warm", model(), speed=20)
    play.node("fast", cold(), speed=100)
    play.ask("short", answer=20)
    play.then("short runs on warm")


def test_a_cold_fast_device_beats_a_warm_slow_one_for_a_long_answer(play: Play) -> None:
    play.node("warm", model(), speed=20)
    play.node("fast", cold(), speed=100)
    play.ask("long", answer=250)
    play.then("long runs on fast")


def test_the_target_says_how_to_connect(play: Play) -> None:
    play.node("n", model("qwen3", capabilities=("completion", "tools")), kind="vllm")
    play.ask("a", "qwen3")
    target = play.dispatch("a").target
    assert (target.replica.node, target.replica.engine) == ("n", ENGINE)
    assert (target.kind, target.url, target.model) == ("vllm", "http://n:1", "qwen3")
    assert target.capabilities == ("completion", "tools")


def test_the_decision_holds_every_candidate_and_says_why(play: Play) -> None:
    play.node("slow", model(), speed=20)
    play.node("fast", model(), speed=100)
    play.node("blind", model(), kind="mlx")
    play.ask("a")
    decision = play.dispatch("a").decision
    assert decision.chosen.node == "fast"
    assert {e.replica.node for e in decision.estimates} == {"slow", "fast", "blind"}
    assert decision.reason == "predicted 1.02 s, 4.00 s sooner than the next"
    excluded = play.estimate("a", "blind").excluded
    assert excluded is not None
    assert excluded.reason == "mlx does not serve /v1/chat/completions"


def test_signals_add_up_to_the_estimate(play: Play) -> None:
    play.node("n", cold())
    play.ask("a", prompt=400)
    estimate = play.estimate("a", "n")
    assert estimate.total == pytest.approx(6.0 + 0.02 + 400 / 400 + 100 / 100)
    assert estimate.total == estimate.signals.total


def test_twins_alternate(play: Play) -> None:
    play.node("left", model())
    play.node("right", model(), speed=101)
    nodes = []
    for number in range(4):
        play.ask(f"r{number}")
        nodes.append(play.where(f"r{number}"))
        play.finish(f"r{number}")
    assert nodes == ["left", "right", "left", "right"]
    assert play.dispatch("r0").decision.reason.endswith("equal to the next, and rested longest")


def test_parallel_slots_fill_before_anyone_waits(play: Play) -> None:
    play.node("n", model(slots=2))
    for name in "abc":
        play.ask(name)
    play.then("a runs on n", "b runs on n", "c waits for n")


# Late binding


def test_it_waits_for_the_fast_device_when_that_is_sooner(play: Play) -> None:
    play.node("fast", model(), speed=100)
    play.node("slow", model(), speed=10)
    play.ask("a")
    play.ask("b")
    play.then("a runs on fast", "b waits for fast")
    play.wait(1.0)
    play.finish("a")
    play.then("a completed", "b runs on fast")


def test_it_goes_to_the_slow_device_when_that_is_sooner(play: Play) -> None:
    play.node("fast", model(), speed=100)
    play.node("slow", model(), speed=60)
    play.ask("a")
    play.ask("b")
    play.then("a runs on fast", "b runs on slow")


def test_a_burst_spreads_by_what_each_device_would_have_done(play: Play) -> None:
    """Four are done sooner on the fast device, one after the other, than one on the slow one."""
    play.node("fast", model(), speed=100)
    play.node("slow", model(), speed=15)
    for number in range(6):
        play.ask(f"r{number}")
    assert play.where("r0") == "fast"
    assert [name for name in play.scheduler.tasks if play.where(name) == "slow"] == ["r4"]


def test_a_wait_that_proves_too_hopeful_ends_on_the_slow_device(play: Play) -> None:
    play.node("fast", model(), speed=100)
    play.node("slow", model(), speed=10)
    play.ask("a")
    play.ask("b")
    play.skip()
    for _ in range(120):
        play.wait(1.0)
        play.beat("fast")
        play.beat("slow")
    play.then("b runs on slow")


def test_a_waiting_request_takes_a_better_node_that_joins(play: Play) -> None:
    play.node("old", model())
    play.ask("a")
    play.ask("b")
    play.node("new", model())
    play.then("a runs on old", "b waits for old", "b runs on new")


def test_requests_of_a_model_start_in_the_order_of_their_arrival(play: Play) -> None:
    play.node("n", model())
    for name in "abcd":
        play.ask(name)
    play.skip()
    for done, next_ in itertools.pairwise("abcd"):
        play.finish(done)
        play.then(f"{done} completed", f"{next_} runs on n")


def test_models_on_one_device_take_turns_by_the_age_of_their_first_request(play: Play) -> None:
    """Whoever waits longest is looked at first when the device has changed."""
    play.node("n", model("m"), model("k"))
    play.ask("m1", "m")
    play.ask("k1", "k")
    play.ask("k2", "k")
    play.ask("m2", "m")
    play.skip()
    play.node("n", model("m", slots=2), model("k", slots=2))
    play.then("k2 runs on n", "m2 runs on n")


def test_hold_tells_what_wait_is_expected(play: Play) -> None:
    play.node("n", model(), speed=10)
    play.ask("a")
    play.ask("b")
    assert play.hold("b").expected_wait == pytest.approx(10.02)
    play.ask("c")
    assert play.hold("c").expected_wait == pytest.approx(2 * 10.02)


def test_a_request_that_is_overdue_is_expected_to_go_on_a_while(play: Play) -> None:
    play.node("n", model(), speed=100)
    play.ask("a")
    play.wait(10.0)
    play.ask("b")
    assert play.hold("b").expected_wait == pytest.approx(2.5, rel=0.01)


def test_the_first_frame_corrects_when_the_end_is_expected(play: Play) -> None:
    play.node("n", model(), speed=100)
    play.ask("a", prompt=4000)
    play.wait(2.0)
    play.first("a")
    play.ask("b")
    # 4000 tokens of prompt take ten times as long as 100 of answer, and are behind it.
    assert play.hold("b").expected_wait == pytest.approx((0.02 + 11) / 11, rel=0.01)


# Traffic that comes past Herd


def test_work_that_came_past_herd_shifts_the_choice(play: Play) -> None:
    play.node("fast", model(), speed=100, running=1, waiting=2)
    play.node("slow", model(), speed=40, running=0)
    play.ask("a")
    play.then("a runs on slow")
    assert play.signals("a", "fast").queue == pytest.approx(3 * 1.02)


def test_what_herd_itself_runs_is_not_taken_for_the_work_of_others(play: Play) -> None:
    play.node("n", model(slots=2), running=0)
    play.ask("a")
    play.node("n", model(slots=2), running=1)
    play.ask("b")
    assert play.signals("b", "n").queue == 0.0


def test_what_ended_since_the_report_is_not_taken_for_the_work_of_others(play: Play) -> None:
    play.node("n", model(), running=0)
    play.ask("a")
    play.node("n", model(), running=1)
    play.finish("a")
    play.ask("b")
    assert play.signals("b", "n").queue == 0.0


# The outcome


def test_the_outcome_tells_the_whole_story(play: Play) -> None:
    play.node("n", model())
    play.ask("a")
    play.ask("b")
    play.wait(1.0)
    play.finish("a")
    play.wait(0.5)
    play.first("b")
    play.wait(2.0)
    play.finish("b", tokens=80)
    outcome = play.outcomes["b"]
    assert (outcome.ending, outcome.arrived, outcome.ended) == ("completed", 1000.0, 1003.5)
    assert (outcome.dispatched, outcome.first_frame) == (1001.0, 1001.5)
    assert [(step.at, step.state) for step in outcome.story] == [
        (1000.0, "arrived"),
        (1000.0, "waiting"),
        (1001.0, "running"),
        (1001.5, "streaming"),
        (1003.5, "completed"),
    ]
    assert outcome.story[1].note == "for n, about 1.02 s"
    assert outcome.story[2].note == f"n/{ENGINE}: the only candidate, predicted 1.02 s"
    assert outcome.decision is not None
    assert outcome.decision.chosen.node == "n"
    assert outcome.result is not None
    assert outcome.result.usage.completion_tokens == 80
    (attempt,) = outcome.attempts
    assert (attempt.number, attempt.ending) == (1, "completed")
    assert attempt.predicted == pytest.approx(1.02)


def test_the_story_of_a_refusal_ends_in_its_cause(play: Play) -> None:
    play.ask("a")
    outcome = play.outcomes["a"]
    assert [step.state for step in outcome.story] == ["arrived", "rejected"]
    assert outcome.story[-1].note == "model 'm' not found"
    assert (outcome.attempts, outcome.decision, outcome.dispatched) == ((), None, None)


def test_the_length_of_answers_is_learned(play: Play) -> None:
    play.node("n", model())
    play.ask("a", answer=None)
    assert play.signals("a", "n").speed == pytest.approx(0.02 + 2.56)
    play.finish("a", tokens=1000)
    play.ask("b", answer=None)
    play.finish("b")
    play.ask("c", answer=None)
    assert play.scheduler.answers.expect(play.scheduler.tasks["c"].request) > 700.0


def test_the_same_events_give_the_same_actions() -> None:
    def once() -> list[ac.Action]:
        play = Play(patience=20.0)
        play.node("left", model(slots=2), cold("k"), memory=16)
        play.node("right", model(), cold("k"))
        for number in range(12):
            play.ask(f"r{number}", "mk"[number % 2])
            play.wait(0.3)
            if play.where(f"r{number}") and number % 3 == 0:
                play.fail(f"r{number}")
        play.gone("left")
        play.wait(30.0)
        return play.actions

    assert once() == once()


def test_a_conversation_returns_to_the_device_that_has_read_it(play: Play) -> None:
    play.node("one", model())
    play.node("two", model())
    blocks = tuple(range(1, 65))
    play.ask("turn1", prompt=8192, prefix=blocks)
    home = play.where("turn1") or ""
    play.finish("turn1")
    play.ask("turn2", prompt=8320, prefix=(*blocks, 65))
    assert play.where("turn2") == home
    saved = play.signals("turn2", home).affinity
    assert saved < 0.0
    other = "two" if home == "one" else "one"
    assert play.signals("turn2", other).affinity == 0.0


def test_affinity_yields_when_the_other_device_is_done_sooner(play: Play) -> None:
    play.node("one", model())
    play.node("two", model())
    play.ask("turn1", prompt=400, prefix=(1, 2, 3))
    home = play.where("turn1")
    play.finish("turn1")
    play.ask("rival", prompt=400, prefix=(1, 2, 3))
    assert play.where("rival") == home
    play.ask("turn2", prompt=400, prefix=(1, 2, 3, 4))
    assert play.where("turn2") == ("two" if home == "one" else "one")


def test_what_a_neighbour_would_lose_counts_against_a_device(play: Play) -> None:
    play.node("busy", model(slots=2))
    play.ask("a")
    play.node("idle", model(slots=2), speed=60)
    play.ask("b")
    assert play.where("b") == "idle"
    assert play.signals("b", "busy").affinity > 0.0
    assert play.signals("b", "idle").affinity == 0.0
