"""How much work a fleet can do, by what is true of it.

The work of a request on a device is the time for which it would have the device for itself, or
its share of the time where several decode at once. Half of what its session's turn before has left
in a cache counts as found there, between a fleet that never finds anything and one that always
does; loads of models do not count. So a fleet at "75 %" has a quarter of its time for loads, for
prompts that are read anew, and for chance. Where an engine batches, as many decode at once as its
pool holds of the requests' mean length.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

from msgspec import Struct

from herd.core.request import Request
from herd.sim.fleets import Device, Fleet
from herd.sim.spec import EngineSpec, ModelSpec

#: Share of a session's own prefix that counts as cached.
REUSE = 0.5
#: Rounds and step of the price adjustment below, enough for a few percent between its bounds.
_ROUNDS = 300
_STEP = 2.0


class Work(Protocol):
    """A request with its true lengths."""

    @property
    def request(self) -> Request:
        """What is asked."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""

    @property
    def output_tokens(self) -> int:
        """Tokens of the answer."""

    @property
    def shared(self) -> int:
        """Tokens of the prompt that the turn before has left in a cache."""


def span(fleet: Fleet, work: Iterable[Work]) -> float:
    """Return the least seconds in which the fleet can do the work, split up as it likes."""
    return bounds(fleet, work)[1]


def bounds(fleet: Fleet, work: Iterable[Work]) -> tuple[float, float]:
    """Return a lower and an upper bound of `span`, which is a linear program.

    Each model's work is given in fractions to the devices that have it, so that the busiest device
    has the least to do. Every division is an upper bound; and with any prices for a device's second
    that add up to 1, so is the cheapest cost of all work a lower one (weak duality). Devices that
    have more to do than others become dearer, and each model is divided by its costs, which brings
    the two together.
    """
    table = _table(fleet, work)
    prices = [1.0] * len(fleet.devices)
    low, high = 0.0, math.inf
    for number in range(_ROUNDS):
        sharpness = 4.0 + 60.0 * number / _ROUNDS
        loads = [0.0] * len(prices)
        cheapest = 0.0
        for row in table.values():
            costs = {index: prices[index] * seconds for index, seconds in row.items()}
            least = min(costs.values())
            cheapest += least
            if least <= 0.0:
                continue
            shares = {index: (least / cost) ** sharpness for index, cost in costs.items()}
            total = sum(shares.values())
            for index, share in shares.items():
                loads[index] += row[index] * share / total
        most = max(loads)
        low, high = max(low, cheapest / sum(prices)), min(high, most)
        if most <= 0.0:
            return 0.0, 0.0
        for index, load in enumerate(loads):
            prices[index] *= math.exp(_STEP / sharpness * (load / most - 1.0))
        top = max(prices)
        prices = [price / top for price in prices]
    return low, high


def _table(fleet: Fleet, work: Iterable[Work]) -> dict[str, dict[int, float]]:
    """Return the seconds of each model's whole work on each device that has it."""
    totals: dict[str, _Total] = {}
    for item in work:
        totals.setdefault(item.request.model, _Total()).add(item)
    table: dict[str, dict[int, float]] = {}
    for name, total in totals.items():
        table[name] = {
            index: _seconds(device, name, total)
            for index, device in enumerate(fleet.devices)
            if device.model(name) is not None
        }
        if not table[name]:
            raise ValueError(f"no device of fleet {fleet.name} has {name}")
    return table


class _Total(Struct):
    """The work of one model."""

    #: Tokens to be read, and to be decoded.
    fresh: float = 0.0
    output: float = 0.0
    #: Tokens of context that a request has while it decodes, weighted by what it decodes.
    context: float = 0.0

    def add(self, item: Work) -> None:
        decoded = max(0, item.output_tokens - 1)
        self.fresh += item.prompt_tokens - REUSE * item.shared
        self.output += decoded
        self.context += decoded * (item.prompt_tokens + decoded / 2)


def _seconds(device: Device, name: str, total: _Total) -> float:
    model = device.model(name)
    assert model is not None  # noqa: S101 - the caller looked
    spec = device.spec
    prefill = total.fresh / (model.prefill_rate or spec.prefill_rate)
    decode = total.output / (model.decode_rate or spec.decode_rate)
    return prefill + decode / _together(spec, model, total)


def _together(spec: EngineSpec, model: ModelSpec, total: _Total) -> float:
    """How many times the rate of one answer the device decodes at."""
    if spec.batching is None or not total.output:
        return spec.together
    held = spec.pool_blocks(model) * spec.batching.block / (total.context / total.output)
    count = max(1.0, min(float(spec.slots), held))
    return count / (1.0 + spec.batching.marginal * (count - 1.0))
