"""Plays a scheduler by hand: events in by short methods, actions out as short sentences."""

from __future__ import annotations

from typing import Any

from herd.core import actions as ac
from herd.core import events as ev
from herd.core import priors
from herd.core.decision import Estimate, Signals
from herd.core.fleet import (
    Capability,
    EngineKind,
    EngineReport,
    Hardware,
    Load,
    NodeReport,
    Replica,
    Residency,
)
from herd.core.request import (
    Failure,
    FailureKind,
    Operation,
    Outcome,
    Prefix,
    Priority,
    Refusal,
    Request,
    Result,
    Timings,
    Usage,
)
from herd.core.scheduler import Policy, Scheduler

GB = 1_000_000_000
ENGINE = "engine-1"


def model(
    name: str = "m",
    *,
    residency: Residency = "resident",
    size: int = 6 * GB,
    slots: int = 1,
    capabilities: tuple[Capability, ...] = ("completion",),
    context_length: int = 0,
    loaded_context: int = 0,
) -> Replica:
    """One model as an engine lists it."""
    return Replica(
        model=f"{name}:latest",
        name=name,
        residency=residency,
        size=size,
        slots=slots,
        capabilities=capabilities,
        context_length=context_length,
        loaded_context=loaded_context,
    )


def cold(name: str = "m", *, size: int = 6 * GB, slots: int = 1) -> Replica:
    """A model that is on disk; by the priors 6 GB take 6 seconds to load."""
    return model(name, residency="disk", size=size, slots=slots)


def hardware(*, speed: float = 100.0, memory: float = 64.0) -> Hardware:
    """A device that decodes `speed` tokens/s of a 6 GB model, with so many GB of memory."""
    return Hardware(bandwidth=speed * 6 * GB / priors.EFFICIENCY, memory_bytes=int(memory * GB))


class Play:
    """A scheduler on a stage of its own, at 1000 seconds."""

    def __init__(self, **limits: Any) -> None:
        # Loads ahead of requests and named contexts have tests of their own.
        self.scheduler = Scheduler(Policy(**{"placement": False, "context_plan": False, **limits}))
        self.now = 1000.0
        #: Everything that was done, in order.
        self.actions: list[ac.Action] = []
        self.outcomes: dict[str, Outcome] = {}
        self.timer: float | None = None
        self._told = 0
        self._attempts: dict[str, int] = {}

    # What happens

    def feed(self, event: ev.Event) -> None:
        for action in self.scheduler.handle(event, self.now):
            self.actions.append(action)
            match action:
                case ac.SetTimer(at=at):
                    self.timer = at
                case ac.Dispatch(request=request, attempt=attempt):
                    self._attempts[request] = attempt
                case ac.Record(outcome=outcome):
                    assert outcome.request.id not in self.outcomes, "a second outcome"
                    self.outcomes[outcome.request.id] = outcome

    def wait(self, seconds: float) -> None:
        """Let time pass; timers come due on their way."""
        end = self.now + seconds
        for _ in range(100_000):
            if self.timer is None or self.timer > end:
                break
            self.now, self.timer = max(self.now, self.timer), None
            self.feed(ev.TimerDue())
        else:
            raise AssertionError("timers come due for ever")
        self.now = end

    def sleep(self, seconds: float) -> None:
        """Time passes as when the router's machine sleeps: all timers come due at its end."""
        self.now, self.timer = self.now + seconds, None
        self.feed(ev.TimerDue())

    def node(
        self,
        name: str,
        *replicas: Replica,
        speed: float = 100.0,
        memory: float = 64.0,
        kind: EngineKind = "ollama",
        down: str = "",
        running: int | None = None,
        waiting: int | None = None,
    ) -> None:
        """A node reports; `down` says why its engine is."""
        engine = EngineReport(
            id=ENGINE,
            kind=kind,
            url=f"http://{name}:1",
            up=not down,
            error=down,
            replicas=replicas,
            running=running,
            waiting=waiting,
        )
        self.report(name, engine, hardware=hardware(speed=speed, memory=memory))

    def report(self, name: str, *engines: EngineReport, hardware: Hardware) -> None:
        self.feed(
            ev.NodeReported(NodeReport(node=name, name=name, hardware=hardware, engines=engines))
        )

    def ask(
        self,
        request: str,
        name: str = "m",
        *,
        answer: int | None = 100,
        prompt: int = 0,
        prefix: tuple[int, ...] = (),
        needs: tuple[Capability, ...] = ("completion",),
        kinds: tuple[EngineKind, ...] = ("ollama", "llamacpp", "vllm"),
        operation: Operation = "chat",
        context: int | None = None,
        patience: float | None = None,
        stream: bool = True,
        session: str = "",
        client: str = "",
        priority: Priority = "normal",
        deadline: float | None = None,
    ) -> None:
        """A request arrives that wants at most `answer` tokens."""
        asked = Request(
            id=request,
            dialect="openai",
            operation=operation,
            endpoint="/v1/chat/completions",
            asked=name,
            model=f"{name}:latest",
            stream=stream,
            needs=frozenset(needs),
            kinds=frozenset(kinds),
            prompt_tokens=prompt,
            max_tokens=answer,
            context=context,
            patience=patience,
            session=session,
            client=client,
            priority=priority,
            deadline=deadline,
        )
        self.feed(ev.RequestArrived(asked, Prefix(prefix, 100)))

    def first(self, request: str) -> None:
        self.feed(ev.FirstFrame(request, self._attempts[request]))

    def finish(
        self, request: str, *, tokens: int | None = None, timings: Timings | None = None
    ) -> None:
        result = Result(usage=Usage(completion_tokens=tokens), timings=timings or Timings())
        self.feed(ev.Finished(request, self._attempts[request], result))

    def fail(
        self,
        request: str,
        message: str = "connection refused",
        *,
        kind: FailureKind = "connect",
        retryable: bool = True,
        began: bool = False,
    ) -> None:
        failure = Failure(kind=kind, message=message, retryable=retryable)
        self.feed(ev.Failed(request, self._attempts[request], failure, began))

    def client_leaves(self, request: str) -> None:
        self.feed(ev.ClientLeft(request))

    def beat(self, node: str) -> None:
        self.feed(ev.NodeHeard(node, Load(cpu=0.1)))

    def leaving(self, node: str) -> None:
        self.feed(ev.NodeLeaving(node))

    def gone(self, node: str, reason: str = "link lost") -> None:
        self.feed(ev.NodeGone(node, reason))

    def stop(self) -> None:
        self.feed(ev.Stopping())

    # What follows

    def then(self, *lines: str) -> None:
        """Exactly this was done since the last `then`, timers aside."""
        new, self._told = self.actions[self._told :], len(self.actions)
        assert [line for action in new if (line := _line(action))] == list(lines)

    def skip(self) -> None:
        """Whatever was done up to now is of no interest."""
        self._told = len(self.actions)

    def all(self, kind: type[ac.Action]) -> list[Any]:
        return [action for action in self.actions if isinstance(action, kind)]

    def where(self, request: str) -> str | None:
        """The node on which the request runs now."""
        task = self.scheduler.tasks.get(request)
        return task.current.replica.key.node if task is not None and task.current else None

    def runs(self, request: str) -> bool:
        """Whether an attempt of it is out."""
        return self.scheduler.tasks[request].current is not None

    def hold_of(self, request: str) -> float:
        """Seconds that the device of a running request is expected to be busy with it."""
        running = self.scheduler.tasks[request].current
        assert running is not None
        return running.left(self.now)

    def dispatch(self, request: str) -> ac.Dispatch:
        """The last dispatch of the request."""
        return [a for a in self.actions if isinstance(a, ac.Dispatch) and a.request == request][-1]

    def hold(self, request: str) -> ac.Hold:
        return [a for a in self.actions if isinstance(a, ac.Hold) and a.request == request][-1]

    def refusal(self, request: str) -> Refusal:
        (refusal,) = [
            a.refusal for a in self.actions if isinstance(a, ac.Refuse) and a.request == request
        ]
        return refusal

    def estimate(self, request: str, node: str) -> Estimate:
        """How the node's replica looked in the request's last decision."""
        decision = self.dispatch(request).decision
        (found,) = [e for e in decision.estimates if e.replica.node == node]
        return found

    def signals(self, request: str, node: str) -> Signals:
        return self.estimate(request, node).signals


def _line(action: ac.Action) -> str:  # noqa: PLR0911 - a table of sentences
    match action:
        case ac.Dispatch(request=request, attempt=1, target=target):
            return f"{request} runs on {target.node_name}"
        case ac.Dispatch(request=request, target=target, beside=True):
            return f"{request} runs on {target.node_name} too"
        case ac.Dispatch(request=request, attempt=attempt, target=target):
            return f"{request} runs on {target.node_name}, attempt {attempt}"
        case ac.Hold(request=request, replica=replica):
            return f"{request} waits for {replica.node}"
        case ac.Refuse(request=request, refusal=refusal):
            return f"{request} is refused: {refusal.kind}"
        case ac.Abort(request=request):
            return f"{request} is aborted"
        case ac.Cancel(request=request, attempt=attempt):
            return f"attempt {attempt} of {request} is cancelled"
        case ac.Record(outcome=outcome):
            return f"{outcome.request.id} {outcome.ending}"
        case ac.Release(node=node):
            return f"{node} is released"
        case _:
            return ""
