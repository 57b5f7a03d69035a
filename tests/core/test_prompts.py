"""Prompts are expected to have as many tokens as engines count of those like them."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.core import prompts
from herd.core.events import Finished
from herd.core.fleet import Capability
from herd.core.prompts import Prompts, PromptsState
from herd.core.request import Prefix, Request, Result, Usage
from herd.core.statistics import BeliefState
from tests.core.playbook import Play, model

NEEDS: frozenset[Capability] = frozenset({"completion"})
WEEK = 7 * 86400.0


def request(
    model: str = "m:latest",
    client: str = "ann",
    *,
    tokens: int = 1000,
    needs: frozenset[Capability] = NEEDS,
) -> Request:
    return Request(
        id="a",
        dialect="openai",
        operation="chat",
        endpoint="/v1/chat/completions",
        asked=model,
        model=model,
        client=client,
        prompt_tokens=tokens,
        needs=needs,
    )


def taught(ratio: float, count: int = 30, model: str = "m:latest") -> Prompts:
    known = Prompts()
    for _ in range(count):
        known.add(request(model), round(1000 * ratio), 0.0)
    return known


def test_the_estimate_counts_until_an_engine_has_counted() -> None:
    known = Prompts()
    assert known.expect(request(tokens=321)) == 321.0
    assert known.ratio(request()) == 1.0


def test_what_engines_counted_is_expected() -> None:
    known = taught(1.4)
    assert known.ratio(request()) == pytest.approx(1.4, rel=0.01)
    assert known.expect(request(tokens=500)) == pytest.approx(700.0, rel=0.01)


def test_the_first_prompt_is_believed_for_the_most_part() -> None:
    known = taught(1.4, 1)
    assert 1.25 < known.ratio(request()) < 1.4


def test_each_client_has_its_own_text_and_a_new_one_that_of_all() -> None:
    known = Prompts()
    for _ in range(30):
        known.add(request(client="prose"), 900, 0.0)
        known.add(request(client="code"), 1400, 0.0)
    assert known.ratio(request(client="prose")) == pytest.approx(0.9, rel=0.03)
    assert known.ratio(request(client="code")) == pytest.approx(1.4, rel=0.03)
    assert known.ratio(request(client="new")) == pytest.approx(math.sqrt(0.9 * 1.4), rel=0.1)


def test_each_model_has_its_own_tokenizer_and_a_new_one_that_of_all() -> None:
    known = taught(1.4, model="old:latest")
    for _ in range(30):
        known.add(request("other:latest"), 1000, 0.0)
    assert known.ratio(request("old:latest")) == pytest.approx(1.4, rel=0.03)
    assert known.ratio(request("other:latest")) == pytest.approx(1.0, rel=0.03)
    assert 1.1 < known.ratio(request("new:latest")) < 1.3


def test_images_say_nothing_of_text() -> None:
    seen: frozenset[Capability] = frozenset({"completion", "vision"})
    known = taught(1.2)
    for _ in range(30):
        known.add(request(needs=seen), 600, 0.0)
    assert known.ratio(request()) == pytest.approx(1.2, rel=0.01)
    assert known.ratio(request(needs=seen)) == pytest.approx(0.6, rel=0.02)


def test_short_prompts_count_little() -> None:
    known = taught(1.2, 10)
    for _ in range(10):
        known.add(request(tokens=5), 30, 0.0)
    assert known.ratio(request()) == pytest.approx(1.2, rel=0.05)


def test_one_that_was_cut_does_not_spoil_what_is_known() -> None:
    known = taught(1.2)
    known.add(request(), 20, 0.0)
    assert known.ratio(request()) == pytest.approx(1.2, rel=0.03)


def test_what_is_long_ago_gives_way() -> None:
    known, fresh = taught(1.5, 50), Prompts()
    for after in (known, fresh):
        for _ in range(5):
            after.add(request(), 1000, 8 * WEEK)
    assert known.ratio(request()) == pytest.approx(1.0, rel=0.05)
    at_once = taught(1.5, 50)
    for _ in range(5):
        at_once.add(request(), 1000, 0.0)
    assert at_once.ratio(request()) > 1.3


def test_nothing_is_learned_of_what_nobody_counted() -> None:
    known = Prompts()
    known.add(request(tokens=0), 10, 0.0)
    known.add(request(), 0, 0.0)
    known.add(request(), None, 0.0)
    assert known.state() == ()


def test_blocks_of_a_prefix_have_as_many_tokens_more() -> None:
    prefix = Prefix((1, 2, 3), 128)
    assert Prompts().scaled(request(), prefix) is prefix
    assert taught(1.25, 50).scaled(request(), prefix) == Prefix((1, 2, 3), 160)
    assert taught(1.25).scaled(request(), Prefix()) == Prefix()


def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "BELIEFS", 5)
    known = Prompts()
    for number in range(20):
        known.add(request(client=f"c{number}"), 1400, 0.0)
    assert len(known.state()) == 5
    # What is used all the time stays.
    assert known.ratio(request(client="new")) == pytest.approx(1.4, rel=0.02)
    again = Prompts()
    again.restore(tuple(PromptsState((str(n),), BeliefState()) for n in range(9)))
    assert [state.key for state in again.state()] == [("4",), ("5",), ("6",), ("7",), ("8",)]


@given(st.lists(st.tuples(st.integers(1, 100_000), st.integers(1, 100_000)), max_size=30))
def test_it_is_never_beyond_a_factor_and_comes_back_from_a_disk(
    counted: list[tuple[int, int]],
) -> None:
    known = Prompts()
    for number, (estimated, true) in enumerate(counted):
        known.add(request(tokens=estimated), true, 60.0 * number)
    assert 0.499 < known.ratio(request()) < 2.001
    data = msgspec.msgpack.encode(known.state())
    again = taught(0.7)
    assert again.ratio(request()) < 1.0
    again.restore(msgspec.msgpack.decode(data, type=tuple[PromptsState, ...]))
    assert again.ratio(request()) == pytest.approx(known.ratio(request()))


def serve(play: Play, name: str, *, prompt: int, counted: int) -> None:
    play.beat("n")
    play.ask(name, prompt=prompt, prefix=(1, 2, 3, 4, 5))
    attempt = play.dispatch(name).attempt
    play.wait(1.0)
    usage = Usage(prompt_tokens=counted, completion_tokens=100)
    play.feed(Finished(name, attempt, Result(usage=usage)))


def test_predictions_follow_what_engines_count() -> None:
    play = Play()
    play.node("n", model(), speed=100)
    for number in range(20):
        serve(play, f"r{number}", prompt=1000, counted=1400)
    play.ask("next", prompt=1000, prefix=(1, 2, 3, 4, 5))
    task = play.scheduler.tasks["next"]
    assert task.prompt == pytest.approx(1400, rel=0.02)
    assert task.prefix.block == 140
    (replica,) = play.scheduler.replicas("m:latest")
    saved = 5 * 140 / replica.learning.rates.prefill
    assert play.signals("next", "n").affinity == pytest.approx(-saved)
