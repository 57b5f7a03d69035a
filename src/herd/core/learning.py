"""What outcomes teach of a replica: corrections of its prior, robust, constant in size.

All beliefs are logarithms of actual over predicted durations. For prefill and decode they are a
line over the logarithm of the number of running requests: its level corrects the rate, its slope
is the exponent of sharing. What a replica itself has shown is combined with what it borrows from
its device and its model by their precisions: the first outcomes count for much, the borrowed part
is never quite forgotten, and comes back as old outcomes fade.
"""

from __future__ import annotations

import math

from msgspec import Struct

from herd.core import priors
from herd.core.priors import Rates
from herd.core.request import Attempt, Request, Result
from herd.core.shared import PAIR, QUANTITIES, Device, Quantity, Shared
from herd.core.statistics import Belief, BeliefState, Fit, Line, LineState

#: Seconds in which an outcome's weight halves. Rates change with updates of engine and system;
#: drives hardly ever, and loads are rare.
HALF_LIFE = 86400.0
HALF_LIFE_LOAD = 7 * 86400.0
#: The first outcome moves a belief by no more than this factor either way.
CLAMP = math.log(16.0)
#: Outcomes after which a replica is known well enough to tell the weather by.
_KNOWN = 3
#: Fewer prompt tokens say more of the overhead than of the prefill rate.
PREFILL_LEAST = 32
DECODE_LEAST = 4
#: Standard deviation of the exponent of sharing before anything is known.
SHARING = 0.3
#: An exponent above 1 is what thrashing costs.
SHARING_MOST = 1.5
#: What a single outcome's error may be before it counts as an outlier, at first.
_ERROR = 1.0


class LearningState(Struct, frozen=True, array_like=True):
    """What was learned of one replica, at rest."""

    lines: dict[Quantity, LineState] = {}
    #: What it has given to its device and its model: weight and both values.
    given: dict[Quantity, tuple[float, float, float]] = {}
    overhead: BeliefState = BeliefState()
    errors: BeliefState = BeliefState()


class ReplicaLearning:
    """Corrections of one replica's prior, borrowed from others until it was measured itself.

    `rates` are renewed when something has changed them, not when they are read: they are read for
    every candidate of every decision.
    """

    __slots__ = (
        "_base",
        "_device",
        "_errors",
        "_fits",
        "_given",
        "_lines",
        "_model",
        "_overhead",
        "_prior",
        "_rates",
        "doubt",
        "outcomes",
        "stale",
        "uncertainty",
    )

    def __init__(
        self, prior: Rates, device: Device | None = None, model: Shared | None = None
    ) -> None:
        self._prior = prior
        self._device = device or Device()
        self._model = model or Shared()
        self._lines: dict[Quantity, Line] = {
            "prefill": _line(prior.sharing_prefill),
            "decode": _line(prior.sharing),
            "load": Line(HALF_LIFE_LOAD, CLAMP),
        }
        self._fits: dict[Quantity, Fit] = {}
        self._given: dict[Quantity, tuple[float, float, float]] = {}
        self._overhead = Belief(HALF_LIFE)
        self._errors = Belief(HALF_LIFE, _ERROR)
        self._base: Rates = prior
        self._rates: Rates = prior
        self.stale = False
        #: Standard deviation of log(actual / predicted) for a request whose tokens are known.
        self.uncertainty = 0.0
        #: The part of it that more outcomes would remove.
        self.doubt = 0.0
        #: How many outcomes have taught it something.
        self.outcomes = 0
        self._device.dependants.append(self)
        self._model.dependants.append(self)
        self.borrow()

    @property
    def rates(self) -> Rates:
        """The prior, corrected by what came, in the present weather."""
        if self.stale:
            self.borrow()
        return self._rates

    def slowdown(self, running: float) -> float:
        """How many times longer a decoded token takes when so many requests share the device."""
        return running**self.rates.sharing if running > 1.0 else 1.0

    def slowdown_prefill(self, running: float) -> float:
        """How many times longer prefill takes when so many requests share the device."""
        return running**self.rates.sharing_prefill if running > 1.0 else 1.0

    def reprime(self, prior: Rates) -> None:
        """The hardware or the model became better known; corrections stay."""
        if prior != self._prior:
            self._prior = prior
            self.borrow()

    def leave(self) -> None:
        """It is forgotten: nothing needs to be told to it any more."""
        for shared in (self._device, self._model):
            if self in shared.dependants:
                shared.dependants.remove(self)

    def learn(
        self,
        *,
        request: Request,
        attempt: Attempt,
        result: Result,
        running: float = 1.0,
        running_prefill: float | None = None,
        cold: bool = False,
        loads: bool = False,
        cached: float = 0.0,
    ) -> None:
        """Learn from a completed attempt.

        `running` requests were on its device while it decoded, and `running_prefill` before its
        first frame, itself one of them, by harmonic means. It was `cold` if it waited for a load,
        and `loads` if it began that load. `cached` tokens of the prompt took no time, where the
        engine does not say how many.

        The engine's own durations are used where it tells them; else the relay's, in which load
        and prefill cannot be told apart, so a cold start teaches no prefill rate. Time is the
        attempt's end.
        """
        if attempt.ended is None:
            return
        crowd = (running if running_prefill is None else running_prefill, running)
        case = _Case(attempt, result, tokens_of(request, result, cached), crowd)
        cold = cold or case.loaded
        before = self._evidence
        self._learn_load(case, cold=cold, loads=loads)
        if not cold or case.prefill is not None:
            self._learn_weather(case)
        if case.prefill is None and not case.streamed:
            if not cold:
                self._learn_whole(case)
        else:
            self._learn_prefill(case, cold=cold)
            self._learn_decode(case)
        if self._evidence > before:
            self.outcomes += 1
            self._give()

    def borrow(self) -> None:
        """Renew what is believed after a change of its own or in what it shares."""
        self.stale = False
        prior = self._prior
        for quantity in QUANTITIES:
            self._fits[quantity] = self._lines[quantity].fit(
                self._device.value(quantity) + self._model.value(quantity),
                PAIR**2 + self._device.variance(quantity) + self._model.variance(quantity),
            )
        prefill, decode, load = (self._fits[quantity] for quantity in QUANTITIES)
        self._base = Rates(
            prefill=prior.prefill / math.exp(prefill.level),
            decode=prior.decode / math.exp(decode.level),
            load=prior.load * math.exp(load.level),
            overhead=max(0.0, self._overhead.value) if self._overhead.count else prior.overhead,
            sharing=min(SHARING_MOST, max(0.0, decode.slope)),
            sharing_prefill=min(SHARING_MOST, max(0.0, prefill.slope)),
        )
        self.feel()

    def feel(self) -> None:
        """Renew the rates after a change of the weather."""
        base = self._base
        slower = math.exp(self._device.weather)
        self._rates = Rates(
            prefill=base.prefill / slower,
            decode=base.decode / slower,
            load=base.load,
            overhead=base.overhead,
            sharing=base.sharing,
            sharing_prefill=base.sharing_prefill,
        )
        self.doubt = math.sqrt(self._fits["decode"].variance)
        self.uncertainty = math.hypot(self._errors.spread, self.doubt)

    def state(self) -> LearningState:
        """Return what is to be kept."""
        return LearningState(
            lines={quantity: line.state() for quantity, line in self._lines.items()},
            given=dict(self._given),
            overhead=self._overhead.state(),
            errors=self._errors.state(),
        )

    def restore(self, state: LearningState, outcomes: int) -> None:
        """Go on from what was kept."""
        for quantity, line in state.lines.items():
            self._lines[quantity].restore(line)
        self._given = dict(state.given)
        self._overhead.restore(state.overhead)
        self._errors.restore(state.errors)
        self.outcomes = outcomes
        self.borrow()

    @property
    def _evidence(self) -> int:
        return sum(line.count for line in self._lines.values()) + self._overhead.count

    def _learn_weather(self, case: _Case) -> None:
        """Put a surprise of the whole down to the device's present state, as far as is likely."""
        if self.outcomes < _KNOWN:
            return
        seconds, prefill = case.predict(self.rates)
        believed, took = seconds - self.rates.overhead, case.worked - self.rates.overhead
        if case.prefill is not None and case.result.timings.decode is not None:
            took = case.prefill + case.result.timings.decode
        if believed < self.rates.overhead or took <= 0.0:
            return
        error = math.log(took / believed)
        share = prefill / believed
        doubt = share * self._doubt("prefill", case) + (1.0 - share) * self._doubt("decode", case)
        before = self._device.weather
        self._device.surprise(error, self._errors.spread**2 + doubt, case.now)
        left = error - (self._device.weather - before)
        self._errors.add(left, case.now, expected=0.0)

    def _learn_load(self, case: _Case, *, cold: bool, loads: bool) -> None:
        load = case.result.timings.load
        if load is None and cold and loads and case.streamed:
            # The engine does not tell: what is left of the wait when the rest is as believed.
            prefill = self.slowdown_prefill(case.running[0]) * case.fresh / self.rates.prefill
            load = case.waited - self.rates.overhead - prefill
        if load is not None and load >= priors.LOAD_LEAST:
            self._add("load", load / self._prior.load, case)

    def _learn_prefill(self, case: _Case, *, cold: bool) -> None:
        if case.prefill is not None:
            if case.streamed:
                self._learn_overhead(case.waited - case.prefill, case.now)
            if case.fresh >= PREFILL_LEAST:
                self._add("prefill", case.prefill * self._prior.prefill / case.fresh, case)
        elif not cold and case.fresh >= PREFILL_LEAST:
            # The overhead is not worth more than the whole.
            seconds = max(case.waited - self.rates.overhead, 0.1 * case.waited)
            self._add("prefill", seconds * self._prior.prefill / case.fresh, case)
        elif not cold:
            prefill = self.slowdown_prefill(case.running[0]) * case.fresh / self.rates.prefill
            self._learn_overhead(case.waited - prefill, case.now)

    def _learn_decode(self, case: _Case) -> None:
        if case.tokens < DECODE_LEAST:
            return
        told, rate = case.result.timings.decode, self._prior.decode
        if told is not None:
            self._add("decode", told * rate / case.tokens, case)
        elif case.streamed:
            # The first token came with the prefill.
            self._add("decode", (case.worked - case.waited) * rate / (case.tokens - 1.0), case)

    def _learn_whole(self, case: _Case) -> None:
        """Learn from an answer that came in one piece: what was wrong, was so in both rates."""
        seconds, prefill = case.predict(self.rates)
        overhead = self.rates.overhead
        believed = seconds - overhead
        if case.worked <= 0.0 or believed <= 0.0:
            return
        if believed < overhead:
            self._learn_overhead(case.worked * overhead / seconds, case.now)
            return
        error = max(case.worked - overhead, 0.1 * case.worked) / believed
        # One number for two rates: the more it is of both, the less it says of either.
        share = prefill / believed
        if case.fresh >= PREFILL_LEAST:
            self._add("prefill", error * self._now("prefill", case), case, weight=share)
        if case.tokens >= DECODE_LEAST:
            self._add("decode", error * self._now("decode", case), case, weight=1.0 - share)

    def _learn_overhead(self, seconds: float, now: float) -> None:
        seconds = max(0.0, seconds)
        self._overhead.add(seconds, now, expected=self.rates.overhead)

    def _now(self, quantity: Quantity, case: _Case) -> float:
        """How many times longer than by the prior it is believed to take at present."""
        believed = self._fits[quantity].at(math.log(case.crowd(quantity)))
        return math.exp(believed + self._device.weather)

    def _doubt(self, quantity: Quantity, case: _Case) -> float:
        """Variance of the logarithm of that, the weather left out."""
        return self._fits[quantity].doubt(math.log(case.crowd(quantity)))

    def _add(self, quantity: Quantity, longer: float, case: _Case, weight: float = 1.0) -> None:
        """Learn that something took so many times longer than by the prior, alone."""
        if longer <= 0.0 or weight <= 0.0:
            return
        weather = 0.0 if quantity == "load" else self._device.weather
        doubt = 0.0 if quantity == "load" else self._device.weather_variance
        crowd = math.log(case.crowd(quantity))
        self._lines[quantity].add(
            crowd,
            math.log(longer) - weather,
            case.now,
            expected=self._fits[quantity].at(crowd),
            doubt=self._doubt(quantity, case) + doubt,
            weight=weight,
        )

    def _give(self) -> None:
        """Renew what device and model know of it, then what it believes itself."""
        device, model = self._device, self._model
        for quantity in QUANTITIES:
            line = self._lines[quantity]
            if line.weight <= 0.0:
                continue
            own = line.fit()
            weight = 1.0 / (PAIR**2 + own.variance)
            old = self._given.get(quantity, (0.0, 0.0, 0.0))
            for_device = own.level - model.value(quantity)
            device.replace(quantity, (old[0], old[1]), (weight, for_device))
            for_model = own.level - device.value(quantity)
            model.replace(quantity, (old[0], old[2]), (weight, for_model))
            self._given[quantity] = (weight, for_device, for_model)
            device.tell(quantity, but=self)
            model.tell(quantity, but=self)
        self.borrow()


def _line(sharing: float) -> Line:
    return Line(HALF_LIFE, CLAMP, slope=sharing, slope_variance=SHARING**2)


class _Case:
    """A completed attempt, in the terms of what can be learned from it."""

    __slots__ = (
        "fresh",
        "loaded",
        "now",
        "prefill",
        "result",
        "running",
        "streamed",
        "tokens",
        "waited",
        "worked",
    )

    def __init__(
        self,
        attempt: Attempt,
        result: Result,
        tokens: tuple[float, float],
        running: tuple[float, float],
    ) -> None:
        self.result = result
        self.fresh, self.tokens = tokens
        #: Requests on the device, itself included, before its first frame and after.
        self.running = running
        self.now = attempt.ended or 0.0
        self.streamed = attempt.first_frame is not None
        self.prefill = result.timings.prefill
        load = result.timings.load or 0.0
        #: The engine tells of a load that was one; of a model that is there it tells milliseconds.
        self.loaded = load >= priors.LOAD_LEAST
        first = attempt.first_frame if attempt.first_frame is not None else self.now
        #: Seconds until the first frame, and until the end, without the load.
        self.waited = first - attempt.started - load
        self.worked = self.now - attempt.started - load

    def crowd(self, quantity: Quantity) -> float:
        """Requests on the device while that went on, itself included."""
        if quantity == "load":
            return 1.0
        return max(1.0, self.running[quantity == "decode"])

    def predict(self, rates: Rates) -> tuple[float, float]:
        """Seconds that it would be believed to take, and the part that is prefill."""
        prefill = self.crowd("prefill") ** rates.sharing_prefill * self.fresh / rates.prefill
        decode = self.crowd("decode") ** rates.sharing * self.tokens / rates.decode
        return rates.overhead + prefill + decode, prefill


def tokens_of(request: Request, result: Result, cached: float) -> tuple[float, float]:
    """Tokens of the prompt that were not `cached`, and of the answer, the best that is known."""
    usage = result.usage
    known = usage.cached_tokens if usage.cached_tokens is not None else cached
    fresh = max(0.0, (usage.prompt_tokens or request.prompt_tokens) - known)
    # A stream that does not tell its usage has about one frame for each token.
    tokens = result.frames if usage.completion_tokens is None else usage.completion_tokens
    return fresh, float(0 if request.operation == "embedding" else tokens)


def hindsight(
    rates: Rates,
    *,
    fresh: float,
    tokens: float,
    running: float,
    running_prefill: float,
    load: float = 0.0,
) -> float:
    """Return the seconds that would have been predicted had the true number of tokens been known.

    `rates` are those of the moment of dispatch; `load` is what was predicted of loading. Beside
    what came, this tells how good the rates are; lengths of answers nobody can know.
    """
    prefill = max(1.0, running_prefill) ** rates.sharing_prefill * fresh / rates.prefill
    decode = max(1.0, running) ** rates.sharing * tokens / rates.decode
    return float(load + rates.overhead + prefill + decode)
