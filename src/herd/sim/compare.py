"""Compare policies on fleets and workloads, over seeds; `herd simulate` is its command.

Each seed is another fleet (true rates, missing models), another workload, another luck; all
policies get the same. Figures are means over seeds with bootstrap intervals, and ratios of a
policy's mean completion to Herd's, seed by seed.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import cast, get_args

from msgspec import Struct

from herd.sim import ownfleet, traces, workloads
from herd.sim.bound import lower_bound
from herd.sim.disturbance import DisturbanceKind, some
from herd.sim.fleets import Fleet
from herd.sim.herd_router import HerdRouter
from herd.sim.policies import POLICIES
from herd.sim.results import Interval, Metrics, bootstrap, bootstrap_ratio, metrics
from herd.sim.workloads import WORKS, Workload
from herd.sim.world import run

#: Requests of a run unless told otherwise: enough for a fleet of that size to reach its load.
REQUESTS = {"one": 300, "two": 300, "five": 500, "vllm": 600, "twenty": 1500, "two-hundred": 5000}
#: The policy that others are compared with, and the row of the lower bound.
HERD, BOUND = "herd", "lower bound"
#: Of a fleet that is not in the list: requests for each device, at least, at most.
_REQUESTS_EACH, _REQUESTS_LEAST, _REQUESTS_MOST = 100, 300, 5000


class Setting(Struct, frozen=True, kw_only=True):
    """An experiment but for its seed and policy."""

    #: One of `FLEETS`, or a file that describes one.
    fleet: str
    #: A generated workload, or `azure:FILE`, `mooncake:FILE`, `burstgpt:FILE`.
    work: str
    load: float = 0.75
    requests: int = 500
    disturb: DisturbanceKind | None = None
    latency: float = 0.0
    #: Engines tell how much of a prompt they had in their cache.
    cached_told: bool = True
    #: Devices that are there besides, as `KIND` or `KIND=model,model`; the workload is the same.
    add: tuple[str, ...] = ()


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
    """Make the fleet and the workload of one seed.

    Raises ValueError or OSError, with what is wrong in a line, if that cannot be.
    """
    devices = ownfleet.load(setting.fleet, seed)
    work = _workload(setting, devices, seed)
    return ownfleet.extended(devices, setting.add, seed), work


def _workload(setting: Setting, devices: Fleet, seed: int) -> Workload:
    kind, _, path = setting.work.partition(":")
    if path and kind in get_args(traces.TraceName):
        name = cast("traces.TraceName", kind)
        try:
            with Path(path).open(encoding="utf-8", newline="") as lines:
                rows = traces.read(name, lines)
        except ValueError as error:
            raise ValueError(f"{path} is no trace of that kind: {error}") from error
        return traces.workload(
            name, rows, devices, requests=setting.requests, load=setting.load, seed=seed
        )
    if kind in WORKS and not path:
        return workloads.generate(
            kind,
            devices,
            requests=setting.requests,
            load=setting.load,
            seed=seed,
        )
    known = (*WORKS, *(f"{name}:FILE" for name in get_args(traces.TraceName)))
    raise ValueError(f"no such workload: {setting.work} (known: {', '.join(known)})")


def usual_requests(name: str) -> int:
    """Return how many requests a run on a fleet has unless told otherwise; raises as above."""
    if name in REQUESTS:
        return REQUESTS[name]
    devices = len(ownfleet.load(name).devices)
    return min(_REQUESTS_MOST, max(_REQUESTS_LEAST, _REQUESTS_EACH * devices))


def simulate(
    setting: Setting, policies: Sequence[str], seed: int
) -> tuple[dict[str, Metrics], float | None]:
    """Run policies on the same scenario; also return the bound for the arrivals of Herd's run."""
    devices, work = scenario(setting, seed)
    length = work.sessions[-1].start
    disturbances = (
        some(setting.disturb, ownfleet.load(setting.fleet, seed), length=length, seed=seed)
        if setting.disturb
        else ()
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
    done: Callable[[], None] = lambda: None,
) -> list[Cell]:
    """Run the whole grid; the result does not depend on the number of processes.

    `done` is called after each seed of each setting.
    """
    settings = list(settings)
    tasks = [(setting, seed) for setting in settings for seed in seeds]
    one = partial(_one, tuple(policies))
    results = []
    if processes == 1:
        for task in tasks:
            results.append(one(task))
            done()
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            for result in pool.map(one, tasks):
                results.append(result)
                done()
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
