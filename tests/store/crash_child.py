"""A process of its own for `test_crash.py`: puts outcomes until it is killed, or its disk fills.

Arguments: `steady` or `full`, the database, and a file that takes a line for each outcome put:
its number and when, by the monotonic clock.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from pathlib import Path

from herd.core.request import Outcome, Request
from herd.store.store import Store


def _outcome(number: int) -> Outcome:
    request = Request(
        id=f"r{number}",
        dialect="ollama",
        operation="chat",
        endpoint="/api/chat",
        asked="m",
        model="m:latest",
    )
    return Outcome(request=request, ending="completed", arrived=float(number), ended=float(number))


def steady(path: Path, log: int) -> None:
    """Put 300 outcomes a second for ever, after those that are there."""
    store = Store.open(path, clock=lambda: 0.0)
    newest = store.reader.recent(1)
    first = int(newest[0].id[1:]) + 1 if newest else 0
    pause = threading.Event()
    for number in itertools.count(first):
        store.put(_outcome(number))
        os.write(log, f"{number} {time.monotonic()}\n".encode())
        pause.wait(1 / 300)


def full(path: Path, log: int) -> None:
    """Let no file grow beyond 300,000 bytes until that has stopped the store."""
    import resource  # noqa: PLC0415 - there is none on Windows

    store = Store.open(path, clock=lambda: 0.0)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, most))
    number = 0
    while store.problem is None:
        store.put(_outcome(number))
        os.write(log, f"{number} {time.monotonic()}\n".encode())
        number += 1
        time.sleep(0.001)
    sys.stdout.write(f"{store.problem}\n")
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    sys.stdout.write(f"{store.flush(20)} {store.problem}\n")
    store.close()


if __name__ == "__main__":
    what, where, log_file = sys.argv[1:]
    descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    {"steady": steady, "full": full}[what](Path(where), descriptor)
