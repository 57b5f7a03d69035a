"""The fleet as it is now, for people and programs to read: a snapshot of the scheduler."""

from __future__ import annotations

from msgspec import Struct

from herd.core.fleet import Capability, EngineKind, Hardware, Load, ReplicaKey, Residency
from herd.core.priors import Rates
from herd.core.scheduler import Scheduler
from herd.core.state import NodeState, ReplicaState
from herd.core.task import Task

#: Open requests that are listed one by one; more are only counted.
LISTED = 200


class ReplicaView(Struct, frozen=True, kw_only=True):
    """One model on one engine."""

    model: str
    name: str
    residency: Residency
    size: int
    context_length: int
    loaded_context: int
    memory_bytes: int
    capabilities: tuple[Capability, ...]
    slots: int
    #: Requests of ours that run now, and waiting ones whose present plan is this replica.
    running: int
    planned: int
    #: Tokens per second and seconds, as believed now, and from how many outcomes.
    rates: Rates
    outcomes: int
    #: Seconds that it still rests after a failure; 0 if it does not.
    resting: float


class EngineView(Struct, frozen=True, kw_only=True):
    """An engine and its replicas."""

    id: str
    kind: EngineKind
    url: str
    version: str
    up: bool
    error: str
    replicas: tuple[ReplicaView, ...]


class NodeView(Struct, frozen=True, kw_only=True):
    """A node and its engines."""

    node: str
    name: str
    #: Version of the agent; empty for a node without one.
    agent: str
    hardware: Hardware
    load: Load
    leaving: bool
    #: Seconds since it was last heard of.
    silent: float
    running: int
    planned: int
    engines: tuple[EngineView, ...]


class OpenRequest(Struct, frozen=True, kw_only=True):
    """A request that has not ended."""

    id: str
    model: str
    endpoint: str
    client: str
    state: str
    #: Seconds since it arrived.
    age: float
    #: Where it runs, or is planned to run.
    replica: ReplicaKey | None


class FleetView(Struct, frozen=True, kw_only=True):
    """Everything at one moment."""

    at: float
    nodes: tuple[NodeView, ...]
    running: int
    waiting: int
    #: The oldest open requests, at most `LISTED`.
    requests: tuple[OpenRequest, ...]


def view(scheduler: Scheduler, now: float) -> FleetView:
    """Take a snapshot; it shares nothing with the scheduler that could change."""
    planned: dict[ReplicaKey, int] = {}
    for task in scheduler.tasks.values():
        if task.booking is not None:
            key = task.booking.replica.key
            planned[key] = planned.get(key, 0) + 1
    tasks = list(scheduler.tasks.values())
    return FleetView(
        at=now,
        nodes=tuple(_node(node, planned, now) for node in scheduler.nodes.values()),
        running=sum(task.current is not None for task in tasks),
        waiting=scheduler.waiting_count,
        requests=tuple(_request(task, now) for task in tasks[:LISTED]),
    )


def _node(node: NodeState, planned: dict[ReplicaKey, int], now: float) -> NodeView:
    report = node.report
    engines = []
    for engine in report.engines:
        replicas = [r for r in node.replicas.values() if r.key.engine == engine.id]
        engines.append(
            EngineView(
                id=engine.id,
                kind=engine.kind,
                url=engine.url,
                version=engine.version,
                up=engine.up,
                error=engine.error,
                replicas=tuple(_replica(r, planned.get(r.key, 0), now) for r in replicas),
            )
        )
    return NodeView(
        node=report.node,
        name=report.name,
        agent=report.agent,
        hardware=report.hardware,
        load=node.load,
        leaving=node.draining,
        silent=now - node.heard,
        running=node.running,
        planned=sum(count for key, count in planned.items() if key.node == report.node),
        engines=tuple(engines),
    )


def _replica(replica: ReplicaState, planned: int, now: float) -> ReplicaView:
    spec = replica.spec
    return ReplicaView(
        model=spec.model,
        name=spec.name,
        residency=spec.residency,
        size=spec.size,
        context_length=spec.context_length,
        loaded_context=spec.loaded_context,
        memory_bytes=spec.memory_bytes,
        capabilities=spec.capabilities,
        slots=spec.slots,
        running=len(replica.running),
        planned=planned,
        rates=replica.learning.rates,
        outcomes=replica.learning.outcomes,
        resting=replica.guard.hold(now),
    )


def _request(task: Task, now: float) -> OpenRequest:
    request = task.request
    where = task.current if task.current is not None else task.booking
    return OpenRequest(
        id=request.id,
        model=request.model,
        endpoint=request.endpoint,
        client=request.client,
        state=task.state,
        age=now - task.arrived,
        replica=where.replica.key if where is not None else None,
    )
