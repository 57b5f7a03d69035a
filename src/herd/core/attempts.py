"""Attempts: how they start, end, and race one another. What a request learns from them is here too.

A request has one attempt under way, or two: a short one that is late may be sent to a second device
(Dean and Barroso, The Tail at Scale, 2013). Whichever answers first wins, and the other is stopped.
"""

from __future__ import annotations

from msgspec import structs

from herd.core import hedging, signals
from herd.core.actions import Action, Cancel, Dispatch, Unload
from herd.core.board import Board
from herd.core.learning import hindsight, tokens_of
from herd.core.placement import Choice, choose
from herd.core.request import Attempt, AttemptEnding, Failure, Result
from herd.core.state import NodeState, ReplicaState
from herd.core.task import Running, Task


class Attempts:
    """Starts and ends attempts."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._started = 0

    def start(
        self,
        task: Task,
        choice: Choice,
        now: float,
        actions: list[Action],
        *,
        beside: bool = False,
    ) -> None:
        """Send a task to its best candidate; `beside` another attempt that goes on."""
        board, best = self._board, choice.best
        replica, request = best.replica, task.request
        decision = choice.decision(now)
        running = Running(task, replica, now, best, decision, board.answers)
        if running.loads:
            self._make_room(replica, actions)
            replica.loading_until = now + best.residency
        self._started += 1
        replica.last_used = self._started
        replica.node.begin(running, now)
        board.changed(replica.node)
        board.began(running)
        slots = max(1, replica.spec.slots)
        replica.cache.begin(running.name, task.prefix, slots, task.session)
        replica.peak = max(replica.peak, len(replica.running))
        replica.guard.begin(running.who, now, running.sign_of_life)
        if beside:
            task.beside = running
        else:
            task.current, task.decision, task.state = running, decision, "running"
            if board.policy.hedge and hedging.hedgeable(request):
                late = hedging.hedge_at(running.predicted, replica.spread.value)
                board.timers.set(("hedge", request.id), now + late)
        task.attempts.append(
            Attempt(
                number=running.number,
                replica=replica.key,
                started=now,
                predicted=running.predicted,
            )
        )
        where = f"{replica.key.node}/{replica.key.engine}"
        task.note(now, "hedged" if beside else "running", f"{where}: {decision.reason}")
        actions.append(
            Dispatch(
                request.id,
                running.number,
                replica.target(),
                decision,
                board.keeper.stay(request, replica, now),
                beside=beside,
            )
        )

    def _make_room(self, replica: ReplicaState, actions: list[Action]) -> None:
        """Let go of what a load puts out of memory, before the engine chooses otherwise."""
        for other in signals.evicted_by(replica):
            if other.key.engine == replica.key.engine:
                if replica.node.residents is not None and not other.running:
                    actions.append(Unload(other.target(), "a request needs its memory"))
                other.evicted()

    def free(
        self,
        running: Running,
        ending: AttemptEnding,
        failure: Failure | None,
        now: float,
        cached: int | None = None,
        tokens: int | None = None,
    ) -> Attempt:
        """Give the slot back and complete the attempt's record."""
        task, replica = running.task, running.replica
        replica.node.end(running, now)
        self._board.changed(replica.node)
        running.cached = replica.cache.end(running.name, cached, tokens)
        if not replica.running:
            replica.loading_until = 0.0
            if replica.spec.residency == "absent":
                replica.node.replicas.pop(replica.key, None)
                self._board.index()
        if running is task.beside:
            task.beside = None
        else:
            task.current, task.beside = task.beside, None
        index = running.number - 1
        task.attempts[index] = structs.replace(
            task.attempts[index],
            first_frame=running.first_frame,
            ended=now,
            ending=ending,
            failure=failure,
        )
        return task.attempts[index]

    def complete(self, running: Running, result: Result, now: float) -> None:
        """The attempt has done its work: learn from it."""
        task, replica = running.task, running.replica
        task.decision = running.decision
        usage = result.usage
        attempt = self.free(running, "completed", None, now, usage.cached_tokens, usage.tokens)
        replica.guard.succeeded(running.who, now)
        if hedging.hedgeable(task.request):
            replica.spread.add(now - running.started, running.predicted, now)
        replica.answered(unloaded=result.finish_reason == "unload")
        _learn(running, attempt, result, now)
        self._board.shared.prompts.add(task.request, result.usage.prompt_tokens, now)
        if result.usage.completion_tokens is not None and task.request.operation != "embedding":
            self._board.answers.add(task.request, result.usage.completion_tokens, now)
        self._board.keeper.finished(task.request, result, running.cached, now)

    def stop(self, running: Running, now: float, actions: list[Action]) -> NodeState:
        """Stop an attempt that is not needed any more; returns the device that is freer now."""
        self.free(running, "cancelled", None, now)
        running.replica.guard.left(running.who)
        actions.append(Cancel(running.task.request.id, running.number))
        return running.replica.node

    def beat(self, winner: Running, now: float, actions: list[Action]) -> NodeState | None:
        """One attempt has answered: stop the other one, if there is one, and return its device."""
        task = winner.task
        other = task.beside if winner is task.current else task.current
        if other is None:
            return None
        task.note(now, "beaten", f"{other.replica.key.node}: {winner.replica.key.node} was first")
        if other.number < winner.number:
            # So late that another was asked, and that one was sooner.
            seconds = now - other.started
            other.replica.guard.beaten(other.who, seconds, now)
            other.replica.spread.add(seconds, other.predicted, now)
        return self.stop(other, now, actions)

    def hedge(self, task: Task, now: float, actions: list[Action]) -> None:
        """Send a late request to a second node, if that is worth it; else look again later."""
        board, first = self._board, task.current
        if (
            first is None
            or task.state != "running"
            or task.beside is not None
            or board.stopping
            or len(task.attempts) >= board.policy.max_attempts
        ):
            return
        # Another node, not just another replica: whatever it is that is late may be the device.
        node = first.replica.node
        others = [other for other in board.candidates(task, now)[0] if other.node is not node]
        choice = choose(task, others, now)
        if isinstance(choice, list):
            return
        best = choice.best
        at = first.started + hedging.due(first.predicted, first.replica.spread.value, best.total)
        if best.hold <= 0.0 and at <= now and board.hedges.spend(now):
            self.start(task, choice, now, actions, beside=True)
        else:
            board.timers.set(("hedge", task.request.id), max(at, now + first.left(now)))


def _learn(running: Running, attempt: Attempt, result: Result, now: float) -> None:
    """Learn from a completed attempt, and note what hindsight would have predicted of it."""
    request = running.task.request
    before, beside = running.met(now)
    fresh, tokens = tokens_of(request, result, running.cached)
    found = hindsight(
        running.rates,
        fresh=fresh,
        tokens=tokens,
        running=beside,
        running_prefill=before,
        load=running.load,
    )
    attempt = structs.replace(attempt, hindsight=found)
    running.task.attempts[running.number - 1] = attempt
    running.replica.learning.learn(
        request=request,
        attempt=attempt,
        result=result,
        running=beside,
        running_prefill=before,
        cold=running.cold,
        loads=running.loads,
        cached=running.cached,
    )
