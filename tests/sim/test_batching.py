"""The engine that batches: steps, the pool, prefixes, preemption; and a witness step by step."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from herd.sim.batching import BatchingEngine
from herd.sim.engine import EmulatedEngine
from herd.sim.engines import emulate
from herd.sim.spec import (
    Batching,
    EngineSpec,
    Event,
    Finished,
    FirstToken,
    Job,
    ModelSpec,
    Rejected,
    Started,
)

NAME = "a:latest"


def spec(*, blocks: int = 1000, context: int = 160, **changes: Any) -> EngineSpec:
    """Prefill 100/s, decode 10/s, further sequences a tenth of a step: numbers to check by hand."""
    batching = Batching(**{"chunk": 1000, "marginal": 0.1, **changes.pop("batching", {})})
    model = ModelSpec(name=NAME, weight_bytes=1000, kv_bytes_per_token=1)
    given_: dict[str, Any] = {
        "models": (model,),
        "memory_bytes": 1000 + 16 * blocks,
        "load_rate": 1.0,
        "prefill_rate": 100.0,
        "decode_rate": 10.0,
        "slots": 8,
        "queue_limit": 10**6,
        "default_context": context,
        "batching": batching,
    }
    return EngineSpec(**{**given_, **changes})


def job(id_: str, prompt: int = 100, output: int = 11, **more: Any) -> Job:
    """1 s of prefill and 1 s of decode unless told otherwise."""
    return Job(id=id_, model=NAME, prompt_tokens=prompt, output_tokens=output, **more)


def run(engine: BatchingEngine, until: float = 1e9) -> list[Event]:
    """Advance from event to event while there is work; return them all."""
    events = []
    while (due := engine.next_due()) is not None and due <= until:
        events += engine.advance(due)
        assert engine.pool.used + engine.pool.cached <= engine.pool.blocks
    return events


def times(events: list[Event], kind: type[Started | FirstToken]) -> dict[str, float]:
    return {event.job: event.at for event in events if isinstance(event, kind)}


def finished(events: list[Event]) -> dict[str, Finished]:
    return {event.job: event for event in events if isinstance(event, Finished)}


def test_the_spec_says_which_engine_it_is() -> None:
    slots = msgspec.structs.replace(spec(), batching=None)

    assert isinstance(emulate(spec()), BatchingEngine)
    assert isinstance(emulate(slots), EmulatedEngine)


def test_a_job_alone_takes_its_prefill_and_its_decode() -> None:
    engine = BatchingEngine(spec())
    engine.submit(job("1"), 0.0)

    done = finished(run(engine))["1"]

    assert (done.queue, done.prefill, done.decode) == pytest.approx((0.0, 1.0, 1.0))


def test_each_further_sequence_lengthens_the_step_by_its_share() -> None:
    engine = BatchingEngine(spec())
    for number in range(5):
        engine.submit(job(str(number), prompt=1, output=1001), 0.0)
    run(engine, until=1.0)
    before = engine.tokens("0", 1.0)
    engine.advance(2.0)

    # A step of five takes 1.4 times 0.1 s.
    assert engine.tokens("0", 2.0) - before == pytest.approx(10 / 1.4, abs=1.0)


def test_prompts_are_read_one_after_another() -> None:
    engine = BatchingEngine(spec())
    for name in "123":
        engine.submit(job(name, output=1), 0.0)

    assert (engine.running, engine.waiting) == (1, 2)
    assert times(run(engine), FirstToken) == pytest.approx({"1": 1.0, "2": 2.0, "3": 3.0})


def test_answers_get_a_token_for_each_chunk_of_a_prompt() -> None:
    engine = BatchingEngine(spec(batching={"chunk": 50}))
    engine.submit(job("answer", prompt=1, output=100), 0.0)
    run(engine, until=0.5)
    before = engine.tokens("answer", 1.0)
    engine.submit(job("prompt", output=1), 1.0)

    events = run(engine, until=2.5)

    # Two steps of 50 tokens, each with one token of the answer, whose own share is 0.01 s.
    assert times(events, FirstToken)["prompt"] == pytest.approx(2.02)
    assert engine.tokens("answer", 2.02) - before <= 3


def test_a_short_prompt_costs_an_answer_that_runs_no_more_than_its_step() -> None:
    """Reading computes while decoding waits for memory: one step does both."""
    engine = BatchingEngine(spec())
    engine.submit(job("answer", prompt=1, output=101), 0.0)
    engine.advance(1.0)
    engine.submit(job("short", prompt=5, output=1), 1.0)

    alone = 0.09 + 100 * 0.1
    assert finished(run(engine))["answer"].at == pytest.approx(alone, abs=0.011)


def test_no_more_sequences_run_than_slots() -> None:
    engine = BatchingEngine(spec(slots=2))
    for name in "123":
        engine.submit(job(name, prompt=1, output=101), 0.0)
    engine.advance(5.0)

    assert (engine.running, engine.waiting) == (2, 1)


def test_a_prompt_waits_until_the_pool_has_blocks_for_all_of_it() -> None:
    engine = BatchingEngine(spec(blocks=12))
    engine.submit(job("1", prompt=112, output=33), 0.0)  # 7 blocks, 9 in the end
    engine.submit(job("2", prompt=96, output=1), 0.0)  # 6 blocks

    events = run(engine)

    assert times(events, Started)["2"] == finished(events)["1"].at


def test_what_does_not_fit_behind_the_first_does_not_overtake_it() -> None:
    engine = BatchingEngine(spec(blocks=12))
    engine.submit(job("1", prompt=112, output=33), 0.0)
    engine.submit(job("2", prompt=96, output=1), 0.0)
    engine.submit(job("3", prompt=16, output=1), 0.0)

    events = run(engine)

    assert list(times(events, Started)) == ["1", "2", "3"]


def test_the_youngest_is_preempted_when_the_pool_is_full_and_read_anew_later() -> None:
    engine = BatchingEngine(spec(blocks=10, context=160))
    engine.submit(job("old", prompt=64, output=81), 0.0)  # 4 blocks, 9 in the end
    engine.submit(job("young", prompt=64, output=81), 0.0)

    events = run(engine)
    done = finished(events)

    assert engine.preemptions >= 1
    assert done["young"].at > done["old"].at
    assert done["young"].output_tokens == 81
    assert len([event for event in events if isinstance(event, FirstToken)]) == 2
    # The old one is never interrupted: steps of one or two sequences, and the other's prompt.
    assert done["old"].at < 0.64 + 0.65 + 80 * 0.11


def test_tokens_do_not_go_back_when_a_sequence_is_preempted() -> None:
    engine = BatchingEngine(spec(blocks=10, context=160))
    engine.submit(job("old", prompt=64, output=81), 0.0)
    engine.submit(job("young", prompt=64, output=81), 0.0)
    seen = []
    for step in range(200):
        engine.advance(step / 10)
        seen.append(engine.tokens("young", step / 10))
    produced = [count for count in seen if count]

    assert engine.preemptions >= 1
    assert produced == sorted(produced)


def test_a_prefix_is_found_by_another_sequence_while_the_first_runs() -> None:
    engine = BatchingEngine(spec())
    prompt = tuple(range(100))
    engine.submit(Job(id="1", model=NAME, prompt_tokens=100, output_tokens=50, prompt=prompt), 0.0)
    engine.advance(2.0)
    engine.submit(Job(id="2", model=NAME, prompt_tokens=100, output_tokens=1, prompt=prompt), 2.0)

    # Whole blocks only.
    assert finished(run(engine))["2"].cached_tokens == 96


def test_the_answer_is_part_of_the_next_turns_cache() -> None:
    engine = BatchingEngine(spec())
    prompt, answer = tuple(range(40)), tuple(range(500, 540))
    engine.submit(
        Job(
            id="1",
            model=NAME,
            prompt_tokens=40,
            output_tokens=40,
            prompt=prompt,
            produced=answer,
        ),
        0.0,
    )
    run(engine)
    longer = (*prompt, *answer, *range(900, 920))
    engine.submit(Job(id="2", model=NAME, prompt_tokens=100, output_tokens=1, prompt=longer), 100.0)

    # The last token was never computed: 79 of 80 are four whole blocks.
    assert finished(run(engine))["2"].cached_tokens == 64
    assert engine.shared(NAME, longer) == 96


def test_a_prompt_that_is_cached_whole_is_read_from_its_last_block_on() -> None:
    engine = BatchingEngine(spec())
    last: dict[str, Finished] = {}
    for number in (1, 2):
        engine.submit(
            Job(
                id=str(number),
                model=NAME,
                prompt_tokens=128,
                output_tokens=1,
                prompt=(1, 2, 3, 4),
                block=32,
            ),
            number * 10.0,
        )
        last |= finished(run(engine))

    assert last["2"].cached_tokens == 96


def test_cancelling_frees_blocks_for_the_first_of_the_line_at_once() -> None:
    engine = BatchingEngine(spec(blocks=12))
    engine.submit(job("1", prompt=112, output=33), 0.0)
    engine.submit(job("2", prompt=96, output=1), 0.0)
    engine.advance(2.0)

    assert engine.cancel("1", 2.5)
    assert times(engine.advance(2.5), Started)["2"] == 2.5
    assert not engine.cancel("1", 2.5)


def test_a_cancelled_prompt_makes_way_for_the_next() -> None:
    engine = BatchingEngine(spec())
    engine.submit(job("1"), 0.0)
    engine.submit(job("2", output=1), 0.0)
    engine.cancel("1", 0.5)

    assert finished(run(engine))["2"].at == pytest.approx(1.5)


def test_a_throttled_device_takes_longer_from_then_on() -> None:
    engine = BatchingEngine(spec())
    engine.submit(job("1"), 0.0)
    engine.throttle(0.5, 1.0)

    assert finished(run(engine))["1"].at == pytest.approx(3.0)


def test_an_answer_ends_with_the_context() -> None:
    engine = BatchingEngine(spec(context=160))
    engine.submit(job("1", prompt=150, output=100), 0.0)

    assert finished(run(engine))["1"].output_tokens == 10


def test_what_is_rejected() -> None:
    engine = BatchingEngine(spec(queue_limit=1))
    engine.submit(Job(id="1", model="b:latest", prompt_tokens=1, output_tokens=1), 0.0)
    engine.submit(job("2", prompt=160), 0.0)
    for name in "345":
        engine.submit(job(name), 0.0)

    rejected = {e.job: e.reason for e in engine.advance(0.0) if isinstance(e, Rejected)}
    assert rejected == {"1": "unknown_model", "2": "too_big", "5": "queue_full"}


def test_an_embedding_is_done_when_it_is_read() -> None:
    engine = BatchingEngine(spec())
    engine.submit(job("1", output=0), 0.0)

    events = run(engine)

    assert times(events, FirstToken) == {}
    assert finished(events)["1"].at == pytest.approx(1.0)


def test_a_load_is_done_at_once_and_nothing_unloads() -> None:
    engine = BatchingEngine(spec())
    engine.submit(job("1", prompt=0, output=0), 1.0)

    assert finished(engine.advance(1.0))["1"].at == 1.0
    assert not engine.unload(NAME, 2.0)
    assert [each.model for each in engine.residents()] == [NAME]


def test_the_pool_has_what_memory_the_weights_leave() -> None:
    engine = BatchingEngine(spec(blocks=20))

    assert engine.pool.blocks == 20
    assert engine.memory_used == engine.spec.memory_bytes

    engine.submit(job("1", prompt=80), 0.0)
    engine.advance(0.1)

    assert engine.kv_usage == pytest.approx(5 / 20)


def test_a_pool_smaller_than_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="too small"):
        BatchingEngine(spec(blocks=5))


def test_a_second_job_of_the_same_id_is_refused() -> None:
    engine = BatchingEngine(spec())
    engine.submit(job("1"), 0.0)

    with pytest.raises(ValueError, match="already here"):
        engine.submit(job("1"), 0.0)


# --- against an engine that plays every step ---


class Steps:
    """vLLM's loop, step by step: one budget, running first, then the line; the youngest goes."""

    def __init__(self, spec_: EngineSpec, jobs: list[tuple[float, Job]]) -> None:
        self.batching = spec_.batching or Batching()
        self.spec = spec_
        self.free = spec_.pool_blocks(spec_.models[0])
        self.arrivals = sorted(jobs, key=lambda pair: pair[0])
        self.line: list[dict[str, Any]] = []
        self.running: list[dict[str, Any]] = []
        self.now = 0.0
        self.ends: dict[str, float] = {}

    def run(self) -> dict[str, float]:
        while self.arrivals or self.line or self.running:
            while self.arrivals and self.arrivals[0][0] <= self.now:
                _, job_ = self.arrivals.pop(0)
                self.line.append({"job": job_, "done": 0, "out": 0, "held": 0})
            if not self.line and not self.running:
                self.now = self.arrivals[0][0]
                continue
            self.step()
        return self.ends

    def known(self, one: dict[str, Any]) -> int:
        return int(one["job"].prompt_tokens + one["out"])

    def step(self) -> None:
        block = self.batching.block
        preempted = False
        decoding = [
            one for one in self.running if one["done"] >= self.known(one) - 1 and one["out"]
        ]
        for one in list(decoding):
            need = -(-self.known(one) // block) - one["held"]
            while need > self.free and one in self.running:
                victim = self.running.pop()
                self.free += victim["held"]
                victim.update(held=0, done=0)
                self.line.insert(0, victim)
                preempted = True
            if one in self.running:
                self.free -= need
                one["held"] += need
        decoding = [one for one in decoding if one in self.running]
        reading = [one for one in self.running if one not in decoding]
        if not reading and not preempted and self.line and len(self.running) < self.spec.slots:
            need = -(-self.known(self.line[0]) // block)
            if need <= self.free:
                one = self.line.pop(0)
                self.free -= need
                one["held"] = need
                self.running.append(one)
                reading = [one]
        tokens = 0
        for one in reading:
            tokens = min(self.batching.chunk, self.known(one) - one["done"])
            one["done"] += tokens
        each = self.batching.marginal / self.spec.decode_rate
        fixed = 1 / self.spec.decode_rate - each
        self.now += max(fixed, tokens / self.spec.prefill_rate) + len(decoding) * each
        for one in [*decoding, *(r for r in reading if r["done"] >= self.known(r))]:
            one["done"] = self.known(one)
            one["out"] += 1
            if one["out"] >= one["job"].output_tokens:
                self.running.remove(one)
                self.free += one["held"]
                self.ends[one["job"].id] = self.now


@pytest.mark.parametrize("blocks", [400, 40, 14])
@pytest.mark.parametrize("chunk", [64, 1000])
def test_it_ends_when_an_engine_that_plays_every_step_does(blocks: int, chunk: int) -> None:
    """To a few steps of 0.01 s for every job, with room and without."""
    described = spec(
        blocks=blocks,
        prefill_rate=1000.0,
        decode_rate=100.0,
        slots=6,
        batching={"chunk": chunk, "marginal": 0.05},
    )
    jobs = [
        (
            0.13 * number,
            job(str(number), prompt=10 + (number * 37) % 90, output=5 + (number * 53) % 55),
        )
        for number in range(60)
    ]
    engine = BatchingEngine(described)
    ends: dict[str, float] = {}
    for at, one in jobs:
        ends |= {name: done.at for name, done in finished(run(engine, until=at)).items()}
        engine.submit(one, at)
    ends |= {name: done.at for name, done in finished(run(engine)).items()}

    truth = Steps(described, jobs).run()
    took = sum(truth.values()) - sum(at for at, _ in jobs)

    assert ends == pytest.approx(truth, abs=0.15)
    assert sum(ends.values()) == pytest.approx(sum(truth.values()), abs=0.03 * took)


# --- anything at all ---


class Step(Struct):
    wait: float
    what: str
    prompt: int
    output: int
    family: int


_STEPS = st.builds(
    Step,
    wait=st.floats(0.0, 3.0),
    what=st.sampled_from(["submit", "submit", "submit", "submit", "cancel", "throttle"]),
    prompt=st.integers(0, 170),
    output=st.integers(0, 170),
    family=st.integers(0, 2),
)


@settings(max_examples=300, deadline=None)
@given(
    steps=st.lists(_STEPS, max_size=40),
    blocks=st.integers(10, 30),
    slots=st.integers(1, 5),
    block=st.sampled_from([1, 8, 32]),
)
def test_no_job_is_lost_and_no_limit_exceeded(
    steps: list[Step], blocks: int, slots: int, block: int
) -> None:
    runs = [_play(steps, blocks, slots, block) for _ in range(2)]

    assert runs[0] == runs[1]


def _play(steps: list[Step], blocks: int, slots: int, block: int) -> list[Event]:
    witness = Witness(spec(blocks=blocks, slots=slots), block)
    for number, step in enumerate(steps):
        witness.take(number, step)
    witness.finish()
    return witness.told


class Witness:
    """Drives an engine with any steps, and checks after each that nothing is wrong."""

    def __init__(self, spec_: EngineSpec, block: int) -> None:
        self.engine = BatchingEngine(spec_)
        self.block = block
        self.open: set[str] = set()
        self.told: list[Event] = []
        self.now = 0.0

    def take(self, number: int, step: Step) -> None:
        self.now += step.wait
        self.check(self.engine.advance(self.now))
        if step.what == "submit":
            self.open.add(str(number))
            begin = 1000 * step.family
            self.engine.submit(
                Job(
                    id=str(number),
                    model=NAME,
                    prompt_tokens=step.prompt,
                    output_tokens=step.output,
                    prompt=tuple(range(begin, begin + step.prompt // self.block)),
                    produced=(number,),
                    block=self.block,
                ),
                self.now,
            )
        elif step.what == "cancel" and self.open:
            chosen = sorted(self.open)[step.prompt % len(self.open)]
            assert self.engine.cancel(chosen, self.now)
            self.open.remove(chosen)
        elif step.what == "throttle":
            self.engine.throttle(0.1 + step.prompt / 100, self.now)
        self.check(self.engine.advance(self.now))

    def check(self, events: list[Event]) -> None:
        self.told += events
        for event in events:
            if isinstance(event, Finished | Rejected):
                self.open.remove(event.job)  # raises if it ended before, or never began
        engine = self.engine
        assert engine.pool.used + engine.pool.cached <= engine.pool.blocks
        assert engine.running <= engine.spec.slots
        assert engine.running + engine.waiting == len(self.open)
        assert 0.0 <= engine.kv_usage <= 1.0

    def finish(self) -> None:
        """Run until nothing of what was submitted is left."""
        for _ in range(10_000):
            due = self.engine.next_due()
            if due is None:
                break
            self.check(self.engine.advance(due))
        assert not self.open
        assert (self.engine.pool.used, self.engine._committed) == (0, 0)
        assert (len(self.engine._decode), len(self.engine._prefill)) == (0, 0)
