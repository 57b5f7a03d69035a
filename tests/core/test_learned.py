"""What was learned outlives nodes and restarts, and never grows beyond bounds."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import astuple

from herd.core import learned
from herd.core.fleet import ReplicaKey
from herd.core.learned import Learned, SharedTable, check
from herd.core.lengths import AnswerLengths
from herd.core.priors import Rates
from herd.core.request import Timings
from tests.core.playbook import Play, model

PRIOR = Rates(prefill=400.0, decode=20.0, load=5.0, overhead=0.02)


def serve(play: Play, request: str, *, seconds: float, tokens: int = 100) -> None:
    play.beat("n")
    play.ask(request, prompt=500, answer=None)
    play.wait(0.1)
    play.first(request)
    play.wait(seconds)
    play.finish(request, tokens=tokens, timings=Timings(prefill=0.08, decode=seconds))


def rates(play: Play, node: str) -> Rates:
    (replica,) = play.scheduler.nodes[node].replicas.values()
    return replica.learning.rates


def kept(play: Play) -> Learned:
    """As it comes back from a disk."""
    data = msgspec.msgpack.encode(play.scheduler.learned(play.now))
    return msgspec.msgpack.decode(data, type=Learned)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.05, 14.0), min_size=1, max_size=15))
def test_what_is_restored_gives_equal_rates_and_lengths(seconds: list[float]) -> None:
    play = Play()
    play.node("n", model())
    for number, each in enumerate(seconds):
        serve(play, f"r{number}", seconds=each, tokens=50 + number)
    again = Play()
    again.scheduler.restore(kept(play))
    # A replica waits for its node's report.
    assert kept(again).replicas == kept(play).replicas
    again.now = play.now
    play.node("n", model())
    again.node("n", model())
    assert kept(again) == kept(play)
    # The weather is told to replicas when it has changed by a hundredth, and after a restart.
    assert astuple(rates(again, "n")) == pytest.approx(astuple(rates(play, "n")), rel=0.0101)
    play.ask("next", answer=None)
    again.ask("next", answer=None)
    total = play.estimate("next", "n").total
    assert again.estimate("next", "n").total == pytest.approx(total, rel=0.0101)


def test_a_node_that_comes_back_is_still_known() -> None:
    play = Play()
    play.node("n", model())
    for number in range(5):
        serve(play, f"r{number}", seconds=4.0)
    before = rates(play, "n")
    play.gone("n")
    play.node("n", model())
    assert rates(play, "n") == before
    assert before.decode == pytest.approx(25.0, rel=0.1)


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "REPLICAS", 10)
    monkeypatch.setattr(learned, "DEVICES", 5)
    monkeypatch.setattr(learned, "MODELS", 3)
    table = SharedTable()
    for number in range(50):
        table.replica(ReplicaKey(f"n{number}", "e", f"m{number % 4}"), PRIOR).outcomes = 1
    found = table.learned(AnswerLengths(), 0.0)
    assert (len(found.replicas), len(found.devices), len(found.models)) == (10, 5, 3)
    assert found.replicas[-1].key.node == "n49"


def test_a_forgotten_replica_is_told_nothing_more() -> None:
    table = SharedTable()
    shared = table.model("m")
    learning = table.replica(ReplicaKey("n", "e", "m"), PRIOR)
    assert learning in shared.dependants
    learning.leave()
    learning.leave()
    assert learning not in shared.dependants


def test_another_version_or_spoilt_numbers_are_refused() -> None:
    check(Learned())
    with pytest.raises(ValueError, match="version 2"):
        Play().scheduler.restore(Learned(version=2))
    play = Play()
    play.node("n", model())
    serve(play, "r", seconds=4.0)
    whole = kept(play)
    spoilt = msgspec.structs.replace(whole, at=math.nan)
    with pytest.raises(ValueError, match="not finite"):
        Play().scheduler.restore(spoilt)


def test_what_is_known_of_prompts_is_kept_and_older_states_have_none_of_it() -> None:
    table = SharedTable()
    play = Play()
    play.ask("r", prompt=1000)
    request = play.outcomes["r"].request
    for _ in range(20):
        table.prompts.add(request, 1400, 0.0)
    data = msgspec.json.encode(table.learned(AnswerLengths(), 0.0))
    again = SharedTable()
    again.restore(msgspec.json.decode(data, type=Learned))
    assert again.prompts.ratio(request) == pytest.approx(1.4, rel=0.02)
    fields = msgspec.json.decode(data)
    del fields["prompts"]
    older = SharedTable()
    older.restore(msgspec.convert(fields, Learned))
    assert older.prompts.ratio(request) == 1.0
