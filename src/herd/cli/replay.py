"""`herd replay`: what would have changed under another policy or setting."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from herd.cli.options import DataDir

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from herd.core.request import Outcome
    from herd.sim.replay import Changed, Replay, Summary

#: Columns of text where the output is no terminal.
_WIDTH: Final = 140
#: Moves that are listed.
_MOVES: Final = 12
_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
#: The simulator gives up on runs of more than 60 virtual days.
_LONGEST: Final = 30.0 * 86400.0


def replay(
    data_dir: DataDir = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings file, in place of the usual herd.toml.")
    ] = None,
    since: Annotated[str, typer.Option(help="How far back: 90s, 30m, 24h, 7d.")] = "24h",
    policy: Annotated[
        str, typer.Option(help="Another policy: one of those of `herd simulate`.")
    ] = "herd",
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Another setting of the scheduler, such as max_attempts=1. "
            "May be given several times.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="All of it, for programs.")] = False,
) -> None:
    """Run recorded requests again under another policy or setting, and say what would have changed.

    Rebuilds the fleet as it behaved, from the outcomes that the router has stored. Without another
    policy or setting it says how near a replay comes to what was recorded.
    """
    # What is imported here takes longer than showing the help.
    from herd.cli.output import console, fail  # noqa: PLC0415 - see above
    from herd.sim.recorded import rebuild  # noqa: PLC0415 - see above
    from herd.sim.replay import replay as run  # noqa: PLC0415 - see above

    changes = {}
    for text in change or ():
        name, equals, value = text.partition("=")
        if not equals:
            fail(f"--set takes NAME=VALUE, not {text!r}")
        changes[name.strip()] = value.strip()
    try:
        length = _seconds(since)
        found = run(rebuild(_outcomes(data_dir, config, length)), policy=policy, changes=changes)
    except ValueError as error:
        fail(str(error))
    if json:
        import msgspec  # noqa: PLC0415 - see above

        typer.echo(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
    else:
        show(console(_WIDTH), found)


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None:
        raise ValueError(f"--since is a time such as 90s, 30m, 24h or 7d, not {text!r}")
    seconds = float(match[1]) * _UNITS[match[2]]
    if seconds > _LONGEST:
        raise ValueError("--since goes back 30 days at most")
    return seconds


def _outcomes(data_dir: Path | None, config: Path | None, length: float) -> list[Outcome]:
    import contextlib  # noqa: PLC0415 - see `replay`

    from herd.cli.output import fail  # noqa: PLC0415 - see `replay`
    from herd.ops.clock import unix_clock  # noqa: PLC0415 - see `replay`
    from herd.ops.settings import SettingsError, load_router  # noqa: PLC0415 - see `replay`
    from herd.store.reader import Reader  # noqa: PLC0415 - see `replay`
    from herd.store.schema import StoreError  # noqa: PLC0415 - see `replay`

    try:
        flags = {"data_dir": str(data_dir) if data_dir else None}
        path = load_router(flags, file=config).data_dir / "herd.db"
        if not path.is_file():
            fail(f"there is no record at {path}: no router has run with this data folder")
        with contextlib.closing(Reader(path)) as reader:
            return reader.since(unix_clock()() - length)
    except (SettingsError, StoreError) as error:
        fail(str(error), code=1)


def show(out: Console, found: Replay) -> None:
    """Print a replay: what it says in words, then figures, moves, and what nobody can know."""
    from herd.sim.replay import sentences  # noqa: PLC0415 - see `replay`

    for sentence in sentences(found):
        out.print(sentence, highlight=False, markup=False)
    out.print(_figures(found))
    if found.moves:
        out.print(_moves(found))
    for title, listed in (("most gained", found.won), ("most lost", found.lost)):
        if listed:
            out.print(_requests(title, listed))
    for why, count in found.left_out.items():
        out.print(f"Not replayed: {count} requests, {why}.", highlight=False, markup=False)
    for note in found.notes:
        out.print(note, highlight=False, markup=False)


def _figures(found: Replay) -> Table:
    from rich.table import Table  # noqa: PLC0415 - see `replay`

    shown = Table(title="seconds", title_justify="left")
    shown.add_column("")
    for name in ("requests", "mean", "p95", "first mean", "first p95", "lost"):
        shown.add_column(name, justify="right", no_wrap=True)
    rows: list[tuple[str, Summary | None]] = [
        ("recorded", found.recorded),
        ("replayed, Herd", found.herd),
        (f"replayed, {found.other}", found.changed),
    ]
    for name, each in rows:
        if each is not None:
            values = (each.mean, each.p95, each.first_mean, each.first_p95)
            texts = ["" if value is None else f"{value:.2f}" for value in values]
            shown.add_row(name, str(each.requests), *texts, str(each.lost))
    return shown


def _moves(found: Replay) -> Table:
    from rich.table import Table  # noqa: PLC0415 - see `replay`

    shown = Table(title="where requests would have gone", title_justify="left")
    shown.add_column("from")
    shown.add_column("to")
    shown.add_column("requests", justify="right")
    shown.add_column("mean change, s", justify="right")
    for move in found.moves[:_MOVES]:
        after = "same" if move.after == move.before else move.after
        shown.add_row(move.before, after, str(move.requests), f"{move.change:+.2f}")
    rest = sum(move.requests for move in found.moves[_MOVES:])
    if rest:
        shown.add_row("others", "", str(rest), "")
    return shown


def _requests(title: str, listed: tuple[Changed, ...]) -> Table:
    from rich.table import Table  # noqa: PLC0415 - see `replay`

    shown = Table(title=title, title_justify="left")
    for name in ("request", "model", "from", "to"):
        shown.add_column(name)
    for name in ("before, s", "after, s"):
        shown.add_column(name, justify="right")
    for each in listed:
        shown.add_row(
            each.request,
            each.model,
            each.before_at,
            "same" if each.after_at == each.before_at else each.after_at,
            f"{each.before:.2f}",
            f"{each.after:.2f}",
        )
    return shown
