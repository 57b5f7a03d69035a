"""What outcomes say of the replicas that served them."""

from __future__ import annotations

import pytest
from msgspec import structs

from herd.core.decision import Decision, Estimate, Signals
from herd.core.fleet import ReplicaKey
from herd.core.request import Attempt, Outcome, Request, Result, Timings, Usage
from herd.sim.measured import answer_tokens, fresh_tokens, measure

MODEL = "llama3.2:3b"
FAST, SLOW = (ReplicaKey(name, "ollama-11434", MODEL) for name in ("fast", "slow"))


def outcome(
    name: str,
    *,
    at: float = 0.0,
    replica: ReplicaKey = FAST,
    prefill: float = 1.0,
    decode: float = 2.0,
    load: float | None = None,
    prompt: int = 100,
    tokens: int = 41,
    estimates: tuple[Estimate, ...] = (),
) -> Outcome:
    """A request that the engine itself timed."""
    first = at + (load or 0.0) + prefill
    return Outcome(
        request=Request(
            id=name,
            dialect="ollama",
            operation="chat",
            endpoint="/api/chat",
            asked=MODEL,
            model=MODEL,
            stream=True,
            needs=frozenset({"completion"}),
            prompt_tokens=prompt,
        ),
        ending="completed",
        arrived=at,
        ended=first + decode,
        dispatched=at,
        first_frame=first,
        attempts=(
            Attempt(
                number=1,
                replica=replica,
                started=at,
                first_frame=first,
                ended=first + decode,
                ending="completed",
            ),
        ),
        decision=Decision(at=at, chosen=replica, estimates=estimates, reason=""),
        result=Result(
            usage=Usage(prompt_tokens=prompt, completion_tokens=tokens),
            timings=Timings(load=load, prefill=prefill, decode=decode),
        ),
    )


def estimate(replica: ReplicaKey, **seconds: float) -> Estimate:
    signals = Signals(**seconds)
    return Estimate(replica=replica, signals=signals, total=signals.total)


def test_rates_are_those_of_the_engines_own_clock() -> None:
    site = measure([outcome("a"), outcome("b", at=10.0)])["fast", "ollama-11434"]
    found = site.replicas[MODEL]

    assert (found.prefill, found.decode, found.load) == (100.0, 20.0, None)
    assert (found.served, site.slots, site.kind) == (2, 1, "ollama")


def test_without_the_engines_clock_the_relays_is_used() -> None:
    silent = structs.replace(outcome("a", prefill=0.5, decode=4.0), result=None)
    told = structs.replace(
        silent, result=Result(usage=Usage(prompt_tokens=100, completion_tokens=41))
    )
    found = measure([told])["fast", "ollama-11434"].replicas[MODEL]

    assert (found.prefill, found.decode) == (200.0, 10.0)
    assert measure([silent])["fast", "ollama-11434"].replicas[MODEL].decode is None


def test_one_odd_request_does_not_spoil_the_rate() -> None:
    odd = [outcome(str(n), at=10.0 * n, decode=200.0 if n == 3 else 2.0) for n in range(3)]

    assert measure(odd)["fast", "ollama-11434"].replicas[MODEL].decode == 20.0


def test_sharing_is_fitted_from_requests_side_by_side() -> None:
    """Alone 20 tokens/s; two at once 20 / 2 ** 0.5 each."""
    alone = [outcome(f"a{n}", at=100.0 * n, prefill=0.001) for n in range(4)]
    pairs = [
        outcome(f"p{n}", at=1000.0 + 100.0 * (n // 2), prefill=0.001, decode=2.0 * 2**0.5)
        for n in range(8)
    ]
    site = measure([*alone, *pairs])["fast", "ollama-11434"]

    assert site.alpha_measured
    assert site.alpha == pytest.approx(0.5, abs=0.01)
    assert site.replicas[MODEL].decode == pytest.approx(20.0, rel=0.01)
    assert site.slots == 2


def test_without_company_sharing_is_the_usual() -> None:
    site = measure([outcome("a"), outcome("b", at=50.0)])["fast", "ollama-11434"]

    assert not site.alpha_measured
    assert site.alpha == pytest.approx(0.9)


def test_back_to_back_is_not_side_by_side() -> None:
    assert measure([outcome("a"), outcome("b", at=3.0)])["fast", "ollama-11434"].slots == 1


def test_loads_and_memory_show_in_signals() -> None:
    cold = estimate(FAST, residency=4.0, memory=0.5, speed=1.0)
    found = measure([outcome("a", load=3.5, estimates=(cold,))])["fast", "ollama-11434"]

    assert (found.loads, found.evicts) == (True, True)
    assert found.replicas[MODEL].load == 3.5
    assert found.replicas[MODEL].resident is False


def test_a_load_is_no_longer_than_its_request_waited() -> None:
    """Believed to take 4 s, the model was there with the first frame after 1.5 s."""
    cold = estimate(FAST, residency=4.0, speed=1.0)
    silent = structs.replace(
        outcome("a", prefill=1.5, estimates=(cold,)), result=Result(usage=Usage(prompt_tokens=9))
    )
    short = outcome("b", load=0.1, estimates=(cold,))

    assert measure([silent])["fast", "ollama-11434"].replicas[MODEL].load == 1.5
    assert measure([short])["fast", "ollama-11434"].replicas[MODEL].load == 0.1


def test_one_that_served_nothing_is_as_fast_as_believed() -> None:
    both = (estimate(FAST, speed=2.0), estimate(SLOW, speed=8.0, residency=6.0))
    sites = measure([outcome("a", estimates=both)])
    slow = sites["slow", "ollama-11434"].replicas[MODEL]

    assert (slow.prefill, slow.decode) == (25.0, 5.0)
    assert (slow.served, slow.load, slow.resident) == (0, 6.0, False)


def test_tokens_are_the_engines_where_it_counts() -> None:
    told = outcome("a", prompt=100)
    assert told.result is not None
    cached = structs.replace(
        told, result=Result(usage=Usage(prompt_tokens=100, cached_tokens=80), frames=17)
    )

    assert (fresh_tokens(told), answer_tokens(told)) == (100, 41)
    assert (fresh_tokens(cached), answer_tokens(cached)) == (20, 17)
