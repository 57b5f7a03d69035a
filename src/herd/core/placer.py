"""Starts waiting requests: whose best replica is free, goes; the others are planned and wait.

Looking at everybody at every event would cost too much where hundreds wait, so a look is at one
device: at the first in the line that could run there, and at those who are planned there already.
Whoever waits for other devices is not concerned.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final

from herd.core import refusals, signals
from herd.core.actions import Action, Hold
from herd.core.attempts import Attempts
from herd.core.board import Board
from herd.core.decision import Estimate
from herd.core.placement import Choice, choose
from herd.core.state import Booking, NodeState, Reservation, Task

#: Requests at the head of the line that are looked at when a device changes. Deeper in the line
#: somebody may now do better there, too; it is found when it comes to the head, or when its own
#: plan comes due.
LOOKED_AT: Final = 16
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
        replicas = board.replicas(task.request.model)
        task.cost = signals.cost(task, replicas)
        board.line.add(task)
        if replicas:
            board.keeper.arrived(task.request, now)
        choice = choose(task, replicas, now)
        limit = board.policy.max_waiting
        if isinstance(choice, list):
            self._hopeless(task, choice, now, actions)
        elif choice.best.hold > 0.0 and len(board.line) > limit:
            board.refuse(task, refusals.queue_full(limit, choice.best.hold), now, actions)
        else:
            self._follow(task, choice, now, actions)

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
        models = [model for model in {key.model for key in node.replicas} if line.count(model)]
        if not models and not node.planned:
            return
        tasks = {task.sequence: task for task in islice(line.ordered(models), LOOKED_AT)}
        planned = sorted(node.planned.values(), key=_order)
        for task in planned[:LOOKED_AT]:
            tasks.setdefault(task.sequence, task)
        for task in sorted(tasks.values(), key=_order):
            if task.state == "waiting":
                self._place(task, now, actions)

    def look_everywhere(self, now: float, actions: list[Action]) -> None:
        """Devices came or went: place everybody anew, and find those who have lost all hope."""
        line = self._board.line
        for task in list(line.ordered(list(line.models))):
            if task.state == "waiting":
                self._place(task, now, actions)

    def _place(self, task: Task, now: float, actions: list[Action]) -> None:
        choice = choose(task, self._board.replicas(task.request.model), now)
        if isinstance(choice, list):
            self._hopeless(task, choice, now, actions)
        else:
            self._follow(task, choice, now, actions)

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
        board.plan(task, Booking(replica, now, wait, best.work))
        if not task.held:
            task.held = True
            task.note(now, "waiting", f"for {replica.key.node}, about {wait:.2f} s")
            patience = task.request.patience
            if patience is None:
                patience = board.policy.patience
            board.timers.set(("patience", task.request.id), task.since + patience)
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
