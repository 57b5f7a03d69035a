"""The scheduler's memory: nodes, replicas and open requests. Mutable, and only the scheduler's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

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

#: A request's state; `docs/architecture.md` has a paragraph for each.
TaskState = Literal["waiting", "running", "streaming", "ended"]


#: Seconds that a request which should be done is taken to run on, at the least; and otherwise the
#: share of its age. A quarter is the mean residual of a Pareto distribution of shape 5.
MINIMAL_WORK: Final = 0.05
OVERDUE: Final = 0.25
#: What is left of an answer hardly shrinks as it comes: for lengths that are lognormal with a
#: spread of 0.7, as answers of one kind are, the mean residual life is 0.73 times the mean at the
#: median, and grows from there by about a third of what has come.
RESIDUAL_LEAST: Final = 0.7
RESIDUAL_GROWTH: Final = 0.35


def residual(answer: float, produced: float) -> float:
    """Tokens to come of an answer that was expected to have so many and has produced so many."""
    return max(answer - produced, RESIDUAL_LEAST * answer, RESIDUAL_GROWTH * produced)


#: A place in the line: rank of its class, virtual finish, arrival. The least goes first.
Order = tuple[int, float, int]


class Booking(Struct, frozen=True):
    """Where a waiting task is planned to run, as of its last look: seconds from `at`."""

    replica: ReplicaState
    at: float
    #: Until it can start, and for how long it then has the device's attention, if it is alone.
    hold: float
    work: float


class Task:
    """One open request."""

    __slots__ = (
        "answer",
        "arrived",
        "attempts",
        "booking",
        "cost",
        "current",
        "decision",
        "held",
        "last_failure",
        "order",
        "prefix",
        "rank",
        "request",
        "reserved",
        "sequence",
        "since",
        "state",
        "story",
        "tried",
        "urgent",
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
        #: Tokens that its answer is expected to have.
        self.answer = 0.0
        #: Seconds that it would take alone on the best device for it.
        self.cost = 0.0
        #: Its deadline leaves no more time to wait.
        self.urgent = False
        #: The class in which it stands in the line, and its place there.
        self.rank = 0
        self.order: Order = (0, 0.0, sequence)
        #: Where it is planned to run, while it waits.
        self.booking: Booking | None = None
        #: Nodes whose memory is reserved for it.
        self.reserved: set[str] = set()
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
    """An attempt that occupies a slot. Work is in seconds that it would take alone."""

    __slots__ = (
        "_begun",
        "cached",
        "cold",
        "decode",
        "first_frame",
        "lead",
        "neighbours",
        "number",
        "predicted",
        "replica",
        "started",
        "task",
    )

    def __init__(
        self, task: Task, replica: ReplicaState, number: int, now: float, *, lead: float
    ) -> None:
        self.task = task
        self.replica = replica
        self.number = number
        self.started = now
        #: Work until its first token: load, overhead, prefill.
        self.lead = lead
        #: Tokens per second of work.
        self.decode = replica.learning.rates.decode
        #: Predicted seconds from its start to its end, as the decision had it.
        self.predicted = 0.0
        self.first_frame: float | None = None
        #: The device's clock of work when it started.
        self._begun = replica.node.work(now)
        #: Requests on the device when it started, itself included.
        self.neighbours = 1
        #: The model had to be loaded first.
        self.cold = False
        #: Tokens of its prompt that were cached, once it has ended.
        self.cached = 0.0

    def begins_to_answer(self, now: float) -> None:
        """Its first frame came: whatever was predicted of the lead, it is over."""
        self.first_frame = now
        self._begun = self.replica.node.work(now) - self.lead

    def left(self, now: float) -> float:
        """Work that is expected to be left."""
        done = self.replica.node.work(now) - self._begun - self.lead
        answer, limit = self.task.answer, self.task.request.max_tokens
        if done <= 0.0:
            if self.first_frame is None:
                return answer / self.decode - done
            done = 0.0
        if not answer:
            # Nothing is known of a lead that is overdue but its age.
            return max(MINIMAL_WORK, OVERDUE * (done + self.lead))
        produced = done * self.decode
        left = residual(answer, produced)
        if limit is not None:
            # One that should be over by its limit is on a device that is slower than was thought.
            left = min(left, limit - produced) if produced < limit else OVERDUE * produced
        return max(MINIMAL_WORK, left / self.decode)


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

    def slowdown(self, running: int) -> float:
        """How many times longer work takes when so many requests run on the device."""
        return priors.slowdown(self.engine.kind, running)

    def drag(self, beside: int) -> float:
        """Seconds by which each of so many that run beside a request delays it, for one of work."""
        return (self.slowdown(beside + 1) - 1.0) / beside if beside > 0 else 0.0

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

    #: Who is to have it: only those behind it in the line stand back.
    task: Task
    replica: ReplicaKey
    #: When the load's own request is predicted to be done.
    until: float


#: One that runs: seconds until its end, work that is left, and where.
Busy = tuple[float, float, ReplicaState]
#: Requests on one device of which each pair's delay is counted; more are taken as alike.
FEW: Final = 8


class NodeState:
    """One node and its replicas."""

    __slots__ = (
        "_busy",
        "_pace",
        "_work",
        "_worked",
        "draining",
        "heard",
        "load",
        "planned",
        "replicas",
        "report",
        "reserved",
        "running",
        "shared",
        "table",
    )

    def __init__(self, report: NodeReport, now: float, table: SharedTable) -> None:
        self.report = report
        #: What has been learned of this device that holds for all models, and of the models.
        self.shared = Shared()
        self.table = table
        self.load: Load = report.load
        self.heard = now
        self.draining = False
        self.replicas: dict[ReplicaKey, ReplicaState] = {}
        #: Our attempts on the whole device.
        self.running = 0
        #: Waiting tasks that are planned to run here.
        self.planned: dict[str, Task] = {}
        self.reserved: Reservation | None = None
        #: Work that a request which runs all the time has had done, until `_worked`, and its pace.
        self._work = 0.0
        self._worked = now
        self._pace = 1.0
        #: What runs, as of a moment: (end in seconds from then, work), see `busy`.
        self._busy: tuple[float, list[Busy]] | None = None

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

    def work(self, now: float) -> float:
        """Work that each of those who run has had done: a clock that all of them slow down."""
        return self._work + (now - self._worked) * self._pace

    def begin(self, running: Running, now: float) -> None:
        """An attempt of ours starts on the device."""
        running.replica.running[running.task.request.id] = running
        self.running += 1
        self._change(now)

    def end(self, running: Running, now: float) -> None:
        """It is over."""
        del running.replica.running[running.task.request.id]
        self.running -= 1
        self._change(now)

    def touch(self) -> None:
        """Something is known better of what runs."""
        self._busy = None

    def busy(self, now: float) -> list[Busy]:
        """What runs here: when each is expected to end, and the work that is left of it.

        Those that share a device delay one another by the work that both have left, so each ends
        after its own work and that of the others as far as it is not more than its own.
        """
        if self._busy is not None and self._busy[0] == now:
            return self._busy[1]
        found = [
            (running.left(now), replica)
            for replica in self.replicas.values()
            for running in replica.running.values()
        ]
        busy: list[Busy] = []
        if found:
            count = len(found)
            drag = found[0][1].drag(count - 1)
            if count <= FEW:
                for work, replica in found:
                    others = sum(min(work, other) for other, _ in found) - work
                    busy.append((work + drag * others, work, replica))
            else:
                slow = 1.0 + drag * (count - 1)
                busy = [(slow * work, work, replica) for work, replica in found]
        self._busy = (now, busy)
        return busy

    def _change(self, now: float) -> None:
        self._work = self.work(now)
        self._worked = now
        self._busy = None
        self._pace = 1.0
        if self.running > 1:
            busy = [replica for replica in self.replicas.values() if replica.running]
            self._pace = 1.0 / max(replica.slowdown(self.running) for replica in busy)
