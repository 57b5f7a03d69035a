"""Small statistics of constant size that forget by time: means, a line, quantiles."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

#: Weight of the newest value in a `Mean` once several are in.
WEIGHT = 0.2
#: Most that the past weighs in a `Belief`, in values: the newest always counts for a fiftieth.
WEIGHT_MOST = 50.0
#: A value further off than so many standard deviations counts as if it were at that distance
#: (Huber's rule, 1964), so that one stall does not spoil what hundreds have taught.
ROBUST = 3.0
#: Spread that a `Belief` expects of values before it has seen any, and for how many it stands.
SPREAD = 0.15
SPREAD_COUNT = 3.0
#: Least spread: two runs of the same request differ by a few hundredths on an idle machine.
SPREAD_LEAST = 0.03

#: Ratio of a bucket's bounds. Its middle is off by at most (RATIO - 1) / (RATIO + 1), 5 %.
RATIO = 1.1
#: The last bucket of a `Sketch` stands for RATIO ** 130, a quarter of a million tokens.
BUCKETS = 131
_LOG_RATIO = math.log(RATIO)
#: Values weigh more the later they come, instead of old ones less; before the numbers get large
#: all are scaled down.
_GROWN = 2.0**40


class Mean:
    """An exponentially weighted mean whose first values weigh as in an ordinary mean."""

    __slots__ = ("count", "value")

    def __init__(self) -> None:
        self.count = 0
        self.value = 0.0

    def add(self, value: float) -> None:
        """Take one more value in."""
        self.count += 1
        self.value += (value - self.value) * max(WEIGHT, 1.0 / self.count)


class BeliefState(Struct, frozen=True, array_like=True):
    """A `Belief` at rest, to be kept."""

    value: float = 0.0
    weight: float = 0.0
    squares: float = 0.0
    at: float = 0.0
    count: int = 0


class Belief:
    """A robust mean of values that scatter around something that may slowly change.

    A value's weight halves every `half_life` seconds, and no more than `WEIGHT_MOST` values are
    remembered in effect. Outliers are pulled in to `ROBUST` standard deviations, or to `clamp`
    before anything is known.
    """

    __slots__ = ("_at", "_clamp", "_half_life", "_squares", "count", "value", "weight")

    def __init__(self, half_life: float, clamp: float = math.inf) -> None:
        self._half_life = half_life
        self._clamp = clamp
        self._at = 0.0
        #: Weighted sum of squared distances from the mean.
        self._squares = 0.0
        self.value = 0.0
        #: Values behind it, those of long ago and those beyond the most hardly counted.
        self.weight = 0.0
        #: Values behind it, each counted as one.
        self.count = 0

    def add(self, value: float, now: float, *, expected: float, weight: float = 1.0) -> None:
        """Take a value in; `expected` is what is believed of it, all told."""
        self._age(now)
        reach = self._clamp if self.weight < 1.0 else ROBUST * self.spread
        value = min(expected + reach, max(expected - reach, value))
        before = self.value
        self.weight += weight
        self.value += (value - before) * weight / self.weight
        # West's update (1979) of the sum of squares with weights.
        self._squares += weight * (value - before) * (value - self.value)
        self.count += 1
        if self.weight > WEIGHT_MOST:
            self._scale(WEIGHT_MOST / self.weight)

    @property
    def spread(self) -> float:
        """Standard deviation of the values, as expected at first and then as seen."""
        squares = self._squares + SPREAD_COUNT * SPREAD**2
        return max(SPREAD_LEAST, math.sqrt(squares / (self.weight + SPREAD_COUNT)))

    @property
    def variance(self) -> float:
        """Square of the standard error of the mean; infinite without values."""
        return self.spread**2 / self.weight if self.weight > 0.0 else math.inf

    def state(self) -> BeliefState:
        """Return what is to be kept."""
        return BeliefState(self.value, self.weight, self._squares, self._at, self.count)

    def restore(self, state: BeliefState) -> None:
        """Go on from what was kept."""
        self.value, self.weight, self._squares = state.value, state.weight, state.squares
        self._at, self.count = state.at, state.count

    def _age(self, now: float) -> None:
        if now > self._at:
            if self.weight:
                self._scale(0.5 ** ((now - self._at) / self._half_life))
            self._at = now

    def _scale(self, factor: float) -> None:
        self.weight *= factor
        self._squares *= factor


class LineState(Struct, frozen=True, array_like=True):
    """A `Line` at rest."""

    sums: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)
    squares: float = 0.0
    at: float = 0.0
    count: int = 0


class Fit(Struct, frozen=True):
    """What a `Line` and its priors say together."""

    level: float
    slope: float
    #: Of the level, of the slope, and of the two together.
    variance: float
    slope_variance: float
    covariance: float = 0.0

    def at(self, x: float) -> float:
        """Height of the line."""
        return self.level + self.slope * x

    def doubt(self, x: float) -> float:
        """Variance of that."""
        return max(0.0, self.variance + x * (2 * self.covariance + x * self.slope_variance))


class Line:
    """A robust straight line, level + slope * x, through values that may slowly change.

    Linear regression with priors for both (Bayes; conjugate, the noise taken as known) from five
    weighted sums, which fade as in a `Belief`. That level and slope are uncertain together matters:
    where all x were alike, a value at another x corrects both at once.
    """

    __slots__ = (
        "_at",
        "_clamp",
        "_half_life",
        "_slope",
        "_slope_variance",
        "_squares",
        "_sums",
        "count",
    )

    def __init__(
        self,
        half_life: float,
        clamp: float = math.inf,
        *,
        slope: float = 0.0,
        slope_variance: float = 1.0,
    ) -> None:
        self._half_life = half_life
        self._clamp = clamp
        self._slope = slope
        self._slope_variance = slope_variance
        self._at = 0.0
        #: Weights; those times x, x squared, y, and x y.
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)
        #: Weighted sum of squared distances from the line.
        self._squares = 0.0
        self.count = 0

    @property
    def weight(self) -> float:
        """Values behind it, those of long ago and those beyond the most hardly counted."""
        return self._sums[0]

    @property
    def spread(self) -> float:
        """Standard deviation of values around the line, as expected at first and then as seen."""
        squares = self._squares + SPREAD_COUNT * SPREAD**2
        return max(SPREAD_LEAST, math.sqrt(squares / (self.weight + SPREAD_COUNT)))

    def add(
        self, x: float, y: float, now: float, *, expected: float, doubt: float, weight: float = 1.0
    ) -> None:
        """Take a value in.

        `expected` is what the line, and whatever else is known, says of it, and `doubt` the
        variance of that. Outliers are pulled in to `ROBUST` standard deviations of both, or to
        `clamp` before anything is known.
        """
        if now > self._at:
            self._scale(0.5 ** ((now - self._at) / self._half_life))
            self._at = now
        known = self.weight >= 1.0
        reach = ROBUST * math.sqrt(self.spread**2 + doubt) if known else self._clamp
        error = min(reach, max(-reach, y - expected))
        y = expected + error
        before = y - self.fit().at(x) if self.weight else 0.0
        added = (weight, weight * x, weight * x * x, weight * y, weight * x * y)
        first, second, third, fourth, fifth = map(float.__add__, self._sums, added)
        self._sums = (first, second, third, fourth, fifth)
        # As the sum grows in recursive least squares; the line goes through the first value.
        self._squares += weight * max(0.0, before * (y - self.fit().at(x)))
        self.count += 1
        if self.weight > WEIGHT_MOST:
            self._scale(WEIGHT_MOST / self.weight)

    def fit(self, level: float = 0.0, level_variance: float = math.inf) -> Fit:
        """Combine it with what is believed of the level without it; without that, if infinite.

        It must have values if `level_variance` is infinite.
        """
        slope, slope_variance = self._slope, self._slope_variance
        if not self.weight:
            return Fit(level, slope, level_variance, slope_variance)
        noise = self.spread**2
        weight, x, xx, y, xy = (each / noise for each in self._sums)
        low, steep = 1.0 / level_variance, 1.0 / slope_variance
        a, b, c = weight + low, x, xx + steep
        right, down = y + level * low, xy + slope * steep
        whole = a * c - b * b
        return Fit(
            level=(c * right - b * down) / whole,
            slope=(a * down - b * right) / whole,
            variance=c / whole,
            slope_variance=a / whole,
            covariance=-b / whole,
        )

    def state(self) -> LineState:
        """Return what is to be kept."""
        return LineState(self._sums, self._squares, self._at, self.count)

    def restore(self, state: LineState) -> None:
        """Go on from what was kept."""
        self._sums, self._squares = state.sums, state.squares
        self._at, self.count = state.at, state.count

    def _scale(self, factor: float) -> None:
        first, second, third, fourth, fifth = (each * factor for each in self._sums)
        self._sums = (first, second, third, fourth, fifth)
        self._squares *= factor


class Sketch:
    """Counts of positive numbers in buckets of equal ratio (as DDSketch; Masson et al., 2019).

    Constant in size; a quantile is off by at most 5 %. A count halves every `half_life` seconds.
    """

    __slots__ = ("_half_life", "_landmark", "counts", "total", "version")

    def __init__(self, half_life: float) -> None:
        self._half_life = half_life
        #: Time at which a value counts as one.
        self._landmark = 0.0
        #: By bucket; only their ratios mean anything, see `weight`.
        self.counts: dict[int, float] = {}
        self.total = 0.0
        #: Values that were ever added.
        self.version = 0

    def add(self, value: float, now: float) -> None:
        """Take a value in; anything below 1 counts as 1."""
        if not self.version:
            self._landmark = now
        self.version += 1
        mass = math.exp2(min(1000.0, (now - self._landmark) / self._half_life))
        if mass > _GROWN:
            self._rebase(1.0 / mass)
            self._landmark, mass = now, 1.0
        place = bucket(value)
        self.counts[place] = self.counts.get(place, 0.0) + mass
        self.total += mass

    def weight(self, now: float) -> float:
        """Values in it, each counted as much as is left of it now."""
        return self.total * math.exp2(max(-1000.0, (self._landmark - now) / self._half_life))

    def blend(self, others: Sequence[float], share: float) -> list[float]:
        """Return the buckets' shares where it has this part of all and `others` have the rest."""
        rest = 1.0 - share
        found = [other * rest for other in others]
        if self.total > 0.0:
            part = share / self.total
            for place, mass in self.counts.items():
                found[place] += part * mass
        return found

    def state(self) -> tuple[float, int, dict[int, float]]:
        """Return what is to be kept."""
        return self._landmark, self.version, dict(self.counts)

    def restore(self, landmark: float, version: int, counts: dict[int, float]) -> None:
        """Go on from what was kept; raises ValueError if it cannot have been."""
        if any(not 0 <= place < BUCKETS or not mass >= 0.0 for place, mass in counts.items()):
            raise ValueError("no counts of a sketch")
        self._landmark, self.version, self.counts = landmark, version, dict(counts)
        self.total = math.fsum(counts.values())

    def _rebase(self, factor: float) -> None:
        # What has become too light to matter goes, so that the sketch does not fill up with it.
        scaled = {place: mass * factor for place, mass in self.counts.items()}
        self.counts = {place: mass for place, mass in scaled.items() if mass > 1.0 / _GROWN}
        self.total = math.fsum(self.counts.values())


def bucket(value: float) -> int:
    """Return the bucket of a number."""
    return min(BUCKETS - 1, round(math.log(value) / _LOG_RATIO)) if value > 1.0 else 0


def middle(place: int) -> float:
    """Return the number that stands for a bucket."""
    return math.exp(place * _LOG_RATIO)


def lognormal(median: float, spread: float) -> list[float]:
    """Return the buckets' shares for a lognormal distribution."""
    center = math.log(median)
    edges = [(place + 0.5) * _LOG_RATIO for place in range(BUCKETS - 1)]
    below = [0.5 * (1.0 + math.erf((edge - center) / (spread * math.sqrt(2.0)))) for edge in edges]
    return [high - low for low, high in zip([0.0, *below], [*below, 1.0], strict=True)]
