"""The scheduler's memory: nodes, replicas and open requests. Mutable, and only the scheduler's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from msgspec import Struct, structs

from herd.core import priors
from herd.core.actions import Target
from herd.core.affinity import PrefixCache
from herd.core.decision import Decision
from herd.core.fleet import EngineReport, Load, NodeReport, Replica, ReplicaKey, Residency
from herd.core.learning import ReplicaLearning, Shared, SharedTable
from herd.core.request import (
    Attempt,
    Ending,
    Failure,
    Outcome,
    Prefix,
    Refusal,
    Request,
    Result,
    Transition,
)

if TYPE_CHECKING:
    from herd.core.contexts import ContextPlan
    from herd.core.residents import Residents

#: A request's state; `docs/architecture.md` has a paragraph for each.
TaskState = Literal["waiting", "running", "streaming", "ended"]


class Task:
    """One open request."""

    __slots__ = (
        "arrived",
        "attempts",
        "current",
        "decision",
        "held",
        "last_failure",
        "prefix",
        "request",
        "sequence",
        "since",
        "state",
        "story",
        "tried",
    )

    def __init__(self, request: Request, prefix: Prefix, sequence: int, now: float) -> None:
        self.request = request
        self.prefix = prefix
        #: Order of arrival; kept over retries, so that a retry does not lose its place.
        self.sequence = sequence
        self.arrived = now
        #: When it began to wait: at its arrival, or when its last attempt failed.
        self.since = now
        self.state: TaskState = "waiting"
        self.attempts: list[Attempt] = []
        #: The running attempt.
        self.current: Running | None = None
        self.decision: Decision | None = None
        self.last_failure: Failure | None = None
        self.held = False
        #: Replicas that have failed it.
        self.tried: set[ReplicaKey] = set()
        self.story: list[Transition] = [Transition(now, "arrived")]

    def note(self, now: float, state: str, note: str = "") -> None:
        """Add a step to its story."""
        self.story.append(Transition(now, state, note))

    def outcome(
        self, ending: Ending, now: float, *, result: Result | None, refusal: Refusal | None
    ) -> Outcome:
        """Make its terminal record."""
        last = self.attempts[-1] if self.attempts else None
        return Outcome(
            request=self.request,
            ending=ending,
            arrived=self.arrived,
            ended=now,
            dispatched=last.started if last is not None else None,
            first_frame=last.first_frame if last is not None else None,
            attempts=tuple(self.attempts),
            decision=self.decision,
            result=result,
            refusal=refusal,
            story=tuple(self.story),
        )


class Running:
    """An attempt that occupies a slot."""

    __slots__ = (
        "cached",
        "cold",
        "decoding",
        "expected_end",
        "first_frame",
        "neighbours",
        "number",
        "predicted",
        "replica",
        "started",
        "task",
    )

    def __init__(
        self, task: Task, replica: ReplicaState, number: int, now: float, predicted: float
    ) -> None:
        self.task = task
        self.replica = replica
        self.number = number
        self.started = now
        self.predicted = predicted
        self.expected_end = now + predicted
        self.first_frame: float | None = None
        #: Seconds of `predicted` that are decoding.
        self.decoding = 0.0
        #: Requests on the device when it started, itself included.
        self.neighbours = 1
        #: The model had to be loaded first.
        self.cold = False
        #: Tokens of its prompt that were cached, once it has ended.
        self.cached = 0.0

    def remaining(self, now: float) -> float:
        """Predicted seconds until it ends; one that is overdue is expected to go on a while."""
        left = self.expected_end - now
        if left > 0.0:
            return left
        # Nothing is known of an overdue request but its age. A quarter of it more is what a
        # heavy-tailed length (Pareto, shape 5) would on average still take.
        return max(0.05, 0.25 * (now - self.started))


class ReplicaState:
    """One replica and what runs on it."""

    __slots__ = (
        "cache",
        "down_until",
        "engine",
        "failures",
        "key",
        "last_used",
        "learning",
        "loading_until",
        "node",
        "peak",
        "running",
        "spec",
    )

    def __init__(
        self, key: ReplicaKey, node: NodeState, engine: EngineReport, spec: Replica
    ) -> None:
        self.key = key
        self.node = node
        self.engine = engine
        self.spec = spec
        prior = priors.rates(node.report.hardware, spec)
        self.learning = ReplicaLearning(prior, node.shared, node.table.model(key.model))
        #: Which prompts it has in its cache, as far as we can tell.
        self.cache = PrefixCache(engine.kind)
        self.running: dict[str, Running] = {}
        #: No attempt before this time, because the last ones failed.
        self.down_until = 0.0
        self.failures = 0
        #: A load that one of ours has caused ends about then; 0 if none does.
        self.loading_until = 0.0
        #: Order of its last dispatch, to spread equal choices.
        self.last_used = 0
        #: Most of ours that ran at once since the last report.
        self.peak = 0

    def update(self, engine: EngineReport, spec: Replica) -> None:
        """Take a newer report in."""
        self.learning.reprime(priors.rates(self.node.report.hardware, spec))
        self.engine = engine
        self.spec = spec
        if spec.residency == "resident":
            self.loading_until = 0.0
        elif not self.running:
            self.cache.clear()
        self.peak = len(self.running)

    def answered(self, *, unloaded: bool = False) -> None:
        """It has answered, so its model is in memory (or just left it) before a report says so."""
        self.loading_until = 0.0
        residency: Residency = "disk" if unloaded else "resident"
        if self.spec.residency not in {residency, "absent"}:
            self.spec = structs.replace(self.spec, residency=residency)

    def evicted(self) -> None:
        """A load that was just caused needs its memory: it goes before a report says so."""
        self.spec = structs.replace(self.spec, residency="disk", loaded_context=0)
        self.cache.clear()

    @property
    def up(self) -> bool:
        """The engine answers and has the model, by the last report."""
        return self.engine.up and self.spec.residency != "absent"

    @property
    def resident(self) -> bool:
        """In memory, as far as is known."""
        return self.spec.residency == "resident"

    @property
    def occupied(self) -> bool:
        """In memory or about to be, or in use: its memory is not free."""
        return self.resident or bool(self.running) or self.loading_until > 0.0

    def target(self) -> Target:
        """Where an attempt on it goes."""
        return Target(
            replica=self.key,
            node_name=self.node.report.name,
            kind=self.engine.kind,
            url=self.engine.url,
            model=self.spec.name,
            capabilities=self.spec.capabilities,
        )


class Reservation(Struct, frozen=True):
    """Memory of a device that a waiting request's cold load is to have, once it can be freed."""

    #: The request's place in the order of arrival: only later ones stand back for it.
    sequence: int
    replica: ReplicaKey
    #: When the load's own request is predicted to be done.
    until: float


class NodeState:
    """One node and its replicas."""

    __slots__ = (
        "contexts",
        "draining",
        "heard",
        "load",
        "replicas",
        "report",
        "reserved",
        "residents",
        "running",
        "shared",
        "table",
    )

    def __init__(self, report: NodeReport, now: float, table: SharedTable) -> None:
        self.report = report
        #: What has been learned of this device that holds for all models, and of the models.
        self.shared = Shared()
        self.table = table
        #: The context plan and placement, as far as they are wanted.
        self.contexts: ContextPlan | None = None
        self.residents: Residents | None = None
        self.load: Load = report.load
        self.heard = now
        self.draining = False
        self.replicas: dict[ReplicaKey, ReplicaState] = {}
        #: Our attempts on the whole device.
        self.running = 0
        self.reserved: Reservation | None = None

    def update(self, report: NodeReport, now: float) -> bool:
        """Take a newer report in; replicas that it no longer lists go, unless they still run.

        Returns whether replicas came or went, or their engines came up or went down.
        """
        before = {key: state.up for key, state in self.replicas.items()}
        self.report = report
        self.load = report.load
        self.heard = now
        listed: set[ReplicaKey] = set()
        for engine in report.engines:
            for spec in engine.replicas:
                key = ReplicaKey(report.node, engine.id, spec.model)
                listed.add(key)
                state = self.replicas.get(key)
                if state is None:
                    self.replicas[key] = ReplicaState(key, self, engine, spec)
                else:
                    state.update(engine, spec)
            if not engine.up and not engine.replicas:
                self._keep_down(engine, listed)
        for key in [key for key in self.replicas if key not in listed]:
            state = self.replicas[key]
            if state.running:
                state.spec = structs.replace(state.spec, residency="absent")
            else:
                del self.replicas[key]
        if self.reserved is not None and self.reserved.replica not in self.replicas:
            self.reserved = None
        return before != {key: state.up for key, state in self.replicas.items()}

    def _keep_down(self, engine: EngineReport, listed: set[ReplicaKey]) -> None:
        """An engine that is down lists nothing; what it had is known, and known to be down."""
        for key, state in self.replicas.items():
            if key.engine == engine.id:
                state.engine = engine
                listed.add(key)

    def siblings(self, replica: ReplicaState) -> Iterator[ReplicaState]:
        """The other replicas on the same device."""
        return (other for other in self.replicas.values() if other is not replica)
