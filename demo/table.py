"""What the demo shows: who answered what, and the seven signals of one decision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

import msgspec
from msgspec import Struct, structs
from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from demo.fleet import Device
from demo.questions import Question, Reply
from herd.core.decision import Decision, Estimate, Signals
from herd.core.request import Attempt, Outcome

#: Seconds below which a signal is shown as nothing.
VISIBLE = 0.005
SIGNALS = Signals.__struct_fields__
MEANINGS = (
    "residency: loading the model; memory: reloading what that evicts; queue: work ahead; "
    "speed: reading the prompt and answering; affinity: saved by a cached prompt; "
    "availability: the owner may come back first; context: reloading for a longer context."
)


class Row(Struct):
    """A question and what has come of it."""

    question: Question
    reply: Reply = msgspec.field(default_factory=Reply)
    asked: bool = False
    outcome: Outcome | None = None
    #: Why there is no answer.
    error: str = ""


def fleet_table(devices: Sequence[Device], url: str) -> Table:
    """Show who takes part."""
    table = _table(f"The fleet of the router at {url}")
    for name in ("node", "engine", "model"):
        table.add_column(name, no_wrap=True)
    for device in devices:
        table.add_row(device.name, escape(device.what), escape(device.model))
    return table


def answers_table(rows: Sequence[Row]) -> Table:
    """Show every question with the node that answered it and how long everything took."""
    table = _table("Who answered what (times in seconds)")
    # The only column that may shrink; its text does not wrap, so that a row stays a line.
    table.add_column("question")
    table.add_column("dialect", no_wrap=True)
    table.add_column("node", no_wrap=True)
    for name in ("waited", "first\ntoken", "tokens", "pre-\ndicted", "actual"):
        table.add_column(name, justify="right", no_wrap=True, min_width=6)
    for row in rows:
        question = row.question
        dialect = f"{question.dialect}{' stream' if question.stream else ''}"
        node = escape(row.reply.node) or ("[dim]...[/]" if row.asked and not row.error else "")
        text = Text(question.text, no_wrap=True, overflow="ellipsis")
        table.add_row(text, dialect, node, *_figures(row))
    return table


def signals_table(decision: Decision, names: Mapping[str, str]) -> Table:
    """Show all candidates of a decision with their signals; `names` are the nodes' by id."""
    table = _table("Seconds that each signal adds; the lowest sum wins")
    table.add_column("candidate", no_wrap=True)
    for name in SIGNALS:
        table.add_column(f"avail-\n{name[5:]}" if name == "availability" else name, justify="right")
    table.add_column("sum", justify="right")
    for estimate in sorted(decision.estimates, key=_order):
        chosen = estimate.replica == decision.chosen
        name = escape(names.get(estimate.replica.node, estimate.replica.node))
        if estimate.excluded is not None:
            table.add_row(f"  {name}", *("" for _ in SIGNALS), "cannot")
            continue
        parts = [_seconds(part) for part in structs.astuple(estimate.signals)]
        total = f"{estimate.total or 0.0:.2f}"
        style = "bold green" if chosen else ""
        table.add_row(f"{'> ' if chosen else '  '}{name}", *parts, total, style=style)
    return table


def summary(rows: Sequence[Row]) -> list[str]:
    """Say in a few lines what the table amounts to."""
    attempts = [attempt for row in rows if (attempt := answered(row)) is not None]
    shares = Counter(row.reply.node for row in rows if answered(row) is not None)
    waited = [wait for row in rows if row.outcome and (wait := _waited(row.outcome)) >= VISIBLE]
    errors = [abs(a.predicted - taken) / taken for a in attempts if (taken := _taken(a)) > 0.0]
    by_node = ", ".join(f"{node} {count}" for node, count in shares.most_common())
    lines = [f"{len(attempts)} of {len(rows)} answered{by_node and ': '}{by_node}."]
    if waited:
        lines.append(
            f"{len(waited)} waited in the router for a free slot, up to {max(waited):.1f} s."
        )
    if errors:
        lines.append(
            f"The predictions were {median(errors):.0%} off in the median, while Herd was still "
            "learning these devices."
        )
    return lines


def most_telling(rows: Sequence[Row]) -> Row | None:
    """Return the row whose decision had the most to weigh; None if there are no decisions."""
    decided = [row for row in rows if row.outcome is not None and row.outcome.decision is not None]
    return max(decided, key=_weight, default=None)


def answered(row: Row) -> Attempt | None:
    """Return the attempt that answered the question; None if none did."""
    if row.error or row.outcome is None or row.outcome.ending != "completed":
        return None
    return row.outcome.attempts[-1]


def _weight(row: Row) -> tuple[int, int, float]:
    """Kinds of signals that played a part, all of them, and how different the sums are."""
    decision = row.outcome.decision if row.outcome is not None else None
    if decision is None:
        return 0, 0, 0.0
    seen = [
        name
        for estimate in decision.estimates
        for name, part in structs.asdict(estimate.signals).items()
        if abs(part) >= VISIBLE
    ]
    sums = [estimate.total for estimate in decision.estimates if estimate.total is not None]
    return len(set(seen)), len(seen), max(sums, default=0.0) - min(sums, default=0.0)


def _figures(row: Row) -> list[str]:
    first = f"{row.reply.first:.2f}" if row.reply.first is not None else ""
    if row.error:
        return ["", first, "", "", "[red]failed[/]"]
    attempt, outcome = answered(row), row.outcome
    if attempt is None or outcome is None:
        return ["", first, "", "", ""]
    tokens = outcome.result.usage.completion_tokens if outcome.result is not None else None
    return [
        _seconds(_waited(outcome)),
        first if row.question.stream else "-",
        "?" if tokens is None else str(tokens),
        f"{attempt.predicted:.2f}",
        f"{_taken(attempt):.2f}",
    ]


def _waited(outcome: Outcome) -> float:
    return (outcome.dispatched or outcome.ended) - outcome.arrived


def _taken(attempt: Attempt) -> float:
    return (attempt.ended or attempt.started) - attempt.started


def _order(estimate: Estimate) -> float:
    return float("inf") if estimate.total is None else estimate.total


def _seconds(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= VISIBLE else "-"


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
