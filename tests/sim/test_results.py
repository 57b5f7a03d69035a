"""Figures of runs, intervals, and the comparison as a whole."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from herd.sim.compare import BOUND, Setting, compare, scenario
from herd.sim.fleets import fleet
from herd.sim.herd_router import HerdRouter
from herd.sim.records import Run
from herd.sim.results import Metrics, bootstrap, bootstrap_ratio, metrics, quantile
from herd.sim.tables import table
from herd.sim.workloads import generate
from herd.sim.world import run

SMALL = Setting(fleet="two", work="chat", requests=30, load=0.7)


@pytest.fixture(scope="module")
def one() -> tuple[Run, Metrics]:
    devices = fleet("five", 1)
    router = HerdRouter()
    done = run(devices, generate("mix", devices, requests=100, load=0.7, seed=1), router)
    return done, metrics(done, router.outcomes)


def test_figures_agree_with_the_records(one: tuple[Run, Metrics]) -> None:
    done, figures = one

    times = sorted(record.completion for record in done.records)
    assert figures.mean == pytest.approx(sum(times) / len(times))
    assert times[len(times) // 2 - 1] <= figures.p50 <= times[len(times) // 2]
    assert figures.p50 <= figures.p95 <= times[-1]
    assert sum(figures.shares.values()) == pytest.approx(1.0)
    assert 0.0 <= figures.reused <= 1.0
    assert figures.wait <= figures.unfair
    assert (figures.failed, figures.rejected, figures.retries) == (0, 0, 0)


def test_errors_of_predictions_are_told_by_age(one: tuple[Run, Metrics]) -> None:
    _, figures = one

    assert [(error.first, error.last) for error in figures.errors[:2]] == [(0, 10), (10, 50)]
    assert sum(error.count for error in figures.errors) == 100


def test_rates_are_soon_known_though_lengths_are_not(one: tuple[Run, Metrics]) -> None:
    """The rest of the error is the answers', whose lengths nobody knows."""
    _, figures = one

    for error in figures.errors[:2]:
        assert error.hindsight is not None
        assert error.median is not None
        assert error.hindsight < 0.15 < error.median


def test_a_quantile_is_interpolated() -> None:
    assert quantile([1.0, 2.0, 4.0], 0.5) == 2.0
    assert quantile([1.0, 2.0, 4.0], 0.75) == 3.0


def test_an_interval_covers_its_mean_and_narrows_with_more_values() -> None:
    values = [1.0, 2.1, 3.3, 4.8, 8.8]
    few = bootstrap(values)
    many = bootstrap(values * 20)

    assert few.mean == pytest.approx(4.0)
    assert few.low < 4.0 < few.high
    assert many.high - many.low < (few.high - few.low) / 2
    assert few == bootstrap(values)
    assert few != bootstrap(values, seed=1)


def test_paired_ratios_take_out_what_seeds_have_in_common() -> None:
    ratio = bootstrap_ratio([2.0, 20.0, 200.0], [1.0, 10.0, 100.0])

    assert (ratio.low, ratio.mean, ratio.high) == pytest.approx((2.0, 2.0, 2.0))


def test_the_number_of_processes_changes_nothing() -> None:
    policies = ("herd", "random")
    one = compare([SMALL], policies, (1, 2), processes=1)

    assert msgspec.json.encode(one) == msgspec.json.encode(
        compare([SMALL], policies, (1, 2), processes=2)
    )


def test_the_table_names_every_policy_and_the_bound() -> None:
    cells = compare([SMALL], ("herd", "random"), (1,), processes=1)
    written = io.StringIO()
    Console(width=200, file=written).print(table(cells))
    text = written.getvalue()

    assert all(name in text for name in ("herd", "random", BOUND))
    (herd,) = (cell for cell in cells if cell.policy == "herd")
    assert herd.ratio is not None
    assert herd.ratio.mean == 1.0


def test_an_unknown_workload_is_an_error() -> None:
    with pytest.raises(ValueError, match="no such workload: poetry"):
        scenario(Setting(fleet="one", work="poetry"), 1)


def test_a_trace_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    lines = [f"2023-11-16 18:17:{second:02}.0000000,100,5" for second in range(20)]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]))

    _, work = scenario(Setting(fleet="one", work=f"azure:{path}", requests=10), 1)

    assert work.requests == 10
