"""A quota holds for whatever is put in the group, and nothing of it stays."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from devtools.quota import CpuQuota, QuotaUnavailable

BUSY = "while True: pass"


@pytest.fixture
def quota() -> Iterator[CpuQuota]:
    try:
        with CpuQuota("test", cores=0.1, weight=20) as group:
            yield group
    except QuotaUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def busy() -> Iterator[psutil.Process]:
    with subprocess.Popen([sys.executable, "-c", BUSY]) as process:
        yield psutil.Process(process.pid)
        process.kill()


def used(process: psutil.Process, seconds: float) -> float:
    """Cores' worth of CPU time over a while."""
    before = process.cpu_times().user
    with contextlib.suppress(psutil.TimeoutExpired):
        process.wait(seconds)
    return (process.cpu_times().user - before) / seconds


def test_a_process_gets_its_quota_and_no_more(quota: CpuQuota, busy: psutil.Process) -> None:
    quota.add(busy.pid)

    assert used(busy, 1.0) < 0.2


def test_a_limit_can_be_lifted(quota: CpuQuota, busy: psutil.Process) -> None:
    quota.add(busy.pid)
    quota.limit(None)

    assert used(busy, 1.0) > 0.2


def test_whatever_is_left_in_it_ends_with_it(busy: psutil.Process) -> None:
    try:
        with CpuQuota("test-end") as group:
            group.add(busy.pid)
    except QuotaUnavailable as error:
        pytest.skip(str(error))

    assert busy.wait(5) is not None
    assert not list(Path("/sys/fs/cgroup").glob("**/herd-*-test-end"))
