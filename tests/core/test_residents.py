"""Residents: what placement loads, keeps and evicts, and what it never does."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from herd.core.demand import Demand
from herd.core.fleet import ReplicaKey
from herd.core.residents import (
    FOREVER,
    HORIZON,
    MARGIN_EVICT,
    SPACING,
    SPACING_LOADS,
    STAY_LEAST,
    Device,
    Held,
    Item,
    Residents,
)

GB = 1e9
NOW = 1_700_000_000.0


def item(model: str = "m", node: str = "n", **known: float | bool) -> Item:
    """A replica of 5 GB that loads in 5 seconds and answers in 4."""
    fields: dict[str, float | bool] = {"need": 5 * GB, "load": 5.0, "service": 4.0, **known}
    return Item(key=ReplicaKey(node, "ollama", model), **fields)  # type: ignore[arg-type]


def device(*items: Item, node: str = "n", budget: float | None = 16 * GB, **known: float) -> Device:
    """A device with 16 GB for models."""
    return Device(node=node, name=node.upper(), budget=budget, items=items, **known)  # type: ignore[arg-type]


def asked(residents: Residents, model: str, every: float, *, until: float = NOW) -> None:
    """Ask for a model at equal distances for the last two hours."""
    for number in range(round(7200 / every), -1, -1):
        residents.demand.arrived(model, until - every * number)


def told(residents: Residents, *devices: Device, now: float = NOW) -> list[str]:
    """Plan, as short sentences."""
    return [
        f"{order.kind} {order.key.model} on {order.key.node}"
        for order in residents.plan(devices, now)
    ]


@pytest.fixture
def residents() -> Residents:
    """Nobody has asked for anything."""
    return Residents(Demand())


def test_what_is_asked_for_is_loaded_ahead(residents: Residents) -> None:
    asked(residents, "m", 120.0)

    assert told(residents, device(item())) == ["load m on n"]
    assert "to save about" in residents.plan([device(item(node="o"), node="o")], NOW)[0].reason


def test_nothing_is_loaded_that_nobody_asks_for(residents: Residents) -> None:
    assert told(residents, device(item())) == []


@pytest.mark.parametrize(
    "busy",
    [
        device(item(), wanted=True),
        device(item(), owned=True),
        device(item(), item("other", running=True, resident=True)),
        device(item(), item("other", loading=True)),
        device(item(), budget=None),
        device(item(orderable=False)),
        device(item(resident=True)),
        device(item(need=17 * GB)),
    ],
)
def test_a_device_that_is_not_free_gets_no_order(residents: Residents, busy: Device) -> None:
    asked(residents, "m", 120.0)

    assert told(residents, busy) == []


def test_a_model_that_is_warm_on_an_equal_free_device_is_not_loaded_again(
    residents: Residents,
) -> None:
    asked(residents, "m", 120.0)
    warm = device(item(node="w", resident=True), node="w")

    assert told(residents, warm, device(item())) == []


def test_a_faster_device_is_worth_a_load_that_no_single_request_would_pay(
    residents: Residents,
) -> None:
    """Each request alone prefers 8 seconds warm over 5 and 4; fifteen together do not."""
    asked(residents, "m", 120.0)
    slow = device(item(node="slow", resident=True, service=8.0), node="slow")

    assert told(residents, slow, device(item())) == ["load m on n"]


def test_a_second_replica_is_worth_its_load_once_the_first_is_busy(residents: Residents) -> None:
    asked(residents, "m", 30.0)
    busy = device(item(node="w", resident=True, running=True), node="w", taken=1.0)

    assert told(residents, busy, device(item())) == ["load m on n"]


def test_only_one_load_of_a_model_is_ordered_at_a_look(residents: Residents) -> None:
    asked(residents, "m", 120.0)
    twins = [device(item(node=node), node=node) for node in ("a", "b")]

    assert told(residents, *twins) == ["load m on a"]


def test_a_device_is_left_alone_for_a_while_after_a_load(residents: Residents) -> None:
    asked(residents, "m", 60.0)
    asked(residents, "x", 60.0)
    both = device(item(), item("x"))
    first = told(residents, both)
    assert len(first) == 1
    rest = max(SPACING, SPACING_LOADS * 5.0)

    assert told(residents, both, now=NOW + rest - 1.0) == []
    assert len(told(residents, both, now=NOW + rest)) == 1


def test_the_less_valuable_leaves_for_the_more_valuable(residents: Residents) -> None:
    asked(residents, "hot", 20.0)
    asked(residents, "cool", 1200.0)
    asked(residents, "warm", 240.0)
    full = device(
        item("hot", service=20.0, load=30.0),
        item("warm", resident=True, need=8 * GB),
        item("cool", resident=True, need=8 * GB),
    )
    told(residents, full)
    for model, every in (("hot", 20.0), ("warm", 240.0)):
        for number in range(int(STAY_LEAST / every) + 1):
            residents.demand.arrived(model, NOW + number * every)

    assert told(residents, full, now=NOW + STAY_LEAST) == ["unload cool on n", "load hot on n"]


def test_nothing_is_evicted_without_a_clear_benefit(residents: Residents) -> None:
    asked(residents, "a", 300.0)
    asked(residents, "b", 300.0)
    full = device(item("a", need=10 * GB), item("b", need=10 * GB, resident=True))
    told(residents, full)

    assert told(residents, full, now=NOW + STAY_LEAST) == []


def test_what_came_just_now_is_not_evicted(residents: Residents) -> None:
    asked(residents, "hot", 20.0)
    full = device(item("hot", need=10 * GB), item("cold", need=10 * GB, resident=True))
    assert told(residents, full) == []

    for number in range(30):
        residents.demand.arrived("hot", NOW + 20.0 * number)
    assert told(residents, full, now=NOW + STAY_LEAST - 1.0) == []
    assert told(residents, full, now=NOW + STAY_LEAST) == ["unload cold on n", "load hot on n"]


def test_a_pin_is_loaded_though_nobody_asks_and_stays_for_ever(residents: Residents) -> None:
    residents.pin({"m": ["N"]})
    pinned = device(item(), owned=True)

    assert told(residents, pinned) == ["load m on n"]
    assert residents.keep_alive(pinned.items[0].key, NOW) == FOREVER


def test_a_pin_is_loaded_again_when_it_is_missing(residents: Residents) -> None:
    residents.pin({"m": ["n"]})
    told(residents, device(item()))
    assert told(residents, device(item(resident=True)), now=NOW + 30.0) == []

    assert told(residents, device(item()), now=NOW + SPACING) == ["load m on n"]


def test_a_pin_for_any_node_takes_one_and_keeps_to_it(residents: Residents) -> None:
    residents.pin({"m": []})
    slow = device(item(node="slow", service=9.0), node="slow")
    fast = device(item(node="fast"), node="fast")
    assert told(residents, slow, fast) == ["load m on fast"]

    warm = structs.replace(slow, items=(structs.replace(slow.items[0], resident=True),))
    assert told(residents, warm, fast, now=NOW + SPACING) == ["load m on fast"]


def test_a_pin_is_not_evicted_and_its_memory_is_taken_while_it_is_missing(
    residents: Residents,
) -> None:
    residents.pin({"pin": ["n"]})
    asked(residents, "hot", 20.0)
    there = device(item("hot", need=10 * GB), item("pin", need=10 * GB, resident=True))
    told(residents, there)
    assert told(residents, there, now=NOW + STAY_LEAST) == []
    missing = device(
        item("hot", need=10 * GB), item("pin", need=10 * GB, orderable=True), owned=False
    )

    assert told(residents, missing, now=NOW + STAY_LEAST) == ["load pin on n"]


def test_a_pin_that_waits_for_a_running_model_is_loaded_once_that_is_idle(
    residents: Residents,
) -> None:
    residents.pin({"pin": ["n"]})
    full = device(item("pin", need=10 * GB), item("x", need=10 * GB, resident=True, running=True))
    assert told(residents, full) == []

    idle = structs.replace(
        full, items=(full.items[0], structs.replace(full.items[1], running=False))
    )
    assert told(residents, idle) == ["unload x on n", "load pin on n"]


def test_the_more_valuable_is_kept_longer(residents: Residents) -> None:
    asked(residents, "hot", 30.0)
    asked(residents, "rare", 3600.0)
    both = device(item("hot", resident=True), item("rare", resident=True, need=30 * GB))
    told(residents, both)
    hot, rare = (residents.keep_alive(each.key, NOW) for each in both.items)

    assert hot == 4 * 3600.0
    assert rare == 3600.0
    assert residents.keep_alive(ReplicaKey("n", "ollama", "unknown"), NOW) is None


def test_victims_are_idle_first_then_the_least_valuable_and_no_more_than_needed(
    residents: Residents,
) -> None:
    asked(residents, "hot", 30.0)
    resident = [item(name, resident=True) for name in ("hot", "cold", "big")]
    told(residents, device(*resident))
    hot, cold, big = (each.key for each in resident)
    held = [
        Held(hot, 5 * GB, busy=False),
        Held(cold, 5 * GB, busy=True),
        Held(big, 9 * GB, busy=False),
    ]

    assert residents.victims(held, 4 * GB) == [big]
    assert residents.victims(held, 10 * GB) == [big, hot]
    assert residents.victims(held, 15 * GB) == [big, hot, cold]
    assert residents.victims(held, 20 * GB) is None
    assert residents.victims(held, 0.0) == []
    assert residents.cost([hot]) > residents.cost([big]) == 0.0


def test_a_large_victim_lets_small_ones_stay(residents: Residents) -> None:
    small, large = ReplicaKey("n", "e", "a"), ReplicaKey("n", "e", "b")
    held = [Held(small, 2 * GB, busy=False), Held(large, 9 * GB, busy=False)]

    assert residents.victims(held, 8 * GB) == [large]


def test_the_cost_of_evicting_is_the_chance_of_a_reload_times_its_seconds(
    residents: Residents,
) -> None:
    residents.demand.arrived("m", NOW)
    only = device(item(resident=True))
    told(residents, only)
    chance = residents.demand.chance("m", NOW, HORIZON)

    assert residents.cost([only.items[0].key]) == pytest.approx(chance * 5.0, rel=0.02)


class Fleet:
    """Devices that do what they are told, after a load's time, and forget what they please."""

    def __init__(self, draw: st.DataObject, pins: dict[str, list[str]]) -> None:
        self.draw = draw
        self.residents = Residents(Demand(), pins)
        self.now = NOW
        self.loaded: dict[ReplicaKey, float] = {}
        self.evicted: dict[str, list[float]] = defaultdict(list)
        self.loads: dict[str, list[float]] = defaultdict(list)
        models = draw.draw(st.integers(2, 5), label="models")
        self.devices = [
            device(
                *(
                    item(
                        f"m{model}",
                        node,
                        need=draw.draw(st.integers(1, 12), label="GB") * GB,
                        load=draw.draw(st.floats(0.5, 30.0), label="load"),
                        service=draw.draw(st.floats(0.5, 60.0), label="service"),
                    )
                    for model in range(models)
                ),
                node=node,
                budget=draw.draw(st.integers(4, 24), label="budget") * GB,
            )
            for node in ("a", "b")
        ]

    def look(self) -> list[Device]:
        found = []
        for each in self.devices:
            running = self.draw.draw(st.booleans(), label="running")
            items = tuple(
                structs.replace(
                    one,
                    resident=self.loaded.get(one.key, self.now + 1.0) <= self.now,
                    loading=self.loaded.get(one.key, 0.0) > self.now,
                    running=running and self.loaded.get(one.key, self.now + 1.0) <= self.now,
                )
                for one in each.items
            )
            found.append(structs.replace(each, items=items, taken=float(running)))
        return found

    def step(self) -> None:
        self.now += self.draw.draw(st.sampled_from([5.0, 30.0, 120.0, 900.0]), label="pause")
        for model in self.draw.draw(st.lists(st.integers(0, 4), max_size=4), label="asked"):
            self.residents.demand.arrived(f"m{model}", self.now)
        seen = {each.node: each for each in self.look()}
        known = {one.key: one for each in seen.values() for one in each.items}
        loads: set[str] = set()
        for order in self.residents.plan(list(seen.values()), self.now):
            target, place = known[order.key], seen[order.key.node]
            if order.kind == "unload":
                assert target.resident, "only what is there can leave"
                assert not target.running, "never during a request"
                assert not self.residents.pinned(order.key), "pins stay"
                del self.loaded[order.key]
                self.evicted[order.key.node].append(self.now)
                continue
            assert not target.held, "what is there is not loaded"
            assert order.key.node not in loads, "one load for each device at a time"
            loads.add(order.key.node)
            self.loaded[order.key] = self.now + target.load
            self.loads[order.key.node].append(self.now)
            held = sum(one.need for one in place.items if one.key in self.loaded)
            assert held <= (place.budget or 0.0), "memory is never over-committed"


@settings(max_examples=60, deadline=None)
@given(draw=st.data())
def test_whatever_is_asked_orders_stay_within_their_bounds(draw: st.DataObject) -> None:
    pins = draw.draw(st.sampled_from([{}, {"m0": ["a"]}, {"m0": [], "m1": ["b"]}]), label="pins")
    fleet = Fleet(draw, pins)
    for _ in range(draw.draw(st.integers(1, 25), label="steps")):
        fleet.step()

    for times in fleet.loads.values():
        assert all(later - sooner >= SPACING for sooner, later in pairwise(times))


@settings(max_examples=40, deadline=None)
@given(draw=st.data())
def test_a_pin_that_fits_is_in_memory_soon_after_its_device_is_idle(draw: st.DataObject) -> None:
    fleet = Fleet(draw, {"m0": ["a"]})
    pin = fleet.devices[0].items[0]
    for _ in range(draw.draw(st.integers(1, 10), label="steps")):
        fleet.step()
    fits = pin.need <= (fleet.devices[0].budget or 0.0)
    for _ in range(3):
        fleet.now += max(SPACING, SPACING_LOADS * 30.0)
        idle = [
            structs.replace(
                each,
                taken=0.0,
                items=tuple(structs.replace(one, running=False) for one in each.items),
            )
            for each in fleet.look()
        ]
        for order in fleet.residents.plan(idle, fleet.now):
            if order.kind == "load":
                fleet.loaded[order.key] = fleet.now
            else:
                fleet.loaded.pop(order.key, None)

    assert (pin.key in fleet.loaded) == fits


def test_two_models_that_take_turns_do_not_thrash(residents: Residents) -> None:
    """However the demand alternates, a device loads less than a sixth of the time it could."""
    loaded = "a"
    loads = 0
    now = NOW
    for step in range(2 * 720):  # two hours, a look each five seconds
        now += 5.0
        residents.demand.arrived("a" if step // 36 % 2 else "b", now)
        both = device(
            item("a", need=10 * GB, resident=loaded == "a"),
            item("b", need=10 * GB, resident=loaded == "b"),
        )
        for order in residents.plan([both], now):
            if order.kind == "load":
                loaded = order.key.model
                loads += 1

    assert loads <= 2 * 3600 / STAY_LEAST
    assert MARGIN_EVICT > 1.0
