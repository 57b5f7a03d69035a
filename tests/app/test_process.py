"""What both processes share: the wish to stop, and the limit of open files."""

from __future__ import annotations

import subprocess
import sys

import pytest

from herd.app.process import Stop


def test_the_first_wish_asks_and_the_second_insists() -> None:
    stop = Stop()
    assert not stop.asked.is_set()
    stop.ask()
    assert stop.asked.is_set()
    assert not stop.insisted.is_set()
    stop.ask()
    assert stop.insisted.is_set()


SIGNALLED = """
import asyncio, os, signal, sys
from herd.app import process

async def main(stop):
    os.kill(os.getpid(), signal.{first})
    await asyncio.wait_for(stop.asked.wait(), 5)
    os.kill(os.getpid(), signal.{second})
    await asyncio.wait_for(stop.insisted.wait(), 5)
    print("stopped")

process.run(main)
"""

LIMITED = """
import resource
from herd.app import process

async def main(stop):
    print(*resource.getrlimit(resource.RLIMIT_NOFILE))

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
hard = {hard} or hard
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, hard))
process.run(main)
"""


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal handlers on its loop")
@pytest.mark.parametrize(("first", "second"), [("SIGTERM", "SIGINT"), ("SIGINT", "SIGTERM")])
def test_signals_are_wishes(first: str, second: str) -> None:
    assert run(SIGNALLED.format(first=first, second=second)) == "stopped"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
@pytest.mark.parametrize(
    ("soft", "hard", "want"), [(256, 4096, 4096), (100, 100, 100), (1024, 9000, 9000)]
)
def test_the_limit_of_open_files_is_raised_to_the_hard_one(soft: int, hard: int, want: int) -> None:
    assert run(LIMITED.format(soft=soft, hard=hard)) == f"{want} {hard}"
