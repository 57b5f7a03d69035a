"""`herd`: start the router; and the commands that go with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from herd.cli.options import DataDir, LogLevel, Verbose, Version
from herd.cli.replay import replay
from herd.cli.simulate import simulate
from herd.cli.why import why

app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
app.command()(why)
app.command()(simulate)
app.command()(replay)


def main() -> None:
    """Run `herd`."""
    app(prog_name="herd")


@app.callback(invoke_without_command=True)
def router(
    context: typer.Context,
    *,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on. All interfaces if not given.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 11435 if not given.")] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="An engine without an agent, such as http://gpu-box:8000. What is known of its "
            "machine goes into the query: ?memory=80GB&bandwidth=2TB/s&slots=64. "
            "May be given several times.",
        ),
    ] = None,
    fleet: Annotated[
        str | None, typer.Option(help="Name of this fleet, where there are several on one network.")
    ] = None,
    discovery: Annotated[
        bool | None,
        typer.Option(
            "--discovery/--no-discovery", help="Announce this router on the network by mDNS."
        ),
    ] = None,
    data_dir: DataDir = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings file, in place of the usual herd.toml.")
    ] = None,
    log_level: LogLevel = None,
    verbose: Verbose = False,
    version: Version = False,
) -> None:
    """Make the machines that run `herd-node` one endpoint for AI.

    Clients of the OpenAI, Ollama and Anthropic APIs point here and are answered by the machine
    that will be done first. Ctrl-C lets running requests end; a second Ctrl-C does not.

    Without a command, this starts the router.
    """
    if context.invoked_subcommand is not None:
        return
    # What is imported here takes longer than showing the help or the version.
    from herd import __version__  # noqa: PLC0415 - see above

    if version:
        typer.echo(f"herd {__version__}")
        return
    flags = {
        "host": host,
        "port": port,
        "engines": tuple(engine) if engine else None,
        "fleet": fleet,
        "discovery": discovery,
        "data_dir": str(data_dir) if data_dir else None,
        "log_level": "debug" if verbose else log_level,
    }
    _run(flags, config)


def _run(flags: Mapping[str, object], config: Path | None) -> None:
    from herd.app.router import serve  # noqa: PLC0415 - see `router`
    from herd.ops import logs  # noqa: PLC0415 - see `router`
    from herd.ops.settings import SettingsError, load_router  # noqa: PLC0415 - see `router`
    from herd.store.schema import StoreError  # noqa: PLC0415 - see `router`

    try:
        settings = load_router(flags, file=config)
        logs.configure(settings.log_level)
        serve(settings, typer.echo)
    except (SettingsError, StoreError, OSError) as error:
        typer.echo(f"herd cannot start: {error}", err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    main()
