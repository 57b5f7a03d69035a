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

from herd.core import learning
from herd.core.fleet import ReplicaKey
from herd.core.learning import ReplicaLearning, hindsight
from herd.core.priors import Rates
from herd.core.request import Attempt, Operation, Request, Result, Timings, Usage
from herd.core.shared import Device as DeviceShared
from herd.core.shared import Shared

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
    running: float = 1,
    cold: bool = False,
) -> None:
    attempt = Attempt(
        number=1,
        replica=ReplicaKey("n", "e", "m"),
        started=1000.0,
        first_frame=None if first is None else 1000.0 + first,
        ended=None if end is None else 1000.0 + end,
    )
    teach.learn(request=asked, attempt=attempt, result=result, running=running, cold=cold)


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
    assert errors[1] < errors[0] / 5
    assert errors[-1] < errors[0] / 25


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
    assert teach.rates.load == pytest.approx(30.0, rel=0.01)
    assert teach.rates.prefill == pytest.approx(PRIOR.prefill)
    assert teach.rates.decode == pytest.approx(20.0, rel=0.01)


def test_a_short_load_is_no_load() -> None:
    """Ollama tells of some milliseconds for a model that is there."""
    teach = ReplicaLearning(PRIOR)
    result = Result(
        usage=Usage(prompt_tokens=800, completion_tokens=200),
        timings=Timings(load=0.01, prefill=4.0, decode=10.0),
    )
    outcome(teach, request(), first=4.1, end=14.0, result=result)
    assert teach.rates.load == PRIOR.load
    assert teach.rates.prefill == pytest.approx(200.0, rel=0.07)


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
    assert teach.rates.prefill == pytest.approx(400.0, rel=0.01)
    assert teach.rates.decode == pytest.approx(20.0, rel=0.01)
    assert teach.rates.overhead == pytest.approx(8.0)


def test_cached_tokens_are_not_taken_for_fast_prefill() -> None:
    teach = ReplicaLearning(PRIOR)
    result = Result(
        usage=Usage(prompt_tokens=4000, completion_tokens=10, cached_tokens=3600),
        timings=Timings(prefill=1.0, decode=0.5),
    )
    outcome(teach, request(), first=1.02, end=1.5, result=result)
    assert teach.rates.prefill == pytest.approx(400.0, rel=0.01)


def test_cached_tokens_of_an_answer_that_comes_whole_are_not_taken_for_decoding() -> None:
    teach = ReplicaLearning(PRIOR)
    result = Result(usage=Usage(prompt_tokens=4000, completion_tokens=100, cached_tokens=4000))
    outcome(teach, request(stream=False), first=None, end=5.02, result=result)
    assert teach.rates.decode == pytest.approx(20.0, rel=0.01)


def test_neighbours_are_not_taken_for_slowness() -> None:
    teach = ReplicaLearning(PRIOR)
    share = 4**PRIOR.sharing
    result = Result(usage=Usage(prompt_tokens=400, completion_tokens=101))
    outcome(teach, request(), first=share, end=6 * share, result=result, running=4)
    assert teach.rates.prefill == pytest.approx(400.0, rel=0.01)
    assert teach.rates.decode == pytest.approx(20.0, rel=0.01)


@pytest.mark.parametrize(
    ("prompt", "answer"), [(learning.PREFILL_LEAST - 1, 0), (0, learning.DECODE_LEAST - 1)]
)
def test_too_little_teaches_no_rate(prompt: int, answer: int) -> None:
    teach = ReplicaLearning(PRIOR)
    result = Result(usage=Usage(prompt_tokens=prompt, completion_tokens=answer))
    outcome(teach, request(prompt=prompt), first=3.0, end=30.0, result=result)
    assert (teach.rates.prefill, teach.rates.decode) == (PRIOR.prefill, PRIOR.decode)


def test_an_attempt_that_has_not_ended_teaches_nothing() -> None:
    teach = ReplicaLearning(PRIOR)
    outcome(teach, request(prompt=800), first=2.0, end=None, result=Result())
    assert teach.rates == PRIOR


def test_without_the_engines_count_the_estimate_of_the_prompt_serves() -> None:
    teach = ReplicaLearning(PRIOR)
    outcome(teach, request(prompt=800), first=4.0, end=5.0, result=Result())
    assert teach.rates.prefill == pytest.approx(200.0, rel=0.07)


def test_an_embedding_teaches_prefill_though_no_engine_tells_how_long_it_took() -> None:
    teach = ReplicaLearning(PRIOR)
    result = Result(usage=Usage(prompt_tokens=800), timings=Timings(load=0.01))
    embedding = request(operation="embedding", stream=False)
    outcome(teach, embedding, first=None, end=0.01 + 0.02 + 4.0, result=result)
    assert teach.rates.prefill == pytest.approx(200.0, rel=0.07)
    assert teach.rates.decode == PRIOR.decode


def test_a_stream_that_is_answered_in_one_piece_is_not_taken_for_slow_prefill() -> None:
    teach = ReplicaLearning(PRIOR)
    result = Result(usage=Usage(prompt_tokens=400, completion_tokens=100))
    outcome(teach, request(stream=True), first=None, end=0.02 + 1.0 + 5.0, result=result)
    assert teach.rates.prefill == pytest.approx(400.0, rel=0.01)
    assert teach.rates.decode == pytest.approx(20.0, rel=0.01)


def test_a_whole_answer_of_nothing_teaches_nothing() -> None:
    teach = ReplicaLearning(PRIOR)
    outcome(teach, request(stream=False), first=None, end=3.0, result=Result())
    assert teach.rates == PRIOR


def test_corrections_stay_when_the_prior_changes() -> None:
    teach = ReplicaLearning(PRIOR)
    Device(prefill=200.0, decode=10.0).serve(teach, 800, 200, "timings")
    teach.reprime(Rates(prefill=4000.0, decode=200.0, load=1.0, overhead=0.02))
    assert teach.rates.prefill == pytest.approx(2000.0, rel=0.07)
    assert teach.rates.decode == pytest.approx(100.0, rel=0.07)


def decoded(teach: ReplicaLearning, rate: float, *, running: float = 1, at: float = 1000.0) -> None:
    """A request's hundred tokens come at that rate."""
    attempt = Attempt(
        number=1,
        replica=ReplicaKey("n", "e", "m"),
        started=at,
        first_frame=at + 0.02,
        ended=at + 0.02 + 100 / rate,
    )
    result = Result(usage=Usage(completion_tokens=100), timings=Timings(decode=100 / rate))
    teach.learn(request=request(), attempt=attempt, result=result, running=running)


def test_a_quarter_of_what_one_device_teaches_of_a_model_is_believed_on_the_next() -> None:
    """Nobody can tell yet whether model, device or the two together are fast."""
    model = Shared()
    first = ReplicaLearning(PRIOR, DeviceShared(), model)
    twin = ReplicaLearning(PRIOR, DeviceShared(), model)
    for _ in range(10):
        decoded(first, 80.0)
    assert first.rates.decode == pytest.approx(80.0, rel=0.02)
    assert math.log(twin.rates.decode / PRIOR.decode) == pytest.approx(
        math.log(4.0) * 0.25, rel=0.15
    )


def test_a_model_that_is_fast_everywhere_is_expected_to_be_fast_on_a_new_device() -> None:
    model = Shared()
    measured = [ReplicaLearning(PRIOR, DeviceShared(), model) for _ in range(8)]
    for _ in range(5):
        for teach in measured:
            decoded(teach, 4.0 * PRIOR.decode)
    new = ReplicaLearning(PRIOR, DeviceShared(), model)
    assert new.rates.decode == pytest.approx(4.0 * PRIOR.decode, rel=0.35)


def test_its_own_outcomes_take_the_place_of_what_was_borrowed() -> None:
    device, model = DeviceShared(), Shared()
    other = ReplicaLearning(PRIOR, device, Shared())
    replica = ReplicaLearning(PRIOR, device, model)
    for _ in range(10):
        decoded(other, 4 * PRIOR.decode)
    assert replica.rates.decode > 1.3 * PRIOR.decode
    for _ in range(5):
        decoded(replica, PRIOR.decode)
    assert replica.rates.decode == pytest.approx(PRIOR.decode, rel=0.1)


def test_old_outcomes_fade_by_time_not_by_number() -> None:
    device, model = DeviceShared(), Shared()
    teach = ReplicaLearning(PRIOR, device, model)
    for _ in range(20):
        decoded(teach, 10.0)
    for _ in range(3):
        decoded(teach, 40.0, at=30 * learning.HALF_LIFE)
    assert teach.rates.decode == pytest.approx(40.0, rel=0.15)


def test_uncertainty_falls_with_outcomes() -> None:
    teach = ReplicaLearning(PRIOR)
    told = [teach.uncertainty]
    for _ in range(4):
        for _ in range(5):
            decoded(teach, 20.0)
        told.append(teach.uncertainty)
    assert told == sorted(told, reverse=True)
    assert told[0] > 0.4
    assert told[-1] < 0.15


@pytest.mark.parametrize("exponent", [0.3, 0.6, 1.1])
def test_the_cost_of_sharing_is_learned(exponent: float) -> None:
    teach = ReplicaLearning(PRIOR)
    for running in (1, 4, 2, 8, 1, 4, 2, 8, 3, 6) * 2:
        decoded(teach, 20.0 / running**exponent, running=running)
    assert teach.rates.sharing == pytest.approx(exponent, abs=0.08)
    assert teach.slowdown(8) == pytest.approx(8**exponent, rel=0.15)
    assert teach.rates.decode == pytest.approx(20.0, rel=0.1)


def test_one_request_alone_puts_right_what_a_crowd_has_taught() -> None:
    """Whether the rate or the sharing was wrong cannot be told from a crowd of one size."""
    teach = ReplicaLearning(PRIOR)
    for _ in range(20):
        decoded(teach, 60.0 / 20**0.2, running=20)
    assert teach.rates.decode / teach.slowdown(20) == pytest.approx(60.0 / 20**0.2, rel=0.1)
    for _ in range(3):
        decoded(teach, 60.0)
    assert teach.rates.decode == pytest.approx(60.0, rel=0.2)
    assert teach.rates.decode / teach.slowdown(20) == pytest.approx(60.0 / 20**0.2, rel=0.2)


@given(st.lists(st.tuples(st.floats(1.0, 64.0), st.floats(0.01, 1e4)), max_size=30))
def test_more_requests_never_make_it_faster_whatever_came(seen: list[tuple[float, float]]) -> None:
    teach = ReplicaLearning(PRIOR)
    for running, rate in seen:
        decoded(teach, rate, running=running)
    slow = [teach.slowdown(count) for count in range(12)]
    assert slow[0] == slow[1] == 1.0
    assert slow == sorted(slow)
    assert all(math.isfinite(value) for value in slow)
    assert all(
        math.isfinite(value) and value > 0.0 for value in (teach.rates.decode, teach.uncertainty)
    )


def test_one_stall_among_many_is_soon_forgotten() -> None:
    teach = ReplicaLearning(PRIOR)
    for _ in range(50):
        decoded(teach, 20.0)
    decoded(teach, 1e-3)
    assert teach.rates.decode > 10.0
    for _ in range(2):
        decoded(teach, 20.0)
    assert teach.rates.decode > 19.0


def test_heat_is_felt_by_all_models_and_fades() -> None:
    device = DeviceShared()
    hot, other = ReplicaLearning(PRIOR, device), ReplicaLearning(PRIOR, device)
    for teach in (hot, other):
        for _ in range(30):
            Device(prefill=400.0, decode=20.0).serve(teach, 800, 200, "stream")
    for _ in range(3):
        Device(prefill=200.0, decode=10.0).serve(hot, 800, 200, "stream")
    assert other.rates.decode == pytest.approx(10.0, rel=0.2)
    device.tick(1000.0 + 30 * 60.0)
    assert other.rates.decode == pytest.approx(20.0, rel=0.05)
    assert hot.rates.load == pytest.approx(PRIOR.load)


def test_a_load_that_the_engine_does_not_tell_of_is_learned_from_the_wait() -> None:
    teach = ReplicaLearning(PRIOR)
    attempt = Attempt(
        number=1,
        replica=ReplicaKey("n", "e", "m"),
        started=1000.0,
        first_frame=1022.02,
        ended=1030.0,
    )
    for loads in (False, True):
        assert teach.rates.load == PRIOR.load
        teach.learn(
            request=request(prompt=800),
            attempt=attempt,
            result=Result(),
            cold=True,
            loads=loads,
        )
    assert teach.rates.load == pytest.approx(20.0, rel=0.1)
    assert teach.rates.prefill == PRIOR.prefill


def test_hindsight_knows_the_tokens_and_who_ran_beside() -> None:
    rates = Rates(
        prefill=400.0, decode=20.0, load=5.0, overhead=0.5, sharing=1.0, sharing_prefill=0.5
    )
    assert hindsight(rates, fresh=800, tokens=100, running=1, running_prefill=1) == 7.5
    assert (
        hindsight(rates, fresh=800, tokens=100, running=2, running_prefill=4, load=3.0)
        == 3.0 + 0.5 + 4.0 + 10.0
    )


def test_what_is_kept_gives_the_same_rates() -> None:
    chance = random.Random(3)
    device, model = DeviceShared(), Shared()
    teach = ReplicaLearning(PRIOR, device, model)
    for _ in range(20):
        decoded(teach, chance.uniform(5.0, 50.0), running=chance.randrange(1, 5))
    again_device, again_model = DeviceShared(), Shared()
    again_device.restore(device.state())
    again_model.restore(model.state())
    again = ReplicaLearning(PRIOR, again_device, again_model)
    again.restore(teach.state(), teach.outcomes)
    assert (again.rates, again.uncertainty, again.outcomes) == (
        teach.rates,
        teach.uncertainty,
        teach.outcomes,
    )
