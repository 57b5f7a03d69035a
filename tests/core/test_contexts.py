"""The context plan: no reload by accident, none that is needed left out, nothing cut in silence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.core import priors
from herd.core.breaker import Rests
from herd.core.contexts import (
    ENOUGH,
    HEADROOM,
    LEAST,
    SHRINK_AFTER,
    UNPLANNED,
    ContextPlan,
    Sketch,
    bucket,
    carries,
    prior_token_bytes,
    told_token_bytes,
)
from herd.core.fleet import EngineKind, EngineReport, Hardware, NodeReport, Replica, ReplicaKey
from herd.core.learned import SharedTable
from herd.core.request import Request
from herd.core.state import NodeState, ReplicaState

GB = 1_000_000_000
NOW = 1_700_000_000.0
KEY = ReplicaKey("n", "ollama", "m:latest")


def request(prompt: int = 500, **fields: object) -> Request:
    """A chat in Ollama's own dialect."""
    known: dict[str, object] = {
        "id": "r",
        "dialect": "ollama",
        "operation": "chat",
        "endpoint": "/api/chat",
        "asked": "m",
        "model": "m:latest",
        "prompt_tokens": prompt,
        **fields,
    }
    return Request(**known)  # type: ignore[arg-type]


def replica(
    *, loaded: int = 0, kind: EngineKind = "ollama", memory: float = 64.0, **fields: object
) -> ReplicaState:
    """An 8B model of 5 GB that can have 128k tokens; on disk unless it is loaded."""
    known: dict[str, object] = {
        "model": "m:latest",
        "name": "m",
        "residency": "resident" if loaded else "disk",
        "size": 5 * GB,
        "parameters": 8_030_000_000,
        "context_length": 131_072,
        "loaded_context": loaded,
        **fields,
    }
    spec = Replica(**known)  # type: ignore[arg-type]
    engine = EngineReport(id="ollama", kind=kind, url="http://n", replicas=(spec,))
    report = NodeReport(
        node="n", name="n", hardware=Hardware(memory_bytes=int(memory * GB)), engines=(engine,)
    )
    node = NodeState(report, NOW, SharedTable(), Rests())
    node.update(report, NOW)
    return node.replicas[ReplicaKey("n", "ollama", "m:latest")]


def learned(*lengths: int, count: int = 100, answer: int = 100) -> ContextPlan:
    """A plan after so many requests of each of these lengths, answers included."""
    plan = ContextPlan()
    for length in lengths:
        for _ in range(count):
            plan.finished(request(length - answer), length - answer, answer, NOW)
    return plan


def test_a_loaded_context_that_suffices_is_named_whatever_the_client_asked_for() -> None:
    plan = ContextPlan()
    for asked in (None, 2048, 8192, 131_072):
        fit = plan.fit(request(context=asked), replica(loaded=8192), NOW, carries=True)
        assert (fit.verdict, fit.context) == ("fits", 8192)


def test_a_request_that_needs_more_pays_for_a_reload_with_what_it_needs() -> None:
    fit = ContextPlan().fit(request(12_000), replica(loaded=8192), NOW, carries=True)

    assert (fit.verdict, fit.context) == ("reloads", 32_768)
    assert fit.need > 12_000


def test_a_prompt_that_no_context_can_hold_is_not_cut_in_silence() -> None:
    fit = ContextPlan().fit(request(160_000), replica(loaded=8192), NOW, carries=True)

    assert (fit.verdict, fit.context, fit.limit) == ("short", None, 131_072)


def test_memory_bounds_the_context_as_the_model_does() -> None:
    # 7.5 GB for models, 5 GB of weights: 2.5 GB hold about 19,000 tokens of 128 KiB.
    small = replica(memory=10.0)
    plan = ContextPlan()

    assert plan.affordable(small) == pytest.approx(19_073, abs=2)
    assert plan.fit(request(8000), small, NOW, carries=True).context == 16_384
    assert plan.fit(request(17_000), small, NOW, carries=True).context == plan.affordable(small)
    assert plan.fit(request(25_000), small, NOW, carries=True).verdict == "short"


def test_what_is_loaded_has_been_shown_to_fit() -> None:
    assert ContextPlan().affordable(replica(loaded=65_536, memory=10.0)) == 65_536


def test_nothing_is_known_of_the_memory_without_a_size() -> None:
    assert ContextPlan().affordable(replica(size=0, parameters=0, memory=1.0)) == 131_072


def test_an_answer_may_be_short_of_room_where_there_is_no_more_to_be_had() -> None:
    full = replica(loaded=4096, context_length=4096)
    fit = ContextPlan().fit(request(3400), full, NOW, carries=True)

    assert (fit.verdict, fit.context) == ("fits", 4096)
    assert fit.need > fit.limit


def test_until_enough_was_seen_the_engine_takes_its_default_or_what_most_need() -> None:
    plan = ContextPlan()

    assert plan.fit(request(), replica(), NOW, carries=True).context is None
    for asked in (2048, 32_768):
        assert plan.context_for(request(context=asked), replica(), NOW) == UNPLANNED
    assert plan.context_for(request(3000), replica(), NOW) == UNPLANNED
    assert plan.planned(replica(), NOW) == 0


def test_the_plan_is_the_99th_percentile_with_head_room_in_doublings() -> None:
    plan = learned(1000, 3000)

    assert HEADROOM * 3000 > 4096
    assert plan.planned(replica(), NOW) == 8192
    assert plan.fit(request(100), replica(), NOW, carries=True).context == 8192
    assert plan.fit(request(10_000), replica(), NOW, carries=True).context == 16_384


def test_one_request_in_a_thousand_does_not_make_the_plan() -> None:
    plan = learned(1000, count=999)
    plan.finished(request(60_000), 60_000, 100, NOW)

    assert plan.planned(replica(), NOW) == 2048


def test_a_model_of_which_little_is_known_borrows_from_all() -> None:
    plan = ContextPlan()
    for _ in range(100):
        plan.finished(request(model="other:latest"), 3000, 100, NOW)

    assert plan.planned(replica(), NOW) == 8192


def test_the_plan_grows_at_once_and_shrinks_only_after_long_and_never_while_loaded() -> None:
    plan = learned(1000)
    cold, loaded = replica(), replica(loaded=8192)
    assert plan.planned(cold, NOW) == 2048
    for _ in range(30):
        plan.finished(request(4500), 4500, 100, NOW)
    assert plan.planned(cold, NOW) == 8192
    later = NOW + 30 * 86400.0
    for _ in range(1000):
        plan.finished(request(1000), 1000, 100, later)

    assert plan.planned(cold, later) == 8192
    assert plan.planned(cold, later + SHRINK_AFTER - 1.0) == 8192
    assert plan.planned(loaded, later + SHRINK_AFTER) == 8192
    assert plan.planned(cold, later + SHRINK_AFTER) == 2048


def test_a_need_in_between_starts_the_wait_for_shrinking_anew() -> None:
    plan = learned(4600)
    cold = replica()
    assert plan.planned(cold, NOW) == 8192
    later = NOW + 30 * 86400.0
    for _ in range(1000):
        plan.finished(request(1000), 1000, 100, later)
    plan.planned(cold, later)
    for _ in range(2000):
        plan.finished(request(4500), 4500, 100, later + 10.0)
    plan.planned(cold, later + 10.0)
    for _ in range(300_000):
        plan.finished(request(1000), 1000, 100, later + 20.0)
    plan.planned(cold, later + 20.0)

    assert plan.planned(cold, later + SHRINK_AFTER + 15.0) == 8192
    assert plan.planned(cold, later + SHRINK_AFTER + 20.0) == 2048


def defaulted(plan: ContextPlan, default: int = 4096) -> ContextPlan:
    """Let the plan see what the engine loads with by itself."""
    plan.dispatched(replica(), None)
    plan.reported(replica(loaded=default))
    return plan


def test_a_load_that_named_nothing_shows_the_engines_default() -> None:
    plan = ContextPlan()
    plan.dispatched(replica(), 8192)
    plan.reported(replica(loaded=8192))
    assert plan.default(KEY) is None
    plan.dispatched(replica(), None)
    plan.reported(replica())
    assert plan.default(KEY) is None
    plan.reported(replica(loaded=2048, context_length=2048))
    assert plan.default(KEY) is None, "the model's own limit is not the engine's default"

    assert defaulted(plan).default(KEY) == 4096
    plan.forget(KEY)


def test_what_is_being_loaded_counts_before_a_report_shows_it() -> None:
    plan, there = ContextPlan(), replica(loaded=4096)
    plan.dispatched(there, plan.context_for(request(10_000), there, NOW))
    plan.reported(there)

    assert plan.context_for(request(100), there, NOW) == 32_768
    cold = replica()
    plan.dispatched(cold, 32_768)
    cold.loading_until = NOW + 5.0
    assert plan.context_for(request(100), cold, NOW) == 32_768


def test_a_load_that_came_to_nothing_is_forgotten() -> None:
    plan, there = ContextPlan(), replica()
    plan.dispatched(there, 32_768)
    plan.reported(there)
    there.loading_until = NOW + 5.0

    assert plan.loaded(there) == 0


def test_the_default_is_named_where_it_suffices_and_nothing_is_planned() -> None:
    plan = defaulted(ContextPlan())

    assert plan.context_for(request(), replica(), NOW) == 4096
    assert plan.context_for(request(6000), replica(), NOW) == 16_384


def test_a_few_requests_that_carry_no_context_hold_a_plan_to_a_default_that_suffices() -> None:
    plan = defaulted(learned(1000))
    assert plan.planned(replica(), NOW) == 2048
    plan.arrived(request(), carries=True)
    plan.arrived(request(dialect="openai"), carries=False)
    assert plan.planned(replica(), NOW) == 4096

    plan = defaulted(learned(6000))
    plan.arrived(request(), carries=True)
    plan.arrived(request(dialect="openai"), carries=False)
    assert plan.planned(replica(), NOW) == 16_384


def test_where_most_carry_no_context_the_engines_default_is_the_plan() -> None:
    plan = learned(6000)
    for _ in range(100):
        plan.arrived(request(dialect="openai"), carries=False)
    assert plan.planned(replica(), NOW) == 0

    assert defaulted(plan).planned(replica(), NOW) == 4096
    for _ in range(500):
        plan.arrived(request(), carries=True)
    assert plan.planned(replica(), NOW) == 16_384


def test_what_carries_no_context_reloads_what_is_loaded_otherwise_and_is_never_cut() -> None:
    plan = defaulted(ContextPlan())
    uncarried = request(500, dialect="openai")

    assert plan.fit(uncarried, replica(loaded=4096), NOW, carries=False).verdict == "fits"
    assert plan.fit(uncarried, replica(loaded=8192), NOW, carries=False).verdict == "reloads"
    assert plan.fit(uncarried, replica(), NOW, carries=False).verdict == "loads"
    long = request(6000, dialect="openai")
    assert plan.fit(long, replica(loaded=8192), NOW, carries=False).verdict == "short"
    for loaded in (0, 4096, 8192):
        assert plan.fit(uncarried, replica(loaded=loaded), NOW, carries=False).context is None


def test_an_unknown_default_is_taken_to_be_what_is_loaded() -> None:
    plan = ContextPlan()
    uncarried = request(500, dialect="openai")

    assert plan.fit(uncarried, replica(loaded=8192), NOW, carries=False).verdict == "fits"
    assert plan.fit(request(9000), replica(loaded=8192), NOW, carries=False).verdict == "fits"
    assert plan.fit(request(9000), replica(), NOW, carries=False).verdict == "loads"


def test_engines_with_a_fixed_context_are_named_none() -> None:
    plan = ContextPlan()
    fixed = replica(loaded=8192, kind="vllm")

    assert plan.fit(request(8000), fixed, NOW, carries=False).verdict == "fits"
    assert plan.fit(request(9000), fixed, NOW, carries=False).verdict == "fits", "may be fewer"
    assert plan.fit(request(10_000), fixed, NOW, carries=False).verdict == "short"
    assert plan.context_for(request(100, context=4096), fixed, NOW) is None


def test_answers_count_as_far_as_they_are_likely_and_allowed() -> None:
    plan = ContextPlan()
    assert plan.need(request(1000)) == 1200 + priors.ANSWER_TOKENS
    assert plan.need(request(1000, max_tokens=10)) == 1210
    assert plan.need(request(1000, operation="embedding")) == 1200

    plan = learned(1000, answer=800)
    assert 1000 + 800 <= plan.need(request(1000)) <= 1000 + 1.2 * 800 + 100
    assert plan.need(request(1000, max_tokens=100_000)) < 2100


def test_how_far_prompts_are_off_their_estimate_is_learned() -> None:
    plan = ContextPlan()
    for _ in range(50):
        plan.finished(request(1000), 1600, 10, NOW)

    # What the engine counts as 4,800 does not fit 4,096, though the estimate says 3,000.
    fit = plan.fit(request(3000, max_tokens=10), replica(loaded=4096), NOW, carries=True)
    assert (fit.verdict, fit.context) == ("reloads", 8192)


def test_only_ollamas_own_dialect_carries_a_context() -> None:
    assert carries(request())
    assert not carries(request(dialect="openai"))
    assert not carries(request(dialect="anthropic"))


def test_memory_grows_with_the_planned_context() -> None:
    spec = replica().spec
    assert prior_token_bytes(spec) == 131_072
    assert told_token_bytes(spec) is None
    assert ContextPlan().need_cold(replica(), NOW) == 6 * GB
    plan = learned(12_000)
    assert plan.need_cold(replica(), NOW) == pytest.approx(5 * GB + 131_072 * 32_768)
    assert plan.need_cold(replica(slots=2), NOW) == pytest.approx(5 * GB + 131_072 * 65_536)


def test_what_a_token_takes_is_learned_from_where_the_model_is_loaded() -> None:
    plan = learned(12_000)
    loaded = replica(loaded=8192, memory_bytes=5 * GB + 8192 * 50_000)
    plan.reported(loaded)

    assert plan.need_loaded(loaded) == 5 * GB + 8192 * 50_000
    assert plan.need_cold(replica(), NOW) == pytest.approx(5 * GB + 50_000 * 32_768)


@given(st.lists(st.floats(1.0, 1e6), min_size=1), st.floats(0.01, 1.0))
def test_a_sketchs_quantiles_are_upper_bounds_within_a_fourth_of_a_doubling(
    values: list[float], share: float
) -> None:
    sketch = Sketch()
    for value in values:
        sketch.add(value, NOW)
    exact = sorted(values)[max(0, int(share * len(values) - 1e-6))]

    assert exact <= sketch.quantile(share) * (1 + 1e-9)
    assert sketch.quantile(share) <= max(values) * 2**0.25 * (1 + 1e-9)


def test_a_sketch_forgets_with_time() -> None:
    sketch = Sketch()
    assert sketch.quantile(0.5) == 0.0
    for _ in range(1000):
        sketch.add(1000.0, NOW)
    for day in range(60):
        sketch.add(10.0, NOW + day * 86400.0)

    assert sketch.quantile(0.5) < 20.0


@given(st.integers(0, 200_000))
def test_buckets_double_from_the_least(tokens: int) -> None:
    found = bucket(tokens)

    assert found >= max(LEAST, tokens)
    assert found == LEAST or found < 2 * tokens


@given(
    prompt=st.integers(1, 200_000),
    asked=st.none() | st.integers(1, 300_000),
    loaded=st.sampled_from([0, 2048, 8192, 32_768]),
    seen=st.integers(0, 50_000),
    memory=st.floats(8.0, 200.0),
)
def test_a_named_context_holds_the_prompt_and_fits_the_device(
    *, prompt: int, asked: int | None, loaded: int, seen: int, memory: float
) -> None:
    plan = learned(seen + 1, count=int(ENOUGH), answer=1) if seen else ContextPlan()
    there = replica(loaded=loaded, memory=memory)
    fit = plan.fit(request(prompt, context=asked), there, NOW, carries=True)
    limit = plan.affordable(there)

    if fit.context is not None:
        assert fit.context <= limit
        assert fit.context >= min(prompt, limit)
    if fit.verdict == "fits":
        assert fit.context == loaded
    if fit.verdict == "short":
        assert prompt * 2 >= limit
