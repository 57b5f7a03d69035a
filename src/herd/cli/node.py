"""`herd-node`: lend this machine's inference engines to the fleet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from herd.cli.options import DataDir, LogLevel, Verbose, Version

app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})


def main() -> None:
    """Run `herd-node`."""
    app(prog_name="herd-node")


@app.command()
def node(
    *,
    router: Annotated[
        str | None, typer.Option(help="URL of the router. Found by mDNS if not given.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What to call this node. The host's name if not given.")
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PORT|URL",
            help="A port on this machine at which an engine listens, beside the usual ones. "
            "May be given several times.",
        ),
    ] = None,
    scan: Annotated[
        bool | None,
        typer.Option("--scan/--no-scan", help="Ask the usual ports of all engines; yes."),
    ] = None,
    door_port: Annotated[
        int | None, typer.Option(help="Port at which the router reaches engines on localhost.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address that this port listens on. All if not given.")
    ] = None,
    advertise: Annotated[
        str | None,
        typer.Option(help="Address at which the router reaches this node, behind NAT or Docker."),
    ] = None,
    fleet: Annotated[
        str | None, typer.Option(help="Name of the fleet to join, where there are several.")
    ] = None,
    data_dir: DataDir = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings file, in place of the usual herd.toml.")
    ] = None,
    log_level: LogLevel = None,
    verbose: Verbose = False,
    version: Version = False,
) -> None:
    """Lend this machine's inference engines to the fleet.

    Finds the engines that run here (Ollama, llama.cpp, vLLM, LM Studio, MLX) and the router on
    this network, links the two, and stays until it is stopped. Ctrl-C lets running requests end;
    a second Ctrl-C does not.
    """
    # What is imported here takes longer than showing the help or the version.
    from herd import __version__  # noqa: PLC0415 - see above

    if version:
        typer.echo(f"herd-node {__version__}")
        return
    flags = {
        "router": router,
        "name": name,
        "engines": tuple(engine) if engine else None,
        "scan": scan,
        "door_port": door_port,
        "door_host": host,
        "advertise": advertise,
        "fleet": fleet,
        "data_dir": str(data_dir) if data_dir else None,
        "log_level": "debug" if verbose else log_level,
    }
    _run(flags, config)


def _run(flags: Mapping[str, object], config: Path | None) -> None:
    from herd.app.node import serve  # noqa: PLC0415 - see `node`
    from herd.node.identity import IdentityError  # noqa: PLC0415 - see `node`
    from herd.ops import logs  # noqa: PLC0415 - see `node`
    from herd.ops.settings import SettingsError, load_node  # noqa: PLC0415 - see `node`

    try:
        settings = load_node(flags, file=config)
        logs.configure(settings.log_level)
        serve(settings, typer.echo)
    except (SettingsError, IdentityError, OSError) as error:
        typer.echo(f"herd-node cannot start: {error}", err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    main()
