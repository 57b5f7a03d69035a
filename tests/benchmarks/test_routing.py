"""The routing benchmark: what it runs, and what it does not run twice."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from benchmarks import routing
from benchmarks.routing import Task, solve, tasks
from benchmarks.standings import BOUND, CLAIRVOYANT, GOALS, Figures
from herd.sim.fleets import FLEETS
from herd.sim.policies import POLICIES
from herd.sim.workloads import WORKS

SMALL = Task("two", "chat", 0.75, 1, 40, ("herd", "random", BOUND))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(routing, "CACHE", tmp_path)
    return tmp_path


def test_all_policies_run_on_all_fleets_and_workloads_at_the_middle_load() -> None:
    middle = [task for task in tasks(FLEETS, WORKS, 1) if task.load == routing.MIDDLE]

    assert len(middle) == len(FLEETS) * len(WORKS)
    for task in middle:
        missing = set(POLICIES) - set(task.policies)
        assert missing == (set() if task.fleet != "two-hundred" else {CLAIRVOYANT})


def test_unequal_fleets_have_three_loads_and_every_goal() -> None:
    found = [task for task in tasks(["five", "two"], ["chat"], 1) if task.fleet == "five"]

    assert sorted(task.load for task in found) == [0.6, 0.75, 0.9]
    for task in found:
        assert {"herd", BOUND, *GOALS} <= set(task.policies)


def test_one_seed_of_everything_comes_before_the_next() -> None:
    order = [task.seed for task in tasks(["one", "five"], WORKS, 3)]

    assert order == sorted(order)


def test_what_was_run_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = solve(SMALL)

    monkeypatch.setattr(routing, "run", None)
    assert solve(SMALL)[1] == first
    assert first[BOUND].mean < first["herd"].mean
    with pytest.raises(TypeError):
        solve(SMALL, fresh=True)


def test_after_a_change_only_what_depends_on_it_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    solve(SMALL)
    ran: list[str] = []
    real = routing.fingerprint
    monkeypatch.setattr(
        routing, "fingerprint", lambda name: real(name) + ("!" if name != "random" else "")
    )
    simulated = routing._simulated

    def noted(task: Task, names: Iterable[str]) -> dict[str, Figures]:
        ran.extend(names)
        return simulated(task, ran)

    monkeypatch.setattr(routing, "_simulated", noted)
    solve(SMALL)

    assert ran == ["herd", BOUND]


def test_half_a_file_is_no_result(cache: Path) -> None:
    _, first = solve(SMALL)
    SMALL.file.write_bytes(SMALL.file.read_bytes()[:50])

    _, again = solve(SMALL)

    assert {name: each.mean for name, each in again.items()} == {
        name: each.mean for name, each in first.items()
    }


def test_what_is_left_out_of_the_fingerprint_is_not_used_by_a_run() -> None:
    code = (
        "import sys, benchmarks.routing\n"
        "print(' '.join(n.rpartition('.')[2] for n in sys.modules if n.startswith('herd.sim.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=routing.ROOT,
        timeout=60,
    )

    assert "world" in done.stdout.split()
    assert routing._ASIDE.isdisjoint(done.stdout.split())


def test_the_scheduler_changes_herds_fingerprint_alone() -> None:
    assert routing.fingerprint("herd") != routing.fingerprint("random")
    assert routing.fingerprint("least-work") == routing.fingerprint("random")
