"""What is refused, when, and with which words; the bound of the queue, patience, stopping."""

from __future__ import annotations

import pytest

from tests.core.playbook import GB, Play, cold, model


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
    # a, b and c, each 10.02 seconds long.
    assert refusal.retry_after == pytest.approx(3 * 10.02)


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
