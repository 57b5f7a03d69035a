"""Compare policies: `python -m herd.sim.compare --fleet five --work chat --policies herd,random`.

Each seed is another fleet (true rates, missing models), another workload, another luck; all
policies get the same. Figures are means over seeds with bootstrap intervals, and ratios of a
policy's mean completion to Herd's, seed by seed.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, cast, get_args

import msgspec
import typer
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from herd.sim import traces, workloads
from herd.sim.bound import lower_bound
from herd.sim.disturbance import DisturbanceKind, some
from herd.sim.fleets import FLEETS, Fleet, fleet
from herd.sim.herd_router import HerdRouter
from herd.sim.policies import POLICIES
from herd.sim.results import Interval, Metrics, bootstrap, bootstrap_ratio, metrics
from herd.sim.workloads import WORKS, Workload
from herd.sim.world import run

#: Requests of a run unless told otherwise: enough for a fleet of that size to reach its load.
REQUESTS = {"one": 300, "two": 300, "five": 500, "vllm": 600, "twenty": 1500, "two-hundred": 5000}
#: The policy that others are compared with, and the row of the lower bound.
HERD, BOUND = "herd", "lower bound"
#: Columns of text where the output is no terminal.
_WIDTH = 150


class Setting(Struct, frozen=True, kw_only=True):
    """An experiment but for its seed and policy."""

    fleet: str
    #: A generated workload, or `azure:FILE`, `mooncake:FILE`, `burstgpt:FILE`.
    work: str
    load: float = 0.75
    requests: int = 500
    disturb: DisturbanceKind | None = None
    latency: float = 0.0
    #: Engines tell how much of a prompt they had in their cache.
    cached_told: bool = True


class Cell(Struct, frozen=True, kw_only=True):
    """One policy in one setting, over all seeds."""

    setting: Setting
    policy: str
    seeds: tuple[int, ...]
    mean: Interval
    #: Mean completion over Herd's; None where Herd did not run.
    ratio: Interval | None
    #: Figures seed by seed; empty for the lower bound.
    runs: tuple[Metrics, ...]


def scenario(setting: Setting, seed: int) -> tuple[Fleet, Workload]:
    """Make the fleet and the workload of one seed; raises ValueError for an unknown workload."""
    devices = fleet(setting.fleet, seed)
    kind, _, path = setting.work.partition(":")
    if path and kind in get_args(traces.TraceName):
        name = cast("traces.TraceName", kind)
        with Path(path).open(encoding="utf-8", newline="") as lines:
            rows = traces.read(name, lines)
        work = traces.workload(
            name, rows, devices, requests=setting.requests, load=setting.load, seed=seed
        )
    elif kind in WORKS and not path:
        work = workloads.generate(
            kind,
            devices,
            requests=setting.requests,
            load=setting.load,
            seed=seed,
        )
    else:
        raise ValueError(f"no such workload: {setting.work}")
    return devices, work


def simulate(
    setting: Setting, policies: Sequence[str], seed: int
) -> tuple[dict[str, Metrics], float | None]:
    """Run policies on the same scenario; also return the bound for the arrivals of Herd's run."""
    devices, work = scenario(setting, seed)
    length = work.sessions[-1].start
    disturbances = (
        some(setting.disturb, devices, length=length, seed=seed) if setting.disturb else ()
    )
    found: dict[str, Metrics] = {}
    bound: float | None = None
    for policy in policies:
        router = POLICIES[policy](seed)
        done = run(
            devices,
            work,
            router,
            disturbances=disturbances,
            latency=setting.latency,
            cached_told=setting.cached_told,
        )
        outcomes = router.outcomes if isinstance(router, HerdRouter) else ()
        found[policy] = metrics(done, outcomes)
        if policy == HERD:
            bound = lower_bound(devices, done.records)
    return found, bound


def compare(
    settings: Iterable[Setting],
    policies: Sequence[str],
    seeds: Sequence[int],
    *,
    processes: int = 1,
) -> list[Cell]:
    """Run the whole grid; the result does not depend on the number of processes."""
    settings = list(settings)
    tasks = [(setting, seed) for setting in settings for seed in seeds]
    one = partial(_one, tuple(policies))
    if processes == 1:
        results = [one(task) for task in tasks]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            results = list(pool.map(one, tasks))
    cells = []
    for number, setting in enumerate(settings):
        here = results[number * len(seeds) : (number + 1) * len(seeds)]
        cells += _cells(setting, policies, tuple(seeds), here)
    return cells


_Result = tuple[dict[str, Metrics], float | None]


def _one(policies: tuple[str, ...], task: tuple[Setting, int]) -> _Result:
    return simulate(task[0], policies, task[1])


def _cells(
    setting: Setting, policies: Sequence[str], seeds: tuple[int, ...], results: Sequence[_Result]
) -> list[Cell]:
    herd = [found[HERD].mean for found, _ in results] if HERD in policies else None
    cells = []
    for policy in policies:
        runs = tuple(found[policy] for found, _ in results)
        cells.append(_cell(setting, policy, seeds, [each.mean for each in runs], herd, runs))
    bounds = [bound for _, bound in results if bound is not None]
    if herd is not None:
        cells.append(_cell(setting, BOUND, seeds, bounds, herd, ()))
    return cells


def _cell(
    setting: Setting,
    policy: str,
    seeds: tuple[int, ...],
    means: list[float],
    herd: list[float] | None,
    runs: tuple[Metrics, ...],
) -> Cell:
    return Cell(
        setting=setting,
        policy=policy,
        seeds=seeds,
        mean=bootstrap(means),
        ratio=bootstrap_ratio(means, herd) if herd is not None else None,
        runs=runs,
    )


def table(cells: Sequence[Cell]) -> Table:
    """Show the cells of one setting, the best mean first."""
    setting = cells[0].setting
    shown = Table(
        title=f"{setting.fleet} / {setting.work}, load {setting.load:.0%}, "
        f"{setting.requests} requests, {len(cells[0].seeds)} seeds"
    )
    shown.add_column("policy", no_wrap=True)
    names = ("mean s", "x herd", "p95", "first p50", "first p95", "wait", "unfair")
    for name in (*names, "reused", "loads", "lost"):
        shown.add_column(name, justify="right", no_wrap=True)
    for cell in sorted(cells, key=lambda cell: cell.mean.mean):
        shown.add_row(
            cell.policy,
            _interval(cell.mean),
            _interval(cell.ratio) if cell.ratio else "",
            *_columns(cell.runs),
            style="bold" if cell.policy == HERD else None,
        )
    return shown


def _interval(value: Interval) -> str:
    return f"{value.mean:.2f} ({value.low:.2f} to {value.high:.2f})"


def _columns(runs: Sequence[Metrics]) -> list[str]:
    if not runs:
        return []
    count = len(runs)

    def average(values: Iterable[float | None]) -> str:
        known = [value for value in values if value is not None]
        return f"{sum(known) / len(known):.2f}" if known else ""

    lost = sum(each.failed + each.rejected for each in runs) / count
    return [
        average(each.p95 for each in runs),
        average(each.first_p50 for each in runs),
        average(each.first_p95 for each in runs),
        average(each.wait for each in runs),
        average(each.unfair for each in runs),
        f"{sum(each.reused for each in runs) / count:.0%}",
        f"{sum(each.loads for each in runs) / count:.0f}",
        f"{lost:.1f}",
    ]


def _main(
    fleet_: Annotated[str, typer.Option("--fleet", help=", ".join(FLEETS))] = "five",
    work: Annotated[str, typer.Option(help="Workloads, or azure:FILE and the like.")] = "chat",
    policies: Annotated[str, typer.Option(help="Names, or all.")] = "all",
    seeds: Annotated[int, typer.Option(help="How many.")] = 5,
    load: Annotated[float, typer.Option(help="Share of the fleet's capacity.")] = 0.75,
    requests: Annotated[int, typer.Option(help="Of each run; 0 for the fleet's usual.")] = 0,
    disturb: Annotated[str, typer.Option(help="leaves, throttles or owner.")] = "",
    latency: Annotated[float, typer.Option(help="Seconds of the network, each way.")] = 0.0,
    processes: Annotated[int, typer.Option(help="0 for one for each core.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write all figures here.")] = None,
    cached_told: Annotated[bool, typer.Option(help="Engines tell of their caches.")] = True,
) -> None:
    """Compare policies on simulated fleets. Several fleets and workloads: separate by commas."""
    chosen = tuple(POLICIES) if policies == "all" else tuple(policies.split(","))
    unknown = [name for name in chosen if name not in POLICIES]
    if unknown:
        raise typer.BadParameter(f"no such policy: {', '.join(unknown)}")
    settings = [
        Setting(
            fleet=name,
            work=kind,
            load=load,
            requests=requests or REQUESTS[name],
            disturb=cast("DisturbanceKind", disturb) if disturb else None,
            latency=latency,
            cached_told=cached_told,
        )
        for name in fleet_.split(",")
        for kind in work.split(",")
    ]
    count = processes or multiprocessing.cpu_count()
    cells = compare(settings, chosen, range(1, seeds + 1), processes=count)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    for setting in settings:
        console.print(table([cell for cell in cells if cell.setting == setting]))
        _print_errors(console, [c for c in cells if c.setting == setting and c.policy == HERD])
    if json is not None:
        json.write_bytes(msgspec.json.format(msgspec.json.encode(cells), indent=1))


def _print_errors(console: Console, cells: Sequence[Cell]) -> None:
    for cell in cells:
        parts = []
        for index, age in enumerate(cell.runs[0].errors):
            known = _mean(run.errors[index].median for run in cell.runs)
            rates = _mean(run.errors[index].hindsight for run in cell.runs)
            if known is not None and rates is not None:
                last = f"to {age.last}" if age.last < 10**6 else "on"
                parts.append(f"{age.first} {last}: {known:.0%} ({rates:.0%})")
        console.print(
            "median prediction error by outcomes of the replica (and with the answer's length "
            f"known): {', '.join(parts)}"
        )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


if __name__ == "__main__":
    typer.run(_main)
