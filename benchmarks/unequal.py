"""Herd beside least connections on three real devices of unequal speed, with chat sessions.

Run as `python -m benchmarks.unequal`, or `make bench-unequal`: half an hour. See docs/unequal.md.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import openai
from msgspec import Struct
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks import chats, report
from benchmarks.chats import Session, Speeds, Turn
from benchmarks.household import DEVICES, HALF, WHOLE, Device, HerdOver, Household
from devtools.engines import EngineUnavailable
from devtools.quota import QuotaUnavailable
from herd.sim.results import Interval, bootstrap_ratio, quantile

Arm = Literal["herd", "least connections"]
ARMS: Final[tuple[Arm, Arm]] = ("herd", "least connections")
#: Shares of the people that use a model.
SHARES: Final = {WHOLE: 0.5, HALF: 0.5}
_TIMEOUT: Final = 600.0


class Answer(Struct, frozen=True, kw_only=True):
    """How one request went; times are seconds."""

    session: int
    turn: int
    device: str
    #: Since the run began.
    asked: float
    first: float
    took: float
    #: By which Herd tells about it.
    id: str = ""


class Result(Struct, frozen=True, kw_only=True):
    """What one arm made of one workload."""

    arm: Arm
    seed: int
    requests: int
    failed: list[str]
    mean: float
    p50: float
    p95: float
    first_mean: float
    first_p95: float
    #: Of the devices' capacity while anything was open.
    utilisation: float
    shares: dict[str, float]
    answers: list[Answer]


class Task(Struct, frozen=True):
    """What one arm is to do."""

    arm: Arm
    asked: Sequence[Session]
    seed: int
    speeds: Speeds


class Figures(Struct, frozen=True, kw_only=True):
    """All of one run of the benchmark."""

    machine: dict[str, str]
    devices: Sequence[Device]
    speeds: Speeds
    load: float
    seconds: float
    results: list[Result]
    #: Least connections over Herd: how many times shorter Herd's mean is.
    completion: Interval
    first: Interval


class Plan(Struct, frozen=True, kw_only=True):
    """How much is asked."""

    repeats: int
    seconds: float
    load: float
    seed: int = 1
    #: Of a session, at most.
    turns: int = chats.TURNS
    #: What is taken for the devices' speeds; None to measure them first.
    speeds: Speeds | None = None
    #: Where Herd's own account of its requests goes, if it is wanted.
    keep: Path | None = None


#: Names the device to ask, given what each has open.
Choose = Callable[[Mapping[str, int]], str]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; returns 1 where the machine cannot have the devices."""
    arguments = _arguments(argv)
    plan = Plan(
        repeats=arguments.repeats,
        seconds=arguments.seconds,
        load=arguments.load,
        seed=arguments.seed,
        keep=arguments.keep,
    )
    console = Console()
    try:
        with tempfile.TemporaryDirectory(prefix="herd-unequal-") as folder:
            found = measure(plan, Path(folder), console.print)
    except (EngineUnavailable, QuotaUnavailable) as error:
        sys.stderr.write(f"Nothing was measured: {error}\n")
        return 1
    show(found, console)
    if arguments.json is not None:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1))
    return 1 if any(result.failed for result in found.results) else 0


def measure(plan: Plan, folder: Path, said: Callable[[str], None]) -> Figures:
    """Run both arms on the same sessions, as often as planned, the one or the other first."""
    machine = report.machine()
    speeds = plan.speeds if plan.speeds is not None else _trial(folder / "trial")
    results: list[Result] = []
    for repeat in range(plan.repeats):
        seed = plan.seed + repeat
        asked = chats.sessions(
            speeds,
            SHARES,
            seconds=plan.seconds,
            load=plan.load,
            seed=seed,
            turns=plan.turns,
        )
        for arm in ARMS if repeat % 2 else reversed(ARMS):
            name = f"{repeat}-{arm.partition(' ')[0]}"
            answers, failed = _run(Task(arm, asked, seed, speeds), folder / name, plan.keep)
            results.append(sum_up(arm, seed, answers, failed, chats.span(speeds, asked)))
            said(_line(results[-1]))
    herd = [result for result in results if result.arm == "herd"]
    peer = [result for result in results if result.arm != "herd"]
    herd.sort(key=lambda result: result.seed)
    peer.sort(key=lambda result: result.seed)
    return Figures(
        machine=machine,
        devices=DEVICES,
        speeds=speeds,
        load=plan.load,
        seconds=plan.seconds,
        results=results,
        completion=bootstrap_ratio([r.mean for r in peer], [r.mean for r in herd]),
        first=bootstrap_ratio([r.first_mean for r in peer], [r.first_mean for r in herd]),
    )


def show(found: Figures, console: Console) -> None:
    """Print the tables."""
    speeds = Table(title="Tokens/s alone: prompt, answer", title_justify="left")
    for name in ("device", "threads", "cores", *SHARES):
        speeds.add_column(name)
    for device in found.devices:
        rates = found.speeds[device.name]
        cells = [f"{rates[model].prefill:.0f}, {rates[model].decode:.0f}" for model in SHARES]
        speeds.add_row(device.name, str(device.threads), f"{device.cores:g}", *cells)
    console.print(speeds)
    title = "Seconds: completion and first token; shares of the devices"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    names = ("seed", "arm", "asked", "mean", "p50", "p95", "first", "p95", "used")
    for name in (*names, *(device.name for device in found.devices)):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for result in sorted(found.results, key=lambda result: (result.seed, result.arm)):
        times = (result.mean, result.p50, result.p95, result.first_mean, result.first_p95)
        shares = [f"{result.shares.get(device.name, 0.0):.0%}" for device in found.devices]
        table.add_row(
            *(str(result.seed), result.arm, str(result.requests)),
            *(f"{value:.2f}" for value in times),
            *(f"{result.utilisation:.0%}", *shares),
        )
    console.print(table)
    for name, ratio in (("completion", found.completion), ("first token", found.first)):
        console.print(
            f"Mean {name}: Herd is {ratio.mean:.2f} times better than least connections "
            f"(95 % interval {ratio.low:.2f} to {ratio.high:.2f})."
        )


def least_connections(draw: random.Random) -> Choose:
    """Ask the device with the fewest requests open; among equals one by lot."""

    def choose(open_: Mapping[str, int]) -> str:
        least = min(open_.values())
        return draw.choice([name for name, count in open_.items() if count == least])

    return choose


def sum_up(arm: Arm, seed: int, answers: list[Answer], failed: list[str], work: float) -> Result:
    """Say what an arm has made of its sessions; `work` is what they need of all devices."""
    took = sorted(answer.took for answer in answers)
    first = sorted(answer.first for answer in answers)
    began = min(answer.asked for answer in answers)
    ended = max(answer.asked + answer.took for answer in answers)
    counts = Counter(answer.device for answer in answers)
    return Result(
        arm=arm,
        seed=seed,
        requests=len(answers),
        failed=failed,
        mean=statistics.fmean(took),
        p50=quantile(took, 0.5),
        p95=quantile(took, 0.95),
        first_mean=statistics.fmean(first),
        first_p95=quantile(first, 0.95),
        utilisation=work / (ended - began),
        shares={name: count / len(answers) for name, count in counts.items()},
        answers=answers,
    )


def _trial(folder: Path) -> Speeds:
    with Household(folder) as household:
        return household.speeds()


def _run(task: Task, folder: Path, keep: Path | None) -> tuple[list[Answer], list[str]]:
    """Put the sessions on fresh engines, through Herd or directly."""
    with Household(folder) as household:
        if task.arm != "herd":
            draw = random.Random(task.seed)  # noqa: S311 - an experiment, no secret
            choose = least_connections(draw)
            return asyncio.run(_Crowd(household.urls, choose).ask(task.asked))
        with household.herd(task.speeds) as herd:
            crowd = _Crowd({"": herd.url}, lambda _open: "")
            found = asyncio.run(crowd.ask(task.asked))
            if keep is not None:
                _keep(keep / f"{task.seed}.json", herd, found[0])
            return found


def _keep(path: Path, herd: HerdOver, answers: Sequence[Answer]) -> None:
    """Write what Herd tells of each request: what it predicted, why it chose, what came."""
    path.parent.mkdir(parents=True, exist_ok=True)
    details = [herd.get(f"/herd/v1/requests/{answer.id}") for answer in answers]
    path.write_bytes(msgspec.json.encode(details))


class _Crowd:
    """All the people: each conversation is a task, whose requests go where it is chosen."""

    def __init__(self, urls: Mapping[str, str], choose: Choose) -> None:
        self._urls = urls
        self._choose = choose
        self._open = dict.fromkeys(urls, 0)
        self._clients: dict[str, openai.AsyncOpenAI] = {}
        self._answers: list[Answer] = []
        self._failed: list[str] = []
        self._begun = 0.0

    async def ask(self, asked: Sequence[Session]) -> tuple[list[Answer], list[str]]:
        """Have all conversations; returns what was answered, and what went wrong."""
        async with AsyncExitStack() as stack:
            for name, url in self._urls.items():
                client = openai.AsyncOpenAI(
                    base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=_TIMEOUT
                )
                self._clients[name] = await stack.enter_async_context(client)
            self._begun = time.monotonic()
            async with asyncio.TaskGroup() as group:
                for number, session in enumerate(asked):
                    group.create_task(self._talk(number, session))
        return self._answers, self._failed

    async def _talk(self, number: int, session: Session) -> None:
        await asyncio.sleep(self._begun + session.start - time.monotonic())
        messages: list[Any] = [{"role": "system", "content": session.system}]
        for count, turn in enumerate(session.turns):
            await asyncio.sleep(turn.think)
            messages.append({"role": "user", "content": turn.text})
            device = self._choose(self._open)
            self._open[device] += 1
            try:
                text = await self._turn(device, session, turn, messages, (number, count))
            except openai.OpenAIError as error:
                self._failed.append(f"{session.person}, turn {count}: {error!r}")
                return
            finally:
                self._open[device] -= 1
            messages.append({"role": "assistant", "content": text})

    async def _turn(
        self,
        device: str,
        session: Session,
        turn: Turn,
        messages: list[Any],
        place: tuple[int, int],
    ) -> str:
        begun = time.monotonic()
        first = 0.0
        parts: list[str] = []
        raw = await self._clients[device].chat.completions.with_raw_response.create(
            model=session.model,
            messages=messages,
            stream=True,
            temperature=0.0,
            user=session.person,
            # llama.cpp's own field: how long the answer is, which no router reads.
            extra_body={"n_predict": turn.output},
        )
        async for chunk in raw.parse():
            content = chunk.choices[0].delta.content if chunk.choices else None
            if content:
                first = first or time.monotonic()
                parts.append(content)
        ended = time.monotonic()
        self._answers.append(
            Answer(
                session=place[0],
                turn=place[1],
                device=raw.headers.get("Herd-Node", device),
                asked=begun - self._begun,
                first=(first or ended) - begun,
                took=ended - begun,
                id=raw.headers.get("Herd-Request-Id", ""),
            )
        )
        return "".join(parts)


def _line(result: Result) -> str:
    shares = ", ".join(f"{name} {share:.0%}" for name, share in sorted(result.shares.items()))
    failed = f", {len(result.failed)} FAILED: {result.failed[0]}" if result.failed else ""
    return (
        f"seed {result.seed}, {result.arm}: {result.requests} requests, mean {result.mean:.2f} s, "
        f"p95 {result.p95:.2f} s, first {result.first_mean:.2f} s, "
        f"used {result.utilisation:.0%}; {shares}{failed}"
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="how often; 5")
    parser.add_argument("--seconds", type=float, default=45.0, help="in which sessions start; 45")
    parser.add_argument(
        "--load", type=float, default=0.75, help="of the capacity in that time; 0.75"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the first repeat; 1")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="also keep what Herd tells of its requests"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
