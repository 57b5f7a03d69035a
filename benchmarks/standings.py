"""Who is sooner, by how much, and whether that is enough: what the routing benchmark found.

All comparisons are paired: two policies get the same fleet and the same requests on a seed, and
what is averaged is the logarithm of their ratio. Intervals are 95 %, by bootstrap over seeds.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from herd.sim.compare import HERD
from herd.sim.fleets import FLEETS
from herd.sim.results import RESAMPLES, Interval, bootstrap_ratio, quantile
from herd.sim.workloads import WORKS

BOUND, CLAIRVOYANT = "lower bound", "clairvoyant"
#: Fleets whose devices differ.
UNEQUAL = ("five", "vllm", "twenty", "two-hundred")
#: How many times longer the mean completion is to be than Herd's, over the unequal fleets.
GOALS = {
    "least-connections": 2.0,
    "weighted-connections": 1.5,
    "shortest-delay": 1.15,
    "sum-of-points": 2.5,
}
#: Herd's mean completion over that of the lower bound is to be no more.
BOUND_GOAL = 1.4
#: Rounding must not make two equal figures differ.
_SURE = 1.0 - 1e-6
_BEGIN, _END = "<!-- routing:begin -->", "<!-- routing:end -->"
_TITLES = {
    "one": "one device",
    "two": "two equal",
    "five": "five unequal",
    "vllm": "Macs and vLLM",
    "twenty": "twenty mixed",
    "two-hundred": "two hundred",
}

Measure = Literal["mean", "tail"]


class Figures(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One run, in seconds."""

    mean: float
    p95: float = 0.0
    #: p95 of the time to the first token; None where nothing was streamed.
    first: float | None = None
    #: Requests that failed or were refused.
    lost: int = 0
    #: CPU time that the run took.
    cpu: float = 0.0

    @property
    def tail(self) -> float:
        """p95 of the first token, of completion where nothing was streamed."""
        return self.p95 if self.first is None else self.first


class Key(Struct, frozen=True, order=True):
    """A cell: one fleet under one workload at one load."""

    fleet: str
    work: str
    load: float


#: By cell, policy and seed.
Runs = dict[Key, dict[str, dict[int, Figures]]]


class Place(Struct, frozen=True, kw_only=True):
    """Herd in one cell by one measure."""

    key: Key
    measure: Measure
    #: Mean over seeds of Herd's figure, in seconds.
    herd: float
    #: The best of the other online policies, and its figure over Herd's.
    rival: str
    ratio: Interval
    #: Online policies that are sooner than Herd beyond doubt: all of the interval is below 1.
    sooner: dict[str, Interval]

    @property
    def holds(self) -> bool:
        """Herd is the best, or within its interval of the best."""
        return not self.sooner


class Goal(Struct, frozen=True, kw_only=True):
    """A geometric mean over all cells of the unequal fleets, and what it is to be."""

    policy: str
    goal: float
    found: Interval
    cells: int
    seeds: int
    #: The same by fleet.
    fleets: dict[str, float]

    @property
    def reached(self) -> bool:
        """By its mean."""
        if self.policy == BOUND:
            return self.found.mean <= self.goal
        return self.found.mean >= self.goal


class Row(Struct, frozen=True, kw_only=True):
    """A policy in a cell."""

    key: Key
    policy: str
    seeds: int
    mean: float
    p95: float | None
    first_p95: float | None
    #: Mean completion over Herd's.
    ratio: Interval
    lost: float


class Report(Struct, frozen=True):
    """Everything that is written."""

    places: list[Place]
    goals: list[Goal]
    rows: list[Row]


def report(runs: Runs) -> Report:
    """Sum the runs up; each cell has to have Herd's."""
    return Report(places(runs), goals(runs), rows(runs))


def places(runs: Runs, *, load: float = 0.75) -> list[Place]:
    """Return Herd's place in each cell at a load, by both measures."""
    found = []
    for key in ordered(runs):
        if key.load == load:
            found += [_place(key, runs[key], measure) for measure in ("mean", "tail")]
    return [place for place in found if place is not None]


def _place(key: Key, cell: dict[str, dict[int, Figures]], measure: Measure) -> Place | None:
    herd = cell[HERD]
    others = {
        name: ratio_to(cell[name], herd, measure)
        for name in cell
        if name not in {HERD, BOUND, CLAIRVOYANT}
    }
    if not others:
        return None
    rival = min(others, key=lambda name: others[name].mean)
    return Place(
        key=key,
        measure=measure,
        herd=_average(_value(each, measure) for each in herd.values()),
        rival=rival,
        ratio=others[rival],
        sooner={name: others[name] for name in sorted(others) if others[name].high < _SURE},
    )


def ratio_to(
    figures: dict[int, Figures], others: dict[int, Figures], measure: Measure = "mean"
) -> Interval:
    """Return the geometric mean of the ratios of one policy's figures to another's, by seed."""
    seeds = sorted(figures.keys() & others.keys())
    return bootstrap_ratio(
        [_value(figures[seed], measure) for seed in seeds],
        [_value(others[seed], measure) for seed in seeds],
    )


def goals(runs: Runs) -> list[Goal]:
    """Return the geometric means over all cells of the unequal fleets that were run."""
    found = []
    for policy, goal in (*GOALS.items(), (BOUND, BOUND_GOAL)):
        cells = [key for key in ordered(runs) if key.fleet in UNEQUAL and policy in runs[key]]
        if cells:
            found.append(_goal(policy, goal, cells, runs))
    return found


def _goal(policy: str, goal: float, cells: Sequence[Key], runs: Runs) -> Goal:
    sign = -1.0 if policy == BOUND else 1.0

    def logs(key: Key) -> dict[int, float]:
        herd = runs[key][HERD]
        return {
            seed: sign * math.log(each.mean / herd[seed].mean)
            for seed, each in runs[key][policy].items()
        }

    by_cell = {key: logs(key) for key in cells}
    whole = _over_cells([list(each.values()) for each in by_cell.values()])
    return Goal(
        policy=policy,
        goal=goal,
        found=Interval(*(math.exp(each) for each in (whole.mean, whole.low, whole.high))),
        cells=len(cells),
        seeds=min(len(each) for each in by_cell.values()),
        fleets={
            fleet: math.exp(
                _average(_average(by_cell[key].values()) for key in cells if key.fleet == fleet)
            )
            for fleet in UNEQUAL
            if any(key.fleet == fleet for key in cells)
        },
    )


def _over_cells(cells: Sequence[Sequence[float]]) -> Interval:
    """Average cells that each have seeds of their own, which are drawn anew in each."""
    draw = random.Random(0)  # noqa: S311 - an experiment, no secret
    means = sorted(
        _average(_average(draw.choices(cell, k=len(cell))) for cell in cells)
        for _ in range(RESAMPLES)
    )
    whole = _average(_average(cell) for cell in cells)
    return Interval(whole, quantile(means, 0.025), quantile(means, 0.975))


def rows(runs: Runs) -> list[Row]:
    """Return the figures of every policy in every cell, the soonest first."""
    found = []
    for key in ordered(runs):
        here = [_row(key, name, each, runs[key][HERD]) for name, each in runs[key].items()]
        found += sorted(here, key=lambda row: row.ratio.mean)
    return found


def _row(key: Key, policy: str, figures: dict[int, Figures], herd: dict[int, Figures]) -> Row:
    each = list(figures.values())
    firsts = [one.first for one in each if one.first is not None]
    return Row(
        key=key,
        policy=policy,
        seeds=len(each),
        mean=_average(one.mean for one in each),
        p95=_average(one.p95 for one in each) if policy != BOUND else None,
        first_p95=_average(firsts) if firsts else None,
        ratio=ratio_to(figures, herd),
        lost=_average(float(one.lost) for one in each),
    )


def ordered(runs: Runs) -> list[Key]:
    """Return the cells from the smallest fleet to the largest."""
    return sorted(runs, key=lambda key: (FLEETS.index(key.fleet), WORKS.index(key.work), key.load))


def tables(found: Report) -> str:
    """Write what was found as Markdown."""
    return "\n\n".join(
        part
        for part in (
            _goals_table(found.goals),
            _places_table(found.places, "mean"),
            _places_table(found.places, "tail"),
            _failures(found),
            _means_table(found.rows),
        )
        if part
    )


def _goals_table(found: Sequence[Goal]) -> str:
    if not found:
        return ""
    fleets = [fleet for fleet in UNEQUAL if any(fleet in goal.fleets for goal in found)]
    caption = (
        "Mean completion on the unequal fleets, all workloads at 60, 75 and 90 % load, as "
        "geometric means: how many times Herd's the others are, and how many times the lower "
        f"bound Herd is. {max(goal.seeds for goal in found)} seeds."
    )
    lines = [
        caption,
        "",
        f"| | goal | found | {' | '.join(_TITLES[fleet] for fleet in fleets)} |",
        f"|---|---|---|{'---|' * len(fleets)}",
    ]
    for goal in found:
        name = f"Herd over the {BOUND}" if goal.policy == BOUND else goal.policy
        sign = "at most" if goal.policy == BOUND else "at least"
        value = _interval(goal.found)
        mark = f"**{value}**" if goal.reached else f"{value}, not reached"
        each = " | ".join(f"{goal.fleets[f]:.2f}" if f in goal.fleets else "" for f in fleets)
        lines.append(f"| {name} | {sign} {goal.goal:g} | {mark} | {each} |")
    return "\n".join(lines)


def _places_table(found: Sequence[Place], measure: Measure) -> str:
    here = [place for place in found if place.measure == measure]
    if not here:
        return ""
    works = [work for work in WORKS if any(place.key.work == work for place in here)]
    what = {
        "mean": "Mean completion",
        "tail": "95th percentile of the time to the first token (of completion for `batch`, where "
        "nothing is streamed)",
    }[measure]
    caption = (
        f"{what} at 75 % load: Herd's seconds, then the best other online policy as a multiple of "
        "it. Cells where a policy is sooner beyond doubt are marked ✗."
    )
    lines = [
        caption,
        "",
        f"| fleet | {' | '.join(works)} |",
        f"|---|{'---|' * len(works)}",
    ]
    for fleet in FLEETS:
        cells = {place.key.work: place for place in here if place.key.fleet == fleet}
        if cells:
            texts = [_place_text(cells[work]) if work in cells else "" for work in works]
            lines.append(f"| {_TITLES[fleet]} | {' | '.join(texts)} |")
    return "\n".join(lines)


def _place_text(place: Place) -> str:
    mark = "" if place.holds else "✗ "
    return f"{mark}{_seconds(place.herd)}; {place.rival} {_interval(place.ratio)}"


def _failures(found: Report) -> str:
    failing = [place for place in found.places if not place.holds]
    whole = len(found.places)
    if not whole:
        return ""
    best = whole - len(failing)
    lines = [f"Herd is the best or within its interval of the best in {best} of {whole}."]
    if failing:
        lines += ["", "The others:", ""]
    for place in failing:
        tail = "completion" if place.key.work == "batch" else "the first token"
        what = "mean completion" if place.measure == "mean" else f"p95 of {tail}"
        which = ", ".join(f"{name} {_interval(each)}" for name, each in place.sooner.items())
        lines.append(f"- {_TITLES[place.key.fleet]}, {place.key.work}, {what}: {which} of Herd's.")
    return "\n".join(lines)


def _means_table(found: Sequence[Row]) -> str:
    """All policies at 75 % load, over the workloads of each fleet."""
    fleets = [f for f in FLEETS if any(r.key.fleet == f and r.key.load == 0.75 for r in found)]  # noqa: PLR2004 - as its caption says
    middle = [row for row in found if row.key.load == 0.75]  # noqa: PLR2004 - see above
    names = {row.policy for row in middle}

    def mean(policy: str, fleet: str) -> float | None:
        logs = [
            math.log(row.ratio.mean)
            for row in middle
            if row.policy == policy and row.key.fleet == fleet
        ]
        return math.exp(_average(logs)) if logs else None

    caption = (
        "All policies at 75 % load: mean completion as a multiple of Herd's, geometric mean over "
        "the workloads."
    )
    lines = [
        caption,
        "",
        f"| policy | {' | '.join(_TITLES[fleet] for fleet in fleets)} |",
        f"|---|{'---|' * len(fleets)}",
    ]
    table = {name: [mean(name, fleet) for fleet in fleets] for name in names}
    for name, values in sorted(table.items(), key=lambda item: _average(v or 1.0 for v in item[1])):
        texts = ["" if value is None else f"{value:.2f}" for value in values]
        shown = f"**{name}**" if name == HERD else name
        lines.append(f"| {shown} | {' | '.join(texts)} |")
    return "\n".join(lines)


def cost(runs: Runs) -> str:
    """Say what the runs have cost: Herd, the yardsticks, all others."""
    spent: dict[str, float] = {}
    for cell in runs.values():
        for name, seeds in cell.items():
            group = name if name in {HERD, BOUND, CLAIRVOYANT} else "the other policies"
            spent[group] = spent.get(group, 0.0) + sum(each.cpu for each in seeds.values())
    parts = [f"{name} {seconds:.0f} s" for name, seconds in sorted(spent.items())]
    return f"CPU time: {', '.join(parts)}"


def write(found: Report, docs: Path) -> None:
    """Bring the document's tables, between their markers, and the file of results up to date."""
    document = docs / "routing.md"
    text = document.read_text(encoding="utf-8")
    if _BEGIN not in text or _END not in text:
        raise ValueError(f"{document} has lost its markers {_BEGIN} and {_END}")
    tables_ = f"{_BEGIN}\n\n{tables(found)}\n\n{_END}"
    pattern = re.compile(f"{re.escape(_BEGIN)}.*{re.escape(_END)}", re.DOTALL)
    document.write_text(pattern.sub(lambda _: tables_, text), encoding="utf-8")
    (docs / "routing-results.json").write_bytes(compact(found))


def compact(found: Report) -> bytes:
    """Encode the results with four digits and one line for each of them."""
    data = msgspec.to_builtins(found)
    parts = []
    for name in ("goals", "places", "rows"):
        lines = ",\n".join(msgspec.json.encode(_rounded(each)).decode() for each in data[name])
        parts.append(f'"{name}": [\n{lines}\n]')
    return ("{" + ",\n".join(parts) + "}\n").encode()


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value


def _value(figures: Figures, measure: Measure) -> float:
    return figures.mean if measure == "mean" else figures.tail


def _average(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _seconds(value: float) -> str:
    return f"{value:,.0f} s" if value >= 100.0 else f"{value:.3g} s"  # noqa: PLR2004 - digits


def _interval(value: Interval) -> str:
    return f"{value.mean:.2f} ({value.low:.2f} to {value.high:.2f})"
