"""An open request while it waits and runs: the scheduler's memory of it. Mutable, and only its."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct

from herd.core import crowd
from herd.core.breaker import Who
from herd.core.decision import Decision, Estimate, Signals
from herd.core.fleet import ReplicaKey
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

if TYPE_CHECKING:
    from herd.core.state import ReplicaState

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
