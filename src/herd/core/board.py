"""Everything that the scheduler knows, and the book-keeping that all of its parts share."""

from __future__ import annotations

from msgspec import Struct, structs

from herd.core.actions import Action, Record, Refuse
from herd.core.fleet import ReplicaKey
from herd.core.learning import AnswerLengths, SharedTable
from herd.core.line import Line
from herd.core.request import Attempt, AttemptEnding, Ending, Failure, Refusal, Result
from herd.core.state import Booking, NodeState, ReplicaState, Running, Task
from herd.core.timers import Timers


class Policy(Struct, frozen=True, kw_only=True):
    """The owner's limits. Times are seconds."""

    max_waiting: int = 1000
    patience: float = 600.0
    max_attempts: int = 3
    #: A node that is not heard of for so long is gone.
    silence: float = 15.0
    #: A replica that failed rests this long, twice as long after each further failure.
    rest: float = 1.0
    rest_most: float = 30.0


class Board:
    """Nodes, replicas and open requests. Mutable, and only the scheduler's."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.nodes: dict[str, NodeState] = {}
        #: Open requests by id.
        self.tasks: dict[str, Task] = {}
        self.line = Line()
        self.answers = AnswerLengths()
        self.shared = SharedTable()
        self.timers = Timers()
        #: Models of nodes that went away: asking for them is not a client's mistake.
        self.remembered: set[str] = set()
        #: Nodes that are gone while attempts of ours may still run there: should one come back,
        #: those still fill its slots.
        self.ghosts: dict[str, NodeState] = {}
        self.stopping = False
        self._homes: dict[str, list[ReplicaState]] = {}

    def replicas(self, model: str) -> list[ReplicaState]:
        """All replicas of a model, in an order that does not depend on chance."""
        return self._homes.get(model, [])

    def index(self) -> None:
        """Replicas came or went: list them by model anew."""
        self._homes = {}
        for node in self.nodes.values():
            for replica in node.replicas.values():
                self._homes.setdefault(replica.key.model, []).append(replica)

    def running(self, request: str, attempt: int) -> Running | None:
        """The attempt that an event speaks of; None if it was over before the event came."""
        task = self.tasks.get(request)
        running = task.current if task is not None else None
        return running if running is not None and running.number == attempt else None

    def free(
        self,
        running: Running,
        ending: AttemptEnding,
        failure: Failure | None,
        now: float,
        cached: int | None = None,
    ) -> Attempt:
        """Give the slot back and complete the attempt's record."""
        task, replica = running.task, running.replica
        replica.node.end(running, now)
        running.cached = replica.cache.end(task.request.id, cached)
        if not replica.running:
            replica.loading_until = 0.0
            if replica.spec.residency == "absent":
                replica.node.replicas.pop(replica.key, None)
                self.index()
        task.current = None
        task.attempts[-1] = structs.replace(
            task.attempts[-1],
            first_frame=running.first_frame,
            ended=now,
            ending=ending,
            failure=failure,
        )
        return task.attempts[-1]

    def rest(self, replica: ReplicaState, now: float) -> None:
        """Give a replica that failed a rest, longer each time, so that it is not hammered."""
        policy = self.policy
        rest = min(policy.rest_most, policy.rest * 2.0 ** min(replica.failures, 60))
        replica.failures += 1
        replica.down_until = now + rest
        self.timers.bring_forward(("look", replica.key.node), replica.down_until)

    def plan(self, task: Task, booking: Booking) -> None:
        """Note where a waiting task is planned to run."""
        self.unplan(task)
        task.booking = booking
        booking.replica.node.planned[task.request.id] = task

    def unplan(self, task: Task) -> None:
        """Forget where it was planned."""
        if task.booking is not None:
            task.booking.replica.node.planned.pop(task.request.id, None)
            task.booking = None

    def unreserve(self, task: Task, now: float, *, but: NodeState | None = None) -> None:
        """Give up what the task has reserved; whoever stood back for it is looked at again."""
        for name in tuple(task.reserved):
            node = self.nodes.get(name)
            if node is not None and node is but:
                continue
            task.reserved.discard(name)
            if node is not None and node.reserved is not None and node.reserved.task is task:
                node.reserved = None
                self.timers.bring_forward(("look", name), now)

    def leave_line(self, task: Task, now: float) -> None:
        """The task waits no longer."""
        self.line.remove(task)
        self.unplan(task)
        self.unreserve(task, now)

    def refuse(self, task: Task, refusal: Refusal, now: float, actions: list[Action]) -> None:
        """Tell the client that there is no (further) attempt, and end it."""
        actions.append(Refuse(task.request.id, refusal))
        ending: Ending = "failed" if task.attempts else "rejected"
        self.end(task, ending, now, actions, refusal=refusal)

    def end(
        self,
        task: Task,
        ending: Ending,
        now: float,
        actions: list[Action],
        *,
        result: Result | None = None,
        refusal: Refusal | None = None,
    ) -> None:
        """Record its one outcome."""
        self.leave_line(task, now)
        del self.tasks[task.request.id]
        self.timers.drop(("patience", task.request.id))
        self.timers.drop(("urgent", task.request.id))
        task.state = "ended"
        task.note(now, ending, refusal.message if refusal is not None else "")
        actions.append(Record(task.outcome(ending, now, result=result, refusal=refusal)))

    def node_of(self, key: ReplicaKey) -> NodeState | None:
        """The node of a replica, if it is there."""
        return self.nodes.get(key.node)
