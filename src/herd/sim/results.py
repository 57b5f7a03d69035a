"""Figures of a run, and intervals of figures over runs."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterable, Sequence

from msgspec import Struct

from herd.core.request import Outcome
from herd.sim.records import Record, Run

RESAMPLES = 2000
#: Ages of a replica, in outcomes, by which prediction errors are told apart.
AGES = ((0, 10), (10, 50), (50, 200), (200, 10**9))


class ErrorAt(Struct, frozen=True):
    """Prediction error of replicas that had between `first` and `last` outcomes behind them."""

    first: int
    last: int
    #: Median of |predicted - actual| / actual, from dispatch to end; None if there were none.
    median: float | None
    count: int
    #: The same of what would have been predicted had the answer's length been known.
    hindsight: float | None = None


class Metrics(Struct, frozen=True, kw_only=True):
    """What one policy made of one workload. Seconds, of requests that were completed."""

    requests: int
    mean: float
    p50: float
    p95: float
    #: From arrival to the first frame, of streamed answers; None if nothing was streamed.
    first_p50: float | None
    first_p95: float | None
    #: From arrival until the engine began with it, the load of its model included.
    wait: float
    #: Worst over clients of a client's mean wait.
    unfair: float
    failed: int
    rejected: int
    retries: int
    loads: int
    reloads: int
    #: Share of all prompt tokens that were found in a cache.
    reused: float
    #: Share of the completed requests by device.
    shares: dict[str, float]
    end: float
    errors: tuple[ErrorAt, ...] = ()
    #: Completion, and time to the first frame, at 0 to 100 % of the requests, in steps of 1 %.
    curve: tuple[float, ...] = ()
    first_curve: tuple[float, ...] = ()


class Interval(Struct, frozen=True):
    """A mean and where it lies with 95 % confidence, by bootstrap over seeds."""

    mean: float
    low: float
    high: float


def metrics(run: Run, outcomes: Iterable[Outcome] = ()) -> Metrics:
    """Reduce a run to figures; raises ValueError if nothing was completed."""
    done = [record for record in run.records if record.ending == "completed"]
    if not done:
        raise ValueError("no request was completed")
    times = sorted(record.completion for record in done)
    firsts = sorted(r.first - r.arrival.at for r in done if r.first is not None)
    waits = {record.id: _wait(record) for record in done}
    counts = [0] * len(run.fleet.devices)
    for record in done:
        counts[record.site or 0] += 1
    prompts = sum(record.arrival.turn.prompt_tokens for record in done)
    return Metrics(
        requests=len(run.records),
        mean=statistics.fmean(times),
        p50=quantile(times, 0.5),
        p95=quantile(times, 0.95),
        first_p50=quantile(firsts, 0.5) if firsts else None,
        first_p95=quantile(firsts, 0.95) if firsts else None,
        wait=statistics.fmean(waits.values()),
        unfair=_unfair(done, waits),
        failed=sum(record.ending == "failed" for record in run.records),
        rejected=sum(record.ending == "rejected" for record in run.records),
        retries=sum(max(0, record.attempts - 1) for record in run.records),
        loads=run.loads,
        reloads=run.reloads,
        reused=sum(record.cached for record in done) / prompts,
        shares={
            device.name: count / len(done)
            for device, count in zip(run.fleet.devices, counts, strict=True)
        },
        end=run.end,
        errors=prediction_errors(outcomes),
        curve=_curve(times),
        first_curve=_curve(firsts),
    )


def prediction_errors(outcomes: Iterable[Outcome]) -> tuple[ErrorAt, ...]:
    """Compare what each completed attempt was predicted to take with what it took."""
    ages: dict[object, int] = {}
    found: list[list[tuple[float, float]]] = [[] for _ in AGES]
    for outcome in outcomes:
        if outcome.ending != "completed" or not outcome.attempts:
            continue
        attempt = outcome.attempts[-1]
        age = ages.get(attempt.replica, 0)
        ages[attempt.replica] = age + 1
        took = (attempt.ended or 0.0) - attempt.started
        if took > 0.0:
            bucket = next(n for n, (first, last) in enumerate(AGES) if first <= age < last)
            errors = abs(attempt.predicted - took) / took, abs(attempt.hindsight - took) / took
            found[bucket].append(errors)
    return tuple(
        ErrorAt(
            first,
            last,
            statistics.median(error for error, _ in errors) if errors else None,
            len(errors),
            statistics.median(error for _, error in errors) if errors else None,
        )
        for (first, last), errors in zip(AGES, found, strict=True)
    )


def _curve(ordered: Sequence[float]) -> tuple[float, ...]:
    return tuple(quantile(ordered, step / 100.0) for step in range(101)) if ordered else ()


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return a quantile of sorted values, interpolated; raises IndexError if there are none."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def bootstrap(
    values: Sequence[float],
    *,
    seed: int = 0,
    mean: Callable[[Sequence[float]], float] = statistics.fmean,
) -> Interval:
    """Return the mean of values and its interval, by resampling them (Efron, 1979)."""
    draw = random.Random(seed)  # noqa: S311 - an experiment, no secret
    count = len(values)
    means = sorted(
        mean([values[int(draw.random() * count)] for _ in values]) for _ in range(RESAMPLES)
    )
    return Interval(mean(values), quantile(means, 0.025), quantile(means, 0.975))


def bootstrap_ratio(values: Sequence[float], others: Sequence[float], *, seed: int = 0) -> Interval:
    """Return the geometric mean of paired ratios `values / others`, with its interval."""
    logs = [math.log(value / other) for value, other in zip(values, others, strict=True)]
    found = bootstrap(logs, seed=seed)
    return Interval(math.exp(found.mean), math.exp(found.low), math.exp(found.high))


def _wait(record: Record) -> float:
    return (record.started or record.arrival.at) - record.arrival.at


def _unfair(done: Iterable[Record], waits: dict[str, float]) -> float:
    clients: dict[str, list[float]] = {}
    for record in done:
        clients.setdefault(record.arrival.request.client, []).append(waits[record.id])
    return max(statistics.fmean(values) for values in clients.values())
