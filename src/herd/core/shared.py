"""What replicas have in common: how far priors are off on a device, and for a model.

An additive model of the logarithm of actual over predicted: a replica is off by what its device is
off, what its model is off, and something of its own. Each replica gives its own mean, weighed by
its certainty, to its device and to its model; each takes out what the other explains, and shrinks
towards 0 (ridge regression by backfitting; Hastie and Tibshirani, 1990). A replica replaces what
it gave before, so sums suffice, whatever the number of outcomes.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

from msgspec import Struct

from herd.core.statistics import ROBUST

#: What is learned of a replica.
Quantity = Literal["prefill", "decode", "load"]
QUANTITIES: tuple[Quantity, ...] = ("prefill", "decode", "load")

#: Spread of the three parts before anything is known, as standard deviations of the logarithm.
#: Two machines of one name, two models of one size: some tenths, as any table of benchmarks shows.
DEVICE = 0.35
MODEL = 0.25
PAIR = 0.25
#: Dependants are told of a change from this on; less would not change a decision.
_TOLD = 0.01

#: Weather: standard deviation of a device's slowness of the moment, and the seconds after which a
#: third of it is left without news. Heat builds up and goes over minutes, so does an owner's work.
WEATHER = 0.2
WEATHER_SECONDS = 300.0


class Dependant(Protocol):
    """Whoever builds on what is shared."""

    #: What is believed of device or model has changed since it was last looked at. No more than a
    #: mark, as one outcome may matter to a thousand replicas of which few are looked at.
    stale: bool

    def feel(self) -> None:
        """The weather of the device has changed."""


class SharedState(Struct, frozen=True, array_like=True):
    """A `Shared` at rest: weight and weighted sum of each quantity, and a device's weather."""

    sums: dict[Quantity, tuple[float, float]] = {}
    weather: tuple[float, float, float] = (0.0, WEATHER**2, 0.0)


class Shared:
    """The part of priors' errors that one model has on all devices; a `Device` has its own."""

    #: Standard deviation before anything is known.
    spread = MODEL

    def __init__(self) -> None:
        self._sums: dict[Quantity, tuple[float, float]] = {}
        self._told: dict[Quantity, float] = {}
        self.dependants: list[Dependant] = []

    def value(self, quantity: Quantity) -> float:
        """The believed logarithm; 0 until something was learned."""
        weight, total = self._sums.get(quantity, (0.0, 0.0))
        return total / (weight + self.spread**-2)

    def variance(self, quantity: Quantity) -> float:
        """How uncertain that is."""
        return 1.0 / (self._sums.get(quantity, (0.0, 0.0))[0] + self.spread**-2)

    def replace(
        self, quantity: Quantity, old: tuple[float, float], new: tuple[float, float]
    ) -> None:
        """Take (weight, value) of a replica in place of what it gave before."""
        weight, total = self._sums.get(quantity, (0.0, 0.0))
        weight += new[0] - old[0]
        total += new[0] * new[1] - old[0] * old[1]
        self._sums[quantity] = (max(0.0, weight), total)

    def tell(self, quantity: Quantity, *, but: Dependant) -> None:
        """Tell the others if the belief has moved enough to matter."""
        value = self.value(quantity)
        if abs(value - self._told.get(quantity, 0.0)) > _TOLD:
            self._told[quantity] = value
            for dependant in self.dependants:
                if dependant is not but:
                    dependant.stale = True

    def state(self) -> SharedState:
        """Return what is to be kept."""
        return SharedState(dict(self._sums))

    def restore(self, state: SharedState) -> None:
        """Go on from what was kept."""
        self._sums = dict(state.sums)
        self._told = {quantity: self.value(quantity) for quantity in self._sums}


class Device(Shared):
    """What holds for all models on one device; and its weather.

    The weather is a factor on all durations that comes and goes: heat, the owner's use, a backup.
    A filter for a value that returns to 0 by itself (Ornstein and Uhlenbeck, 1930; Kalman, 1960):
    the surer a replica's own rates are, the more of a surprise is put down to the weather. Where it
    is known beforehand that others use the device it returns to what that is expected to cost.
    """

    spread = DEVICE

    def __init__(self) -> None:
        super().__init__()
        self._weather = 0.0
        #: What it returns to.
        self._usual = 0.0
        self._variance = WEATHER**2
        self._at = 0.0
        self._felt = 0.0

    @property
    def weather(self) -> float:
        """Logarithm of the slowness as last told to dependants; above 0 is slower than usual."""
        return self._felt

    @property
    def weather_variance(self) -> float:
        """How uncertain it is."""
        return self._variance

    def tick(self, now: float) -> None:
        """Let the weather fade with time. Call it with every heartbeat."""
        past = now - self._at
        if past <= 0.0:
            return
        self._at = now
        left = math.exp(-past / WEATHER_SECONDS)
        self._weather = self._usual + left * (self._weather - self._usual)
        self._variance = left**2 * self._variance + (1.0 - left**2) * WEATHER**2
        self._feel()

    def changed(self, slower: float, now: float, *, used: bool) -> None:
        """Others begin or cease to use it; everything is expected to take so many times longer.

        Slowness that was seen before they began may be theirs already, and goes with them.
        """
        self.tick(now)
        self._usual = math.log(slower)
        self._weather = (max if used else min)(self._weather, self._usual)
        self._variance = WEATHER**2
        self._feel()

    def surprise(self, error: float, variance: float, now: float) -> None:
        """An outcome took `error` (in logarithms) longer than believed, the weather included.

        `variance` is how far off the replica's own rates, and a single outcome, may well be.
        """
        self.tick(now)
        whole = self._variance + variance
        gain = self._variance / whole
        reach = ROBUST * math.sqrt(whole)
        self._weather += gain * min(reach, max(-reach, error))
        # One that is far off moves it little, for it may be a stall. A second one is believed.
        self._variance = self._variance * (1.0 - gain) if abs(error) < reach else WEATHER**2
        self._feel()

    def state(self) -> SharedState:
        """Return what is to be kept."""
        return SharedState(dict(self._sums), (self._weather, self._variance, self._at))

    def restore(self, state: SharedState) -> None:
        """Go on from what was kept."""
        super().restore(state)
        self._weather, self._variance, self._at = state.weather
        self._felt = self._weather

    def _feel(self) -> None:
        if abs(self._weather - self._felt) > _TOLD:
            self._felt = self._weather
            for dependant in self.dependants:
                dependant.feel()
