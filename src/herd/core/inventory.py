"""The fleet as placement sees it: the scheduler's nodes and replicas as plain values."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from herd.core import priors
from herd.core.actions import Action, Preload, Stay, Unload
from herd.core.contexts import ContextPlan
from herd.core.demand import Demand
from herd.core.fleet import ReplicaKey
from herd.core.residents import Device, Held, Item, Order, Residents
from herd.core.state import NodeState, ReplicaState
from herd.core.use import OWNED


def survey(
    nodes: Iterable[NodeState],
    demand: Demand,
    contexts: ContextPlan,
    waiting: Collection[str],
    now: float,
) -> list[Device]:
    """Describe every node that is not leaving; `waiting` are the models that requests wait for."""
    return [_device(node, demand, contexts, waiting, now) for node in nodes if not node.draining]


def actions(
    orders: Iterable[Order],
    replicas: dict[ReplicaKey, ReplicaState],
    residents: Residents,
    contexts: ContextPlan,
    now: float,
) -> list[Action]:
    """Put orders into actions, in their order. Whoever takes them must note the loads begun."""
    found: list[Action] = []
    for order in orders:
        replica = replicas[order.key]
        if order.kind == "unload":
            found.append(Unload(replica.target(), order.reason))
            continue
        stay = Stay(
            context=contexts.planned(replica, now) or None,
            keep_alive=residents.keep_alive(order.key, now),
        )
        found.append(Preload(replica.target(), stay, order.reason))
    return found


def victims(
    replica: ReplicaState, residents: Residents, contexts: ContextPlan, now: float
) -> tuple[list[ReplicaState], float] | None:
    """Return what must leave memory for a cold load of this replica, and its expected cost.

    Empty and 0 where there is room, where it is loaded already, or where the device's memory is
    unknown; None if pins leave too little. Models that share their weights count once.

    Ollama would choose otherwise: the idle model with the shortest time to stay, then by the name
    of its file. Unload what is idle here before the load, and it need not choose.
    """
    budget = replica.node.budget
    if replica.occupied or budget is None:
        return [], 0.0
    others = {other.key: other for other in replica.node.siblings(replica) if other.occupied}
    needs: dict[str | ReplicaKey, float] = {}
    for other in others.values():
        needs[other.spec.digest or other.key] = contexts.need_loaded(other)
    # What the context takes is a guess until it was loaded somewhere: the whole device is enough
    # for a model whose weights fit, and the engine knows what to do with the rest.
    short = min(contexts.need_cold(replica, now), budget) + sum(needs.values()) - budget
    if short <= 0.0:
        return [], 0.0
    held = (
        Held(key, contexts.need_loaded(other), busy=_busy(other)) for key, other in others.items()
    )
    out = residents.victims(held, short)
    if out is None:
        return None
    return [others[key] for key in out], residents.cost(out)


def _device(
    node: NodeState,
    demand: Demand,
    contexts: ContextPlan,
    waiting: Collection[str],
    now: float,
) -> Device:
    items = tuple(_item(replica, demand, contexts, now) for replica in node.replicas.values())
    cpu = node.load.cpu
    taken = sum(
        len(replica.running) / max(1, replica.spec.slots) for replica in node.replicas.values()
    )
    return Device(
        node=node.report.node,
        name=node.report.name,
        budget=_budget(node, sum(item.need for item in items if item.held)),
        items=items,
        taken=min(1.0, taken),
        wanted=node.reserved is not None
        or bool(node.planned)
        or any(replica.key.model in waiting for replica in node.replicas.values()),
        owned=cpu is not None and cpu >= OWNED and node.running == 0,
    )


def _item(replica: ReplicaState, demand: Demand, contexts: ContextPlan, now: float) -> Item:
    rates = replica.learning.rates
    held = replica.occupied
    return Item(
        key=replica.key,
        need=contexts.need_loaded(replica) if held else contexts.need_cold(replica, now),
        load=rates.load,
        service=demand.work(replica.key.model, rates),
        resident=replica.resident,
        loading=replica.loading_until > 0.0,
        running=bool(replica.running),
        orderable=replica.up and replica.guard.hold(now) <= 0.0 and _obeys(replica),
    )


def _obeys(replica: ReplicaState) -> bool:
    """Whether the engine loads and unloads when told: a llama-server with one model does not."""
    kind = replica.engine.kind
    return kind in priors.LOADS_ON_DEMAND and (
        kind != "llamacpp" or len(replica.engine.replicas) > 1
    )


def _budget(node: NodeState, held: float) -> float | None:
    """Bytes that models may fill now: less than usual where the owner's programs have them."""
    budget = node.budget
    available = node.load.memory_available
    if budget is None or available is None or node.report.hardware.vram_bytes:
        return budget
    return min(budget, held + available)


def _busy(replica: ReplicaState) -> bool:
    return bool(replica.running) or replica.loading_until > 0.0
