"""The scheduler's memory: nodes, replicas and open requests. Mutable, and only the scheduler's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct, structs

from herd.core import crowd, priors
from herd.core.actions import Target
from herd.core.affinity import PrefixCache
from herd.core.breaker import Breaker, Guard, Rests, Who
from herd.core.crowd import Crowd
from herd.core.decision import Decision, Estimate, Exclusion, Signals
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
from herd.core.lengths import AnswerLengths
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
from herd.core.use import Use

if TYPE_CHECKING:
    from herd.core.contexts import ContextPlan
    from herd.core.residents import Residents

#: A request's state; `docs/architecture.md` has a paragraph for each.
TaskState = Literal["waiting", "running", "streaming", "ended"]


#: Seconds that a request which should be done is taken to run on, at the least; and otherwise the
#: share of its age. A quarter is the mean residual of a Pareto distribution of shape 5.
MINIMAL_WORK: Final = 0.05
OVERDUE: Final = 0.25


class Candidate(Struct, frozen=True, gc=False):
    """A replica that could serve a request, as it looks now. Seconds; see `decision.Signals`."""

    replica: ReplicaState
    #: Until the request would be done, with what others lose by it and what failures cost.
    total: float
    #: For which it has to be held back first: for a slot, for memory, or while the replica rests.
    hold: float
    #: That it would take from then on if it had the device for itself: load, prefill and decode.
    work: float
    #: The part of `work` before the first token.
    lead: float
    residency: float
    memory: float
    speed: float
    saved: float
    harm: float
    context: float
    bypass: float
    availability: float
    #: The part of `availability` that others' use of the device is expected to cost.
    used: float = 0.0

    def signals(self) -> Signals:
        """Name its parts."""
        return Signals(
            residency=self.residency,
            memory=self.memory,
            queue=self.hold + self.bypass,
            speed=self.speed,
            affinity=self.harm - self.saved,
            availability=self.availability,
            context=self.context,
        )

    def estimate(self) -> Estimate:
        """Put it into the words of a decision."""
        parts = self.signals()
        return Estimate(
            replica=self.replica.key,
            signals=parts,
            total=parts.total,
            harm=self.harm,
            used=self.used,
        )


#: A place in the line: rank of its class, virtual finish, arrival. The least goes first.
Order = tuple[int, float, int]


class Booking(Struct, frozen=True, gc=False):
    """Where a waiting task is planned to run, as of its last look: seconds from `at`."""

    replica: ReplicaState
    at: float
    #: Until it would be done, with all that counts against the place.
    total: float
    #: Until it can start, and for how long it then has the device's attention, if it is alone.
    hold: float
    work: float


class Task:
    """One open request."""

    __slots__ = (
        "answer",
        "arrived",
        "attempts",
        "beside",
        "booking",
        "cost",
        "current",
        "decision",
        "held",
        "last_failure",
        "least",
        "need",
        "order",
        "prefix",
        "prompt",
        "rank",
        "request",
        "reserved",
        "sequence",
        "session",
        "since",
        "state",
        "story",
        "tried",
        "urgent",
    )

    def __init__(self, request: Request, prefix: Prefix, sequence: int, now: float) -> None:
        self.request = request
        self.prefix = prefix
        #: Its conversation, if the client names it.
        self.session = (request.client, request.session) if request.session else None
        #: Order of arrival; kept over retries, so that a retry does not lose its place.
        self.sequence = sequence
        self.arrived = now
        #: When it began to wait: at its arrival, or when its last attempt failed.
        self.since = now
        self.state: TaskState = "waiting"
        #: Tokens that its prompt is expected to have by the engine's count, and its answer.
        self.prompt = float(request.prompt_tokens)
        self.answer = 0.0
        #: Tokens of context that it is likely to need, and that its prompt has at the least.
        self.need = 0
        self.least = 0.0
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
        #: The running attempt, and one that was sent out beside it because it is late.
        self.current: Running | None = None
        self.beside: Running | None = None
        self.decision: Decision | None = None
        self.last_failure: Failure | None = None
        self.held = False
        #: Replicas that have failed it.
        self.tried: set[ReplicaKey] = set()
        self.story: list[Transition] = [Transition(now, "arrived")]

    def running(self, attempt: int) -> Running | None:
        """The attempt of that number, if it runs."""
        for running in (self.current, self.beside):
            if running is not None and running.number == attempt:
                return running
        return None

    def note(self, now: float, state: str, note: str = "") -> None:
        """Add a step to its story."""
        self.story.append(Transition(now, state, note))

    def outcome(
        self, ending: Ending, now: float, *, result: Result | None, refusal: Refusal | None
    ) -> Outcome:
        """Make its terminal record."""
        last = self.attempts[-1] if self.attempts else None
        for attempt in self.attempts:
            if attempt.ending == "completed":
                last = attempt
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
        "_answers",
        "_begun",
        "cached",
        "cold",
        "crowd",
        "crowd_first",
        "decision",
        "first_frame",
        "lead",
        "load",
        "loads",
        "name",
        "number",
        "predicted",
        "rates",
        "replica",
        "started",
        "task",
    )

    def __init__(
        self,
        task: Task,
        replica: ReplicaState,
        now: float,
        best: Candidate,
        decision: Decision,
        answers: AnswerLengths,
    ) -> None:
        self.task = task
        self.replica = replica
        self.decision = decision
        self.number = len(task.attempts) + 1
        #: What the engine's cache knows it by; two attempts of one request are two.
        self.name = f"{task.request.id}#{self.number}"
        self.started = now
        #: Work until its first token: load, overhead, prefill.
        self.lead = best.lead
        #: What is believed of the replica at its dispatch.
        self.rates = replica.learning.rates
        self._answers = answers
        #: Predicted seconds from its start to its end: neither what others lose by it nor what is
        #: lost if it fails is its own time.
        self.predicted = best.total - best.harm - best.availability
        self.first_frame: float | None = None
        #: The device's clock of work when it started.
        self._begun = replica.node.work(now)
        #: Readings of its device's crowd at its start and at its first frame.
        self.crowd = 0.0
        self.crowd_first = 0.0
        #: Predicted seconds of a load that it waits for; whether it is the one that begins it.
        self.load = best.residency
        self.cold = best.residency > 0.0 or best.context > 0.0
        self.loads = best.residency > 0.0 and replica.loading_until <= 0.0
        #: Tokens of its prompt that were cached, once it has ended.
        self.cached = 0.0

    @property
    def who(self) -> Who:
        """What breakers know it by."""
        return self.task.request.id, self.number

    @property
    def sign_of_life(self) -> float:
        """Predicted seconds from its start until anything is heard of it."""
        return self.lead if self.task.request.stream else self.predicted

    def begins_to_answer(self, now: float) -> None:
        """Its first frame came: whatever was predicted of the lead, it is over."""
        self.first_frame = now
        self._begun = self.replica.node.work(now) - self.lead
        self.crowd_first = self.replica.node.crowd.reading(now)

    def met(self, now: float) -> tuple[float, float]:
        """Requests on its device before and after its first frame, itself one (harmonic means).

        Without a first frame, or with one at its end, the whole time counts for both.
        """
        reading = self.replica.node.crowd.reading(now)
        whole = crowd.mean(now - self.started, reading - self.crowd)
        first = self.first_frame
        if first is None or not self.started < first < now:
            return whole, whole
        return (
            crowd.mean(first - self.started, self.crowd_first - self.crowd),
            crowd.mean(now - first, reading - self.crowd_first),
        )

    def left(self, now: float) -> float:
        """Work that is expected to be left."""
        request, decode = self.task.request, self.rates.decode
        done = self.replica.node.work(now) - self._begun - self.lead
        if done <= 0.0 and self.first_frame is None:
            return self.task.answer / decode - done
        produced = max(0.0, done) * decode
        limit = request.max_tokens
        if not self.task.answer or (limit is not None and produced >= limit):
            # It should be over, so it is on a device that is slower than was thought: nothing is
            # known of it but its age.
            return max(MINIMAL_WORK, OVERDUE * (max(0.0, done) + self.lead))
        return max(MINIMAL_WORK, self._answers.remaining(request, produced) / decode)


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
        self.learning.reported(spec)
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
        self.learning.reported(spec)
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
