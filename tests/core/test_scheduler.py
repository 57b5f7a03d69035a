"""Who runs where, when, and what is refused: events in, actions out."""

from __future__ import annotations

import itertools

import pytest

from herd.core import actions as ac
from tests.core.playbook import ENGINE, GB, Play, cold, model

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
    """Three are done sooner on the fast device, one after the other, than one on the slow one."""
    play.node("fast", model(), speed=100)
    play.node("slow", model(), speed=20)
    for number in range(6):
        play.ask(f"r{number}")
    assert play.where("r0") == "fast"
    assert [name for name in play.scheduler.tasks if play.where(name) == "slow"] == ["r3"]


def test_a_wait_that_proves_too_hopeful_ends_on_the_slow_device(play: Play) -> None:
    play.node("fast", model(), speed=100)
    play.node("slow", model(), speed=10)
    play.ask("a")
    play.ask("b")
    play.skip()
    for _ in range(60):
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
    # Half of a is taken to be over, and b is as long.
    assert play.hold("c").expected_wait == pytest.approx(1.5 * 10.02)


def test_a_request_that_is_overdue_is_expected_to_go_on_a_while(play: Play) -> None:
    play.node("n", model(), speed=100)
    play.ask("a")
    play.wait(10.0)
    play.ask("b")
    assert play.hold("b").expected_wait == pytest.approx(2.5)


def test_the_first_frame_corrects_when_the_end_is_expected(play: Play) -> None:
    play.node("n", model(), speed=100)
    play.ask("a", prompt=4000)
    play.wait(2.0)
    play.first("a")
    play.ask("b")
    # 4000 tokens of prompt take ten times as long as 100 of answer, and are behind it.
    assert play.hold("b").expected_wait == pytest.approx((0.02 + 11) / 11, rel=0.01)


# Loading and memory


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
    assert (signals.residency, signals.memory) == (pytest.approx(6.0), pytest.approx(6.0))


def test_only_as_much_is_evicted_as_the_load_needs_and_the_longest_unused_first(play: Play) -> None:
    play.node("n", model("x", size=2 * GB), model("y", size=4 * GB), cold("m"), memory=16)
    play.ask("y", "y")
    play.finish("y")
    play.ask("x", "x")
    play.finish("x")
    play.ask("a", "m")
    # 12 GB may be filled; x, y and m would take 14.4. Without y, which x has outlived, they fit.
    assert play.signals("a", "n").memory == pytest.approx(4.0)


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
        play.fail(f"b{number}", "out of memory")
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


# What is refused


def test_an_unknown_model(play: Play) -> None:
    play.node("n", model("other"))
    play.ask("a", "m")
    play.then("a is refused: unknown_model", "a rejected")
    refusal = play.refusal("a")
    assert refusal.message == "model 'm' not found"
    assert refusal.retry_after is None


def test_a_model_whose_node_has_left_is_unreachable_and_not_unknown(play: Play) -> None:
    play.node("n", model())
    play.gone("n")
    play.ask("a")
    play.then("a is refused: unreachable", "a rejected")
    assert play.refusal("a").retry_after == 5.0


def test_a_model_whose_engine_is_down_is_unreachable(play: Play) -> None:
    play.node("n", model())
    play.node("n", down="connection refused")
    play.ask("a")
    play.then("a is refused: unreachable", "a rejected")
    assert "engine is down: connection refused" in play.refusal("a").message


def test_an_engine_that_comes_up_again_is_used(play: Play) -> None:
    play.node("n", model())
    play.node("n", down="connection refused")
    play.node("n", model())
    play.ask("a")
    play.then("a runs on n")


@pytest.mark.parametrize("missing", ["vision", "tools", "embedding"])
def test_a_model_that_cannot_do_what_is_asked(play: Play, missing: str) -> None:
    play.node("n", model(), kind="llamacpp")
    play.ask("a", needs=("completion", missing))  # type: ignore[arg-type]  # a literal's value
    play.then("a is refused: incapable", "a rejected")
    assert play.refusal("a").message == f"no device can serve 'm': model lacks {missing}"


def test_a_replica_that_can_do_it_is_preferred_however_slow(play: Play) -> None:
    play.node("fast", model())
    play.node("able", model(capabilities=("completion", "vision")), speed=1)
    play.ask("a", needs=("completion", "vision"))
    play.then("a runs on able")


def test_an_engine_that_checks_capabilities_itself_has_the_last_word(play: Play) -> None:
    play.node("n", model(), kind="ollama")
    play.ask("a", needs=("completion", "tools"))
    play.then("a runs on n")


def test_an_engine_that_does_not_serve_the_endpoint(play: Play) -> None:
    play.node("n", model(), kind="ollama")
    play.ask("a", kinds=("vllm",))
    play.then("a is refused: incapable", "a rejected")


def test_a_prompt_beyond_the_loaded_context(play: Play) -> None:
    play.node("n", model(loaded_context=2048, context_length=8192), kind="llamacpp")
    play.ask("a", prompt=5000)
    play.then("a is refused: context", "a rejected")
    assert "about 5000 tokens exceeds the context of 2048" in play.refusal("a").message


def test_a_prompt_that_may_just_fit_is_left_to_the_engine(play: Play) -> None:
    play.node("n", model(loaded_context=2048), kind="llamacpp")
    play.ask("a", prompt=2500)
    play.then("a runs on n")


def test_ollama_can_load_a_longer_context_than_it_has_now(play: Play) -> None:
    play.node("n", model(loaded_context=2048, context_length=8192), kind="ollama")
    play.ask("a", prompt=5000)
    play.then("a runs on n")


def test_a_model_that_fits_no_device(play: Play) -> None:
    play.node("n", cold(size=100 * GB), memory=16)
    play.ask("a")
    play.then("a is refused: too_big", "a rejected")
    assert "needs 120.0 GB, device can give 12.0 GB" in play.refusal("a").message


def test_a_model_that_is_in_memory_fits_whatever_the_estimate_says(play: Play) -> None:
    play.node("n", model(size=100 * GB), memory=16)
    play.ask("a")
    play.then("a runs on n")


def test_what_one_replica_may_mend_soon_is_not_told_as_the_clients_mistake(play: Play) -> None:
    play.node("small", model(loaded_context=2048), kind="llamacpp")
    play.node("large", model(loaded_context=32768), kind="llamacpp")
    play.leaving("large")
    play.ask("a", prompt=9000)
    play.then("large is released", "a is refused: unreachable", "a rejected")


def test_the_queue_is_bounded() -> None:
    play = Play(max_waiting=2)
    play.node("n", model(), speed=10)
    for name in "abcd":
        play.ask(name)
    play.then(
        "a runs on n", "b waits for n", "c waits for n", "d is refused: queue_full", "d rejected"
    )
    refusal = play.refusal("d")
    assert refusal.message.startswith("server busy")
    # Half of a, b and c, each 10.02 seconds long.
    assert refusal.retry_after == pytest.approx(2.5 * 10.02)


def test_a_full_queue_keeps_nobody_from_an_idle_device() -> None:
    play = Play(max_waiting=1)
    play.node("busy", model())
    play.node("idle", model("other"))
    play.ask("a")
    play.ask("b")
    play.ask("c", "other")
    play.then("a runs on busy", "b waits for busy", "c runs on idle")


def test_a_full_queue_does_not_hide_that_a_model_is_unknown() -> None:
    play = Play(max_waiting=1)
    play.node("busy", model())
    play.ask("a")
    play.ask("b")
    play.skip()
    play.ask("c", "nope")
    play.then("c is refused: unknown_model", "c rejected")


def test_a_full_queue_refuses_what_would_be_the_first_to_wait_for_its_model() -> None:
    play = Play(max_waiting=1)
    play.node("n", model(), model("other"))
    for request, name in (("a", "m"), ("b", "m"), ("c", "other")):
        play.ask(request, name)
    play.skip()
    play.ask("d", "other")
    play.then("d is refused: queue_full", "d rejected")


def test_patience_ends() -> None:
    play = Play(patience=5.0, silence=100.0)
    play.node("n", model(), speed=10)
    play.ask("a")
    play.ask("b")
    play.skip()
    play.wait(4.9)
    play.then()
    play.wait(0.2)
    play.then("b is refused: expired", "b rejected")
    refusal = play.refusal("b")
    assert refusal.message == "no device came free within 5 s"
    assert refusal.retry_after is not None


def test_a_request_may_have_less_patience_than_the_router(play: Play) -> None:
    play.node("n", model())
    play.ask("a")
    play.ask("b", patience=2.0)
    play.skip()
    play.wait(2.0)
    play.then("b is refused: expired", "b rejected")


def test_a_request_without_any_patience_is_refused_at_once(play: Play) -> None:
    play.node("n", model())
    play.ask("a")
    play.ask("b", patience=0.0)
    play.wait(0.0)
    play.then("a runs on n", "b waits for n", "b is refused: expired", "b rejected")


def test_patience_does_not_end_what_runs() -> None:
    play = Play(patience=5.0, silence=100.0)
    play.node("n", model())
    play.ask("a")
    play.ask("b")
    play.finish("a")
    play.skip()
    play.wait(50.0)
    play.then()


def test_stopping_refuses_what_waits_and_what_comes_but_not_what_runs(play: Play) -> None:
    play.node("n", model())
    play.ask("a")
    play.ask("b")
    play.skip()
    play.stop()
    play.then("b is refused: stopping", "b rejected")
    play.ask("c")
    play.then("c is refused: stopping", "c rejected")
    play.finish("a")
    play.then("a completed")


def test_a_retry_that_would_have_to_wait_is_refused_while_stopping(play: Play) -> None:
    play.node("one", model())
    play.node("two", model())
    play.ask("a")
    play.ask("b")
    play.stop()
    play.skip()
    play.fail("a")
    play.then("a is refused: stopping", "a failed")


def test_a_request_id_is_taken_once(play: Play) -> None:
    play.node("n", model())
    play.ask("a")
    with pytest.raises(ValueError, match="request a has arrived already"):
        play.ask("a")


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
    assert (attempt.number, attempt.ending, attempt.predicted) == (
        1,
        "completed",
        pytest.approx(1.02),
    )


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
    assert play.scheduler.answers.expect(play.scheduler.tasks["c"].request) == 1000.0


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
