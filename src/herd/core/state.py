"""The scheduler's memory of the fleet: nodes and replicas. Mutable, and only the scheduler's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from msgspec import Struct, structs

from herd.core import priors
from herd.core.actions import Target
from herd.core.affinity import PrefixCache
from herd.core.breaker import Breaker, Guard, Rests
from herd.core.crowd import Crowd
from herd.core.decision import Exclusion
from herd.core.fleet import (
    Capability,
    EngineReport,
    Load,
    NodeReport,
    Replica,
    ReplicaKey,
    Residency,
)
from herd.core.hedging import Spread
from herd.core.learned import SharedTable
from herd.core.task import Running, Task
from herd.core.use import Use

if TYPE_CHECKING:
    from herd.core.contexts import ContextPlan
    from herd.core.residents import Residents


class ReplicaState:
    """One replica and what runs on it."""

    __slots__ = (
        "cache",
        "engine",
        "guard",
        "key",
        "last_used",
        "learning",
        "loading_until",
        "node",
        "peak",
        "running",
        "serves",
        "spec",
        "spread",
    )

    def __init__(
        self, key: ReplicaKey, node: NodeState, engine: EngineReport, spec: Replica
    ) -> None:
        self.key = key
        self.node = node
        self.engine = engine
        self.spec = spec
        self.learning = node.table.replica(
            key, priors.rates(node.report.hardware, spec, engine.kind)
        )
        #: Why it cannot serve requests of a kind, by endpoint and needs, as far as was asked.
        self.serves: dict[tuple[str, frozenset[Capability]], Exclusion | None] = {}
        #: Which prompts it has in its cache, as far as we can tell.
        self.cache = PrefixCache(engine.kind)
        self.running: dict[str, Running] = {}
        #: Whether one may start here, and what failures are to be expected.
        self.guard = Guard(Breaker(node.rests), node.breaker(engine.id))
        #: How far predictions of short requests were off.
        self.spread = Spread()
        #: A load that one of ours has caused ends about then; 0 if none does.
        self.loading_until = 0.0
        #: Order of its last dispatch, to spread equal choices.
        self.last_used = 0
        #: Most of ours that ran at once since the last report.
        self.peak = 0

    def update(self, engine: EngineReport, spec: Replica) -> None:
        """Take a newer report in."""
        self.learning.reprime(priors.rates(self.node.report.hardware, spec, engine.kind))
        self.engine = engine
        self.spec = spec
        self.serves.clear()
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

    def drag(self, beside: int, work: tuple[float, float]) -> float:
        """Seconds by which each of so many (one at least) delay a second of a request's work.

        `work` is of prefill and of decode, which share a device differently.
        """
        prefill, decode = work
        count = beside + 1.0
        learning = self.learning
        slower = learning.slowdown(count)
        if prefill > 0.0:
            slower = prefill * learning.slowdown_prefill(count) + decode * slower
            slower /= prefill + decode
        return (slower - 1.0) / beside

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
#: Work that is all decoding.
_DECODE: Final = (0.0, 1.0)
#: Requests on one device of which each pair's delay is counted; more are taken as alike.
FEW: Final = 8


class NodeState:
    """One node and its replicas."""

    __slots__ = (
        "_busy",
        "_pace",
        "_work",
        "_worked",
        "breakers",
        "budget",
        "contexts",
        "crowd",
        "draining",
        "heard",
        "load",
        "planned",
        "replicas",
        "report",
        "reserved",
        "residents",
        "rests",
        "running",
        "shared",
        "table",
        "use",
    )

    def __init__(self, report: NodeReport, now: float, table: SharedTable, rests: Rests) -> None:
        self.report = report
        #: Bytes that models may fill; None unknown.
        self.budget = priors.memory_budget(report.hardware)
        self.rests = rests
        #: One for each engine, by its id.
        self.breakers: dict[str, Breaker] = {}
        #: What has been learned of this device that holds for all models, and of the models.
        self.shared = table.device(report.node)
        #: Whether others use it.
        self.use = Use(self.shared)
        self.table = table
        #: The context plan and placement, as far as they are wanted.
        self.contexts: ContextPlan | None = None
        self.residents: Residents | None = None
        #: How crowded the device was, as far as by us.
        self.crowd = Crowd()
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
        if report.hardware != self.report.hardware:
            self.budget = priors.memory_budget(report.hardware)
        self.report = report
        self.use.processor = priors.processor(report.hardware)
        self.hear(report.load, now)
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
        engines = {engine.id for engine in report.engines} | {key.engine for key in self.replicas}
        for gone in self.breakers.keys() - engines:
            del self.breakers[gone]
        if self.reserved is not None and self.reserved.replica not in self.replicas:
            self.reserved = None
        return before != {key: state.up for key, state in self.replicas.items()}

    def hear(self, load: Load, now: float) -> None:
        """It is there, and this busy."""
        self.load = load
        self.heard = now
        self.use.seen(load, self.crowd.reading(now), now)

    def _keep_down(self, engine: EngineReport, listed: set[ReplicaKey]) -> None:
        """An engine that is down lists nothing; what it had is known, and known to be down."""
        for key, state in self.replicas.items():
            if key.engine == engine.id:
                state.engine = engine
                listed.add(key)

    def breaker(self, engine: str) -> Breaker:
        """Return the breaker of one of its engines."""
        return self.breakers.setdefault(engine, Breaker(self.rests))

    def siblings(self, replica: ReplicaState) -> Iterator[ReplicaState]:
        """The other replicas on the same device."""
        return (other for other in self.replicas.values() if other is not replica)

    def work(self, now: float) -> float:
        """Work that each of those who run has had done: a clock that all of them slow down."""
        return self._work + (now - self._worked) * self._pace

    def begin(self, running: Running, now: float) -> None:
        """An attempt of ours starts on the device."""
        running.replica.running[running.name] = running
        self.running += 1
        running.crowd = running.crowd_first = self.crowd.enter(now)
        self._change(now)

    def end(self, running: Running, now: float) -> None:
        """It is over."""
        del running.replica.running[running.name]
        self.running -= 1
        self.crowd.leave(now)
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
            drag = found[0][1].drag(count - 1, _DECODE) if count > 1 else 0.0
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
            count = float(self.running)
            self._pace = 1.0 / max(replica.learning.slowdown(count) for replica in busy)
