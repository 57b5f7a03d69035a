"""What Herd costs: CPU per request and per streamed frame, and delay, beside nginx.

Run as `python -m benchmarks.overhead`, or `make bench`. Everything is on loopback. One backend
answers both proxies; all combinations of load and proxy are measured in each repeat, in random
order, after a warm-up, so that whatever else the machine does meets all of them alike. What is
counted is the proxy's own CPU time, so that it does not matter how fast load and backend are.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from msgspec import Struct
from rich.console import Console
from rich.progress import track

from benchmarks import load, nginx, report, traffic
from benchmarks.backend import BackendProcess
from benchmarks.bare import BareProcess
from benchmarks.cpu import CpuMeter, on_core, two_cores
from benchmarks.load import Sample, Scenario
from benchmarks.report import BARE, DIRECT, HERD, NGINX, Report
from devtools.processes import Process, RouterProcess

SCENARIOS: Final = (
    Scenario(name="request", title="requests, 16 connections", unit="request", connections=16),
    Scenario(name="request-alone", title="requests, 1 connection", unit="request", connections=1),
    Scenario(
        name="request-paced",
        title="requests, 500/s on 16 connections",
        unit="request",
        connections=16,
        rate=500,
    ),
    Scenario(
        name="sse-light",
        title="SSE, 16 streams x 100/s",
        unit="frame",
        connections=16,
        rate=100,
    ),
    Scenario(
        name="ndjson-light",
        title="NDJSON, 16 streams x 100/s",
        unit="frame",
        form="ndjson",
        connections=16,
        rate=100,
    ),
    Scenario(
        name="sse-heavy",
        title="SSE, 64 streams x 200/s",
        unit="frame",
        connections=64,
        rate=200,
    ),
)
#: Slots that Herd is told the backend has: more than there are connections, so nothing waits.
SLOTS: Final = 256


class Plan(Struct, frozen=True, kw_only=True):
    """How long everything takes."""

    repeats: int
    #: Seconds of each measurement, and before it.
    seconds: float
    warm_up: float
    #: Also measure a relay of aiohttp alone.
    bare: bool = False


class Subject(Struct, frozen=True):
    """What the load is put on, and whose CPU is counted."""

    port: int
    cpu: CpuMeter


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and report."""
    arguments = _arguments(argv)
    quick: bool = arguments.quick
    scenarios = [each for each in SCENARIOS if _wanted(each, arguments.only, quick=quick)]
    plan = Plan(
        repeats=arguments.repeats or (1 if quick else 5),
        seconds=arguments.seconds or (1.0 if quick else 4.0),
        warm_up=0.5 if quick else 0.7,
        bare=arguments.bare,
    )
    console = Console()
    found = measure(scenarios, plan)
    report.show(found, scenarios, console)
    if arguments.json is not None:
        report.save(found, arguments.json)


def measure(scenarios: Sequence[Scenario], plan: Plan) -> Report:
    """Start backend and proxies, put every load on each of them, and sum up."""
    machine = report.machine()
    notes = []
    proxy_core, load_core = two_cores()
    if proxy_core is None:
        notes.append("proxy, backend and load share the same cores")
    program = nginx.find_nginx()
    if program is None:
        notes.append("nginx is not installed, so there is nothing to compare with")
    else:
        machine["nginx"] = nginx.version(program)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="herd-bench-")))
        with on_core(load_core):
            backend = stack.enter_context(BackendProcess(folder))
        subjects = {DIRECT: _subject(backend, backend.port)}
        with on_core(proxy_core):
            if program is not None:
                other = nginx.NginxProcess(program, folder, backend=backend.port)
                subjects[NGINX] = _subject(stack.enter_context(other), other.port)
            if plan.bare:
                bare = stack.enter_context(BareProcess(folder, backend=backend.port))
                subjects[BARE] = _subject(bare, bare.port)
            router = stack.enter_context(_router(folder, backend.port))
            subjects[HERD] = _subject(router, router.port)
        stack.enter_context(on_core(load_core))
        samples = _samples(scenarios, subjects, plan)
        return Report(
            machine=machine,
            repeats=plan.repeats,
            seconds=plan.seconds,
            rows=report.rows(scenarios, samples),
            idle=_idle(subjects[HERD].cpu, plan.seconds),
            memory={
                name: subject.cpu.resident_bytes()
                for name, subject in subjects.items()
                if name != DIRECT
            },
            notes=notes,
        )


def _samples(
    scenarios: Sequence[Scenario], subjects: Mapping[str, Subject], plan: Plan
) -> dict[tuple[str, str], list[Sample]]:
    order = []
    for _ in range(plan.repeats):
        once = [(scenario, name) for scenario in scenarios for name in subjects]
        random.shuffle(once)
        order += once
    samples: dict[tuple[str, str], list[Sample]] = {}
    for scenario, name in track(order, description="Measuring", transient=True):
        subject = subjects[name]
        sample = load.run(
            scenario,
            subject.port,
            cpu=subject.cpu.seconds,
            warm_up=plan.warm_up,
            seconds=plan.seconds,
        )
        samples.setdefault((scenario.name, name), []).append(sample)
    return samples


def _router(folder: Path, backend: int) -> RouterProcess:
    """Return a router that has nothing but the backend; it waits for its models."""
    engine = f"http://127.0.0.1:{backend}?slots={SLOTS}"
    return _ReadyRouter(folder, "--no-discovery", "--engine", engine)


class _ReadyRouter(RouterProcess):
    """A router that counts as started when it has found the backend's models."""

    def wait_ready(self) -> None:
        super().wait_ready()
        for model in (traffic.SHORT_MODEL, *map(traffic.frames_model, traffic.RATES)):
            self.wait_for_replicas(model, 1)


def _subject(process: Process, port: int) -> Subject:
    return Subject(port, CpuMeter(process.process))


def _idle(cpu: CpuMeter, seconds: float) -> float:
    """Share of a core that is used while nothing is asked."""
    used = cpu.seconds()
    time.sleep(seconds)
    return (cpu.seconds() - used) / seconds


def _wanted(scenario: Scenario, only: Sequence[str] | None, *, quick: bool) -> bool:
    if only:
        return scenario.name in only
    return not quick or scenario.name in {"request", "sse-light", "ndjson-light"}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few loads, once, in half a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--repeats", type=int, help="how often everything is measured; 5")
    parser.add_argument("--seconds", type=float, help="seconds of each measurement; 4")
    parser.add_argument(
        "--bare", action="store_true", help="also measure a relay of aiohttp alone, as a floor"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="LOAD",
        choices=[each.name for each in SCENARIOS],
        help="loads to measure: " + ", ".join(each.name for each in SCENARIOS),
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
