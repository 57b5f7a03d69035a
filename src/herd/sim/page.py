"""A comparison as one HTML file that needs nothing else: no script, no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from herd.sim import svg
from herd.sim.compare import BOUND, HERD, Cell
from herd.sim.figures import COLOURS, Figure, colours, dash, figure
from herd.sim.results import Interval
from herd.sim.whatif import Change, sentence

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c1c1c; --faint: #d8d8d8; }
@media (prefers-color-scheme: dark) {
  :root { --back: #16181c; --text: #e6e6e6; --faint: #3a3d44; }
}
body { margin: 2rem auto; max-width: 1340px; padding: 0 1rem; background: var(--back);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
h3 { font-size: 1rem; margin: 0 0 .4rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr));
  gap: 1.6rem 2rem; }
svg { width: 100%; height: auto; font-size: 12px; }
svg text { fill: var(--text); }
.grid { stroke: var(--faint); } .whisker { stroke: var(--text); stroke-width: 1.5; }
.legend { font-size: .8rem; margin: .4rem 0; }
.legend span { display: inline-block; margin-right: 1rem; white-space: nowrap; }
.legend i { display: inline-block; width: 1.4em; height: 0; margin-right: .4em;
  border-top: .3em solid var(--c); vertical-align: middle; }
.legend i.dashed { border-top-style: dashed; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--faint); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tr.herd { font-weight: bold; }
footer { margin-top: 3rem; font-size: .85rem; opacity: .75; }
"""
_FOOT = (
    "Virtual time: Herd's row is the very scheduler that routes in production, on emulated "
    "engines. Bars and figures are means over seeds, with 95 % bootstrap intervals; distributions "
    "are averaged over seeds at each share of the requests. The lower bound is one that no "
    "scheduler can beat."
)


def page(groups: Sequence[Sequence[Cell]], changes: Sequence[Change] = ()) -> str:
    """Write the page: a section for each group of cells, which are those of one setting."""
    sections = "".join(_section(cells) for cells in groups)
    what = "".join(f"<li>{escape(sentence(change))}</li>" for change in changes)
    more = f"<h2>What would more devices change?</h2><ul>{what}</ul>" if what else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Herd: policies compared</title><style>{_STYLE}</style></head><body>"
        f"<h1>Policies compared</h1>{more}{sections}<footer>{_FOOT}</footer></body></html>\n"
    )


def _section(cells: Sequence[Cell]) -> str:
    shown = figure(cells)
    palette = colours(shown)
    lines = svg.legend(
        (name, palette[name], dash(shown, name)) for name, _ in shown.bars if name != BOUND
    )
    devices = svg.legend(
        (name, COLOURS[number % len(COLOURS)], False)
        for number, (name, _) in enumerate(shown.shares[0][1])
    )
    first = svg.curves(shown, shown.first, "Distribution of the time to the first token")
    completion = svg.curves(shown, shown.completion, "Distribution of the time to completion")
    charts = [
        ("Mean seconds to completion", svg.bars(shown)),
        ("Completion: share of requests done within so many seconds", completion + lines),
        ("Who serves what share of the requests", svg.shares(shown) + devices),
        ("First token of streamed answers", (first + lines) if first else "Nothing was streamed."),
    ]
    drawn = "".join(f"<div><h3>{title}</h3>{chart}</div>" for title, chart in charts)
    return (
        f'<section><h2>{escape(shown.title)}</h2><div class="charts">{drawn}</div>'
        f"{_table(cells, shown)}</section>"
    )


def _table(cells: Sequence[Cell], shown: Figure) -> str:
    by_name = {cell.policy: cell for cell in cells}
    rows = "".join(_row(by_name[name]) for name, _ in shown.bars)
    heads = ("policy", "mean s", "times Herd's", "p95 s", "first p50 s", "first p95 s", "loads")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'


def _row(cell: Cell) -> str:
    values = [cell.policy, _interval(cell.mean), _interval(cell.ratio) if cell.ratio else ""]
    for figures in (
        [run.p95 for run in cell.runs],
        [run.first_p50 for run in cell.runs if run.first_p50 is not None],
        [run.first_p95 for run in cell.runs if run.first_p95 is not None],
        [float(run.loads) for run in cell.runs],
    ):
        values += [f"{sum(figures) / len(figures):.2f}" if figures else ""]
    kind = ' class="herd"' if cell.policy == HERD else ""
    return f"<tr{kind}>{''.join(f'<td>{escape(value)}</td>' for value in values)}</tr>"


def _interval(value: Interval) -> str:
    return f"{value.mean:.2f} ({value.low:.2f} to {value.high:.2f})"
