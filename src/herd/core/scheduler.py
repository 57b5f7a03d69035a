"""The scheduler: a deterministic state machine, `handle(event, now) -> actions`.

Theory of operation. A request is `waiting` from its arrival until the replica on which it is
predicted to be done first has a free slot; then it is `running` (an attempt is out, no byte has
reached the client), then `streaming` (bytes have, so it can no longer be retried), then `ended`,
with exactly one outcome. A failed attempt puts it back to `waiting`, at its old place, as long as
another replica may do better. Every event may change who should start next; `_place` then looks
at the waiting requests of the models concerned, in the order of their arrival.

It never reads a clock, opens a socket, draws a random number or awaits. The same events at the
same times give the same actions. Two rules for the driver: it passes a `now` that never falls,
and it answers each `Dispatch` with one `Finished`, `Failed` or `ClientLeft`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct, structs

from herd.core import events as ev
from herd.core import inventory, refusals, signals
from herd.core.actions import (
    Abort,
    Action,
    Dispatch,
    Hold,
    Preload,
    Record,
    Refuse,
    Release,
    SetTimer,
    Stay,
    Unload,
)
from herd.core.contexts import ContextPlan, carries
from herd.core.decision import Estimate
from herd.core.demand import Demand
from herd.core.learning import AnswerLengths, SharedTable
from herd.core.placement import Choice, Plan, expected_wait
from herd.core.request import (
    Attempt,
    AttemptEnding,
    Ending,
    Failure,
    Refusal,
    Result,
)
from herd.core.residents import Residents
from herd.core.state import NodeState, ReplicaState, Reservation, Running, Task
from herd.core.timers import Timers

#: Seconds between two looks at what is in memory.
PLAN_EVERY = 5.0


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
    #: Load ahead what is worth it, keep it as long as that lasts, and evict the least valuable.
    placement: bool = False
    #: Name one context for each model and device, so that nothing is reloaded by accident.
    contexts: bool = False
    pins: dict[str, tuple[str, ...]] = {}


class Scheduler:
    """Decides what runs where. Its state is in memory alone and changes in `handle` alone."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.policy = policy or Policy()
        self.nodes: dict[str, NodeState] = {}
        #: Open requests by id.
        self.tasks: dict[str, Task] = {}
        #: Waiting requests by model, in the order of arrival.
        self.waiting: dict[str, dict[str, Task]] = {}
        self.answers = AnswerLengths()
        self.demand = Demand()
        self.contexts = ContextPlan()
        self.residents = Residents(self.demand, self.policy.pins)
        self._shared = SharedTable()
        #: Models of nodes that went away: asking for them is not a client's mistake.
        self._remembered: set[str] = set()
        self._timers = Timers()
        self._sequence = 0
        self._dispatches = 0
        self._stopping = False
        #: Nodes that are gone while attempts of ours may still run there: should one come back,
        #: those still fill its slots.
        self._ghosts: dict[str, NodeState] = {}
        self._homes: dict[str, list[ReplicaState]] = {}
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
        moved = self._timers.moved()
        if moved is not None:
            actions.append(SetTimer(moved))
        return actions

    @property
    def waiting_count(self) -> int:
        """Requests that wait for a slot."""
        return sum(len(tasks) for tasks in self.waiting.values())

    def replicas(self, model: str) -> list[ReplicaState]:
        """All replicas of a model, in an order that does not depend on chance."""
        return self._homes.get(model, [])

    # Requests

    def _arrived(self, event: ev.RequestArrived, now: float, actions: list[Action]) -> None:
        request = event.request
        if request.id in self.tasks:
            raise ValueError(f"request {request.id} has arrived already")
        self._sequence += 1
        task = Task(request, event.prefix, self._sequence, now)
        self.tasks[request.id] = task
        if self._stopping:
            self._refuse(task, refusals.stopping(), now, actions)
        elif self.waiting_count >= self.policy.max_waiting and self._would_wait(task, now):
            wait = self._expected_wait(task)
            self._refuse(task, refusals.queue_full(self.policy.max_waiting, wait), now, actions)
        else:
            self.waiting.setdefault(request.model, {})[request.id] = task
            if request.model in self._homes:
                self.demand.arrived(request.model, now)
                self.contexts.arrived(request, carries=carries(request))
            self._place(request.model, now, actions)

    def _would_wait(self, task: Task, now: float) -> bool:
        """Whether it would join a queue; False also if no replica can serve it at all."""
        model = task.request.model
        if model in self.waiting:
            return True
        choice = Plan(self.replicas(model), self.answers, now).choose(task)
        return isinstance(choice, Choice) and choice.hold > 0.0

    def _first_frame(self, event: ev.FirstFrame, now: float, _: list[Action]) -> None:
        running = self._running(event.request, event.attempt)
        if running is None:
            return
        running.first_frame = now
        running.expected_end = now + running.decoding
        running.replica.answered()
        running.task.state = "streaming"
        running.task.note(now, "streaming")

    def _finished(self, event: ev.Finished, now: float, actions: list[Action]) -> None:
        running = self._running(event.request, event.attempt)
        if running is None:
            return
        task, replica, result = running.task, running.replica, event.result
        attempt = self._free(running, "completed", None, now, result.usage.cached_tokens)
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
            self.answers.add(task.request, result.usage.completion_tokens)
        self._learn_needs(task, result, running.cached, now)
        self._end(task, "completed", now, actions, result=result)
        self._freed(replica.node, now, actions)

    def _failed(self, event: ev.Failed, now: float, actions: list[Action]) -> None:
        running = self._running(event.request, event.attempt)
        if running is None:
            return
        task, replica, failure = running.task, running.replica, event.failure
        self._free(running, "failed", failure, now)
        task.last_failure = failure
        task.tried.add(replica.key)
        task.note(now, "failed", f"{replica.key.node}: {failure.message}")
        if failure.retryable:
            self._rest(replica, now)
        if event.began or not failure.retryable:
            self._end(task, "failed", now, actions, result=event.result)
        elif len(task.attempts) >= self.policy.max_attempts:
            self._refuse(task, refusals.engine_failed(failure), now, actions)
        else:
            task.state = "waiting"
            task.since = now
            task.held = False
            self._requeue(task)
            self._place(task.request.model, now, actions)
        self._freed(replica.node, now, actions)

    def _client_left(self, event: ev.ClientLeft, now: float, actions: list[Action]) -> None:
        task = self.tasks.get(event.request)
        if task is None:
            return
        running = task.current
        if running is not None:
            self._free(running, "cancelled", None, now)
        self._end(task, "cancelled", now, actions)
        if running is not None:
            self._freed(running.replica.node, now, actions)

    # Nodes

    def _reported(self, event: ev.NodeReported, now: float, actions: list[Action]) -> None:
        report = event.report
        node = self.nodes.get(report.node)
        joined = node is None
        if node is None:
            node = self._ghosts.pop(report.node, None) or NodeState(report, now, self._shared)
            self.nodes[report.node] = node
            self._timers.set(("silence", report.node), now + self.policy.silence)
        changed = node.update(report, now)
        if joined and self.policy.placement:
            node.residents = self.residents
            self._timers.bring_forward(("residents", ""), now + PLAN_EVERY)
        if self.policy.placement or self.policy.contexts:
            node.contexts = self.contexts
            for replica in node.replicas.values():
                self.contexts.reported(replica)
        if changed or joined:
            self._index()
        # A report from a node that was leaving means that it has thought better of it.
        node.draining = False
        self._freed(node, now, actions)
        if changed:
            self._refuse_hopeless(now, actions)

    def _heard(self, event: ev.NodeHeard, now: float, _: list[Action]) -> None:
        node = self.nodes.get(event.node)
        if node is not None:
            node.heard = now
            node.load = event.load

    def _leaving(self, event: ev.NodeLeaving, now: float, actions: list[Action]) -> None:
        name = event.node
        node = self.nodes.get(name)
        if node is None:
            actions.append(Release(name))
            return
        node.draining = True
        self._refuse_hopeless(now, actions)
        if node.running == 0:
            actions.append(Release(name))

    def _gone(self, event: ev.NodeGone, now: float, actions: list[Action]) -> None:
        if event.node in self.nodes:
            self._lose(event.node, event.reason, actions)
            self._refuse_hopeless(now, actions)

    def _preload_ended(self, event: ev.PreloadEnded, now: float, actions: list[Action]) -> None:
        node = self.nodes.get(event.replica.node)
        replica = node.replicas.get(event.replica) if node is not None else None
        if node is None or replica is None:
            return
        if event.error:
            self._rest(replica, now)
            if not replica.running:
                replica.loading_until = 0.0
        else:
            replica.answered()
        self._freed(node, now, actions)

    def _lose(self, name: str, reason: str, actions: list[Action]) -> None:
        node = self.nodes.pop(name)
        self._index()
        node.reserved = None
        if node.running:
            self._ghosts[name] = node
        self._timers.drop(("silence", name))
        self._remembered.update(key.model for key in node.replicas)
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

    def _refuse_hopeless(self, now: float, actions: list[Action]) -> None:
        """Refuse what waits for replicas that are gone, and place the rest anew."""
        for model in list(self.waiting):
            self._place(model, now, actions, thorough=True)

    # Time

    def _due(self, _: ev.TimerDue, now: float, actions: list[Action]) -> None:
        due = self._timers.due(now)
        silent = [name for kind, name in due if kind == "silence" and self._is_silent(name, now)]
        for name in silent:
            reason = f"silent for {now - self.nodes[name].heard:.0f} s"
            self._lose(name, reason, actions)
        if silent:
            # Only now that all of them are gone: nothing must start on one that is about to be.
            self._refuse_hopeless(now, actions)
        for kind, name in due:
            if kind == "patience":
                task = self.tasks.get(name)
                if task is not None and task.state == "waiting":
                    waited = now - task.since
                    wait = self._expected_wait(task)
                    self._refuse(task, refusals.expired(waited, wait), now, actions)
            elif kind == "place":
                self._place(name, now, actions)
            elif kind == "residents":
                self._timers.set(("residents", ""), now + PLAN_EVERY)
                self._plan_residents(now, actions)

    def _plan_residents(self, now: float, actions: list[Action]) -> None:
        devices = inventory.survey(
            self.nodes.values(), self.demand, self.contexts, self.waiting, now
        )
        replicas = {key: r for node in self.nodes.values() for key, r in node.replicas.items()}
        orders = self.residents.plan(devices, now)
        for action in inventory.actions(orders, replicas, self.residents, self.contexts, now):
            actions.append(action)
            if isinstance(action, Unload):
                replicas[action.target.replica].evicted()
            elif isinstance(action, Preload):
                replica = replicas[action.target.replica]
                replica.loading_until = now + replica.learning.rates.load
                self.contexts.dispatched(replica, action.stay.context)

    def _learn_needs(self, task: Task, result: Result, cached: float, now: float) -> None:
        usage, request = result.usage, task.request
        prompt, answer = usage.prompt_tokens, usage.completion_tokens or 0
        if prompt is None:
            return
        known = usage.cached_tokens if usage.cached_tokens is not None else cached
        fresh = max(0.0, prompt - known)
        self.demand.answered(request.model, fresh=fresh, answer=answer, now=now)
        self.contexts.finished(request, prompt, answer, now)

    def _stay(self, task: Task, replica: ReplicaState, now: float) -> Stay:
        request, node = task.request, replica.node
        context = None
        if node.contexts is not None:
            context = node.contexts.context_for(request, replica, now, carries=carries(request))
            node.contexts.dispatched(replica, context)
        keep = node.residents.keep_alive(replica.key, now) if node.residents else None
        return Stay(context=context, keep_alive=keep)

    def _is_silent(self, name: str, now: float) -> bool:
        """Whether nothing was heard of the node for too long; if not, look again in time."""
        # The very sum that set the timer: rounding must not make it come due and find nothing.
        until = self.nodes[name].heard + self.policy.silence
        if now < until:
            self._timers.set(("silence", name), until)
        return now >= until

    def _stop(self, _: ev.Stopping, now: float, actions: list[Action]) -> None:
        self._stopping = True
        for task in list(self.tasks.values()):
            if task.state == "waiting":
                self._refuse(task, refusals.stopping(), now, actions)

    # Placement

    def _freed(self, node: NodeState, now: float, actions: list[Action]) -> None:
        """Something on this node changed: look at whoever could use it."""
        if node.running == 0:
            self._ghosts.pop(node.report.node, None)
            if node.draining:
                actions.append(Release(node.report.node))
        if not self.waiting:
            return
        models = {key.model for key in node.replicas}
        waiting = [model for model in self.waiting if model in models]
        # The model whose first request waits longest is first to have the device.
        waiting.sort(key=lambda model: next(iter(self.waiting[model].values())).sequence)
        for model in waiting:
            self._place(model, now, actions)

    def _place(
        self, model: str, now: float, actions: list[Action], *, thorough: bool = False
    ) -> None:
        """Start every waiting request of the model whose best replica is free.

        `thorough` looks at each, though none may be free, to find those that have lost all hope.
        """
        queue = self.waiting.get(model)
        if not queue:
            return
        plan = Plan(self.replicas(model), self.answers, now)
        untold = sum(not task.held for task in queue.values())
        for task in list(queue.values()):
            if task.held and not thorough and plan.exhausted:
                if not untold:
                    break
                continue
            untold -= not task.held
            choice = plan.choose(task)
            if isinstance(choice, tuple):
                self._hopeless(task, choice, now, actions)
                continue
            if choice.hold <= 0.0:
                self._dispatch(task, choice, now, actions)
            elif self._stopping:
                self._refuse(task, refusals.stopping(), now, actions)
                continue
            else:
                self._hold(task, choice, now, actions)
            plan.book(choice)

    def _dispatch(self, task: Task, choice: Choice, now: float, actions: list[Action]) -> None:
        replica, request = choice.replica, task.request
        self._dequeue(task, now)
        decision = choice.decision(now)
        predicted = (choice.estimate.total or 0.0) - choice.estimate.harm
        running = Running(task, replica, len(task.attempts) + 1, now, predicted)
        rates = replica.learning.rates
        parts = choice.estimate.signals
        running.neighbours = replica.node.running + 1
        running.decoding = parts.speed * _decode_share(
            request.prompt_tokens / rates.prefill, self.answers.expect(request) / rates.decode
        )
        running.cold = parts.residency > 0.0 or parts.context > 0.0
        if parts.residency > 0.0 and replica.loading_until <= 0.0:
            for other in signals.evicted_by(replica):
                if other.key.engine == replica.key.engine:
                    if replica.node.residents is not None and not other.running:
                        actions.append(Unload(other.target(), "a request needs its memory"))
                    other.evicted()
            replica.loading_until = now + parts.residency
        self._dispatches += 1
        replica.last_used = self._dispatches
        replica.running[request.id] = running
        replica.cache.begin(request.id, task.prefix, max(1, replica.spec.slots))
        replica.peak = max(replica.peak, len(replica.running))
        replica.node.running += 1
        task.current, task.decision, task.state = running, decision, "running"
        task.attempts.append(
            Attempt(
                number=running.number,
                replica=replica.key,
                started=now,
                predicted=running.predicted,
            )
        )
        task.note(now, "running", f"{replica.key.node}/{replica.key.engine}: {decision.reason}")
        stay = self._stay(task, replica, now)
        actions.append(Dispatch(request.id, running.number, replica.target(), decision, stay))

    def _hold(self, task: Task, choice: Choice, now: float, actions: list[Action]) -> None:
        wait = choice.hold
        if not task.held:
            task.held = True
            expected = wait
            if len(self.waiting[task.request.model]) > 1:
                expected = max(wait, self._expected_wait(task) or 0.0)
            task.note(now, "waiting", f"for {choice.replica.key.node}, about {expected:.2f} s")
            patience = task.request.patience
            if patience is None:
                patience = self.policy.patience
            self._timers.set(("patience", task.request.id), task.since + patience)
            actions.append(Hold(task.request.id, choice.replica.key, expected))
        node = choice.replica.node
        resting = choice.replica.down_until > now
        # A replica that rests would not use the memory yet.
        evicts = choice.estimate.signals.memory > 0.0 and not resting
        self._unreserve(task, now, but=node if evicts else None)
        if evicts and (node.reserved is None or node.reserved.sequence >= task.sequence):
            until = now + (choice.estimate.total or 0.0)
            node.reserved = Reservation(task.sequence, choice.replica.key, until)
        if choice.passed_over or resting or node.reserved is not None:
            # No event may come that shows the plan to be too hopeful: look again by then.
            self._timers.bring_forward(("place", task.request.model), now + max(0.05, wait))

    def _hopeless(
        self, task: Task, estimates: tuple[Estimate, ...], now: float, actions: list[Action]
    ) -> None:
        refusal = refusals.no_candidate(
            task.request,
            estimates,
            known=task.request.model in self._remembered,
            failure=task.last_failure,
        )
        self._refuse(task, refusal, now, actions)

    def _expected_wait(self, task: Task) -> float | None:
        model = task.request.model
        return expected_wait(task, self.replicas(model), self.waiting.get(model, {}))

    def _index(self) -> None:
        """Replicas came or went: list them by model anew."""
        self._homes = {}
        for node in self.nodes.values():
            for replica in node.replicas.values():
                self._homes.setdefault(replica.key.model, []).append(replica)

    # Book-keeping

    def _running(self, request: str, attempt: int) -> Running | None:
        """The attempt that an event speaks of; None if it was over before the event came."""
        task = self.tasks.get(request)
        running = task.current if task is not None else None
        return running if running is not None and running.number == attempt else None

    def _free(
        self,
        running: Running,
        ending: AttemptEnding,
        failure: Failure | None,
        now: float,
        cached: int | None = None,
    ) -> Attempt:
        """Give the slot back and complete the attempt's record."""
        task, replica = running.task, running.replica
        del replica.running[task.request.id]
        running.cached = replica.cache.end(task.request.id, cached)
        replica.node.running -= 1
        if not replica.running:
            replica.loading_until = 0.0
        if replica.spec.residency == "absent" and not replica.running:
            replica.node.replicas.pop(replica.key, None)
            self._index()
        task.current = None
        task.attempts[-1] = structs.replace(
            task.attempts[-1],
            first_frame=running.first_frame,
            ended=now,
            ending=ending,
            failure=failure,
        )
        return task.attempts[-1]

    def _rest(self, replica: ReplicaState, now: float) -> None:
        """Give a replica that failed a rest, longer each time, so that it is not hammered."""
        rest = min(self.policy.rest_most, self.policy.rest * 2.0 ** min(replica.failures, 60))
        replica.failures += 1
        replica.down_until = now + rest
        self._timers.bring_forward(("place", replica.key.model), replica.down_until)

    def _requeue(self, task: Task) -> None:
        """Put a task back to its place by arrival."""
        queue = self.waiting.setdefault(task.request.model, {})
        queue[task.request.id] = task
        ordered = sorted(queue.items(), key=lambda item: item[1].sequence)
        queue.clear()
        queue.update(ordered)

    def _dequeue(self, task: Task, now: float) -> None:
        queue = self.waiting.get(task.request.model)
        if queue is not None and queue.pop(task.request.id, None) is not None and not queue:
            del self.waiting[task.request.model]
        self._unreserve(task, now)

    def _unreserve(self, task: Task, now: float, *, but: NodeState | None = None) -> None:
        """Give up what the task has reserved; whoever stood back for it is looked at again."""
        for node in self.nodes.values():
            reserved = node.reserved
            if node is but or reserved is None or reserved.sequence != task.sequence:
                continue
            node.reserved = None
            for model in {key.model for key in node.replicas} & self.waiting.keys():
                self._timers.bring_forward(("place", model), now)

    def _refuse(self, task: Task, refusal: Refusal, now: float, actions: list[Action]) -> None:
        actions.append(Refuse(task.request.id, refusal))
        ending: Ending = "failed" if task.attempts else "rejected"
        self._end(task, ending, now, actions, refusal=refusal)

    def _end(
        self,
        task: Task,
        ending: Ending,
        now: float,
        actions: list[Action],
        *,
        result: Result | None = None,
        refusal: Refusal | None = None,
    ) -> None:
        self._dequeue(task, now)
        del self.tasks[task.request.id]
        self._timers.drop(("patience", task.request.id))
        task.state = "ended"
        task.note(now, ending, refusal.message if refusal is not None else "")
        actions.append(Record(task.outcome(ending, now, result=result, refusal=refusal)))


def _decode_share(prefill: float, decode: float) -> float:
    """How much of the time that the speed signal predicts is decoding."""
    whole = prefill + decode
    return decode / whole if whole > 0.0 else 0.0
