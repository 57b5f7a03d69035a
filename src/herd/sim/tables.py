"""Results of a comparison as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from herd.sim.compare import HERD, Cell
from herd.sim.results import Interval, Metrics
from herd.sim.whatif import Change


def table(cells: Sequence[Cell]) -> Table:
    """Show the cells of one setting, the best mean first."""
    setting = cells[0].setting
    added = "".join(f" + {each}" for each in setting.add)
    disturbed = f", a device {_DISTURBED[setting.disturb]}" if setting.disturb else ""
    shown = Table(
        title=f"{setting.fleet}{added} / {setting.work}, load {setting.load:.0%}{disturbed}, "
        f"{setting.requests} requests, {len(cells[0].seeds)} seeds"
    )
    shown.add_column("policy", no_wrap=True)
    names = ("mean s", "x herd", "p95", "first p50", "first p95", "wait", "unfair")
    for name in (*names, "reused", "loads", "lost"):
        shown.add_column(name, justify="right", no_wrap=True)
    for cell in sorted(cells, key=lambda cell: cell.mean.mean):
        shown.add_row(
            cell.policy,
            interval(cell.mean),
            interval(cell.ratio) if cell.ratio else "",
            *_columns(cell.runs),
            style="bold" if cell.policy == HERD else None,
        )
    return shown


def changes_table(changes: Sequence[Change]) -> Table:
    """Show what more devices change."""
    shown = Table(title="the same requests with and without what was added", title_justify="left")
    for name in ("policy", "figure"):
        shown.add_column(name, no_wrap=True)
    for name in ("without, s", "with, s", "with / without"):
        shown.add_column(name, justify="right", no_wrap=True)
    for each in changes:
        shown.add_row(
            each.policy,
            each.figure,
            interval(each.before),
            interval(each.after),
            interval(each.ratio),
        )
    return shown


def interval(value: Interval) -> str:
    """Write a figure with its interval."""
    return f"{value.mean:.2f} ({value.low:.2f} to {value.high:.2f})"


def errors(cell: Cell) -> str:
    """Say how far predictions were off, by the age of the replica; empty if nobody predicted."""
    parts = []
    for index, age in enumerate(cell.runs[0].errors):
        known = _mean(run.errors[index].median for run in cell.runs)
        rates = _mean(run.errors[index].hindsight for run in cell.runs)
        if known is not None and rates is not None:
            last = f"to {age.last}" if age.last < 10**6 else "on"
            parts.append(f"{age.first} {last}: {known:.0%} ({rates:.0%})")
    return (
        "median prediction error by outcomes of the replica (and with the answer's length known): "
        + ", ".join(parts)
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


_DISTURBED = {
    "leaves": "in three leaves for a while",
    "throttles": "in three throttles for a while",
    "owner": "in three is used by its owner for a while",
}


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
