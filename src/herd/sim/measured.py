"""What recorded outcomes say of the replicas that served them: rates, loads, sharing, slots.

An engine's own durations are used where it told them, the relay's otherwise. A replica that served
nobody has the rates that Herd believed of it, taken from the decisions in which it lost: its speed
signal beside that of the one that was chosen.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import cast, get_args

from msgspec import Struct

from herd.core import priors
from herd.core.decision import Signals
from herd.core.fleet import Capability, EngineKind, ReplicaKey
from herd.core.learning import DECODE_LEAST, PREFILL_LEAST
from herd.core.request import Attempt, Outcome

#: An engine on a node: what competes for one device.
SiteKey = tuple[str, str]
#: Spread of concurrency (sum of squares of its logarithm) from which sharing is measured.
_SPREAD = 0.5
#: Seconds below which a signal is nothing.
_LEAST = 1e-6


class Measured(Struct, kw_only=True):
    """One replica, as its outcomes show it. Rates are those of a request that runs alone."""

    prefill: float | None = None
    decode: float | None = None
    #: Seconds of a load; None where none was seen.
    load: float | None = None
    served: int = 0
    #: In memory when it was first looked at; None if it never was.
    resident: bool | None = None
    capabilities: frozenset[Capability] = frozenset()


class MeasuredSite(Struct, kw_only=True):
    """One engine with its replicas."""

    kind: EngineKind
    replicas: dict[str, Measured]
    #: n requests at once run at n ** -alpha of the rate each.
    alpha: float
    #: Sharing was seen often enough to be measured.
    alpha_measured: bool
    #: The most requests of one model that ran at once.
    slots: int
    #: A model had to leave memory for another one.
    evicts: bool
    #: A model was not in memory when it was wanted.
    loads: bool


def measure(outcomes: Sequence[Outcome]) -> dict[SiteKey, MeasuredSite]:
    """Return what is known of every engine that was a candidate of any decision."""
    index = _Index(outcomes)
    sites: dict[SiteKey, MeasuredSite] = {}
    for name, keys in index.sites.items():
        site = sites[name] = _site(name, keys, index)
        for key in keys:
            site.replicas[key.model] = _replica(key, index, site)
    _borrow(sites, outcomes)
    return sites


def last(outcome: Outcome) -> Attempt | None:
    """Return the attempt that answered; None if none did."""
    if outcome.ending != "completed" or not outcome.attempts:
        return None
    attempt = outcome.attempts[-1]
    return attempt if attempt.ended is not None else None


def fresh_tokens(outcome: Outcome) -> int:
    """Return the tokens of its prompt that had to be read, as far as the engine said."""
    usage = outcome.result.usage if outcome.result is not None else None
    if usage is None or usage.prompt_tokens is None:
        return outcome.request.prompt_tokens
    return max(1, usage.prompt_tokens - (usage.cached_tokens or 0))


def answer_tokens(outcome: Outcome) -> int:
    """Return the tokens of its answer; a stream that does not tell has one for each frame."""
    if outcome.request.operation == "embedding" or outcome.result is None:
        return 0
    told = outcome.result.usage.completion_tokens
    return outcome.result.frames if told is None else told


class _Watch:
    """How many requests ran on a site, on average over a stretch of time."""

    def __init__(self, outcomes: Iterable[Outcome]) -> None:
        changes: dict[SiteKey, list[tuple[float, int]]] = {}
        for outcome in outcomes:
            for attempt in outcome.attempts:
                if attempt.ended is not None:
                    key = attempt.replica.node, attempt.replica.engine
                    changes.setdefault(key, []).append((attempt.started, 1))
                    changes[key].append((attempt.ended, -1))
        #: By site: times, requests from then on, and the integral up to then.
        self._steps: dict[SiteKey, tuple[list[float], list[int], list[float]]] = {}
        for key, steps in changes.items():
            self._steps[key] = _integral(sorted(steps))

    def mean(self, key: SiteKey, first: float, last_: float) -> float:
        """Return the mean number, at least 1: the one who asks ran."""
        if last_ <= first:
            return 1.0
        return max(1.0, (self._until(key, last_) - self._until(key, first)) / (last_ - first))

    def _until(self, key: SiteKey, at: float) -> float:
        times, counts, sums = self._steps[key]
        index = bisect_right(times, at) - 1
        return sums[index] + counts[index] * (at - times[index]) if index >= 0 else 0.0


def _integral(steps: list[tuple[float, int]]) -> tuple[list[float], list[int], list[float]]:
    times, counts, sums = [steps[0][0]], [0], [0.0]
    for at, change in steps:
        times.append(at)
        sums.append(sums[-1] + counts[-1] * (at - times[-2]))
        counts.append(counts[-1] + change)
    return times, counts, sums


class _Index:
    """Outcomes by what they say something of, so that none is looked through twice."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self.watch = _Watch(outcomes)
        #: Replicas by site.
        self.sites: dict[SiteKey, list[ReplicaKey]] = {}
        #: By replica: the requests that it could have served, with its signals; those that it
        #: served; and when attempts on it began (1) and ended (-1).
        self.looks: dict[ReplicaKey, list[tuple[Outcome, Signals]]] = {}
        self.served: dict[ReplicaKey, list[Outcome]] = {}
        self.changes: dict[ReplicaKey, list[tuple[float, int]]] = {}
        for outcome in outcomes:
            self._add(outcome)
        for key in sorted(self.looks):
            self.sites.setdefault((key.node, key.engine), []).append(key)

    def _add(self, outcome: Outcome) -> None:
        for attempt in outcome.attempts:
            self.looks.setdefault(attempt.replica, [])
            if attempt.ended is not None:
                changes = self.changes.setdefault(attempt.replica, [])
                changes += [(attempt.started, 1), (attempt.ended, -1)]
        for estimate in outcome.decision.estimates if outcome.decision is not None else ():
            looks = self.looks.setdefault(estimate.replica, [])
            if estimate.total is not None:
                looks.append((outcome, estimate.signals))
        answered = last(outcome)
        if answered is not None:
            self.served.setdefault(answered.replica, []).append(outcome)


def _site(name: SiteKey, keys: Sequence[ReplicaKey], index: _Index) -> MeasuredSite:
    prefix = name[1].partition("-")[0]
    kind = cast("EngineKind", prefix if prefix in get_args(EngineKind) else "ollama")
    alpha = _alpha(keys, index)
    looks = [signals for key in keys for _, signals in index.looks[key]]
    return MeasuredSite(
        kind=kind,
        replicas={},
        # The believed exponent: two at once take so many times longer.
        alpha=math.log2(priors.slowdown(kind, 2)) if alpha is None else alpha,
        alpha_measured=alpha is not None,
        slots=max(_slots(index.changes.get(key, ())) for key in keys),
        evicts=any(signals.memory > _LEAST for signals in looks),
        loads=any(signals.residency > _LEAST for signals in looks),
    )


def _alpha(keys: Sequence[ReplicaKey], index: _Index) -> float | None:
    """Fit log(rate) = log(rate alone) - alpha log(n), with a rate for each model.

    By least squares on deviations from each model's mean; None if n hardly varied.
    """
    covered = spread = 0.0
    for key in keys:
        decoded = [_decoding(outcome, index.watch) for outcome in index.served.get(key, ())]
        points = [(math.log(each[1]), math.log(each[0])) for each in decoded if each is not None]
        if points:
            mean_n = statistics.fmean(n for n, _ in points)
            mean_rate = statistics.fmean(rate for _, rate in points)
            covered += sum((n - mean_n) * (rate - mean_rate) for n, rate in points)
            spread += sum((n - mean_n) ** 2 for n, _ in points)
    return min(1.0, max(0.0, -covered / spread)) if spread >= _SPREAD else None


def _slots(changes: Iterable[tuple[float, int]]) -> int:
    """Return the most that ran at once; where one ends as another begins, they did not."""
    most, running = 1, 0
    for _, change in sorted(changes):
        running += change
        most = max(most, running)
    return most


def _decoding(outcome: Outcome, watch: _Watch) -> tuple[float, float] | None:
    """Return tokens/s of an answer and how many requests ran beside it, itself counted."""
    attempt = last(outcome)
    tokens = answer_tokens(outcome)
    if attempt is None or attempt.ended is None or tokens < DECODE_LEAST:
        return None
    told = outcome.result.timings.decode if outcome.result is not None else None
    first = attempt.first_frame
    seconds = told if told is not None else attempt.ended - first if first is not None else 0.0
    if seconds <= 0.0:
        return None
    site = attempt.replica.node, attempt.replica.engine
    # The first token comes with the prefill.
    return (tokens - 1) / seconds, watch.mean(site, attempt.ended - seconds, attempt.ended)


def _prefilling(outcome: Outcome) -> tuple[int, float] | None:
    """Return tokens that were read, and the seconds that it took."""
    attempt = last(outcome)
    if attempt is None or attempt.ended is None or outcome.result is None:
        return None
    timings = outcome.result.timings
    seconds = timings.prefill
    if seconds is None:
        whole = outcome.request.operation == "embedding"
        first = attempt.ended if whole else attempt.first_frame
        seconds = first - attempt.started - (timings.load or 0.0) if first is not None else 0.0
    return (fresh_tokens(outcome), seconds) if seconds > 0.0 else None


def _loading(outcome: Outcome, believed: float) -> float:
    """Return the seconds that a load took for a request that found its model not in memory.

    Where the engine does not tell: what was believed, but no more than the time to its first
    frame. 0 if it found the model there.
    """
    told = outcome.result.timings.load if outcome.result is not None else None
    if told is not None:
        return told if believed or told >= priors.LOAD_LEAST else 0.0
    attempt = last(outcome)
    if not believed or attempt is None or attempt.ended is None:
        return 0.0
    first = attempt.ended if attempt.first_frame is None else attempt.first_frame
    return min(believed, first - attempt.started)


def _replica(key: ReplicaKey, index: _Index, site: MeasuredSite) -> Measured:
    looks = index.looks[key]
    served = index.served.get(key, [])
    decodes = [
        rate * beside**site.alpha
        for rate, beside in (_decoding(outcome, index.watch) or (0.0, 1.0) for outcome in served)
        if rate > 0.0
    ]
    read = [each for outcome in served if (each := _prefilling(outcome)) is not None]
    # Short prompts say more of the overhead; they count where there are no others.
    read = [each for each in read if each[0] >= PREFILL_LEAST] or read
    cold = {id(outcome): s.residency for outcome, s in looks if s.residency > _LEAST}
    loads = [load for outcome in served if (load := _loading(outcome, cold.get(id(outcome), 0.0)))]
    loads = loads or list(cold.values())
    return Measured(
        prefill=_median(tokens / seconds for tokens, seconds in read),
        decode=_median(decodes),
        load=_median(loads),
        served=len(served),
        resident=looks[0][1].residency <= _LEAST if looks else None,
        capabilities=frozenset().union(*(outcome.request.needs for outcome, _ in looks)),
    )


def _borrow(sites: dict[SiteKey, MeasuredSite], outcomes: Sequence[Outcome]) -> None:
    """Give replicas without rates of their own what Herd believed of them."""
    ratios: dict[ReplicaKey, list[tuple[float, Measured]]] = {}
    for outcome in outcomes:
        if outcome.decision is None:
            continue
        chosen = outcome.decision.chosen
        known = _find(sites, chosen)
        if known is None or known.prefill is None:
            continue
        speeds = {
            estimate.replica: estimate.signals.speed
            for estimate in outcome.decision.estimates
            if estimate.total is not None and estimate.signals.speed > 0.0
        }
        for key, speed in speeds.items():
            if key != chosen and chosen in speeds:
                ratios.setdefault(key, []).append((speeds[chosen] / speed, known))
    for key, found in ratios.items():
        replica = _find(sites, key)
        if replica is None:
            continue
        if replica.prefill is None:
            replica.prefill = _median(share * (known.prefill or 0.0) for share, known in found)
        if replica.decode is None:
            replica.decode = _median(share * (known.decode or 0.0) for share, known in found)


def _find(sites: dict[SiteKey, MeasuredSite], key: ReplicaKey) -> Measured | None:
    site = sites.get((key.node, key.engine))
    return site.replicas.get(key.model) if site is not None else None


def _median(values: Iterable[float]) -> float | None:
    positive = [value for value in values if value > 0.0]
    return statistics.median(positive) if positive else None
