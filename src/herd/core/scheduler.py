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
from herd.core.board import Board, Policy
from herd.core.learning import AnswerLengths
from herd.core.line import Line
from herd.core.placer import Placer
from herd.core.request import Failure
from herd.core.state import NodeState, ReplicaState, Task

__all__ = ["Policy", "Scheduler"]


class Scheduler:
    """Decides what runs where. Its state is in memory alone and changes in `handle` alone."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.board = Board(policy or Policy())
        self._placer = Placer(self.board)
        self._sequence = 0
        self._handlers: dict[type[ev.Event], Callable[[Any, float, list[Action]], None]] = {
            ev.RequestArrived: self._arrived,
            ev.FirstFrame: self._first_frame,
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

    # Requests

    def _arrived(self, event: ev.RequestArrived, now: float, actions: list[Action]) -> None:
        board, request = self.board, event.request
        if request.id in board.tasks:
            raise ValueError(f"request {request.id} has arrived already")
        self._sequence += 1
        task = Task(request, event.prefix, self._sequence, now)
        board.tasks[request.id] = task
        if board.stopping:
            board.refuse(task, refusals.stopping(), now, actions)
        else:
            self._placer.arrived(task, now, actions)

    def _first_frame(self, event: ev.FirstFrame, now: float, _: list[Action]) -> None:
        running = self.board.running(event.request, event.attempt)
        if running is None:
            return
        running.begins_to_answer(now)
        running.replica.answered()
        running.replica.node.touch()
        running.task.state = "streaming"
        running.task.note(now, "streaming")

    def _finished(self, event: ev.Finished, now: float, actions: list[Action]) -> None:
        board = self.board
        running = board.running(event.request, event.attempt)
        if running is None:
            return
        task, replica, result = running.task, running.replica, event.result
        attempt = board.free(running, "completed", None, now, result.usage.cached_tokens)
        replica.failures = 0
        replica.down_until = 0.0
        replica.answered(unloaded=result.finish_reason == "unload")
        replica.learning.learn(
            request=task.request,
            attempt=attempt,
            result=result,
            kind=replica.engine.kind,
            running=running.neighbours,
            cold=running.cold,
            cached=running.cached,
        )
        if result.usage.completion_tokens is not None and task.request.operation != "embedding":
            board.answers.add(task.request, result.usage.completion_tokens)
        board.end(task, "completed", now, actions, result=result)
        self._freed(replica.node, now, actions)

    def _failed(self, event: ev.Failed, now: float, actions: list[Action]) -> None:
        board = self.board
        running = board.running(event.request, event.attempt)
        if running is None:
            return
        task, replica, failure = running.task, running.replica, event.failure
        board.free(running, "failed", failure, now)
        task.last_failure = failure
        task.tried.add(replica.key)
        task.note(now, "failed", f"{replica.key.node}: {failure.message}")
        if failure.retryable:
            board.rest(replica, now)
        if event.began or not failure.retryable:
            board.end(task, "failed", now, actions, result=event.result)
        elif len(task.attempts) >= board.policy.max_attempts:
            board.refuse(task, refusals.engine_failed(failure), now, actions)
        else:
            self._placer.again(task, now, actions)
        self._freed(replica.node, now, actions)

    def _client_left(self, event: ev.ClientLeft, now: float, actions: list[Action]) -> None:
        board = self.board
        task = board.tasks.get(event.request)
        if task is None:
            return
        running = task.current
        booking = task.booking
        if running is not None:
            board.free(running, "cancelled", None, now)
        board.end(task, "cancelled", now, actions)
        if running is not None:
            self._freed(running.replica.node, now, actions)
        elif booking is not None:
            self._placer.look(booking.replica.node, now, actions)

    # Nodes

    def _reported(self, event: ev.NodeReported, now: float, actions: list[Action]) -> None:
        board, report = self.board, event.report
        node = board.nodes.get(report.node)
        joined = node is None
        if node is None:
            node = board.ghosts.pop(report.node, None) or NodeState(report, now, board.shared)
            board.nodes[report.node] = node
            board.timers.set(("silence", report.node), now + board.policy.silence)
        changed = node.update(report, now)
        if changed or joined:
            board.index()
        # A report from a node that was leaving means that it has thought better of it.
        node.draining = False
        self._freed(node, now, actions)
        if changed:
            self._placer.look_everywhere(now, actions)

    def _heard(self, event: ev.NodeHeard, now: float, _: list[Action]) -> None:
        node = self.board.nodes.get(event.node)
        if node is not None:
            node.heard = now
            node.load = event.load

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
            self.board.rest(replica, now)
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
            if running.first_frame is None
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
            if kind == "patience":
                task = board.tasks.get(name)
                if task is not None and task.state == "waiting":
                    wait = task.booking.hold if task.booking is not None else None
                    refusal = refusals.expired(now - task.since, wait)
                    board.refuse(task, refusal, now, actions)
            elif kind == "look":
                node = board.nodes.get(name)
                if node is not None:
                    self._placer.look(node, now, actions)

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
