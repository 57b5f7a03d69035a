"""Everything that the scheduler knows, and the book-keeping that all of its parts share."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from herd.core import budget
from herd.core.actions import Action, Record, Refuse
from herd.core.breaker import Rests
from herd.core.keeper import Keeper
from herd.core.learned import SharedTable
from herd.core.lengths import AnswerLengths
from herd.core.line import Line
from herd.core.request import Ending, Refusal, Result
from herd.core.shortlist import ALL, Shortlist
from herd.core.state import NodeState, ReplicaState
from herd.core.task import Booking, Running, Task
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
    #: Send short requests that are late to a second device.
    hedge: bool = True
    #: Load models ahead of requests, and let go of those that are not worth their memory.
    placement: bool = True
    #: Say with how much context a model is loaded, so that no request reloads it by accident.
    context_plan: bool = True
    #: Nodes, by name or identity, on which a model stays in memory, by its canonical name.
    pins: Mapping[str, tuple[str, ...]] = {}


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
        self.keeper = Keeper(policy.pins, plan=policy.context_plan, place=policy.placement)
        self.rests = Rests(policy.rest, policy.rest_most)
        #: What second attempts the fleet can afford.
        self.retries = budget.retries()
        self.hedges = budget.hedges()
        #: Models of nodes that went away: asking for them is not a client's mistake.
        self.remembered: set[str] = set()
        #: Nodes that are gone while attempts of ours may still run there: should one come back,
        #: those still fill its slots.
        self.ghosts: dict[str, NodeState] = {}
        self.stopping = False
        self._homes: dict[str, list[ReplicaState]] = {}
        #: Of models with so many replicas that not all of them are looked at.
        self._shortlists: dict[str, Shortlist] = {}
        #: Nodes whose places in the shortlists are out of date.
        self._changed: dict[str, NodeState] = {}

    def replicas(self, model: str) -> list[ReplicaState]:
        """All replicas of a model, in an order that does not depend on chance."""
        return self._homes.get(model, [])

    def candidates(self, task: Task, now: float) -> tuple[list[ReplicaState], int]:
        """Return the replicas that are worth a look for a task, and how many more there are."""
        model = task.request.model
        homes = self._homes.get(model, [])
        if len(homes) <= ALL:
            return homes, 0
        for node in self._changed.values():
            for replica in node.replicas.values():
                if replica.key.model in self._shortlists:
                    self._shortlists[replica.key.model].update(replica, now)
        self._changed.clear()
        found = self._shortlists[model].top(task.prefix)
        return found, len(homes) - len(found)

    def index(self) -> None:
        """Replicas came or went: list them by model anew, and forget what was planned for some."""
        before = {replica.key for homes in self._homes.values() for replica in homes}
        self._homes = {}
        for node in self.nodes.values():
            for replica in node.replicas.values():
                self._homes.setdefault(replica.key.model, []).append(replica)
                before.discard(replica.key)
        for gone in before:
            self.keeper.contexts.forget(gone)
        large = {model for model, homes in self._homes.items() if len(homes) > ALL}
        # Made anew as a whole: it is rare, and nothing of a replica that is gone may stay.
        self._shortlists = {model: Shortlist(self._shortlists.get(model)) for model in large}
        self._changed = dict(self.nodes) if large else {}

    def changed(self, node: NodeState) -> None:
        """What runs on a device, or is planned or loaded there, or its rates, changed."""
        if self._shortlists:
            self._changed[node.report.node] = node

    def began(self, running: Running) -> None:
        """Note where a prompt is read."""
        shortlist = self._shortlists.get(running.replica.key.model)
        if shortlist is not None:
            shortlist.began(running.task.prefix, running.replica.key)

    def running(self, request: str, attempt: int) -> Running | None:
        """The attempt that an event speaks of; None if it was over before the event came."""
        task = self.tasks.get(request)
        return task.running(attempt) if task is not None else None

    def rested(self, replica: ReplicaState, now: float) -> None:
        """Whoever waits for a replica that has failed is looked at when its rest is over."""
        until = replica.guard.rest_until
        if until > now:
            self.timers.bring_forward(("look", replica.key.node), until)

    def plan(self, task: Task, booking: Booking) -> None:
        """Note where a waiting task is planned to run."""
        self.unplan(task)
        task.booking = booking
        booking.replica.node.planned[task.request.id] = task
        self.changed(booking.replica.node)

    def unplan(self, task: Task) -> None:
        """Forget where it was planned."""
        if task.booking is not None:
            task.booking.replica.node.planned.pop(task.request.id, None)
            self.changed(task.booking.replica.node)
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
        self.timers.drop(("hedge", task.request.id))
        task.state = "ended"
        task.note(now, ending, refusal.message if refusal is not None else "")
        actions.append(Record(task.outcome(ending, now, result=result, refusal=refusal)))
