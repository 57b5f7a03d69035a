"""Shares of the processor that the kernel grants: a control group for processes of ours (Linux).

Works with version 2 of control groups and with version 1; needs root, or a folder delegated to us.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

#: The kernel hands a quota out anew so often. Short, so that a throttled device is slow, and not
#: now fast and now halted: a token takes longer than this.
PERIOD_US: Final = 20_000
#: The least quota that the kernel takes.
_LEAST_US: Final = 1_000
_ROOT: Final = Path("/sys/fs/cgroup")
_END_TIMEOUT: Final = 5.0


class QuotaUnavailable(Exception):
    """This machine grants no quotas to us; the text says why."""


class CpuQuota:
    """A control group of our own as a context manager; what is left in it ends with it.

    `cores` is what its processes may use together, such as 0.1 for a tenth of one core, and None
    for as much as they want. `weight` is how much they weigh beside a process outside that wants
    the same core and weighs one.
    """

    def __init__(self, name: str, *, cores: float | None = None, weight: int = 1) -> None:
        self._name = f"herd-{os.getpid()}-{name}"
        self._cores = cores
        self._weight = weight
        self._folder: Path | None = None

    def __enter__(self) -> Self:
        """Make the group; raises `QuotaUnavailable`."""
        try:
            self._folder = _make(self._name, self._weight)
            self.limit(self._cores)
        except OSError as error:
            self._remove()
            raise QuotaUnavailable(f"no control group of the CPU to be had: {error}") from error
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._remove()

    def limit(self, cores: float | None) -> None:
        """Change what its processes may use."""
        folder = self._made()
        quota = None if cores is None else max(_LEAST_US, round(cores * PERIOD_US))
        if (folder / "cpu.max").exists():
            (folder / "cpu.max").write_text(f"{quota or 'max'} {PERIOD_US}")
        else:
            (folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (folder / "cpu.cfs_quota_us").write_text(str(quota or -1))

    def add(self, pid: int) -> None:
        """Put a process with all its threads in; what it starts from now on is in too."""
        (self._made() / "cgroup.procs").write_text(str(pid))

    def _made(self) -> Path:
        if self._folder is None:
            raise RuntimeError("the control group was not made")
        return self._folder

    def _remove(self) -> None:
        """End what is still in it; a group can only be removed when it is empty."""
        folder, self._folder = self._folder, None
        deadline = time.monotonic() + _END_TIMEOUT
        while folder is not None and folder.exists():
            for pid in (folder / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            try:
                folder.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


def _make(name: str, weight: int) -> Path:
    """Make a group below the root of version 2, or of version 1 where that has the CPU."""
    controllers = _ROOT / "cgroup.controllers"
    if controllers.exists() and "cpu" in controllers.read_text().split():
        (_ROOT / "cgroup.subtree_control").write_text("+cpu")
        folder, share = _ROOT / name, ("cpu.weight", min(10_000, 100 * weight))
    elif (_ROOT / "cpu" / "cpu.cfs_quota_us").exists():
        folder, share = _ROOT / "cpu" / name, ("cpu.shares", min(262_144, 1024 * weight))
    else:
        raise QuotaUnavailable(f"there is no CPU controller in {_ROOT}")
    folder.mkdir()
    (folder / share[0]).write_text(str(share[1]))
    return folder
