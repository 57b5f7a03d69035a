"""What a decision costs: `python -m benchmarks.decisions`, the scheduler alone, without I/O.

The scheduler is fed with the events of a fleet, one after the other, as fast as it takes them; the
CPU time of each kind of event is told, as the median and the 95th percentile. Times of arrival are
virtual, so that the fleet is as busy as wanted whatever this machine can do.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from herd.core import actions as do
from herd.core import events as ev
from herd.core.fleet import EngineReport, Hardware, Load, NodeReport, Replica
from herd.core.placement import Choice, choose
from herd.core.request import Prefix, Request, Result, Usage
from herd.core.scheduler import Policy, Scheduler
from herd.core.task import Task

#: Bytes/s of the devices, in turn: from a desktop with the largest of chips to a small laptop.
_BANDWIDTHS = (800e9, 400e9, 200e9, 100e9, 68e9)
_MODELS = {"llama3.1:8b": 4_920_000_000, "llama3.2:3b": 2_020_000_000}
_CLIENTS = 50
_PROMPT, _ANSWER = 300, 200
#: Arrivals a second, in virtual time, and seconds between the heartbeats of a node.
_RATE = 2000.0
_HEARTBEAT = 2.0
_US = 1e6


class Case(Struct, frozen=True):
    """A fleet of so many nodes, with so many requests waiting and running."""

    nodes: int
    waiting: int
    #: Share of the devices that are busy.
    busy: float


CASES = (
    Case(8, 0, 0.0),
    Case(8, 0, 0.5),
    Case(8, 20, 1.0),
    Case(200, 0, 0.5),
    Case(200, 200, 1.0),
    Case(1000, 0, 0.5),
    Case(1000, 1000, 1.0),
)


class Cost(Struct, frozen=True):
    """CPU time of one kind of event, in microseconds."""

    median: float
    most: float


class Found(Struct, frozen=True):
    """What one case cost."""

    case: Case
    #: The choice among the candidates, put into words: the decision itself.
    decision: Cost
    #: Whole events: an arrival up to its dispatch or its place in the line; first frame and end.
    arrival: Cost
    finish: Cost
    #: Arrivals a second that one core keeps up with: all events of a request, timers, heartbeats.
    rate: float


class Stage:
    """A scheduler and the requests that run on it."""

    def __init__(self, nodes: int) -> None:
        self.scheduler = Scheduler(Policy(max_waiting=1_000_000, patience=1e9, silence=1e9))
        self.now = 1000.0
        self.running: list[do.Dispatch] = []
        self._requests = 0
        self._draw = random.Random(1)  # noqa: S311 - an experiment, no secret
        self._timer = float("inf")
        self._beats = 0.0
        self._nodes = deque(f"n{number}" for number in range(nodes))
        for report in _reports(nodes):
            self.feed(ev.NodeReported(report))

    def feed(self, event: ev.Event) -> float:
        """Let something happen; return the seconds of CPU that it took."""
        began = time.process_time()
        found = self.scheduler.handle(event, self.now)
        took = time.process_time() - began
        for action in found:
            if isinstance(action, do.Dispatch):
                self.running.append(action)
            elif isinstance(action, do.SetTimer):
                self._timer = action.at
        return took

    def wait(self, seconds: float) -> float:
        """Let time pass, with its timers and heartbeats; return the CPU that they took."""
        self.now += seconds
        took = 0.0
        while self._timer <= self.now:
            self._timer = float("inf")
            took += self.feed(ev.TimerDue())
        self._beats += seconds * len(self._nodes) / _HEARTBEAT
        while self._beats >= 1.0:
            self._beats -= 1.0
            self._nodes.rotate()
            took += self.feed(ev.NodeHeard(self._nodes[0], Load(cpu=0.1)))
        return took

    def arrive(self) -> float:
        """Somebody asks."""
        request = self._request()
        blocks = tuple(hash((request.client, block)) for block in range(_PROMPT // 128))
        return self.feed(ev.RequestArrived(request, Prefix(blocks, 128)))

    def _request(self) -> Request:
        self._requests += 1
        client = self._draw.randrange(_CLIENTS)
        return Request(
            id=f"r{self._requests}",
            dialect="ollama",
            operation="chat",
            endpoint="/api/chat",
            asked="llama3.1:8b",
            model="llama3.1:8b",
            stream=True,
            needs=frozenset({"completion"}),
            kinds=frozenset({"ollama"}),
            prompt_tokens=_PROMPT,
            client=f"client-{client}",
        )

    def finish(self) -> float:
        """One of those that run is done: its first frame comes, and its end."""
        done = self.running.pop(self._draw.randrange(len(self.running)))
        took = self.feed(ev.FirstFrame(done.request, done.attempt))
        usage = Usage(prompt_tokens=_PROMPT, completion_tokens=_ANSWER)
        return took + self.feed(ev.Finished(done.request, done.attempt, Result(usage=usage)))

    def decide(self) -> float:
        """Choose for a request that does not arrive; return the seconds of CPU that it took."""
        board = self.scheduler.board
        task = Task(self._request(), Prefix(), 1_000_000_000, self.now)
        task.answer, task.need, task.least = _ANSWER, _PROMPT + _ANSWER, _PROMPT
        task.order = (2, 1e9, task.sequence)
        began = time.process_time()
        replicas, more = board.candidates(task, self.now)
        choice = choose(task, replicas, self.now, whole=not more)
        if isinstance(choice, Choice):
            choice.decision(self.now)
        return time.process_time() - began

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self.scheduler.line)


def measure(case: Case, rounds: int) -> Found:
    """Bring a fleet into the state of the case, and keep it there."""
    stage = Stage(case.nodes)
    # Warm up: every device has learned something.
    for _ in range(3 * case.nodes):
        stage.wait(0.5)
        stage.arrive()
        if len(stage.running) > case.busy * case.nodes:
            stage.finish()
    while stage.waiting < case.waiting:
        stage.wait(0.001)
        stage.arrive()
    arrivals, finishes, decisions, others = [], [], [], 0.0
    for _ in range(rounds):
        others += stage.wait(1.0 / _RATE)
        decisions.append(stage.decide())
        arrivals.append(stage.arrive())
        while stage.waiting > case.waiting or len(stage.running) > case.busy * case.nodes:
            if not stage.running:
                break
            finishes.append(stage.finish())
    whole = sum(arrivals) + sum(finishes) + others
    return Found(case, _cost(decisions), _cost(arrivals), _cost(finishes), rounds / whole)


def _reports(nodes: int) -> Iterator[NodeReport]:
    for number in range(nodes):
        replicas = tuple(
            Replica(
                model=name,
                name=name,
                size=size,
                context_length=131_072,
                loaded_context=8192,
                memory_bytes=int(1.2 * size),
            )
            for name, size in _MODELS.items()
        )
        engine = EngineReport(
            id="ollama-11434", kind="ollama", url=f"http://n{number}", replicas=replicas
        )
        bandwidth = _BANDWIDTHS[number % len(_BANDWIDTHS)]
        hardware = Hardware(chip="Apple", memory_bytes=64 * 2**30, bandwidth=bandwidth)
        yield NodeReport(node=f"n{number}", name=f"n{number}", hardware=hardware, engines=(engine,))


def _cost(seconds: list[float]) -> Cost:
    ordered = sorted(seconds)
    return Cost(_US * statistics.median(ordered), _US * ordered[int(0.95 * len(ordered))])


def main(
    rounds: Annotated[int, typer.Option(min=10, help="Arrivals of each case.")] = 2000,
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
) -> None:
    """Measure what the scheduler's events cost."""
    found = [measure(case, rounds) for case in CASES]
    table = Table(title="CPU of the scheduler, µs: median (95th percentile)", title_justify="left")
    for name in (
        "nodes",
        "waiting",
        "busy",
        "decision",
        "arrival",
        "first frame and end",
        "requests/s",
    ):
        table.add_column(name, justify="right")
    for each in found:
        table.add_row(
            f"{each.case.nodes:,}",
            f"{each.case.waiting:,}",
            f"{each.case.busy:.0%}",
            f"{each.decision.median:.0f} ({each.decision.most:.0f})",
            f"{each.arrival.median:.0f} ({each.arrival.most:.0f})",
            f"{each.finish.median:.0f} ({each.finish.most:.0f})",
            f"{each.rate:,.0f}",
        )
    Console(width=100).print(table)
    if json is not None:
        json.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1))


if __name__ == "__main__":
    typer.run(main)
