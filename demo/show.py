"""Starts the fleet, asks, shows, stops. Exit code 0 if every question was answered."""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.live import Live

from demo import table
from demo.fleet import Fleet, end_children
from demo.questions import ANSWER_LIMIT, ask, questions
from demo.table import Row
from devtools.engines import MODEL
from herd.core.request import Outcome
from herd.gateway.openapi import RequestDetail

ONE_BY_ONE: Final = 6
AT_ONCE: Final = 30
#: Questions to an Ollama that runs on this machine anyway: one in each dialect.
TO_OLLAMA: Final = 3
#: Columns where the output is no terminal that could say how wide it is.
_WIDTH: Final = 100
_RECORD_LIMIT: Final = 5.0
_FAILED: Final = 1
_INTERRUPTED: Final = 130
_SIGNALS: Final = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m demo", description="Show a small fleet at work on this machine."
    )
    parser.add_argument("--emulated", action="store_true", help="use emulated engines alone")
    emulated: bool = parser.parse_args(arguments).emulated
    console = _console()
    _stay_on_loopback()
    _on_signals(signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="herd-demo-"))
    begun = time.monotonic()
    code = _FAILED
    try:
        complaints = _demonstrate(folder, console, emulated=emulated)
        code = _FAILED if complaints else 0
    except KeyboardInterrupt:
        complaints, code = [], _INTERRUPTED
    except Exception as error:  # noqa: BLE001 - whatever it was, it is told, with where to look
        complaints = [str(error) or type(error).__name__]
    finally:
        _on_signals(signal.SIG_IGN)
        end_children()
        if code != _FAILED:
            shutil.rmtree(folder, ignore_errors=True)
    _say_end(console, code, complaints, folder, time.monotonic() - begun)
    return code


def _demonstrate(folder: Path, console: Console, *, emulated: bool) -> list[str]:
    """Start, ask, show and stop; returns what failed, in words."""
    with Fleet(folder, lambda text: console.print(text, markup=False), emulated=emulated) as fleet:
        try:
            console.print(table.fleet_table(fleet.devices, fleet.url))
            rows = [Row(question) for question in questions(MODEL, ONE_BY_ONE + AT_ONCE)]
            if fleet.ollama_model:
                rows += [Row(question) for question in questions(fleet.ollama_model, TO_OLLAMA)]
            asyncio.run(_ask_all(fleet, rows, console))
            _show(fleet, rows, console)
            fleet.check()
        finally:
            # A second Ctrl-C must not leave half of the fleet behind.
            _on_signals(signal.SIG_IGN)
            console.print("Stopping ...")
    return [
        f"{row.question.text} ({row.question.dialect}): {row.error}" for row in rows if row.error
    ]


async def _ask_all(fleet: Fleet, rows: Sequence[Row], console: Console) -> None:
    alone, together = rows[:ONE_BY_ONE], rows[ONE_BY_ONE : ONE_BY_ONE + AT_ONCE]
    own = f", {TO_OLLAMA} more to your own Ollama" if fleet.ollama_model else ""
    console.print(
        f"Asking {len(alone)} questions one by one, then {len(together)} at once{own} ...\n"
    )
    if not console.is_terminal:
        await _ask_in_waves(fleet, rows)
        return
    with Live(
        console=console,
        get_renderable=lambda: table.answers_table(rows),
        transient=True,
        vertical_overflow="crop",
    ):
        await _ask_in_waves(fleet, rows)


async def _ask_in_waves(fleet: Fleet, rows: Sequence[Row]) -> None:
    for row in rows[:ONE_BY_ONE]:
        await _ask(fleet, row)
    await asyncio.gather(*(_ask(fleet, row) for row in rows[ONE_BY_ONE : ONE_BY_ONE + AT_ONCE]))
    for row in rows[ONE_BY_ONE + AT_ONCE :]:
        await _ask(fleet, row)


async def _ask(fleet: Fleet, row: Row) -> None:
    row.asked = True
    try:
        async with asyncio.timeout(ANSWER_LIMIT):
            await ask(fleet.url, row.question, row.reply)
        row.outcome = await _record(fleet, row.reply.request)
    except Exception as error:  # noqa: BLE001 - each client raises its own; one failure is one row
        row.error = str(error) or type(error).__name__
        return
    result = row.outcome.result
    if row.outcome.ending != "completed" or result is None:
        row.error = f"the client got an answer, but the record says {row.outcome.ending}"
    elif not row.reply.text and not result.usage.completion_tokens:
        # Text alone would not do: all of a short answer may be what the model thinks to itself.
        row.error = "the answer is empty"


async def _record(fleet: Fleet, request: str) -> Outcome:
    """Return what the router has kept of a request; that comes a moment after the last byte."""
    async with asyncio.timeout(_RECORD_LIMIT):
        while True:
            found = await asyncio.to_thread(fleet.get, f"/herd/v1/requests/{request}")
            outcome = msgspec.convert(found, RequestDetail).outcome
            if outcome is not None:
                return outcome
            await asyncio.sleep(0.02)


def _show(fleet: Fleet, rows: Sequence[Row], console: Console) -> None:
    console.print(table.answers_table(rows))
    for line in table.summary(rows):
        console.print(line, markup=False)
    told = table.most_telling(rows)
    if told is None or told.outcome is None or told.outcome.decision is None:
        return
    decision = told.outcome.decision
    names = {node["node"]: node["name"] for node in fleet.get("/herd/v1/fleet")["nodes"]}
    chosen = names.get(decision.chosen.node, decision.chosen.node)
    console.print(f'\nWhy {chosen} answered "{told.question.text}"', style="bold", markup=False)
    console.print(table.signals_table(decision, names))
    console.print(table.MEANINGS, style="dim")
    console.print(f"Chosen: {chosen}, because {decision.reason}.", markup=False)


def _say_end(
    console: Console, code: int, complaints: Sequence[str], folder: Path, seconds: float
) -> None:
    if code == _INTERRUPTED:
        console.print("Interrupted. Everything was stopped, and nothing is left behind.")
    elif code == 0:
        console.print(f"Everything was stopped, after {seconds:.0f} s. All is well.")
    else:
        console.print("\nThe demo failed. Everything was stopped.", style="bold red")
        for complaint in complaints:
            console.print(f"  {complaint}", markup=False)
        console.print(f"Logs: {folder}/*.log", markup=False, soft_wrap=True)


def _console() -> Console:
    terminal = sys.stdout.isatty()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What the locale cannot write must not end the demo.
        sys.stdout.reconfigure(errors="replace")
    return Console(
        force_terminal=terminal,
        no_color=None if terminal else True,
        width=None if terminal else _WIDTH,
        highlight=False,
    )


def _stay_on_loopback() -> None:
    """Keep a proxy that the environment names out of what is between us and ourselves."""
    for name in ("no_proxy", "NO_PROXY"):
        given = os.environ.get(name, "")
        os.environ[name] = ",".join(filter(None, [given, "127.0.0.1", "localhost"]))


def _on_signals(handler: Callable[..., object] | signal.Handlers) -> None:
    for number in _SIGNALS:
        if number is not None:
            signal.signal(number, handler)
