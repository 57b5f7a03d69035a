"""A comparison as a PNG. Needs matplotlib, which `pip install 'ollama-herd[plots]'` brings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from herd.sim.compare import BOUND, HERD, Cell
from herd.sim.figures import COLOURS, Curve, Figure, colours, dash, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Inches of one setting.
_WIDTH, _HEIGHT = 15.0, 9.0
_DPI = 110


class PlotsMissing(Exception):
    """matplotlib is not installed; the text says how it is."""


def write(groups: Sequence[Sequence[Cell]], path: Path) -> None:
    """Draw each group of cells, the cells of one setting, below the one before.

    Raises `PlotsMissing`, or OSError if the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure as Canvas  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise PlotsMissing(
            "PNG files need matplotlib: pip install 'ollama-herd[plots]' (--html needs nothing)"
        ) from error
    canvas = Canvas(figsize=(_WIDTH, _HEIGHT * len(groups)), dpi=_DPI, layout="constrained")
    rows = canvas.subfigures(len(groups), 1, squeeze=False)
    for row, cells in zip(rows[:, 0], groups, strict=True):
        shown = figure(cells)
        row.suptitle(shown.title, fontsize=14, fontweight="bold")
        axes = row.subplots(2, 2)
        _bars(axes[0][0], shown)
        _curves(axes[0][1], shown, shown.completion, "Completion of requests")
        _shares(axes[1][0], shown)
        _curves(axes[1][1], shown, shown.first, "First token of streamed answers")
    canvas.savefig(path)


def _bars(axes: Axes, shown: Figure) -> None:
    palette = colours(shown)
    names = [name for name, _ in shown.bars]
    places = range(len(names))
    means = [interval.mean for _, interval in shown.bars]
    low = [max(0.0, each.mean - each.low) for _, each in shown.bars]
    high = [max(0.0, each.high - each.mean) for _, each in shown.bars]
    bars = axes.barh(
        places,
        means,
        xerr=(low, high),
        color=[palette[name] for name in names],
        error_kw={"ecolor": "#444444", "elinewidth": 1.2, "capsize": 3},
    )
    for bar, name in zip(bars, names, strict=True):
        if name == BOUND:
            bar.set_hatch("//")
            bar.set_facecolor("white")
            bar.set_edgecolor(palette[BOUND])
    _named(axes, names)
    if shown.logarithmic:
        axes.set_xscale("log")
        _plain(axes)
    most = max(each.high for _, each in shown.bars)
    least = min(means)
    axes.set_xlim(left=least / 2 if shown.logarithmic else 0.0)
    axes.set_xlim(right=most * (1.6 if shown.logarithmic else 1.14))
    for place, (_, interval) in zip(places, shown.bars, strict=True):
        axes.annotate(
            f"{interval.mean:.3g}",
            (interval.high, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_xlabel("mean seconds to completion, with 95 % interval")
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)


def _curves(axes: Axes, shown: Figure, curves: Sequence[Curve], title: str) -> None:
    palette = colours(shown)
    axes.set_title(title, fontsize=11)
    for curve in sorted(curves, key=lambda curve: curve.policy == HERD):
        herd = curve.policy == HERD
        axes.plot(
            curve.seconds,
            range(len(curve.seconds)),
            label=curve.policy,
            color=palette[curve.policy],
            linewidth=3.0 if herd else 1.3,
            linestyle="--" if dash(shown, curve.policy) else "-",
        )
    if not curves:
        axes.text(0.5, 0.5, "nothing was streamed", ha="center", transform=axes.transAxes)
        return
    axes.set_xscale("log")
    # What comes at once is not drawn: a logarithmic axis would give it most of the room.
    positive = [second for curve in curves for second in curve.seconds[2:] if second > 0.0]
    axes.set_xlim(left=min(positive) if positive else None)
    _plain(axes)
    axes.set_ylim(0, 100)
    axes.set_xlabel("seconds")
    axes.set_ylabel("% of requests")
    axes.grid(alpha=0.25)
    handles, labels = axes.get_legend_handles_labels()
    order = {curve.policy: number for number, curve in enumerate(curves)}
    ranked = sorted(zip(handles, labels, strict=True), key=lambda pair: order[pair[1]])
    axes.legend(
        [handle for handle, _ in ranked],
        [label for _, label in ranked],
        fontsize=8,
        loc="lower right",
    )


def _shares(axes: Axes, shown: Figure) -> None:
    names = [name for name, _ in shown.shares]
    left = [0.0] * len(names)
    labels = [label for label, _ in shown.shares[0][1]]
    for number, label in enumerate(labels):
        widths = [100.0 * dict(shares).get(label, 0.0) for _, shares in shown.shares]
        axes.barh(
            range(len(names)),
            widths,
            left=left,
            label=label,
            color=COLOURS[number % len(COLOURS)],
            edgecolor="white",
            linewidth=0.5,
        )
        left = [start + width for start, width in zip(left, widths, strict=True)]
    _named(axes, names)
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of requests, by device")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.45, -0.13), ncols=4)


def _named(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    for label in axes.get_yticklabels():
        if label.get_text() == HERD:
            label.set_fontweight("bold")
    axes.invert_yaxis()


def _plain(axes: Axes) -> None:
    """Write 20 instead of 2 x 10^1."""
    from matplotlib.ticker import FuncFormatter, LogLocator  # noqa: PLC0415 - see `write`

    def plain(value: float, _: Any) -> str:
        return f"{value:g}"

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(plain))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
