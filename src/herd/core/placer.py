"""Starts waiting requests: whose best replica is free, goes; the others are planned and wait.

Looking at everybody at every event would cost too much where hundreds wait, so a look is at one
device: at the first in the line that could run there, and at those who are planned there already.
Whoever waits for other devices is not concerned.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final

from msgspec import structs

from herd.core import refusals, signals
from herd.core.actions import Action, Hold
from herd.core.attempts import Attempts
from herd.core.board import Board
from herd.core.decision import Estimate
from herd.core.placement import Choice, better, choose
from herd.core.state import NodeState, ReplicaState, Reservation
from herd.core.task import Booking, Task

#: Requests at the head of the line that are looked at when a device changes. Deeper in the line
#: somebody may now do better there, too; it is found when it comes to the head, or when its own
#: plan comes due.
LOOKED_AT: Final = 16
#: Seconds before its deadline, in those that it takes alone on the best device, at which a request
#: goes before all others: it takes longer beside others, and a slot has to come free first.
HURRY: Final = 2.0
#: The least seconds after which a plan is looked at again.
SOON: Final = 0.05


class Placer:
    """Decides for waiting requests."""

    def __init__(self, board: Board, attempts: Attempts) -> None:
        self._board = board
        self._attempts = attempts

    def arrived(self, task: Task, now: float, actions: list[Action]) -> None:
        """Start a new task or let it wait; refuse it if nobody can serve it or too many wait."""
        board = self._board
        task.answer = board.answers.expect(task.request)
        task.prompt = board.shared.prompts.expect(task.request)
        task.prefix = board.shared.prompts.scaled(task.request, task.prefix)
        contexts = board.keeper.contexts
        task.need, task.least = contexts.need(task.request), contexts.least(task.request)
        replicas, _ = board.candidates(task, now)
        task.cost = signals.cost(task, replicas)
        board.line.stand(task)
        if replicas:
            board.keeper.arrived(task.request, now)
        choice = self._choose(task, now)
        limit, deadline = board.policy.max_waiting, task.request.deadline
        if isinstance(choice, list):
            self._hopeless(task, choice, now, actions)
            return
        wait = choice.best.hold
        if wait > 0.0 and len(board.line) >= limit:
            board.refuse(task, refusals.queue_full(limit, wait), now, actions)
        elif deadline is not None and wait >= deadline:
            board.refuse(task, refusals.too_late(deadline, wait), now, actions)
        else:
            if wait > 0.0:
                board.line.add(task)
            self._follow(task, choice, now, actions)

    def hurry(self, task: Task, now: float, actions: list[Action]) -> None:
        """A waiting task's deadline leaves no more time: let it stand before all others."""
        board = self._board
        board.line.remove(task)
        task.urgent = True
        board.line.add(task)
        self._place(task, now, actions)

    def again(self, task: Task, now: float, actions: list[Action]) -> None:
        """Let a task whose attempt has failed wait at its old place, or start it elsewhere."""
        board = self._board
        task.state = "waiting"
        task.since = now
        task.held = False
        board.line.refund(task)
        board.line.add(task)
        self._place(task, now, actions)

    def look(self, node: NodeState, now: float, actions: list[Action]) -> None:
        """Something on this device changed: start whoever it is now the best for."""
        line = self._board.line
        if not line:
            return
        here: dict[str, list[ReplicaState]] = {}
        for replica in node.replicas.values():
            if line.count(replica.key.model):
                here.setdefault(replica.key.model, []).append(replica)
        # Those who are planned here come first in any case: the device may have disappointed them.
        planned = sorted(node.planned.values(), key=_order)[:LOOKED_AT]
        tasks = {task.sequence: task for task in planned}
        for task in islice(line.ordered(here), LOOKED_AT):
            tasks[task.sequence] = task
        for task in sorted(tasks.values(), key=_order):
            if task.state == "waiting" and (
                task.booking is None
                or task.booking.replica.node is node
                or any(better(task, replica, now) for replica in here[task.request.model])
            ):
                self._place(task, now, actions)

    def look_everywhere(self, now: float, actions: list[Action]) -> None:
        """Devices came or went: place everybody anew, and find those who have lost all hope."""
        line = self._board.line
        for task in list(line.ordered(list(line.models))):
            if task.state == "waiting":
                self._place(task, now, actions)

    def _place(self, task: Task, now: float, actions: list[Action]) -> None:
        choice = self._choose(task, now)
        if isinstance(choice, list):
            self._hopeless(task, choice, now, actions)
        else:
            self._follow(task, choice, now, actions)

    def _choose(self, task: Task, now: float) -> Choice | list[Estimate]:
        board = self._board
        replicas, more = board.candidates(task, now)
        choice = choose(task, replicas, now, whole=not more)
        if more and isinstance(choice, list):
            # None of the most promising can serve it: one of the others may.
            return choose(task, board.replicas(task.request.model), now)
        if more and isinstance(choice, Choice):
            return structs.replace(choice, more=more)
        return choice

    def _follow(self, task: Task, choice: Choice, now: float, actions: list[Action]) -> None:
        if choice.best.hold <= 0.0:
            self._board.leave_line(task, now)
            self._board.line.charge(task)
            self._attempts.start(task, choice, now, actions)
        elif self._board.stopping:
            self._board.refuse(task, refusals.stopping(), now, actions)
        else:
            self._hold(task, choice, now, actions)

    def _hold(self, task: Task, choice: Choice, now: float, actions: list[Action]) -> None:
        board, best = self._board, choice.best
        replica, wait = best.replica, best.hold
        board.plan(task, Booking(replica, now, best.total, wait, best.work))
        if not task.held:
            task.held = True
            task.note(now, "waiting", f"for {replica.key.node}, about {wait:.2f} s")
            self._set_limits(task)
            actions.append(Hold(task.request.id, replica.key, wait))
        node = replica.node
        resting = replica.guard.hold(now) > 0.0
        # A replica that rests would not use the memory yet.
        evicts = best.memory > 0.0 and not resting
        board.unreserve(task, now, but=node if evicts else None)
        if evicts and (node.reserved is None or node.reserved.task.order >= task.order):
            node.reserved = Reservation(task, replica.key, now + best.total)
            task.reserved.add(node.report.node)
        if choice.passed_over or resting or node.reserved is not None:
            # No event may come that shows the plan to be too hopeful: look again by then.
            board.timers.bring_forward(("look", node.report.node), now + max(SOON, wait))

    def _set_limits(self, task: Task) -> None:
        """Have the task looked at when its patience or its deadline comes due."""
        board, request = self._board, task.request
        patience = board.policy.patience if request.patience is None else request.patience
        until = task.since + patience
        if request.deadline is not None:
            until = min(until, task.arrived + request.deadline)
            urgent = task.arrived + request.deadline - HURRY * task.cost
            board.timers.set(("urgent", request.id), max(task.since, urgent))
        board.timers.set(("patience", request.id), until)

    def _hopeless(
        self, task: Task, estimates: Iterable[Estimate], now: float, actions: list[Action]
    ) -> None:
        refusal = refusals.no_candidate(
            task.request,
            tuple(estimates),
            known=task.request.model in self._board.remembered,
            failure=task.last_failure,
        )
        self._board.refuse(task, refusal, now, actions)


def _order(task: Task) -> tuple[int, float, int]:
    return task.order
