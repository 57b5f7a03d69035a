"""The state machine under random events: whatever comes, the fleet's promises hold."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from herd.core import actions as ac
from herd.core import events as ev
from herd.core.fleet import EngineReport, Hardware, Load, NodeReport, Replica
from herd.core.request import Failure, Outcome, Request, Result, Usage
from herd.core.scheduler import Policy, Scheduler

NODES = ("n1", "n2", "n3")
MODELS = ("small:latest", "big:latest", "rare:latest")
POLICY = Policy(max_waiting=12, patience=50.0, max_attempts=3, silence=15.0)


@st.composite
def reports(draw: st.DrawFn) -> NodeReport:
    node = draw(st.sampled_from(NODES))
    up = draw(st.booleans()) or draw(st.booleans())
    replicas = tuple(
        Replica(
            model=model,
            name=model,
            size=draw(st.sampled_from([0, 1_000_000_000, 6_000_000_000])),
            residency=draw(st.sampled_from(["disk", "loading", "resident"])),
            context_length=draw(st.sampled_from([0, 2048])),
            loaded_context=draw(st.sampled_from([0, 1024])),
            slots=draw(st.integers(1, 3)),
        )
        for model in draw(st.sets(st.sampled_from(MODELS)))
    )
    engine = EngineReport(
        id="e",
        kind="ollama",
        url=f"http://{node}",
        up=up,
        error="" if up else "refused",
        replicas=replicas if up else (),
        running=draw(st.sampled_from([None, 0, 3])),
    )
    hardware = Hardware(memory_bytes=draw(st.sampled_from([0, 8_000_000_000, 64_000_000_000])))
    return NodeReport(node=node, name=node, hardware=hardware, engines=(engine,))


class Fleet(RuleBasedStateMachine):
    """Drives one scheduler and keeps its own account of what should be true."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(POLICY)
        self.twin = Scheduler(POLICY)
        self.now = 1000.0
        self.ids = (f"r{n}" for n in itertools.count())
        self.open: set[str] = set()
        self.began: set[str] = set()
        self.running: dict[str, ac.Dispatch] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.timer: float | None = None

    # Everything goes through here

    def feed(self, event: ev.Event) -> None:
        done = self.scheduler.handle(event, self.now)
        assert done == self.twin.handle(event, self.now), "same events, same actions"
        for action in done:
            self.check(action)

    def check(self, action: Any) -> None:
        match action:
            case ac.Dispatch(request=request, target=target):
                assert request in self.open, "only open requests are dispatched"
                assert request not in self.running, "one attempt at a time"
                assert request not in self.began, "no retry once bytes have gone out"
                self.running[request] = action
                node = self.scheduler.nodes[target.replica.node]
                assert not node.draining
                replica = node.replicas[target.replica]
                assert len(replica.running) <= replica.spec.slots, "beyond the slots"
                assert action.decision.chosen == target.replica
            case ac.Record(outcome=outcome):
                request = outcome.request.id
                assert request in self.open, "recorded while open"
                assert request not in self.outcomes, "exactly one outcome"
                self.outcomes[request] = outcome
                self.open.discard(request)
                self.running.pop(request, None)
                assert outcome.arrived <= outcome.ended
                assert all(attempt.ended is not None for attempt in outcome.attempts)
            case ac.Refuse(request=request, refusal=refusal):
                assert request in self.open, "refused while open, before its record"
                assert refusal.message
            case ac.Hold(expected_wait=wait):
                assert wait >= 0.0
            case ac.SetTimer(at=at):
                self.timer = at
            case ac.Abort(request=request, attempt=number):
                assert self.running[request].attempt == number

    # Rules

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.5, 3.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        end = self.now + seconds
        while self.timer is not None and self.timer <= end:
            self.now = max(self.now, self.timer)
            self.timer = None
            self.feed(ev.TimerDue())
        self.now = end

    @rule(report=reports())
    def node_reports(self, report: NodeReport) -> None:
        self.feed(ev.NodeReported(report))

    @rule(node=st.sampled_from(NODES))
    def node_beats(self, node: str) -> None:
        self.feed(ev.NodeHeard(node, Load(cpu=0.5)))

    @rule(node=st.sampled_from(NODES))
    def node_leaves(self, node: str) -> None:
        self.feed(ev.NodeLeaving(node))

    @rule(node=st.sampled_from(NODES))
    def node_goes(self, node: str) -> None:
        self.feed(ev.NodeGone(node, "link lost"))

    @rule(
        model=st.sampled_from([*MODELS, "unknown:latest"]),
        tokens=st.sampled_from([1, 500, 5000]),
        limit=st.sampled_from([None, 16]),
        context=st.sampled_from([None, 4096]),
        burst=st.integers(1, 6),
    )
    def requests_arrive(
        self, model: str, tokens: int, limit: int | None, context: int | None, burst: int
    ) -> None:
        for _ in range(burst):
            request = Request(
                id=next(self.ids),
                dialect="ollama",
                operation="chat",
                endpoint="/api/chat",
                asked=model,
                model=model,
                stream=True,
                kinds=frozenset({"ollama"}),
                prompt_tokens=tokens,
                max_tokens=limit,
                context=context,
            )
            self.open.add(request.id)
            before = self.scheduler.waiting_count
            self.feed(ev.RequestArrived(request))
            # Those that wait again after a failed attempt come on top of the bound.
            assert self.scheduler.waiting_count <= max(before, POLICY.max_waiting)

    def pick(self, data: st.DataObject) -> ac.Dispatch:
        return self.running[data.draw(st.sampled_from(sorted(self.running)))]

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def first_frame_comes(self, data: st.DataObject) -> None:
        running = self.pick(data)
        self.began.add(running.request)
        self.feed(ev.FirstFrame(running.request, running.attempt))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), tokens=st.sampled_from([None, 0, 1, 300]))
    def attempt_finishes(self, data: st.DataObject, tokens: int | None) -> None:
        running = self.pick(data)
        result = Result(usage=Usage(prompt_tokens=50, completion_tokens=tokens))
        self.feed(ev.Finished(running.request, running.attempt, result))
        assert self.outcomes[running.request].ending == "completed"

    @precondition(lambda self: self.running)
    @rule(data=st.data(), retryable=st.booleans())
    def attempt_fails(self, data: st.DataObject, retryable: bool) -> None:
        running = self.running.pop(self.pick(data).request)
        failure = Failure(kind="connect", message="connection refused", retryable=retryable)
        began = running.request in self.began
        self.feed(ev.Failed(running.request, running.attempt, failure, began))
        if began or not retryable:
            assert self.outcomes[running.request].ending == "failed"

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def client_leaves(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.open)))
        self.running.pop(request, None)
        self.feed(ev.ClientLeft(request))
        assert self.outcomes[request].ending == "cancelled"

    @rule()
    def late_news_of_ended_requests_is_ignored(self) -> None:
        for request in list(self.outcomes)[-2:]:
            self.feed(ev.Finished(request, 1, Result()))
            self.feed(ev.ClientLeft(request))

    # What always holds

    @invariant()
    def books_agree(self) -> None:
        assert set(self.scheduler.tasks) == self.open, "no request lost or invented"
        line = self.scheduler.line
        waiting = {task.request.id for task in line.ordered(list(line.models))}
        assert len(waiting) == len(line), "everybody in the line comes by once"
        assert waiting == self.open - set(self.running), "open is waiting or running"
        for node in self.scheduler.nodes.values():
            counted = sum(len(replica.running) for replica in node.replicas.values())
            assert node.running == counted >= 0
        if waiting:
            assert self.timer is not None, "whoever waits has a time at which it is looked at"

    def teardown(self) -> None:
        """Nothing starves: with one good node and engines that finish, everything ends."""
        replicas = tuple(
            Replica(model=model, name=model, size=1_000_000_000, slots=1) for model in MODELS
        )
        engine = EngineReport(id="e", kind="ollama", url="http://n1", replicas=replicas)
        for _ in range(3 * len(self.open) + 10):
            if not self.open:
                break
            self.feed(ev.NodeReported(NodeReport(node="n1", name="n1", engines=(engine,))))
            for running in list(self.running.values()):
                if running.request in self.running:
                    self.running.pop(running.request)
                    self.feed(ev.Finished(running.request, running.attempt, Result()))
            self.time_passes(1.0)
        assert not self.open, [self.scheduler.tasks[name].story for name in self.open]


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
