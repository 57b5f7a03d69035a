"""Options that both commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

DataDir = Annotated[Path | None, typer.Option(help="Where state is kept that survives a restart.")]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"] | None,
    typer.Option(help="How much to log; info if not given."),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log everything.")]
Version = Annotated[bool, typer.Option("--version", help="Show the version and exit.")]
