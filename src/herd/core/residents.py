"""What is worth keeping in memory, loading before it is asked for, and evicting.

Theory of operation. The value of a model in a device's memory is the seconds that its requests are
expected to save by it within a horizon: how many come (`demand`), times how much longer each would
take if the model were not there, which is the way to the next best device or the load, whichever
is less. So a model that is warm on an equally fast idle device has no value here, and one whose
every request would rather use a slow warm device than wait for a load has the value of all of
those requests together, which no single one of them could see.

Orders follow from it. A model is loaded ahead on a device that is idle and whose owner leaves it
alone, where its value exceeds the cost: a share of the load, and by a margin the value of whatever
would have to leave, which must have been there for a while. So however demand moves, a device gets
at most `3600 / SPACING` loads an hour from here, spends at most `1 / SPACING_LOADS` of its time on
them, and no model is evicted from here more often than `3600 / STAY_LEAST` times an hour.

Pins are the owner's word: always in memory, loaded again when missing, never evicted from here.
As they are looked at first, and others are loaded on idle devices alone, nobody takes the memory
of a pin that is missing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

from msgspec import Struct

from herd.core.demand import Demand
from herd.core.fleet import ReplicaKey

#: Seconds ahead for which value is counted.
HORIZON = 1800.0
#: Seconds between two loads that are ordered on a device, and as a multiple of the last load.
SPACING = 60.0
SPACING_LOADS = 10.0
#: Seconds that a model has been in memory before it is evicted for another's sake.
STAY_LEAST = 600.0
#: What a load must be worth: this share of its own seconds, in which the device is idle, but may be
#: asked for something else; and this multiple of what those who leave for it are worth. What is
#: predicted from little is often wrong by half.
MARGIN_LOAD = 0.5
MARGIN_EVICT = 2.0
#: Seconds of waiting that a gigabyte kept for an hour must save, so that it is kept that long.
PRICE = 0.1
#: Seconds that a model may be kept after its last request, by its value; the engine's own default
#: (Ollama: five minutes) otherwise. Ollama itself evicts the idle model with the shortest of these
#: first, so they order its evictions by value too.
STAYS = (4.0 * 3600.0, 3600.0, 1800.0)
FOREVER = -1.0
#: Time constant of how busy a device is, in seconds.
BUSY = 600.0
BUSY_MOST = 0.9
#: Models that are less likely than this to be asked for within the horizon are worth nothing.
CHANCE_LEAST = 1e-3
#: Alternatives that are looked at for a model's requests; a ninth would hardly ever be used.
ALTERNATIVES = 8
GB = 1e9


class Item(Struct, frozen=True, kw_only=True):
    """A replica, as placement sees it."""

    key: ReplicaKey
    #: Bytes that it takes in memory, or would.
    need: float
    #: Seconds of its load, and of a usual request for its model once it is loaded.
    load: float
    service: float
    resident: bool = False
    loading: bool = False
    #: Something runs on it.
    running: bool = False
    #: Its engine is up, can use it, and loads and unloads when it is told.
    orderable: bool = True

    @property
    def held(self) -> bool:
        """Its memory is not free."""
        return self.resident or self.loading or self.running


class Device(Struct, frozen=True, kw_only=True):
    """A node, as placement sees it."""

    node: str
    name: str
    #: Bytes that models may fill; None unknown.
    budget: float | None
    items: tuple[Item, ...]
    #: Share of its slots that are taken, 0 to 1.
    taken: float = 0.0
    #: Requests wait that want its memory or its slots.
    wanted: bool = False
    #: Its owner, or another program, uses it.
    owned: bool = False

    @property
    def idle(self) -> bool:
        """Nothing runs, loads or waits."""
        return not self.wanted and not any(item.running or item.loading for item in self.items)


class Held(Struct, frozen=True):
    """A model in memory that might have to leave."""

    key: ReplicaKey
    need: float
    #: It runs or is being loaded.
    busy: bool


class Order(Struct, frozen=True, kw_only=True):
    """Load a replica, or let it leave memory, and why, in words for the owner."""

    kind: Literal["load", "unload"]
    key: ReplicaKey
    reason: str


class _Busy(Struct):
    """How busy a device was lately."""

    share: float
    at: float


class Residents:
    """Decides what is in memory. Its state is bounded by the replicas of the fleet."""

    def __init__(self, demand: Demand, pins: Mapping[str, Collection[str]] | None = None) -> None:
        self.demand = demand
        #: Models that are to stay in memory, and the nodes (ids or names); none for any one node.
        self.pins: dict[str, frozenset[str]] = {}
        #: When each replica that is in memory was first seen there.
        self._since: dict[ReplicaKey, float] = {}
        #: Seconds saved within the horizon by each replica that is, or might be, in memory, and
        #: those saved by its model's next request alone.
        self._values: dict[ReplicaKey, float] = {}
        self._firsts: dict[ReplicaKey, float] = {}
        #: Seconds that evicting it for a request costs: it may be loaded again, once.
        self._reloads: dict[ReplicaKey, float] = {}
        self._needs: dict[ReplicaKey, float] = {}
        self._busy: dict[str, _Busy] = {}
        #: Nothing is ordered for a device before this time.
        self._not_before: dict[str, float] = {}
        #: Replicas that pins mean, as of the last plan.
        self._pinned: set[ReplicaKey] = set()
        self.pin(pins or {})

    def pin(self, pins: Mapping[str, Collection[str]]) -> None:
        """Take the owner's pins: models, and on which nodes; an empty collection is any one."""
        self.pins = {model: frozenset(nodes) for model, nodes in pins.items()}

    def pinned(self, key: ReplicaKey) -> bool:
        """Whether a pin means this replica, as of the last plan."""
        return key in self._pinned

    def value(self, key: ReplicaKey) -> float:
        """Seconds that the replica's being in memory saves within the horizon; 0 unknown."""
        return self._values.get(key, 0.0)

    def plan(self, devices: Sequence[Device], now: float) -> list[Order]:
        """Look at the fleet and say what to load and what to unload, in that order of doing.

        At most one load for each device and, but for pins, one for each model: what it changes for
        the others is seen at the next look.
        """
        self._observe(devices, now)
        self._find_pins(devices)
        self._evaluate(devices, now)
        orders: list[Order] = []
        used: set[str] = set()
        for device in devices:
            pin = self._missing_pin(device, now)
            if pin is not None:
                found = self._make_room(device, pin, math.inf, now)
                if found is not None:
                    self._order(device, pin, found, "pinned by the owner", now, orders)
                    used.add(device.node)
        models: set[str] = set()
        for net, device, item in self._candidates(devices, now):
            if device.node in used or item.key.model in models:
                continue
            room = self._make_room(device, item, self.value(item.key), now)
            if room is None:
                continue
            used.add(device.node)
            models.add(item.key.model)
            self._order(device, item, room, f"to save about {net:.0f} s soon", now, orders)
        return orders

    def keep_alive(self, key: ReplicaKey, now: float) -> float | None:
        """Seconds that the model is to stay after its last request; None for the default."""
        if key in self._pinned:
            return FOREVER
        first, need = self._firsts.get(key, 0.0), self._needs.get(key, 0.0)
        if first <= 0.0:
            return None
        for stay in STAYS:
            saved = first * self.demand.chance(key.model, now, stay)
            if saved >= PRICE * need / GB * stay / 3600.0:
                return stay
        return None

    def cost(self, victims: Iterable[ReplicaKey]) -> float:
        """Seconds that evicting these for a request is expected to cost.

        What their being there would save, at most their load times the chance that somebody asks
        for them: from then on they may be there again.
        """
        return sum(self._reloads.get(key, 0.0) for key in victims)

    def victims(self, held: Iterable[Held], short: float) -> list[ReplicaKey] | None:
        """Choose what leaves memory for a load that needs `short` more bytes, least loss first.

        Idle models by value for each byte, then busy ones; none that turns out not to be needed.
        None if pins leave too little.
        """
        able = [each for each in held if each.key not in self._pinned]
        able.sort(
            key=lambda each: (each.busy, self.value(each.key) / max(1.0, each.need), each.key)
        )
        out: list[Held] = []
        for each in able:
            if short <= 0.0:
                break
            out.append(each)
            short -= each.need
        if short > 0.0:
            return None
        # A large one, taken last, may let small ones stay that were taken before it.
        over = -short
        for each in reversed(out.copy()):
            if each.need <= over:
                out.remove(each)
                over -= each.need
        return [each.key for each in out]

    # What is seen

    def _observe(self, devices: Sequence[Device], now: float) -> None:
        known = {item.key for device in devices for item in device.items}
        for device in devices:
            busy = self._busy.setdefault(device.node, _Busy(device.taken, now))
            busy.share += (device.taken - busy.share) * -math.expm1((busy.at - now) / BUSY)
            busy.at = now
            for item in device.items:
                if not item.resident:
                    self._since.pop(item.key, None)
                else:
                    self._since.setdefault(item.key, now)
        here = {device.node for device in devices}
        for table in (self._since, self._values, self._firsts, self._reloads, self._needs):
            for key in [key for key in table if key not in known]:
                del table[key]
        for node in [node for node in self._busy if node not in here]:
            del self._busy[node]
            self._not_before.pop(node, None)

    def _find_pins(self, devices: Sequence[Device]) -> None:
        before, self._pinned = self._pinned, set()
        for model, nodes in self.pins.items():
            able = [
                (device, item)
                for device in devices
                for item in device.items
                if item.key.model == model and item.orderable and _fits(device, item)
            ]
            if nodes:
                self._pinned.update(
                    item.key for device, item in able if nodes & {device.node, device.name}
                )
            elif able:
                # One that was chosen stays chosen; else one that is there, else the fastest.
                best = min(
                    (item for _, item in able),
                    key=lambda item: (item.key not in before, not item.held, item.service),
                )
                self._pinned.add(best.key)

    # What it is worth

    def _evaluate(self, devices: Sequence[Device], now: float) -> None:
        homes: dict[str, list[tuple[float, Item]]] = {}
        for device in devices:
            busy = self._busy[device.node].share
            for item in device.items:
                homes.setdefault(item.key.model, []).append((busy, item))
                self._needs[item.key] = item.need
        for model, there in homes.items():
            chance = self.demand.chance(model, now, HORIZON)
            if chance < CHANCE_LEAST:
                for _, item in there:
                    for table in (self._values, self._firsts, self._reloads):
                        table.pop(item.key, None)
                continue
            requests = self.demand.expected(model, now, HORIZON)
            ways = sorted((_cost(item, warm=item.held), busy, item.key) for busy, item in there)
            for busy, item in there:
                first = self._saved(ways, item, busy)
                self._firsts[item.key] = first
                worth = _worth(ways, item, first, requests, chance)
                self._values[item.key] = worth
                self._reloads[item.key] = min(worth, chance * item.load)

    @staticmethod
    def _saved(ways: list[tuple[float, float, ReplicaKey]], item: Item, busy: float) -> float:
        """Seconds that a request saves if the model is in memory there."""
        others = [way for way in ways[: ALTERNATIVES + 1] if way[2] != item.key]
        cold = (_cost(item, warm=False), busy)
        warm = (_cost(item, warm=True), busy)
        rest = [(cost, share) for cost, share, _ in others]
        return max(0.0, _expected_cost([*rest, cold]) - _expected_cost([*rest, warm]))

    # What follows

    def _candidates(
        self, devices: Sequence[Device], now: float
    ) -> list[tuple[float, Device, Item]]:
        """Loads that would be worth their own cost, the best first."""
        found = []
        for device in devices:
            if not self._open(device, now) or device.owned or device.budget is None:
                continue
            if not device.idle:
                continue
            for item in device.items:
                net = self.value(item.key) - MARGIN_LOAD * item.load
                if item.orderable and not item.held and net > 0.0:
                    found.append((net, device, item))
        found.sort(key=lambda each: (-each[0], each[2].key))
        return found

    def _missing_pin(self, device: Device, now: float) -> Item | None:
        if not self._open(device, now) or any(item.loading for item in device.items):
            return None
        missing = [item for item in device.items if self.pinned(item.key) and not item.held]
        return min(missing, key=lambda item: item.key, default=None)

    def _open(self, device: Device, now: float) -> bool:
        return now >= self._not_before.get(device.node, -math.inf)

    def _make_room(
        self, device: Device, item: Item, value: float, now: float
    ) -> list[ReplicaKey] | None:
        """What has to leave for a load; None if it cannot be, or is not worth it."""
        if device.budget is None:
            return []
        pinned = item.key in self._pinned
        held = [other for other in device.items if other.held]
        short = item.need + sum(other.need for other in held) - device.budget
        if short <= 0.0:
            return []
        able = [
            Held(other.key, other.need, busy=False)
            for other in held
            if self._may_leave(other, now, pinned=pinned)
        ]
        out = self.victims(able, short)
        if out is None:
            return None
        cost = MARGIN_LOAD * item.load + MARGIN_EVICT * sum(map(self.value, out))
        return out if value >= cost else None

    def _may_leave(self, item: Item, now: float, *, pinned: bool) -> bool:
        if item.running or item.loading or not item.orderable or item.key in self._pinned:
            return False
        return pinned or now - self._since.get(item.key, now) >= STAY_LEAST

    def _order(
        self,
        device: Device,
        item: Item,
        victims: list[ReplicaKey],
        reason: str,
        now: float,
        orders: list[Order],
    ) -> None:
        for victim in victims:
            why = f"{item.key.model} needs its memory, {reason}"
            orders.append(Order(kind="unload", key=victim, reason=why))
        orders.append(Order(kind="load", key=item.key, reason=reason))
        self._not_before[device.node] = now + max(SPACING, SPACING_LOADS * item.load)


def _cost(item: Item, *, warm: bool) -> float:
    return item.service if warm else item.service + item.load


def _expected_cost(ways: list[tuple[float, float]]) -> float:
    """Seconds of a request that takes the first of its ways that is free, the shortest first.

    Each way is its seconds and the share of time for which it is taken. Rather than take a way
    that is much longer it waits for the shortest: in a queue with random arrivals (M/M/1) for
    `cost / (1 - busy)` seconds, given that it is taken.
    """
    ways.sort()
    best, taken = ways[0]
    waiting = best + best / (1.0 - min(BUSY_MOST, taken))
    total, left = 0.0, 1.0
    for cost, busy in ways[:ALTERNATIVES]:
        if cost >= waiting:
            break
        total += left * (1.0 - busy) * cost
        left *= busy
    return total + left * waiting


def _worth(
    ways: list[tuple[float, float, ReplicaKey]],
    item: Item,
    first: float,
    requests: float,
    chance: float,
) -> float:
    """Seconds saved within the horizon, if the model's next request saves `first`."""
    best = next((cost for cost, _, key in ways if key != item.key), math.inf)
    if _cost(item, warm=False) < best:
        # The first request would load it by itself: it waits for that, and so does who comes
        # meanwhile, on average for half of it.
        beside = 0.5 * requests / HORIZON * item.load
        return chance * first * (1.0 + beside)
    return requests * first


def _fits(device: Device, item: Item) -> bool:
    return device.budget is None or item.need <= device.budget
