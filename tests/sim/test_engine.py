"""The emulated engine: slots, lines, loads, eviction, caches, rates; no clock but the argument."""

from __future__ import annotations

import heapq
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from herd.sim.engine import EmulatedEngine
from herd.sim.spec import (
    EngineSpec,
    Event,
    Evicted,
    Finished,
    FirstToken,
    Job,
    Loaded,
    Loading,
    ModelSpec,
    Rejected,
    Started,
)

GB = 1_000_000_000


def model(name: str, size: int = GB, **more: Any) -> ModelSpec:
    return ModelSpec(name=name, weight_bytes=size, **more)


def spec(**changes: Any) -> EngineSpec:
    """Load 1 GB/s, prefill 100/s, decode 10/s: round numbers to check by hand."""
    given: dict[str, Any] = {
        "models": (model("a:latest"), model("b:latest"), model("c:latest")),
        "memory_bytes": 2 * GB,
        "load_rate": float(GB),
        "prefill_rate": 100.0,
        "decode_rate": 10.0,
        "alpha": 0.0,
    }
    return EngineSpec(**{**given, **changes})


def job(id_: str, name: str = "a:latest", prompt: int = 100, output: int = 11, **more: Any) -> Job:
    """1 s of prefill and 1 s of decode unless told otherwise."""
    return Job(id=id_, model=name, prompt_tokens=prompt, output_tokens=output, **more)


def warm(**changes: Any) -> EmulatedEngine:
    return EmulatedEngine(spec(**changes), resident=["a:latest"])


def run(engine: EmulatedEngine, until: float = 1e6) -> list[Event]:
    """Advance from event to event while there is work; return them all."""
    events = []
    while (due := engine.next_due()) is not None and due <= until:
        events += engine.advance(due)
    return events


def finished(events: list[Event]) -> dict[str, Finished]:
    return {event.job: event for event in events if isinstance(event, Finished)}


def told(events: list[Event], kind: type[Event]) -> list[tuple[Any, str]]:
    """Time and name of the events of one kind."""
    return [
        (pytest.approx(event.at), getattr(event, "job", "") or getattr(event, "model", ""))
        for event in events
        if isinstance(event, kind)
    ]


def test_a_job_on_a_cold_engine_loads_prefills_and_decodes() -> None:
    engine = EmulatedEngine(spec())
    engine.submit(job("1"), 0.0)

    events = run(engine, until=10)

    assert [type(event) for event in events] == [Loading, Loaded, Started, FirstToken, Finished]
    assert [event.at for event in events] == pytest.approx([0, 1, 1, 2, 3])


def test_the_account_of_a_job_adds_up_to_its_time() -> None:
    engine = EmulatedEngine(spec())
    engine.submit(job("1"), 0.0)
    engine.submit(job("2"), 0.5)

    second = finished(run(engine, until=10))["2"]

    assert (second.load, second.queue) == pytest.approx((0.5, 2.0))
    assert (second.prefill, second.decode) == pytest.approx((1.0, 1.0))
    assert second.at == pytest.approx(0.5 + 0.5 + 2.0 + 1.0 + 1.0)


def test_one_slot_serves_in_order_of_arrival() -> None:
    engine = warm()
    for number in range(3):
        engine.submit(job(str(number)), number * 0.1)

    assert told(run(engine, until=20), Finished) == [(2.0, "0"), (4.0, "1"), (6.0, "2")]


def test_running_and_waiting_are_counted() -> None:
    engine = warm(slots=2)
    for number in range(5):
        engine.submit(job(str(number)), 0.0)

    assert (engine.running, engine.waiting) == (2, 3)


def test_two_slots_run_two_jobs_at_once() -> None:
    engine = warm(slots=2)
    engine.submit(job("1", prompt=0), 0.0)
    engine.submit(job("2", prompt=0), 0.0)

    assert told(run(engine, until=20), Finished) == [(1.0, "1"), (1.0, "2")]


def test_many_jobs_attach_to_one_load() -> None:
    engine = EmulatedEngine(spec(slots=3))
    for number in range(3):
        engine.submit(job(str(number), prompt=0), number * 0.2)

    events = run(engine, until=20)

    assert told(events, Loading) == [(0.0, "a:latest")]
    assert told(events, Started) == [(1.0, "0"), (1.0, "1"), (1.0, "2")]


def test_a_job_without_prompt_is_done_when_the_model_is_loaded() -> None:
    engine = EmulatedEngine(spec())
    engine.submit(job("1", prompt=0, output=0), 0.0)

    assert finished(run(engine, until=5))["1"].at == pytest.approx(1.0)


def test_a_load_of_what_is_resident_is_done_at_once_although_all_slots_are_busy() -> None:
    engine = warm()
    engine.submit(job("1"), 0.0)
    engine.submit(job("2", prompt=0, output=0), 0.5)

    assert told(engine.advance(0.5), Finished) == [(0.5, "2")]


def test_an_embedding_has_no_first_token() -> None:
    engine = warm()
    engine.submit(job("1", prompt=50, output=0), 0.0)

    events = run(engine, until=5)

    assert told(events, FirstToken) == []
    assert told(events, Finished) == [(0.5, "1")]


def test_the_longest_unused_idle_model_is_evicted() -> None:
    engine = EmulatedEngine(spec())
    for at, name in ((0.0, "a:latest"), (10.0, "b:latest"), (20.0, "a:latest"), (30.0, "c:latest")):
        engine.advance(at)
        engine.submit(job(f"{name} {at}", name), at)

    assert told(run(engine, until=40), Evicted) == [(30.0, "b:latest")]


def test_a_busy_model_is_not_evicted_and_the_load_waits_for_it() -> None:
    engine = warm(memory_bytes=GB)
    engine.submit(job("1"), 0.0)
    engine.submit(job("2", "b:latest"), 0.1)

    events = run(engine, until=20)

    assert told(events, Evicted) == [(2.0, "a:latest")]
    assert told(events, Loaded) == [(3.0, "b:latest")]
    assert finished(events)["2"].at == pytest.approx(5.0)


def test_a_busy_model_cannot_starve_a_load_that_waits_for_its_memory() -> None:
    engine = warm(memory_bytes=GB)
    for number in range(4):
        engine.submit(job(f"a{number}"), number * 0.1)
    engine.submit(job("b", "b:latest"), 1.0)
    for number in range(4):
        engine.submit(job(f"late{number}"), 1.1)

    order = [name for _, name in told(run(engine, until=100), Finished)]

    assert order == ["a0", "a1", "a2", "a3", "b", "late0", "late1", "late2", "late3"]


def test_models_that_stepped_back_serve_again_when_the_load_is_given_up() -> None:
    engine = warm(memory_bytes=GB)
    engine.submit(job("1"), 0.0)
    engine.submit(job("2", "b:latest"), 0.1)
    engine.submit(job("3"), 0.2)
    engine.cancel("2", 0.3)

    events = run(engine, until=100)

    assert told(events, Loading) == []
    assert told(events, Finished) == [(2.0, "1"), (4.0, "3")]


def test_loads_happen_one_after_another() -> None:
    engine = EmulatedEngine(spec())
    engine.submit(job("1"), 0.0)
    engine.submit(job("2", "b:latest"), 0.0)

    assert told(run(engine, until=10), Loaded) == [(1.0, "a:latest"), (2.0, "b:latest")]


def test_a_model_larger_than_the_device_is_rejected() -> None:
    engine = EmulatedEngine(spec(models=(model("a:latest", 3 * GB),)))
    engine.submit(job("1"), 0.0)

    assert engine.advance(0.0) == [Rejected(0.0, "1", "too_big")]


def test_a_context_that_needs_more_than_the_device_has_is_rejected() -> None:
    big = model("a:latest", kv_bytes_per_token=1_000_000, context_length=100_000)
    engine = EmulatedEngine(spec(models=(big,)))
    engine.submit(job("1", context=2000), 0.0)

    assert engine.advance(0.0) == [Rejected(0.0, "1", "too_big")]


def test_an_unknown_model_is_rejected() -> None:
    engine = EmulatedEngine(spec())
    engine.submit(job("1", "nope:latest"), 0.0)

    assert engine.advance(0.0) == [Rejected(0.0, "1", "unknown_model")]


def test_beyond_the_queue_limit_jobs_are_rejected() -> None:
    engine = warm(queue_limit=2)
    for number in range(4):
        engine.submit(job(str(number)), 0.0)

    assert told(engine.advance(0.0), Rejected) == [(0.0, "3")]


def test_a_full_queue_of_one_model_leaves_free_slots_of_another_usable() -> None:
    engine = EmulatedEngine(spec(queue_limit=1), resident=["a:latest", "b:latest"])
    engine.submit(job("1"), 0.0)
    engine.submit(job("2"), 0.0)
    engine.submit(job("3", "b:latest"), 0.0)

    assert told(engine.advance(0.0), Started) == [(0.0, "1"), (0.0, "3")]


def test_memory_counts_context_for_every_slot() -> None:
    one = model("a:latest", kv_bytes_per_token=1000, overhead_bytes=7)
    engine = EmulatedEngine(
        spec(models=(one,), slots=2, default_context=100), resident=["a:latest"]
    )

    assert engine.memory_used == GB + 7 + 2 * 100 * 1000


def test_another_context_reloads_the_model_when_it_is_idle() -> None:
    engine = warm(default_context=2048)
    engine.submit(job("1"), 0.0)
    engine.submit(job("2", context=4096), 0.1)

    events = run(engine, until=20)

    assert [each.reason for each in events if isinstance(each, Evicted)] == ["context"]
    assert told(events, Evicted) == [(2.0, "a:latest")]
    assert told(events, Loaded) == [(3.0, "a:latest")]
    assert engine.residents()[0].context == 4096


def test_a_context_is_limited_to_what_the_model_has() -> None:
    engine = EmulatedEngine(spec(models=(model("a:latest", context_length=512),)))
    engine.submit(job("1", context=4096), 0.0)
    engine.advance(1.0)

    assert engine.residents()[0].context == 512


def test_a_prompt_longer_than_the_context_is_cut_to_it() -> None:
    engine = warm(default_context=50)
    engine.submit(job("1", prompt=100), 0.0)

    assert finished(run(engine, until=20))["1"].prompt_tokens == 50


def test_an_idle_model_leaves_after_its_keep_alive() -> None:
    engine = warm(keep_alive=30.0)
    engine.submit(job("1"), 0.0)

    assert told(run(engine), Evicted) == [(32.0, "a:latest")]


def test_keep_alive_of_the_last_job_counts() -> None:
    engine = warm(keep_alive=30.0)
    engine.submit(job("1"), 0.0)
    engine.submit(job("2", keep_alive=5.0), 0.0)

    assert told(run(engine), Evicted) == [(9.0, "a:latest")]


def test_a_negative_keep_alive_is_for_ever() -> None:
    engine = warm()
    engine.submit(job("1", keep_alive=-1.0), 0.0)
    run(engine)

    assert engine.advance(1e9) == []
    assert [resident.model for resident in engine.residents()] == ["a:latest"]


def test_unloading_a_busy_model_waits_for_its_job() -> None:
    engine = warm()
    engine.submit(job("1", keep_alive=0.0), 0.0)
    engine.unload("a:latest", 0.5)

    assert told(run(engine), Evicted) == [(2.0, "a:latest")]


def test_unloading_an_idle_model_frees_its_memory_at_once() -> None:
    engine = warm()

    assert engine.unload("a:latest", 1.0)
    assert engine.memory_used == 0
    assert engine.advance(1.0) == [Evicted(1.0, "a:latest", "unloaded")]


def test_prefill_counts_only_what_the_slot_has_not_cached() -> None:
    engine = warm()
    first = tuple(range(100))
    engine.submit(job("1"), 0.0)
    run(engine, until=5)
    engine.submit(
        Job(id="2", model="a:latest", prompt_tokens=100, output_tokens=1, prompt=first), 5.0
    )
    run(engine, until=10)
    longer = (*first, *range(1000, 1050))
    engine.submit(
        Job(id="3", model="a:latest", prompt_tokens=150, output_tokens=1, prompt=longer), 10.0
    )

    third = finished(run(engine, until=20))["3"]

    assert third.cached_tokens == 100
    assert third.prefill == pytest.approx(0.5)


def test_the_answer_is_part_of_the_next_turns_cache() -> None:
    engine = warm()
    turn: dict[str, Any] = {"model": "a:latest", "output_tokens": 2}
    engine.submit(Job(id="1", prompt_tokens=3, prompt=(1, 2, 3), produced=(4, 5), **turn), 0.0)
    run(engine, until=5)
    engine.submit(Job(id="2", prompt_tokens=7, prompt=(1, 2, 3, 4, 5, 6, 7), **turn), 5.0)

    assert finished(run(engine, until=10))["2"].cached_tokens == 5


def test_a_prompt_that_is_cached_whole_still_evaluates_its_last_token() -> None:
    engine = warm()
    for number in (1, 2):
        engine.submit(
            Job(
                id=str(number), model="a:latest", prompt_tokens=3, output_tokens=1, prompt=(1, 2, 3)
            ),
            number * 5.0,
        )
        last = finished(run(engine, until=number * 5.0 + 4))

    assert last["2"].cached_tokens == 2


def test_blocks_stand_for_as_many_tokens_as_they_say() -> None:
    engine = warm()
    for number, prompt in enumerate(((1, 2), (1, 2, 3))):
        engine.submit(
            Job(
                id=str(number),
                model="a:latest",
                prompt_tokens=len(prompt) * 512,
                output_tokens=1,
                prompt=prompt,
                block=512,
            ),
            number * 50.0,
        )
        last = finished(run(engine, until=number * 50.0 + 40))

    assert last["1"].cached_tokens == 1024


def test_a_conversation_returns_to_the_slot_that_knows_it() -> None:
    engine = warm(slots=2)
    for id_, prompt in (("1", (1, 2, 3)), ("2", (7, 8, 9))):
        engine.submit(
            Job(id=id_, model="a:latest", prompt_tokens=3, output_tokens=1, prompt=prompt), 0.0
        )
    run(engine, until=5)
    engine.submit(
        Job(id="3", model="a:latest", prompt_tokens=5, output_tokens=1, prompt=(7, 8, 9, 1, 2)), 5.0
    )

    assert finished(run(engine, until=10))["3"].cached_tokens == 3


def test_a_reload_forgets_the_cache() -> None:
    engine = warm()
    for at in (0.0, 10.0):
        engine.submit(
            Job(id=str(at), model="a:latest", prompt_tokens=3, output_tokens=1, prompt=(1, 2, 3)),
            at,
        )
        last = finished(run(engine, until=at + 5))
        engine.unload("a:latest", at + 6)

    assert last["10.0"].cached_tokens == 0


@pytest.mark.parametrize(("alpha", "seconds"), [(0.0, 1.0), (0.5, 2.0), (1.0, 4.0)])
def test_n_decoding_jobs_each_run_at_n_to_the_minus_alpha(alpha: float, seconds: float) -> None:
    engine = warm(alpha=alpha, slots=4)
    for number in range(4):
        engine.submit(job(str(number), prompt=0), 0.0)

    assert [at for at, _ in told(run(engine, until=20), Finished)] == [pytest.approx(seconds)] * 4


def test_decode_slows_when_a_second_job_joins_and_speeds_up_when_it_leaves() -> None:
    engine = warm(alpha=1.0, slots=2)
    engine.submit(job("1", prompt=0, output=21), 0.0)  # 2 s alone
    engine.submit(job("2", prompt=0, output=6), 1.0)  # 0.5 s alone, 1 s shared

    assert told(run(engine, until=20), Finished) == [(2.0, "2"), (2.5, "1")]


def test_models_on_one_device_slow_each_other() -> None:
    engine = EmulatedEngine(spec(alpha=1.0), resident=["a:latest", "b:latest"])
    engine.submit(job("1", prompt=0), 0.0)
    engine.submit(job("2", "b:latest", prompt=0), 0.0)

    assert told(run(engine, until=20), Finished) == [(2.0, "1"), (2.0, "2")]


def test_prompts_read_at_the_same_time_share_the_prefill_rate() -> None:
    engine = warm(slots=2)
    engine.submit(job("1", prompt=100), 0.0)
    engine.submit(job("2", prompt=200), 0.0)

    assert told(run(engine, until=20), FirstToken) == [(2.0, "1"), (3.0, "2")]


def test_a_models_own_rates_go_before_the_engines() -> None:
    fast = model("a:latest", prefill_rate=1000.0, decode_rate=100.0)
    engine = EmulatedEngine(spec(models=(fast,)), resident=["a:latest"])
    engine.submit(job("1"), 0.0)

    assert finished(run(engine, until=20))["1"].at == pytest.approx(0.2)


def test_a_throttled_device_takes_longer_from_then_on() -> None:
    engine = warm()
    engine.submit(job("1"), 0.0)
    engine.throttle(0.5, 1.0)

    assert finished(run(engine, until=20))["1"].at == pytest.approx(3.0)


def test_tokens_grow_with_time() -> None:
    engine = warm()
    engine.submit(job("1"), 0.0)
    seen = []
    for tenth in range(22):
        engine.advance(tenth / 10)
        seen.append(engine.tokens("1", tenth / 10))

    # Nothing in the second of prefill, then one at once and ten a second; gone when finished.
    assert seen == [0] * 10 + list(range(1, 11)) + [0, 0]


def test_cancelling_a_running_job_gives_its_slot_to_the_next_at_once() -> None:
    engine = warm()
    engine.submit(job("1"), 0.0)
    engine.submit(job("2"), 0.0)

    assert engine.cancel("1", 0.5)
    assert told(engine.advance(0.5), Started) == [(0.0, "1"), (0.5, "2")]


def test_cancelling_in_decode_speeds_the_others_up() -> None:
    engine = warm(alpha=1.0, slots=2)
    engine.submit(job("1", prompt=0), 0.0)
    engine.submit(job("2", prompt=0), 0.0)
    engine.cancel("1", 1.0)

    assert told(run(engine, until=20), Finished) == [(1.5, "2")]


def test_cancelling_a_waiting_job_takes_it_out_of_the_line() -> None:
    engine = warm()
    for name in "123":
        engine.submit(job(name), 0.0)
    engine.cancel("2", 0.5)

    assert [name for _, name in told(run(engine, until=20), Finished)] == ["1", "3"]


def test_a_load_goes_on_although_nobody_waits_for_it_any_more() -> None:
    engine = EmulatedEngine(spec())
    engine.submit(job("1"), 0.0)
    engine.cancel("1", 0.5)

    assert told(run(engine, until=5), Loaded) == [(1.0, "a:latest")]


def test_cancelling_what_is_not_there_tells_so() -> None:
    engine = warm()

    assert not engine.cancel("nobody", 0.0)


def test_time_does_not_go_back() -> None:
    engine = warm()
    engine.advance(5.0)

    with pytest.raises(ValueError, match="time goes back"):
        engine.advance(4.0)


def test_a_second_job_of_the_same_id_is_refused() -> None:
    engine = warm()
    engine.submit(job("1"), 0.0)

    with pytest.raises(ValueError, match="already here"):
        engine.submit(job("1"), 0.0)


def test_steps_do_not_change_the_result() -> None:
    """Whoever looks often sees the same as who looks when something is due."""
    ends = []
    for step in (0.013, None):
        engine = EmulatedEngine(spec(alpha=0.7, slots=3))
        for number in range(9):
            engine.submit(job(str(number), "abc"[number % 3] + ":latest", prompt=40 * number), 0.0)
        events: list[Event] = []
        now = 0.0
        while step and now < 60:
            now += step
            events += engine.advance(now)
        events += run(engine, until=60)
        ends.append({name: done.at for name, done in finished(events).items()})

    assert ends[0] == pytest.approx(ends[1], abs=1e-6)


class Witness:
    """Drives an engine with any steps, and checks after each that nothing is wrong."""

    def __init__(self, engine: EmulatedEngine) -> None:
        self.engine = engine
        self.open: set[str] = set()
        self.now = 0.0

    def take(self, number: int, step: Step) -> None:
        self.now += step.wait
        name = f"{step.model}:latest"
        if step.what == "submit":
            self.open.add(str(number))
            self.engine.submit(
                Job(
                    id=str(number),
                    model=name,
                    prompt_tokens=step.prompt,
                    output_tokens=step.output,
                    prompt=tuple(range(step.prompt)),
                    context=step.context,
                    keep_alive=step.keep_alive,
                ),
                self.now,
            )
        elif step.what == "cancel" and self.open:
            chosen = sorted(self.open)[step.prompt % len(self.open)]
            if self.engine.cancel(chosen, self.now):
                self.open.remove(chosen)
        elif step.what == "unload":
            self.engine.unload(name, self.now)
        elif step.what == "throttle":
            self.engine.throttle(0.1 + step.prompt / 100, self.now)
        self.check(self.engine.advance(self.now))

    def check(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Finished | Rejected):
                self.open.remove(event.job)  # raises if it ended before, or never began
        spec_ = self.engine.spec
        residents = self.engine.residents()
        used = sum(each.memory_bytes for each in residents)
        assert self.engine.memory_used == used <= spec_.memory_bytes
        assert all(each.running <= spec_.slots for each in residents)
        assert self.engine.running == sum(each.running for each in residents)
        assert self.engine.running + self.engine.waiting == len(self.open)
        assert self.engine.waiting <= spec_.queue_limit

    def finish(self) -> None:
        """Run until nothing of what was submitted is left."""
        for _ in range(10_000):
            due = self.engine.next_due()
            if due is None or not self.open:
                break
            self.check(self.engine.advance(due))
        assert not self.open


class Step(Struct):
    wait: float
    what: str
    model: str
    prompt: int
    output: int
    context: int | None
    keep_alive: float | None


_STEPS = st.builds(
    Step,
    wait=st.floats(0.0, 3.0),
    what=st.sampled_from(["submit", "submit", "submit", "cancel", "unload", "throttle"]),
    model=st.sampled_from("abc"),
    prompt=st.integers(0, 300),
    output=st.integers(0, 40),
    context=st.sampled_from([None, 512, 1024]),
    keep_alive=st.sampled_from([None, 0.0, 2.0, -1.0]),
)


@settings(max_examples=300, deadline=None)
@given(
    steps=st.lists(_STEPS, max_size=40),
    slots=st.integers(1, 3),
    alpha=st.sampled_from([0.0, 0.7]),
    queue_limit=st.integers(0, 6),
)
def test_no_job_is_lost_and_no_limit_exceeded(
    steps: list[Step], slots: int, alpha: float, queue_limit: int
) -> None:
    models = tuple(
        model(f"{name}:latest", GB * size, kv_bytes_per_token=100_000)
        for name, size in (("a", 1), ("b", 2), ("c", 3))
    )
    witness = Witness(
        EmulatedEngine(
            spec(
                models=models,
                memory_bytes=4 * GB,
                slots=slots,
                alpha=alpha,
                queue_limit=queue_limit,
            )
        )
    )

    for number, step in enumerate(steps):
        witness.take(number, step)
    witness.finish()


def test_work_per_event_does_not_grow_with_the_jobs_that_were() -> None:
    """Nothing of a finished or cancelled job stays behind."""
    engine = warm(slots=4, queue_limit=10_000)
    arrivals = [(number * 0.01, str(number)) for number in range(2000)]
    heapq.heapify(arrivals)
    while arrivals:
        at, name = heapq.heappop(arrivals)
        engine.submit(job(name, prompt=1, output=2), at)
        if int(name) % 3 == 0:
            engine.cancel(name, at)
    run(engine, until=1e4)

    kept: list[Any] = [engine._work, engine._lines["a:latest"]]
    kept += [engine._decode._ends, engine._prefill._ends]
    assert [len(each) for each in kept] == [0, 0, 0, 0]
    assert len(engine._decode._heap) < 50
