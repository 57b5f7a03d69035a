"""Predictions get better with outcomes, from whatever the engine and the relay can tell."""

from __future__ import annotations

import itertools
import math
import random
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from herd.core import learning, priors
from herd.core.fleet import EngineKind, ReplicaKey
from herd.core.learning import AnswerLengths, Correction, Mean, ReplicaLearning, Shared
from herd.core.priors import Rates
from herd.core.request import Attempt, Operation, Request, Result, Timings, Usage

PRIOR = Rates(prefill=400.0, decode=20.0, load=5.0, overhead=0.02)
Told = Literal["timings", "stream", "whole"]


def request(
    *,
    prompt: int = 0,
    stream: bool = True,
    limit: int | None = None,
    operation: Operation = "chat",
    model: str = "m:latest",
) -> Request:
    return Request(
        id="a",
        dialect="openai",
        operation=operation,
        endpoint="/v1/chat/completions",
        asked=model,
        model=model,
        stream=stream,
        prompt_tokens=prompt,
        max_tokens=limit,
    )


class Device(Struct, frozen=True):
    """What a replica is really like."""

    prefill: float
    decode: float
    load: float = 8.0
    overhead: float = 0.05

    def seconds(self, prompt: int, answer: int, *, cold: bool = False) -> float:
        return (
            (self.load if cold else 0.0)
            + self.overhead
            + prompt / self.prefill
            + answer / self.decode
        )

    def serve(
        self, teach: ReplicaLearning, prompt: int, answer: int, told: Told, *, cold: bool = False
    ) -> None:
        """Run one request alone, and let the outcome teach what the engine tells of it."""
        load = self.load if cold else 0.0
        first = load + self.overhead + prompt / self.prefill + 1 / self.decode
        end = self.seconds(prompt, answer, cold=cold)
        stream = told != "whole"
        timings = Timings()
        if told == "timings":
            timings = Timings(load=load, prefill=prompt / self.prefill, decode=answer / self.decode)
        outcome(
            teach,
            request(prompt=prompt, stream=stream),
            first=first if stream else None,
            end=end,
            result=Result(
                usage=Usage(prompt_tokens=prompt, completion_tokens=answer), timings=timings
            ),
            cold=cold,
        )


def outcome(
    teach: ReplicaLearning,
    asked: Request,
    *,
    first: float | None,
    end: float | None,
    result: Result,
    kind: EngineKind = "ollama",
    running: int = 1,
    cold: bool = False,
) -> None:
    attempt = Attempt(
        number=1,
        replica=ReplicaKey("n", "e", "m"),
        started=1000.0,
        first_frame=None if first is None else 1000.0 + first,
        ended=None if end is None else 1000.0 + end,
    )
    teach.learn(
        request=asked, attempt=attempt, result=result, kind=kind, running=running, cold=cold
    )


def predicted(teach: ReplicaLearning, prompt: int, answer: int) -> float:
    rates = teach.rates
    return rates.overhead + prompt / rates.prefill + answer / rates.decode


@pytest.mark.parametrize("told", ["timings", "stream", "whole"])
@pytest.mark.parametrize("factor", [5.0, 0.2])
def test_a_prior_that_is_wrong_by_five_is_put_right_by_twenty_outcomes(
    told: Told, factor: float
) -> None:
    chance = random.Random(7)
    device = Device(prefill=400.0 / factor, decode=20.0 / factor)
    teach = ReplicaLearning(PRIOR)
    before = abs(math.log(predicted(teach, 800, 200) / device.seconds(800, 200)))
    for _ in range(20):
        device.serve(teach, chance.randrange(200, 2000), chance.randrange(50, 400), told)
    for prompt, answer in itertools.product((200, 800, 2000), (50, 200, 400)):
        wanted = device.seconds(prompt, answer)
        assert predicted(teach, prompt, answer) == pytest.approx(wanted, rel=0.15)
    after = abs(math.log(predicted(teach, 800, 200) / device.seconds(800, 200)))
    assert after < before / 5
    assert teach.outcomes == 20


def test_the_error_falls_with_every_outcome_of_a_steady_device() -> None:
    device = Device(prefill=80.0, decode=4.0, overhead=0.02)
    teach = ReplicaLearning(PRIOR)
    errors = []
    for _ in range(6):
        errors.append(abs(predicted(teach, 800, 200) - device.seconds(800, 200)))
        device.serve(teach, 800, 200, "stream")
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 10


def test_it_follows_a_device_that_slows_down() -> None:
    teach = ReplicaLearning(PRIOR)
    for _ in range(50):
        Device(prefill=400.0, decode=20.0).serve(teach, 800, 200, "timings")
    throttled = Device(prefill=200.0, decode=10.0)
    for _ in range(12):
        throttled.serve(teach, 800, 200, "timings")
    assert predicted(teach, 800, 200) == pytest.approx(throttled.seconds(800, 200), rel=0.15)


def test_loads_are_learned_apart_from_prefill() -> None:
    device = Device(prefill=400.0, decode=20.0, load=30.0)
    teach = ReplicaLearning(PRIOR)
    for _ in range(10):
        device.serve(teach, 800, 200, "timings", cold=True)
    assert teach.rates.load == pytest.approx(30.0)
    assert teach.rates.prefill == pytest.approx(PRIOR.prefill)
    assert teach.rates.decode == pytest.approx(20.0)


def test_a_short_load_is_no_load() -> None:
    """Ollama tells of some milliseconds for a model that is there."""
    teach = ReplicaLearning(PRIOR)
    result = Result(
        usage=Usage(prompt_tokens=800, completion_tokens=200),
        timings=Timings(load=0.01, prefill=4.0, decode=10.0),
    )
    outcome(teach, request(), first=4.1, end=14.0, result=result)
    assert teach.rates.load == PRIOR.load
    assert teach.rates.prefill == pytest.approx(200.0)


@pytest.mark.parametrize("told", ["stream", "whole"])
def test_a_cold_start_of_an_engine_that_does_not_tell_of_it_spoils_nothing(told: Told) -> None:
    teach = ReplicaLearning(PRIOR)
    Device(prefill=400.0, decode=20.0, load=60.0).serve(teach, 800, 200, told, cold=True)
    assert teach.rates.prefill == PRIOR.prefill
    assert teach.rates.decode == pytest.approx(PRIOR.decode)


def test_the_engines_own_durations_are_preferred() -> None:
    """A slow network makes the relay's durations longer, not the device slower."""
    teach = ReplicaLearning(PRIOR)
    result = Result(
        usage=Usage(prompt_tokens=400, completion_tokens=100),
        timings=Timings(prefill=1.0, decode=5.0),
    )
    outcome(teach, request(), first=9.0, end=60.0, result=result)
    assert teach.rates.prefill == pytest.approx(400.0)
    assert teach.rates.decode == pytest.approx(20.0)
    assert teach.rates.overhead == pytest.approx(8.0)


def test_cached_tokens_are_not_taken_for_fast_prefill() -> None:
    teach = ReplicaLearning(PRIOR)
    result = Result(
        usage=Usage(prompt_tokens=4000, completion_tokens=10, cached_tokens=3600),
        timings=Timings(prefill=1.0, decode=0.5),
    )
    outcome(teach, request(), first=1.02, end=1.5, result=result)
    assert teach.rates.prefill == pytest.approx(400.0)


def test_cached_tokens_of_an_answer_that_comes_whole_are_not_taken_for_decoding() -> None:
    teach = ReplicaLearning(PRIOR)
    result = Result(usage=Usage(prompt_tokens=4000, completion_tokens=100, cached_tokens=4000))
    outcome(teach, request(stream=False), first=None, end=5.02, result=result)
    assert teach.rates.decode == pytest.approx(20.0)


def test_neighbours_are_not_taken_for_slowness() -> None:
    teach = ReplicaLearning(PRIOR)
    share = priors.slowdown("ollama", 4)
    result = Result(usage=Usage(prompt_tokens=400, completion_tokens=101))
    outcome(teach, request(), first=share, end=6 * share, result=result, running=4)
    assert teach.rates.prefill == pytest.approx(400.0)
    assert teach.rates.decode == pytest.approx(20.0)


MOST = math.exp(learning.CLAMP)


@pytest.mark.parametrize(("actual", "factor"), [(1e-9, 1 / MOST), (1e9, MOST)])
def test_one_outcome_cannot_move_a_rate_beyond_the_clamp(actual: float, factor: float) -> None:
    correction = Correction("decode")
    correction.add(actual, 1.0)
    assert correction.factor == pytest.approx(factor)


def test_a_prior_beyond_the_clamp_is_put_right_all_the_same() -> None:
    correction = Correction("decode")
    for _ in range(60):
        correction.add(5000.0, 1.0)
    assert correction.factor == pytest.approx(5000.0, rel=0.01)


def test_one_stall_among_many_is_soon_forgotten() -> None:
    correction = Correction("decode")
    for _ in range(50):
        correction.add(1.0, 1.0)
    correction.add(1e6, 1.0)
    assert correction.factor < MOST ** (learning.WEIGHT + 0.01)
    for _ in range(20):
        correction.add(1.0, 1.0)
    assert correction.factor == pytest.approx(1.0, rel=0.02)


DURATIONS = st.floats(-1.0, 1e12, allow_nan=False)


@given(st.lists(st.tuples(DURATIONS, DURATIONS), max_size=50))
def test_no_outcome_moves_a_correction_beyond_the_clamp(pairs: list[tuple[float, float]]) -> None:
    correction = Correction("decode")
    for actual, expected in pairs:
        before = correction.factor
        correction.add(actual, expected)
        assert 1 / MOST / 1.001 <= correction.factor / before <= MOST * 1.001
    assert correction.count == sum(a > 0.0 and p > 0.0 for a, p in pairs)


@given(st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=50))
def test_a_mean_lies_among_its_values(values: list[float]) -> None:
    mean = Mean()
    for value in values:
        mean.add(value)
    assert min(values) - 1e-6 <= mean.value <= max(values) + 1e-6


def test_the_first_values_of_a_mean_weigh_the_same() -> None:
    mean = Mean()
    for value in (1.0, 2.0, 6.0):
        mean.add(value)
    assert mean.value == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("prompt", "answer"), [(learning.PREFILL_LEAST - 1, 0), (0, learning.DECODE_LEAST - 1)]
)
def test_too_little_teaches_no_rate(prompt: int, answer: int) -> None:
    teach = ReplicaLearning(PRIOR)
    result = Result(usage=Usage(prompt_tokens=prompt, completion_tokens=answer))
    outcome(teach, request(prompt=prompt), first=3.0, end=30.0, result=result)
    assert teach.rates == PRIOR
    assert teach.outcomes == 0


def test_an_attempt_that_has_not_ended_teaches_nothing() -> None:
    teach = ReplicaLearning(PRIOR)
    outcome(teach, request(prompt=800), first=2.0, end=None, result=Result())
    assert teach.rates == PRIOR


def test_without_the_engines_count_the_estimate_of_the_prompt_serves() -> None:
    teach = ReplicaLearning(PRIOR)
    outcome(teach, request(prompt=800), first=4.0, end=5.0, result=Result())
    assert teach.rates.prefill == pytest.approx(200.0)


def test_an_embedding_teaches_prefill_though_no_engine_tells_how_long_it_took() -> None:
    teach = ReplicaLearning(PRIOR)
    result = Result(usage=Usage(prompt_tokens=800), timings=Timings(load=0.01))
    embedding = request(operation="embedding", stream=False)
    outcome(teach, embedding, first=None, end=0.01 + 0.02 + 4.0, result=result)
    assert teach.rates.prefill == pytest.approx(200.0)
    assert teach.rates.decode == PRIOR.decode


def test_a_stream_that_is_answered_in_one_piece_is_not_taken_for_slow_prefill() -> None:
    teach = ReplicaLearning(PRIOR)
    result = Result(usage=Usage(prompt_tokens=400, completion_tokens=100))
    outcome(teach, request(stream=True), first=None, end=0.02 + 1.0 + 5.0, result=result)
    assert teach.rates.prefill == pytest.approx(400.0)
    assert teach.rates.decode == pytest.approx(20.0)


def test_a_whole_answer_of_nothing_teaches_nothing() -> None:
    teach = ReplicaLearning(PRIOR)
    outcome(teach, request(stream=False), first=None, end=3.0, result=Result())
    assert teach.rates == PRIOR


def test_corrections_stay_when_the_prior_changes() -> None:
    teach = ReplicaLearning(PRIOR)
    Device(prefill=200.0, decode=10.0).serve(teach, 800, 200, "timings")
    teach.reprime(Rates(prefill=4000.0, decode=200.0, load=1.0, overhead=0.02))
    assert teach.rates.prefill == pytest.approx(2000.0)
    assert teach.rates.decode == pytest.approx(100.0)


# How long answers are


def test_answers_are_expected_to_be_as_long_as_they_were() -> None:
    lengths = AnswerLengths()
    assert lengths.expect(request()) == priors.ANSWER_TOKENS
    for tokens in (100, 200, 300):
        lengths.add(request(), tokens)
    assert lengths.expect(request()) == pytest.approx(200.0)


def test_lengths_are_kept_apart_by_model_and_operation() -> None:
    lengths = AnswerLengths()
    lengths.add(request(), 10)
    assert lengths.expect(request(model="k:latest")) == priors.ANSWER_TOKENS
    assert lengths.expect(request(operation="completion")) == priors.ANSWER_TOKENS


def test_a_clients_limit_bounds_what_is_expected() -> None:
    lengths = AnswerLengths()
    assert lengths.expect(request(limit=16)) == 16.0
    assert lengths.expect(request(limit=10**400)) == priors.ANSWER_TOKENS


def test_an_embedding_has_no_answer_and_anything_else_at_least_a_token() -> None:
    lengths = AnswerLengths()
    lengths.add(request(), 0)
    assert lengths.expect(request()) == 1.0
    assert lengths.expect(request(operation="embedding")) == 0.0


def test_what_one_device_teaches_of_a_model_is_half_believed_on_the_next() -> None:
    """Nobody can tell yet whether the model is fast or the device is."""
    model = Shared()
    first = ReplicaLearning(PRIOR, Shared(), model)
    twin = ReplicaLearning(PRIOR, Shared(), model)
    result = Result(usage=Usage(completion_tokens=100), timings=Timings(decode=100 / 80.0))
    outcome(first, request(), first=0.1, end=2.0, result=result)
    assert first.rates.decode == pytest.approx(80.0)
    assert twin.rates.decode == pytest.approx(math.sqrt(80.0 * PRIOR.decode))


def test_a_model_that_is_fast_everywhere_is_expected_to_be_fast_on_a_new_device() -> None:
    model = Shared()
    for _ in range(8):
        measured = ReplicaLearning(PRIOR, Shared(), model)
        for _ in range(5):
            result = Result(
                usage=Usage(completion_tokens=100),
                timings=Timings(decode=100 / (4.0 * PRIOR.decode)),
            )
            outcome(measured, request(), first=0.1, end=2.0, result=result)
    new = ReplicaLearning(PRIOR, Shared(), model)
    assert new.rates.decode == pytest.approx(4.0 * PRIOR.decode, rel=0.35)


def test_its_own_outcomes_take_the_place_of_what_was_borrowed() -> None:
    device, model = Shared(), Shared()
    other = ReplicaLearning(PRIOR, device, Shared())
    replica = ReplicaLearning(PRIOR, device, model)
    fast = Result(
        usage=Usage(completion_tokens=100), timings=Timings(decode=100 / (4 * PRIOR.decode))
    )
    outcome(other, request(), first=0.1, end=2.0, result=fast)
    assert replica.rates.decode > PRIOR.decode
    plain = Result(usage=Usage(completion_tokens=100), timings=Timings(decode=100 / PRIOR.decode))
    outcome(replica, request(), first=0.1, end=2.0, result=plain)
    assert replica.rates.decode == pytest.approx(PRIOR.decode)
