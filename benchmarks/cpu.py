"""CPU time of processes, and on which core they run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

_NS = 1e-9


class CpuMeter:
    """CPU seconds, user and system, of a process, its threads and its children."""

    def __init__(self, process: psutil.Process) -> None:
        self._processes = [process, *process.children(recursive=True)]

    def seconds(self) -> float:
        """Return what they have used since they began; children of later are not counted."""
        return sum(_seconds(process) for process in self._processes)

    def resident_bytes(self) -> int:
        """Return the memory that they hold now."""
        return sum(int(process.memory_info().rss) for process in self._processes)


def _seconds(process: psutil.Process) -> float:
    """Linux tells nanoseconds per thread (`schedstat`); elsewhere hundredths have to do."""
    try:
        tasks = list(Path(f"/proc/{process.pid}/task").iterdir())
        return sum(int((task / "schedstat").read_bytes().split()[0]) for task in tasks) * _NS
    except OSError:
        times = process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Run on this core alone, and what is started meanwhile for good; None: wherever."""
    if core is None or sys.platform != "linux":
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def ahead(*, wanted: bool) -> Iterator[None]:
    """Run before all ordinary processes, and so what is started meanwhile, where that is allowed.

    For measurements of time that need little of a machine on which others are busy. Linux allows
    it to root.
    """
    if not wanted or sys.platform != "linux":
        yield
        return
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def two_cores() -> tuple[int, int] | tuple[None, None]:
    """Return a core for the proxy and one for the rest; None where there are not two to choose."""
    if sys.platform != "linux":
        return None, None
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0], cores[1]) if len(cores) > 1 else (None, None)
