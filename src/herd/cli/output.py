"""How commands speak: tables on a terminal or into a pipe, and errors in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

#: Exit code of a command that was asked for something that cannot be.
MISUSED = 2


def console(width: int) -> Console:
    """Return where to print; `width` columns where the output is no terminal."""
    from rich.console import Console  # noqa: PLC0415 - takes longer than showing the help

    found = Console()
    return found if found.is_terminal else Console(width=width)


def fail(message: str, *, code: int = MISUSED) -> NoReturn:
    """Say in one line what is wrong and exit."""
    typer.echo(f"herd: {message}", err=True)
    raise typer.Exit(code)
