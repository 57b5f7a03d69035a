"""Decisions in sentences: every signal is told, with its seconds, for all candidates."""

from __future__ import annotations

import pytest
from msgspec import structs

from herd.core import explain
from herd.core.decision import Decision, Estimate, Exclusion, Signals
from herd.core.fleet import ReplicaKey
from herd.core.request import (
    Attempt,
    Failure,
    Outcome,
    Refusal,
    Request,
    Result,
    Timings,
    Usage,
)

REQUEST = Request(
    id="req_1",
    dialect="ollama",
    operation="chat",
    endpoint="/api/chat",
    asked="llama3.1:8b",
    model="llama3.1:8b",
    prompt_tokens=1200,
    client="ann",
)


def key(node: str) -> ReplicaKey:
    return ReplicaKey(node, "ollama-11434", "llama3.1:8b")


def estimate(node: str, *, harm: float = 0.0, **seconds: float) -> Estimate:
    signals = Signals(**seconds)
    return Estimate(replica=key(node), signals=signals, total=signals.total, harm=harm)


def decision(*estimates: Estimate, chosen: str = "fast") -> Decision:
    return Decision(at=10.0, chosen=key(chosen), estimates=estimates, reason="predicted 5.00 s")


DONE = Outcome(
    request=REQUEST,
    ending="completed",
    arrived=10.0,
    ended=18.0,
    dispatched=12.0,
    first_frame=14.0,
    attempts=(
        Attempt(
            number=1,
            replica=key("slow"),
            started=11.0,
            ended=11.5,
            ending="failed",
            failure=Failure(kind="connect", message="no connection"),
        ),
        Attempt(
            number=2,
            replica=key("fast"),
            started=12.0,
            first_frame=14.0,
            ended=18.0,
            ending="completed",
            predicted=4.5,
        ),
    ),
    decision=decision(estimate("slow", speed=9.0), estimate("fast", speed=5.0)),
    result=Result(
        usage=Usage(prompt_tokens=1234, completion_tokens=77, cached_tokens=1000),
        timings=Timings(load=0.0, prefill=1.5, decode=4.0),
    ),
)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (
            {"residency": 4.1},
            "residency: loading llama3.1:8b takes about 4.1 s, it is not in memor",
        ),
        ({}, "residency: llama3.1:8b is in memory"),
        ({"memory": 1.5}, "which will cost about 1.5 s"),
        ({}, "memory: nothing of worth has to leave memory for it"),
        ({"queue": 123.4}, "queue: work ahead of it on the device takes about 123 s"),
        ({}, "queue: no work is ahead of it"),
        (
            {"speed": 0.25},
            "reading about 1,200 tokens and an answer of usual length take about 0.25 s",
        ),
        (
            {"affinity": -2.0},
            "affinity: the beginning of the prompt is cached, which saves about 2.0",
        ),
        ({"affinity": 2.0}, "affinity: taking this device costs later requests about 2.0 s"),
        ({}, "affinity: nothing of the prompt is cached"),
        (
            {"availability": 3.0},
            "availability: attempts were lost there lately; expected to cost about 3.0 s",
        ),
        ({}, "availability: nothing is expected to be lost by failures or by others' use"),
        ({"context": 5.0}, "context: loading the model anew with a context takes about 5.0 s"),
        ({}, "context: the context is long enough as it is"),
    ],
)
def test_each_signal_has_its_sentence(seconds: dict[str, float], said: str) -> None:
    told = explain.sentences(REQUEST, estimate("fast", **seconds))

    assert len(told) == len(Signals.__struct_fields__)
    assert [line.partition(":")[0] for line in told] == list(Signals.__struct_fields__)
    assert any(said in line for line in told), told


def test_saving_and_harm_are_told_apart() -> None:
    told = explain.sentences(REQUEST, estimate("fast", affinity=-1.0, harm=0.5))

    assert told[4] == (
        "affinity: the beginning of the prompt is cached, which saves about 1.5 s; "
        "what runs on the device loses about 0.50 s by one more"
    )


def test_an_asked_context_is_named() -> None:
    asked = structs.replace(REQUEST, context=32768)

    assert "a context of 32,768 tokens" in explain.sentences(asked, estimate("x", context=2.0))[6]


def test_one_that_is_out_says_why_and_has_no_signals() -> None:
    out = Estimate(replica=key("old"), excluded=Exclusion("incapable", "model lacks tools"))
    (candidate,) = explain.decision(REQUEST, decision(out)).candidates

    assert candidate.sentences == ("cannot serve it: model lacks tools",)
    assert (candidate.total, candidate.signals) == (None, None)


def test_the_chosen_one_comes_first_then_the_soonest_then_those_that_are_out() -> None:
    out = Estimate(replica=key("a"), excluded=Exclusion("unreachable", "node is leaving"))
    made = decision(
        out, estimate("late", speed=9.0), estimate("next", speed=2.0), estimate("fast", speed=3.0)
    )
    told = explain.decision(REQUEST, made, {"fast": "Ann's Mac"})

    assert [each.replica.node for each in told.candidates] == ["fast", "next", "late", "a"]
    assert [each.chosen for each in told.candidates] == [True, False, False, False]
    assert told.candidates[0].node == "Ann's Mac"
    assert told.candidates[1].node == "next"
    assert told.summary == ("Ann's Mac was chosen: predicted 5.00 s",)
    assert told.came == ()


def test_of_many_candidates_some_are_counted_only() -> None:
    made = decision(*(estimate(f"n{number}", speed=number) for number in range(9)), chosen="n8")
    told = explain.decision(REQUEST, made, limit=3)

    assert [each.replica.node for each in told.candidates] == ["n8", "n0", "n1"]
    assert told.more == 6


def test_an_outcome_tells_what_was_predicted_and_what_came() -> None:
    told = explain.outcome(DONE, {"fast": "studio"})

    assert told.summary == (
        "llama3.1:8b for ann: completed after 8.0 s, of which it waited 2.0 s in the router",
        "attempt 1 on slow failed: no connection",
        "studio was chosen: predicted 5.00 s",
    )
    assert told.came == (
        "predicted 4.5 s from dispatch to end, took 6.0 s: 25% too short",
        "the first frame came 2.0 s after dispatch",
        "the prompt looked like 1,200 tokens by its length and had 1,234, 1,000 of them cached",
        "the answer had 77 tokens",
        "by the engine's own clock: load 0.00 s, prefill 1.5 s, decode 4.0 s",
    )


def test_a_refusal_has_its_reason_and_no_candidates() -> None:
    refused = Outcome(
        request=REQUEST,
        ending="rejected",
        arrived=10.0,
        ended=10.0,
        refusal=Refusal(kind="unknown_model", message="no such model"),
    )

    told = explain.outcome(refused)

    assert told.summary == ("llama3.1:8b for ann: rejected after 0.00 s: no such model",)
    assert told.candidates == ()


def test_what_the_record_does_not_hold_is_not_told() -> None:
    silent = structs.replace(DONE, result=None)

    assert len(explain.outcome(silent).came) == 2
    cut = structs.replace(DONE, ending="cancelled", attempts=DONE.attempts[:1], result=None)
    assert explain.outcome(cut).came == ()
