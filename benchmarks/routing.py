"""What routing is worth: six fleets, five workloads, all policies; `make bench-routing`.

Every run of one policy on one seed is kept under `.cache/routing`, with a fingerprint of the code
that it depends on: a run that was broken off goes on where it was, and after a change of the
scheduler only Herd (and the lower bound of its arrivals) is run again.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from msgspec import Struct

import herd
from benchmarks import standings
from benchmarks.standings import BOUND, CLAIRVOYANT, Figures, Key, Runs
from herd.sim.bound import lower_bound
from herd.sim.compare import HERD, REQUESTS, Setting, scenario
from herd.sim.fleets import FLEETS
from herd.sim.policies import POLICIES
from herd.sim.results import metrics
from herd.sim.workloads import WORKS
from herd.sim.world import run

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "routing"
#: The load of the table of all cells, and those of the geometric means.
MIDDLE = 0.75
LOADS = (0.6, MIDDLE, 0.9)
#: Seeds on which the yardsticks run that take longest: all policies together take less.
_BOUND_SEEDS = {"two-hundred": 5}
_CLAIRVOYANT_SEEDS = {"two-hundred": 0, "twenty": 5}
#: Steps of the bound's search on the largest fleet; elsewhere as many as usual.
_BOUND_STEPS = {"two-hundred": 5}
_LARGEST = "two-hundred"
_QUICK_REQUESTS = 120
#: Modules of the simulator that no figure depends on: what shows results, replays, and engines
#: over HTTP.
_ASIDE = frozenset(
    [
        "__main__",
        "answering",
        "anthropic",
        "ask",
        "callers",
        "catalogue",
        "faults",
        "figures",
        "gowords",
        "live",
        "measured",
        "ollama",
        "openai",
        "page",
        "plots",
        "recorded",
        "replay",
        "retraced",
        "routes_ollama",
        "routes_vllm",
        "server",
        "svg",
        "tables",
        "text",
        "vllm",
        "whatif",
    ]
)
_TELL_EVERY = 20.0


class Task(Struct, frozen=True):
    """One seed of one cell."""

    fleet: str
    work: str
    load: float
    seed: int
    requests: int
    policies: tuple[str, ...]

    @property
    def key(self) -> Key:
        """The cell."""
        return Key(self.fleet, self.work, self.load)

    @property
    def file(self) -> Path:
        """Where its results are kept."""
        name = f"{self.work}-{self.load:g}-{self.requests}-{self.seed}.json"
        return CACHE / self.fleet / name


class Kept(Struct, frozen=True):
    """A result on disk, and the fingerprint of the code that gave it."""

    code: str
    figures: Figures


def tasks(
    fleets: Iterable[str],
    works: Iterable[str],
    seeds: int,
    *,
    large_seeds: int | None = None,
    quick: bool = False,
) -> list[Task]:
    """List what is to be run, one seed of everything before the next seed.

    `large_seeds` are those of the largest fleet, if it is to have fewer.
    """
    works = tuple(works)
    found = []
    fleets = tuple(fleets)
    for seed in range(1, seeds + 1):
        for fleet in fleets:
            if fleet == _LARGEST and large_seeds is not None and seed > large_seeds:
                continue
            loads = LOADS if fleet in standings.UNEQUAL else (MIDDLE,)
            for work in works:
                for load in loads:
                    requests = _QUICK_REQUESTS if quick else REQUESTS[fleet]
                    wanted = _wanted(fleet, load, seed)
                    found.append(Task(fleet, work, load, seed, requests, wanted))
    return found


def _wanted(fleet: str, load: float, seed: int) -> tuple[str, ...]:
    """Return the policies of a cell: all at the middle load, elsewhere those with a goal."""
    names = [HERD]
    names += [
        name
        for name in POLICIES
        if name not in {HERD, CLAIRVOYANT} and (load == MIDDLE or name in standings.GOALS)
    ]
    if load == MIDDLE and seed <= _CLAIRVOYANT_SEEDS.get(fleet, seed):
        names.append(CLAIRVOYANT)
    if fleet in standings.UNEQUAL and seed <= _BOUND_SEEDS.get(fleet, seed):
        names.append(BOUND)
    return tuple(names)


def solve(task: Task, *, fresh: bool = False) -> tuple[Task, dict[str, Figures]]:
    """Run what is not known yet of a task, and keep it."""
    kept = {} if fresh else _kept(task)
    missing = [name for name in task.policies if name not in kept]
    if missing:
        if BOUND in missing and HERD not in missing:
            missing.insert(0, HERD)
        for name, figures in _simulated(task, missing).items():
            kept[name] = Kept(fingerprint(name), figures)
        task.file.parent.mkdir(parents=True, exist_ok=True)
        # Another file first: one that was half written when the run was broken off is none.
        half = task.file.with_suffix(f".{os.getpid()}")
        half.write_bytes(msgspec.json.encode(kept))
        half.replace(task.file)
    return task, {name: kept[name].figures for name in task.policies}


def _simulated(task: Task, names: Iterable[str]) -> dict[str, Figures]:
    setting = Setting(fleet=task.fleet, work=task.work, load=task.load, requests=task.requests)
    devices, work = scenario(setting, task.seed)
    found: dict[str, Figures] = {}
    names = list(names)
    for name in names:
        if name == BOUND:
            continue
        began = time.process_time()
        done = run(devices, work, POLICIES[name](task.seed))
        result = metrics(done)
        seconds = time.process_time() - began
        found[name] = Figures(
            mean=result.mean,
            p95=result.p95,
            first=result.first_p95,
            lost=result.failed + result.rejected,
            cpu=seconds,
        )
        if name == HERD and BOUND in names:
            began = time.process_time()
            least = lower_bound(devices, done.records, steps=_BOUND_STEPS.get(task.fleet, 10))
            found[BOUND] = Figures(mean=least, cpu=time.process_time() - began)
    return found


def _kept(task: Task) -> dict[str, Kept]:
    try:
        found = msgspec.json.decode(task.file.read_bytes(), type=dict[str, Kept])
    except (OSError, msgspec.DecodeError):
        return {}
    return {name: each for name, each in found.items() if each.code == fingerprint(name)}


@cache
def fingerprint(policy: str) -> str:
    """Return a hash of the code that a policy's figures depend on."""
    folder = Path(herd.__file__).parent
    files = [path for path in (folder / "sim").glob("*.py") if path.stem not in _ASIDE]
    if policy in {HERD, BOUND}:
        files += (folder / "core").glob("*.py")
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _run_all(todo: list[Task], processes: int, *, fresh: bool) -> Runs:
    runs: Runs = {}
    done = 0.0
    # Work of a task, roughly: what grows with a fleet are requests, and what looks at each device.
    weights = [task.requests * len(task.policies) for task in todo]
    began = told = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        futures = {
            pool.submit(solve, task, fresh=fresh): weight
            for task, weight in zip(todo, weights, strict=True)
        }
        for future in as_completed(futures):
            task, found = future.result()
            for name, figures in found.items():
                runs.setdefault(task.key, {}).setdefault(name, {})[task.seed] = figures
            done += futures[future]
            now = time.monotonic()
            if now - told >= _TELL_EVERY:
                told = now
                share = done / sum(weights)
                left = (now - began) * (1.0 - share) / share
                print(f"{share:.0%} done, about {left / 60:.0f} min left", file=sys.stderr)
    return runs


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each cell.")] = 20,
    large_seeds: Annotated[
        int | None, typer.Option(min=1, help="Runs of two hundred devices, if not as many.")
    ] = None,
    fleets: Annotated[str, typer.Option(help="Names, separated by commas.")] = ",".join(FLEETS),
    works: Annotated[str, typer.Option(help="Names, separated by commas.")] = ",".join(WORKS),
    processes: Annotated[int, typer.Option(min=1, help="Runs at once.")] = 2,
    quick: Annotated[
        bool, typer.Option(help="One device, two, and five; short runs; two seeds.")
    ] = False,
    fresh: Annotated[bool, typer.Option(help="Use nothing of what was run before.")] = False,
    write: Annotated[
        bool, typer.Option(help="Bring docs/routing.md and docs/routing-results.json up to date.")
    ] = True,
) -> None:
    """Compare all policies on all fleets, and say whether Herd reaches its goals."""
    chosen = [name for name in fleets.split(",") if not quick or name in {"one", "two", "five"}]
    kinds = works.split(",")
    for name in (*chosen, *kinds):
        if name not in (*FLEETS, *WORKS):
            raise typer.BadParameter(f"no such fleet or workload: {name}")
    todo = tasks(chosen, kinds, 2 if quick else seeds, large_seeds=large_seeds, quick=quick)
    began = time.monotonic()
    runs = _run_all(todo, processes, fresh=fresh)
    report = standings.report(runs)
    print(standings.tables(report))
    print(standings.cost(runs))
    print(f"{(time.monotonic() - began) / 60:.1f} minutes")
    if write and not quick:
        standings.write(report, ROOT / "docs")


if __name__ == "__main__":
    typer.run(main)
