"""What came out: medians with their range, ratios, a table and a file."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from benchmarks.load import Sample, Scenario

#: Names of what is measured. The backend without a proxy is what delays are compared with.
DIRECT = "direct"
NGINX = "nginx"
BARE = "aiohttp"
HERD = "herd"
_US = 1e6


class Spread(Struct, frozen=True):
    """A figure over all repeats."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        if self.least == self.most:
            return _short(self.median)
        return f"{_short(self.median)} ({_short(self.least)}\N{EN DASH}{_short(self.most)})"


class Row(Struct, frozen=True, kw_only=True):
    """One proxy under one load. Times are microseconds."""

    scenario: str
    proxy: str
    unit: str
    #: CPU of the proxy per request or frame; of the backend itself where there is no proxy.
    cpu: Spread
    #: Requests or frames per second.
    rate: Spread
    p50: Spread
    p99: Spread
    #: CPU of Herd over that of nginx, in the same repeat.
    ratio: Spread | None = None


class Report(Struct, frozen=True, kw_only=True):
    """One run of the benchmark."""

    machine: dict[str, str]
    repeats: int
    seconds: float
    rows: list[Row]
    #: CPU of Herd while nobody asks it anything; share of a core.
    idle: float
    #: Resident memory at the end, in bytes.
    memory: dict[str, int]
    notes: list[str]


#: Samples by scenario and proxy, one for each repeat.
Samples = Mapping[tuple[str, str], Sequence[Sample]]


def rows(scenarios: Sequence[Scenario], samples: Samples) -> list[Row]:
    """Sum the samples up."""
    found = []
    for scenario in scenarios:
        yardstick = samples.get((scenario.name, NGINX), ())
        for proxy in (DIRECT, NGINX, BARE, HERD):
            taken = samples.get((scenario.name, proxy), ())
            if taken:
                found.append(_row(scenario, proxy, taken, yardstick if proxy == HERD else ()))
    return found


def spread(values: Sequence[float]) -> Spread:
    """Return median, least and most."""
    return Spread(statistics.median(values), min(values), max(values))


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which this share of the sorted values lies; 0 if there is none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def show(report: Report, scenarios: Sequence[Scenario], console: Console) -> None:
    """Print the tables."""
    console.print(_cpu_table(report, scenarios))
    console.print(_delay_table(report, scenarios))
    megabytes = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in report.memory.items())
    console.print(f"Memory: {megabytes}. Herd at rest: {report.idle:.2%} of a core.")
    for note in report.notes:
        console.print(f"[yellow]Note:[/] {note}")


def save(report: Report, path: Path) -> None:
    """Write the report as JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")


def machine() -> dict[str, str]:
    """Describe what it ran on."""
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    packages = ("aiohttp", "uvloop", "msgspec")
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "load average before": load,
    }


def _row(
    scenario: Scenario, proxy: str, taken: Sequence[Sample], yardstick: Sequence[Sample]
) -> Row:
    pairs = zip(taken, yardstick, strict=False)
    ratios = [_cpu(sample) / _cpu(other) for sample, other in pairs]
    return Row(
        scenario=scenario.name,
        proxy=proxy,
        unit=scenario.unit,
        cpu=spread([_cpu(sample) for sample in taken]),
        rate=spread([sample.count / sample.seconds for sample in taken]),
        p50=spread([quantile(sample.delays, 0.5) * _US for sample in taken]),
        p99=spread([quantile(sample.delays, 0.99) * _US for sample in taken]),
        ratio=spread(ratios) if ratios else None,
    )


def _cpu(sample: Sample) -> float:
    return sample.cpu / sample.count * _US


def _cpu_table(report: Report, scenarios: Sequence[Scenario]) -> Table:
    table = Table(title="CPU of the proxy, µs: median (least\N{EN DASH}most)", title_justify="left")
    by_key = {(row.scenario, row.proxy): row for row in report.rows}
    others = [name for name in (NGINX, BARE) if any(row.proxy == name for row in report.rows)]
    for name in ("load", "per", *others, "Herd", "Herd / nginx", "Herd, per second"):
        table.add_column(name, justify="left" if name in {"load", "per"} else "right")
    for scenario in scenarios:
        herd = by_key[scenario.name, HERD]
        table.add_row(
            scenario.title,
            scenario.unit,
            *(str(by_key[scenario.name, name].cpu) for name in others),
            str(herd.cpu),
            str(herd.ratio) if herd.ratio is not None else "-",
            f"{herd.rate.median:,.0f}",
        )
    return table


def _delay_table(report: Report, scenarios: Sequence[Scenario]) -> Table:
    title = "Delay, µs: of the backend itself, and what a proxy adds to its median and p99"
    table = Table(title=title, title_justify="left")
    for name in ("load", "direct p50", "p99", "nginx p50", "p99", "Herd p50", "p99"):
        table.add_column(name, justify="left" if name == "load" else "right")
    by_key = {(row.scenario, row.proxy): row for row in report.rows}
    for scenario in scenarios:
        direct = by_key[scenario.name, DIRECT]
        cells = [_short(direct.p50.median), _short(direct.p99.median)]
        for proxy in (NGINX, HERD):
            row = by_key.get((scenario.name, proxy))
            for now, before in (
                ((row.p50, direct.p50), (row.p99, direct.p99)) if row is not None else ()
            ):
                added = now.median - before.median
                cells.append(f"{'-' if added < 0 else '+'}{_short(abs(added))}")
            if row is None:
                cells += ["-", "-"]
        table.add_row(scenario.title, *cells)
    return table


def _short(value: float) -> str:
    """Three figures are more than the noise leaves."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2  # noqa: PLR2004 - three figures
    return f"{value:,.{digits}f}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
