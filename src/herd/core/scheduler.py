"""The scheduler: a deterministic state machine, `handle(event, now) -> actions`.

Theory of operation. A request is `waiting` from its arrival until the replica on which it is
predicted to be done first can start it; then it is `running` (an attempt is out, no byte has
reached the client), then `streaming` (bytes have, so it can no longer be retried), then `ended`,
with exactly one outcome. A failed attempt puts it back to `waiting`, at its old place, as long as
another replica may do better. Whoever waits stands in a `Line`; an event that changes a device has
the `Placer` look at the first in the line who could use it.

It never reads a clock, opens a socket, draws a random number or awaits. The same events at the
same times give the same actions. Two rules for the driver: it passes a `now` that never falls,
and it answers each `Dispatch` with one `Finished`, `Failed` or `ClientLeft`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from herd.core import events as ev
from herd.core import refusals
from herd.core.actions import Abort, Action, Release, SetTimer
from herd.core.attempts import Attempts
from herd.core.board import Board, Policy
from herd.core.keeper import PLAN_EVERY
from herd.core.learned import Learned, check
from herd.core.lengths import AnswerLengths
from herd.core.line import Line
from herd.core.placer import Placer
from herd.core.request import Failure
from herd.core.state import NodeState, ReplicaState
from herd.core.task import Running, Task
from herd.core.timers import TimerKind

__all__ = ["Policy", "Scheduler"]


class Scheduler:
    """Decides what runs where. Its state is in memory alone and changes in `handle` alone."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.board = Board(policy or Policy())
        self._attempts = Attempts(self.board)
        self._placer = Placer(self.board, self._attempts)
        self._sequence = 0
        self._handlers: dict[type[ev.Event], Callable[[Any, float, list[Action]], None]] = {
            ev.RequestArrived: self._arrived,
            ev.FirstFrame: self._first_frame,
            ev.Answered: self._answered,
            ev.Finished: self._finished,
            ev.Failed: self._failed,
            ev.ClientLeft: self._client_left,
            ev.NodeReported: self._reported,
            ev.NodeHeard: self._heard,
            ev.NodeLeaving: self._leaving,
            ev.NodeGone: self._gone,
            ev.PreloadEnded: self._preload_ended,
            ev.TimerDue: self._due,
            ev.Stopping: self._stop,
        }

    def handle(self, event: ev.Event, now: float) -> list[Action]:
        """Take one event in and return what is to be done, in order."""
        actions: list[Action] = []
        self._handlers[type(event)](event, now, actions)
        moved = self.board.timers.moved()
        if moved is not None:
            actions.append(SetTimer(moved))
        return actions

    @property
    def policy(self) -> Policy:
        """The owner's limits."""
        return self.board.policy

    @property
    def nodes(self) -> dict[str, NodeState]:
        """The fleet, by node."""
        return self.board.nodes

    @property
    def tasks(self) -> dict[str, Task]:
        """Open requests by id."""
        return self.board.tasks

    @property
    def line(self) -> Line:
        """Who waits."""
        return self.board.line

    @property
    def answers(self) -> AnswerLengths:
        """What is known of the lengths of answers."""
        return self.board.answers

    @property
    def waiting_count(self) -> int:
        """Requests that wait for a slot."""
        return len(self.board.line)

    def replicas(self, model: str) -> list[ReplicaState]:
        """All replicas of a model, in an order that does not depend on chance."""
        return self.board.replicas(model)

    def learned(self, now: float) -> Learned:
        """Return what was learned so far, to be kept over a restart."""
        return self.board.shared.learned(self.board.answers, now)

    def restore(self, learned: Learned) -> None:
        """Go on from what was learned before; to be called before the first event.

        Raises ValueError, with nothing taken over, if it is of another version or spoilt.
        """
        check(learned)
        self.board.answers.restore(learned.lengths, learned.at)
        self.board.shared.restore(learned)

    # Requests

    def _arrived(self, event: ev.RequestArrived, now: float, actions: list[Action]) -> None:
        board, request = self.board, event.request
        if request.id in board.tasks:
            raise ValueError(f"request {request.id} has arrived already")
        board.retries.deposit(now)
        board.hedges.deposit(now)
        self._sequence += 1
        task = Task(request, event.prefix, self._sequence, now)
        board.tasks[request.id] = task
        if board.stopping:
            board.refuse(task, refusals.stopping(), now, actions)
        else:
            self._placer.arrived(task, now, actions)

    def _first_frame(self, event: ev.FirstFrame, now: float, actions: list[Action]) -> None:
        running = self.board.running(event.request, event.attempt)
        if running is None:
            return
        running.begins_to_answer(now)
        running.replica.answered()
        running.replica.node.touch()
        running.task.state = "streaming"
        running.task.note(now, "streaming")
        if running.replica.guard.answered(running.who, now):
            self._freed(running.replica.node, now, actions)

    def _answered(self, event: ev.Answered, now: float, actions: list[Action]) -> None:
        running = self.board.running(event.request, event.attempt)
        if running is not None:
            running.task.state = "streaming"
            self._beat(running, now, actions)

    def _finished(self, event: ev.Finished, now: float, actions: list[Action]) -> None:
        running = self.board.running(event.request, event.attempt)
        if running is None:
            return
        self._beat(running, now, actions)
        self._attempts.complete(running, event.result, now)
        self.board.end(running.task, "completed", now, actions, result=event.result)
        self._freed(running.replica.node, now, actions)

    def _beat(self, winner: Running, now: float, actions: list[Action]) -> None:
        freed = self._attempts.beat(winner, now, actions)
        if freed is not None:
            self._freed(freed, now, actions)

    def _failed(self, event: ev.Failed, now: float, actions: list[Action]) -> None:
        board = self.board
        running = board.running(event.request, event.attempt)
        if running is None:
            return
        task, replica, failure = running.task, running.replica, event.failure
        self._attempts.free(running, "failed", failure, now)
        seconds = now - running.started
        replica.guard.failed(running.who, failure, seconds, now, task.last_failure)
        board.rested(replica, now)
        task.last_failure = failure
        task.tried.add(replica.key)
        task.note(now, "failed", f"{replica.key.node}: {failure.message}")
        if event.began or (task.current is None and not failure.retryable):
            other = task.current
            freed = self._attempts.stop(other, now, actions) if other is not None else None
            board.end(task, "failed", now, actions, result=event.result)
            if freed is not None:
                self._freed(freed, now, actions)
        elif task.current is None:
            # Else the other one may still answer.
            self._retry(task, failure, now, actions)
        self._freed(replica.node, now, actions)

    def _retry(self, task: Task, failure: Failure, now: float, actions: list[Action]) -> None:
        board = self.board
        if len(task.attempts) >= board.policy.max_attempts or not board.retries.spend(now):
            board.refuse(task, refusals.engine_failed(failure), now, actions)
        else:
            self._placer.again(task, now, actions)

    def _client_left(self, event: ev.ClientLeft, now: float, actions: list[Action]) -> None:
        board = self.board
        task = board.tasks.get(event.request)
        if task is None:
            return
        ended = [running for running in (task.beside, task.current) if running is not None]
        changed = [running.replica.node for running in ended]
        if task.booking is not None:
            changed.append(task.booking.replica.node)
        for running in ended:
            self._attempts.free(running, "cancelled", None, now)
            running.replica.guard.left(running.who)
        board.end(task, "cancelled", now, actions)
        for node in changed:
            self._freed(node, now, actions)

    # Nodes

    def _reported(self, event: ev.NodeReported, now: float, actions: list[Action]) -> None:
        board, report = self.board, event.report
        node = board.nodes.get(report.node)
        joined = node is None
        if node is None:
            node = board.ghosts.pop(report.node, None) or NodeState(
                report, now, board.shared, board.rests
            )
            board.nodes[report.node] = node
            board.timers.set(("silence", report.node), now + board.policy.silence)
        changed = node.update(report, now)
        node.shared.tick(now)
        board.keeper.reported(node)
        board.changed(node)
        if joined and board.policy.placement:
            board.timers.bring_forward(("keep", ""), now + PLAN_EVERY)
        if changed or joined:
            board.index()
        # A report from a node that was leaving means that it has thought better of it.
        node.draining = False
        self._freed(node, now, actions)
        if changed:
            self._placer.look_everywhere(now, actions)

    def _heard(self, event: ev.NodeHeard, now: float, actions: list[Action]) -> None:
        node = self.board.nodes.get(event.node)
        if node is None:
            return
        node.hear(event.load, now)
        node.shared.tick(now)
        if node.running == 0:
            # Whoever waits beside an idle device is seen at the next beat, whatever was planned.
            self._placer.look(node, now, actions)

    def _leaving(self, event: ev.NodeLeaving, now: float, actions: list[Action]) -> None:
        name = event.node
        node = self.board.nodes.get(name)
        if node is None:
            actions.append(Release(name))
            return
        node.draining = True
        self._placer.look_everywhere(now, actions)
        if node.running == 0:
            actions.append(Release(name))

    def _gone(self, event: ev.NodeGone, now: float, actions: list[Action]) -> None:
        if event.node in self.board.nodes:
            self._lose(event.node, event.reason, actions)
            self._placer.look_everywhere(now, actions)

    def _preload_ended(self, event: ev.PreloadEnded, now: float, actions: list[Action]) -> None:
        node = self.board.nodes.get(event.replica.node)
        replica = node.replicas.get(event.replica) if node is not None else None
        if node is None or replica is None:
            return
        if event.error:
            replica.guard.faulted(now)
            self.board.rested(replica, now)
            if not replica.running:
                replica.loading_until = 0.0
        else:
            replica.answered()
        self._freed(node, now, actions)

    def _lose(self, name: str, reason: str, actions: list[Action]) -> None:
        board = self.board
        node = board.nodes.pop(name)
        board.index()
        node.reserved = None
        for task in list(node.planned.values()):
            board.unplan(task)
        if node.running:
            board.ghosts[name] = node
        board.timers.drop(("silence", name))
        board.remembered.update(key.model for key in node.replicas)
        failure = Failure(
            kind="node_lost",
            message=f"node {node.report.name} went away: {reason}",
            retryable=True,
        )
        # One that streams may still be alive on a connection of its own; it ends by itself or by
        # its idle limit. One that is silent has nothing to lose by a retry.
        actions.extend(
            Abort(running.task.request.id, running.number, failure)
            for replica in node.replicas.values()
            for running in replica.running.values()
            if running.task.state == "running"
        )

    def _freed(self, node: NodeState, now: float, actions: list[Action]) -> None:
        """Something on this node changed: look at whoever could use it."""
        if node.running == 0:
            self.board.ghosts.pop(node.report.node, None)
            if node.draining:
                actions.append(Release(node.report.node))
        if node.report.node in self.board.nodes:
            self._placer.look(node, now, actions)

    # Time

    def _due(self, _: ev.TimerDue, now: float, actions: list[Action]) -> None:
        board = self.board
        due = board.timers.due(now)
        silent = [name for kind, name in due if kind == "silence" and self._is_silent(name, now)]
        for name in silent:
            reason = f"silent for {now - board.nodes[name].heard:.0f} s"
            self._lose(name, reason, actions)
        if silent:
            # Only now that all of them are gone: nothing must start on one that is about to be.
            self._placer.look_everywhere(now, actions)
        for kind, name in due:
            task = board.tasks.get(name) if kind in {"patience", "urgent", "hedge"} else None
            if task is not None:
                self._task_due(kind, task, now, actions)
            elif kind == "keep" and board.nodes:
                board.timers.set(("keep", ""), now + PLAN_EVERY)
                actions += board.keeper.look(board.nodes, board.line.models, now)
            elif kind == "look" and name in board.nodes:
                self._placer.look(board.nodes[name], now, actions)

    def _task_due(self, kind: TimerKind, task: Task, now: float, actions: list[Action]) -> None:
        if kind == "hedge":
            self._attempts.hedge(task, now, actions)
        elif task.state != "waiting":
            pass  # it was started in time
        elif kind == "urgent":
            self._placer.hurry(task, now, actions)
        else:
            wait = task.booking.hold if task.booking is not None else None
            self.board.refuse(task, refusals.expired(now - task.since, wait), now, actions)

    def _is_silent(self, name: str, now: float) -> bool:
        """Whether nothing was heard of the node for too long; if not, look again in time."""
        # The very sum that set the timer: rounding must not make it come due and find nothing.
        until = self.board.nodes[name].heard + self.board.policy.silence
        if now < until:
            self.board.timers.set(("silence", name), until)
        return now >= until

    def _stop(self, _: ev.Stopping, now: float, actions: list[Action]) -> None:
        self.board.stopping = True
        for task in list(self.board.tasks.values()):
            if task.state == "waiting":
                self.board.refuse(task, refusals.stopping(), now, actions)
