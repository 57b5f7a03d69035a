"""`herd replay` on what a router with emulated engines has recorded."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from devtools.testbed import Testbed
from herd.cli.router import app
from herd.sim.replay import Replay
from tests.gateway.bodies import body

#: Both endpoints that tell timings, and one that tells none.
PATHS = ("/api/chat", "/v1/chat/completions")


def replay(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["replay", "--data-dir", str(folder), *arguments])


async def recorded(folder: Path) -> Path:
    """Let a router serve some requests; return its data folder."""
    async with Testbed(folder) as bed:
        for name, rate in (("fast", 200.0), ("slow", 80.0)):
            await bed.add(name, decode_rate=rate, prefill_rate=2000.0, slots=1)
        async with asyncio.TaskGroup() as group:
            for number in range(24):
                path = PATHS[number % 2]
                group.create_task(bed.ask(path, body(path)))
                await asyncio.sleep(0.02)
        return bed.router.settings.data_dir


async def test_a_real_record_is_replayed(tmp_path: Path) -> None:
    folder = await recorded(tmp_path)
    told = replay(folder, "--policy", "round-robin")
    raw = replay(folder, "--policy", "round-robin", "--json")

    assert told.exit_code == 0, told.output
    for part in (
        "24 requests were recorded and can be replayed",
        "With round-robin the mean would be",
        "where requests would have gone",
        "Prompts are not recorded",
    ):
        assert part in told.output, part
    found = msgspec.json.decode(raw.output, type=Replay)
    assert found.recorded.requests == 24
    assert sum(move.requests for move in found.moves) == 24
    assert abs(found.check.fleet_error) < 0.5


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        ((), 2, "there is no record at"),
        (("--since", "1y"), 2, "--since is a time such as"),
        (("--since", "90d"), 2, "--since goes back 30 days at most"),
        (("--set", "patience"), 2, "--set takes NAME=VALUE"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    tmp_path: Path, arguments: tuple[str, ...], code: int, complaint: str
) -> None:
    done = replay(tmp_path, *arguments)

    assert done.exit_code == code
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_file_that_is_no_record_is_told(tmp_path: Path) -> None:
    (tmp_path / "herd.db").write_bytes(b"something else" * 100)
    done = replay(tmp_path)

    assert done.exit_code == 1
    assert "herd.db cannot be used" in done.stderr
