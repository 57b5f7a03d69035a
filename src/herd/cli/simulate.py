"""`herd simulate`: compare policies on a fleet that need not exist."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, cast, get_args

import typer

if TYPE_CHECKING:
    from herd.sim.compare import Cell, Setting
    from herd.sim.disturbance import DisturbanceKind
    from herd.sim.whatif import Change

#: Columns of text where the output is no terminal.
_WIDTH: Final = 150


def simulate(
    fleet: Annotated[
        str,
        typer.Option(
            help="one, two, five, vllm, twenty, two-hundred, or a TOML or JSON file that "
            "describes your own. Several: separate by commas."
        ),
    ] = "five",
    work: Annotated[
        str,
        typer.Option(
            help="chat, agents, rag, batch, mix, or a recorded trace as azure:FILE, "
            "mooncake:FILE or burstgpt:FILE. Several: separate by commas."
        ),
    ] = "chat",
    policies: Annotated[str, typer.Option(help="Names, separated by commas; or all.")] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="How many runs of each.")] = 5,
    load: Annotated[
        str, typer.Option(help="Shares of the fleet's capacity, such as 0.6,0.75,0.9.")
    ] = "0.75",
    requests: Annotated[int, typer.Option(min=0, help="Of each run; 0 for the fleet's usual.")] = 0,
    disturb: Annotated[
        str, typer.Option(help="What befalls every third device: leaves, throttles or owner.")
    ] = "",
    add: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND[=MODEL,...]",
            help="What if there were this device besides? The same requests are run with and "
            "without it. May be given several times.",
        ),
    ] = None,
    latency: Annotated[
        float, typer.Option(min=0.0, help="Seconds of the network, each way.")
    ] = 0.0,
    cached_told: Annotated[
        bool, typer.Option(help="Engines tell how much of a prompt they had in their cache.")
    ] = True,
    processes: Annotated[int, typer.Option(min=0, help="0 for one for each core.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write all figures here.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with charts here.")] = None,
    png: Annotated[
        Path | None, typer.Option(help="Write charts here; needs the plots extra.")
    ] = None,
) -> None:
    """Compare policies on simulated fleets, or try what one more device would change.

    Runs the scheduler itself in virtual time on emulated engines, beside eleven other policies on
    the very same requests.
    """
    # What is imported here takes longer than showing the help.
    from herd.cli.output import fail  # noqa: PLC0415 - see above
    from herd.sim.compare import Setting, scenario, usual_requests  # noqa: PLC0415 - see above
    from herd.sim.whatif import without  # noqa: PLC0415 - see above

    _check_outputs(json, html, png)
    chosen = _policies(policies)
    disturbed = _disturbance(disturb)
    try:
        settings = [
            Setting(
                fleet=name,
                work=kind,
                load=share,
                requests=requests or usual_requests(name),
                disturb=disturbed,
                latency=latency,
                cached_told=cached_told,
                add=tuple(add or ()),
            )
            for name in fleet.split(",")
            for kind in work.split(",")
            for share in _loads(load)
        ]
        for setting in settings:
            scenario(setting, 1)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
    except ValueError as error:
        fail(str(error))
    if add:
        settings = [each for setting in settings for each in (without(setting), setting)]
    _report(settings, _run(settings, chosen, seeds, processes), (json, html, png))


def _policies(text: str) -> tuple[str, ...]:
    from herd.cli.output import fail  # noqa: PLC0415 - see `simulate`
    from herd.sim.policies import POLICIES  # noqa: PLC0415 - see `simulate`

    chosen = tuple(POLICIES) if text == "all" else tuple(dict.fromkeys(text.split(",")))
    unknown = [name for name in chosen if name not in POLICIES]
    if unknown:
        fail(f"no such policy: {', '.join(unknown)} (known: {', '.join(POLICIES)})")
    return chosen


def _disturbance(text: str) -> DisturbanceKind | None:
    from herd.cli.output import fail  # noqa: PLC0415 - see `simulate`
    from herd.sim.disturbance import DisturbanceKind  # noqa: PLC0415 - see `simulate`

    if text and text not in get_args(DisturbanceKind):
        fail(f"nothing disturbs by {text!r}: leaves, throttles or owner")
    return cast("DisturbanceKind", text) if text else None


def _loads(text: str) -> list[float]:
    try:
        found = [float(each) for each in text.split(",")]
    except ValueError:
        raise ValueError(f"--load is shares such as 0.6,0.9, not {text!r}") from None
    for share in found:
        if not 0.01 <= share <= 10.0:  # noqa: PLR2004 - as the message says
            raise ValueError(f"--load is a share of the capacity, 0.01 to 10, not {share:g}")
    return found


def _check_outputs(*paths: Path | None) -> None:
    """Find out before the work, not after it, that a file cannot be written."""
    from herd.cli.output import fail  # noqa: PLC0415 - see `simulate`

    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            fail(f"there is no folder {path.absolute().parent} to write {path.name} to")


def _run(
    settings: list[Setting], policies: tuple[str, ...], seeds: int, processes: int
) -> list[Cell]:
    import os  # noqa: PLC0415 - see `simulate`

    from rich.console import Console  # noqa: PLC0415 - see `simulate`
    from rich.progress import Progress  # noqa: PLC0415 - see `simulate`

    from herd.sim.compare import compare  # noqa: PLC0415 - see `simulate`

    shown = Console(stderr=True)
    with Progress(console=shown, transient=True, disable=not shown.is_terminal) as progress:
        task = progress.add_task("simulating", total=len(settings) * seeds)
        return compare(
            settings,
            policies,
            range(1, seeds + 1),
            processes=processes or os.cpu_count() or 1,
            done=lambda: progress.advance(task),
        )


def _report(
    settings: list[Setting],
    cells: list[Cell],
    files: tuple[Path | None, Path | None, Path | None],
) -> None:
    from herd.cli.output import console, fail  # noqa: PLC0415 - see `simulate`
    from herd.sim.compare import HERD  # noqa: PLC0415 - see `simulate`
    from herd.sim.tables import changes_table, errors, table  # noqa: PLC0415 - see `simulate`
    from herd.sim.whatif import changes, sentence, without  # noqa: PLC0415 - see `simulate`

    out = console(_WIDTH)
    groups = [[cell for cell in cells if cell.setting == setting] for setting in settings]
    found: list[Change] = []
    for setting, group in zip(settings, groups, strict=True):
        out.print(table(group))
        for cell in group:
            if cell.policy == HERD:
                out.print(errors(cell), highlight=False)
        if setting.add:
            here = changes(groups[settings.index(without(setting))], group)
            out.print(changes_table(here))
            for change in here:
                if change.policy in {HERD, group[0].policy} and change.figure == "mean":
                    out.print(sentence(change), highlight=False, soft_wrap=True)
            found += here
    try:
        _write(groups, found, files)
    except OSError as error:
        fail(str(error), code=1)


def _write(
    groups: list[list[Cell]],
    changes: list[Change],
    files: tuple[Path | None, Path | None, Path | None],
) -> None:
    import msgspec  # noqa: PLC0415 - see `simulate`

    from herd.cli.output import fail  # noqa: PLC0415 - see `simulate`
    from herd.sim import plots  # noqa: PLC0415 - see `simulate`
    from herd.sim.page import page  # noqa: PLC0415 - see `simulate`

    json, html, png = files
    if json is not None:
        cells = [cell for group in groups for cell in group]
        data = msgspec.json.encode({"cells": cells, "changes": changes})
        json.write_bytes(msgspec.json.format(data, indent=1))
    if html is not None:
        html.write_text(page(groups, changes), encoding="utf-8")
    if png is not None:
        try:
            plots.write(groups, png)
        except plots.PlotsMissing as error:
            fail(str(error), code=1)
