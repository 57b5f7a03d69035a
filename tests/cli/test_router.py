"""`herd`: starts the router without a command, and is quick to say what it can do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from herd.cli.router import app
from tests.cli.test_node import environment


def test_help_names_the_commands() -> None:
    done = CliRunner().invoke(app, ["--help"])

    assert done.exit_code == 0
    assert all(name in done.output for name in ("simulate", "replay", "why", "--port"))


def test_without_a_command_it_starts_the_router(tmp_path: Path) -> None:
    """As far as to the first thing that goes wrong: an address that is not this machine's."""
    done = subprocess.run(
        [sys.executable, "-m", "herd.cli.router", "--host", "192.0.2.1", "--no-discovery"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env=environment(tmp_path),
    )

    assert done.returncode == 1
    assert "herd cannot start" in done.stderr
    assert "192.0.2.1" in done.stderr


def test_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).output.startswith("herd ")


def test_help_loads_neither_router_nor_simulator() -> None:
    code = (
        "import sys, herd.cli.router\n"
        "print([name for name in sys.modules if name.startswith("
        "('herd.app', 'herd.gateway', 'herd.sim', 'herd.store', 'aiohttp', 'msgspec'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )

    assert done.stdout == "[]\n"
