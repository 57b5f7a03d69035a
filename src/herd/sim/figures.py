"""What is drawn of a comparison, whatever draws it: bars, distributions and shares."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from herd.sim.compare import BOUND, HERD, Cell
from herd.sim.results import Interval, Metrics

#: Okabe and Ito's colours, which people with any colour vision tell apart; Herd has its own.
COLOURS = ("#0072B2", "#E69F00", "#56B4E9", "#CC79A7", "#009E73", "#B8A500", "#7F7F7F", "#8C564B")
HERD_COLOUR = "#D55E00"
#: Means that differ by more than this factor are drawn on a logarithmic axis.
LOG_FROM = 6.0
#: Devices of a fleet that are shown one by one; of larger ones kinds are.
_SINGLE = 8


class Curve(Struct, frozen=True, kw_only=True):
    """A distribution: seconds at 0 to 100 % of the requests, averaged over seeds."""

    policy: str
    seconds: tuple[float, ...]


class Figure(Struct, frozen=True, kw_only=True):
    """One setting, drawn. Policies are in the order of their mean, the best first."""

    title: str
    #: Mean seconds to completion; the lower bound is among them where it is known.
    bars: tuple[tuple[str, Interval], ...]
    completion: tuple[Curve, ...]
    first: tuple[Curve, ...]
    #: Share of the requests by policy and then by device, or by kind of device.
    shares: tuple[tuple[str, tuple[tuple[str, float], ...]], ...]

    @property
    def logarithmic(self) -> bool:
        """Whether the bars want a logarithmic axis."""
        means = [interval.mean for _, interval in self.bars]
        return max(means) > LOG_FROM * min(means)


def figure(cells: Sequence[Cell]) -> Figure:
    """Reduce the cells of one setting to what is drawn."""
    setting = cells[0].setting
    ordered = sorted(cells, key=lambda cell: cell.mean.mean)
    ran = [cell for cell in ordered if cell.runs]
    added = "".join(f" + {each}" for each in setting.add)
    return Figure(
        title=f"{setting.fleet}{added}, {setting.work}, {setting.load:.0%} load, "
        f"{len(cells[0].seeds)} seeds",
        bars=tuple((cell.policy, cell.mean) for cell in ordered),
        completion=tuple(
            Curve(policy=cell.policy, seconds=_average([run.curve for run in cell.runs]))
            for cell in ran
        ),
        first=tuple(
            Curve(policy=cell.policy, seconds=curve)
            for cell in ran
            if (curve := _average([run.first_curve for run in cell.runs if run.first_curve]))
        ),
        shares=tuple((cell.policy, _shares(cell.runs)) for cell in ran),
    )


def colours(shown: Figure) -> dict[str, str]:
    """Give every policy a colour, by name and not by rank, so that it keeps it."""
    names = sorted(name for name, _ in shown.bars if name not in {HERD, BOUND})
    found = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    return found | {HERD: HERD_COLOUR, BOUND: "#999999"}


def dash(shown: Figure, policy: str) -> bool:
    """Whether its line is dashed, as another policy has the same colour."""
    names = sorted(name for name, _ in shown.bars if name not in {HERD, BOUND})
    return policy in names and names.index(policy) >= len(COLOURS)


def _average(curves: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(sum(values) / len(values) for values in zip(*curves, strict=True))


def _shares(runs: Sequence[Metrics]) -> tuple[tuple[str, float], ...]:
    total: dict[str, float] = {}
    many = len(runs[0].shares) > _SINGLE
    for run in runs:
        for device, share in run.shares.items():
            # Devices of a kind are numbered: `mac-mini-m2-3`.
            name = device.rpartition("-")[0] if many and device[-1].isdigit() else device
            total[name] = total.get(name, 0.0) + share / len(runs)
    return tuple(total.items())
