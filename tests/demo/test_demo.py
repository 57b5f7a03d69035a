"""The demo as a process: what it prints, how it ends, and that nothing is left of it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
DEADLINE = 90.0

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    """Start the demo with `folder` for what it keeps."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "demo", *options],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def processes_of(folder: Path) -> list[psutil.Process]:
    """The demo and what it has started: all have the folder in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("TMPDIR") == str(folder):
                found.append(process)
    return found


def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.05)


@pytest.mark.real
def test_whole_demo_answers_everything_and_leaves_nothing(tmp_path: Path) -> None:
    """With real engines where they can be had, else with emulated ones."""
    demo = start(tmp_path)
    output, _ = demo.communicate(timeout=DEADLINE)

    assert demo.returncode == 0, output
    assert re.search(r"^(\d+) of \1 answered", output, re.MULTILINE)
    assert "Chosen: " in output
    assert all(f"{dialect} stream" in output for dialect in ("openai", "ollama", "anthropic"))
    assert "\x1b" not in output
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_in_the_middle_stops_everything(tmp_path: Path, number: signal.Signals) -> None:
    """Only the demo itself gets the signal, which is harder than Ctrl-C: all would."""
    demo = start(tmp_path, "--emulated")
    try:
        until(lambda: len(processes_of(tmp_path)) >= 3, "the demo, the router and an engine")
        demo.send_signal(number)
        output, _ = demo.communicate(timeout=DEADLINE)
        left = processes_of(tmp_path)
    finally:
        for process in processes_of(tmp_path):
            process.kill()

    assert left == []
    assert demo.returncode == 130, output
    assert "Interrupted" in output
    assert "Traceback" not in output
    assert list(tmp_path.iterdir()) == []
