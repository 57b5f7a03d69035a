"""Samples are summed up per request, in microseconds, and compared repeat by repeat."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from benchmarks import report
from benchmarks.load import Sample, Scenario
from benchmarks.report import DIRECT, HERD, NGINX, Report

SCENARIO = Scenario(name="request", title="requests", unit="request", connections=1)


def sample(cpu: float, delay: float) -> Sample:
    return Sample(count=1000, seconds=2.0, cpu=cpu, delays=[delay] * 1000)


def samples(*names: str) -> dict[tuple[str, str], list[Sample]]:
    cpus = {DIRECT: (0.01, 0.01, 0.01), NGINX: (0.02, 0.01, 0.02), HERD: (0.2, 0.2, 0.3)}
    return {("request", name): [sample(cpu, 1e-4) for cpu in cpus[name]] for name in names}


def test_cpu_is_per_request() -> None:
    rows = {row.proxy: row for row in report.rows([SCENARIO], samples(DIRECT, NGINX, HERD))}
    cpu = rows[HERD].cpu
    assert (cpu.median, cpu.least, cpu.most) == pytest.approx((200, 200, 300))
    assert rows[HERD].rate.median == 500
    assert rows[HERD].p50.median == pytest.approx(100)


def test_the_ratio_is_that_of_the_same_repeat() -> None:
    rows = {row.proxy: row for row in report.rows([SCENARIO], samples(DIRECT, NGINX, HERD))}
    ratio = rows[HERD].ratio
    assert ratio is not None
    assert (ratio.median, ratio.least, ratio.most) == pytest.approx((15, 10, 20))
    assert rows[NGINX].ratio is None


@pytest.mark.parametrize("proxies", [(DIRECT, NGINX, HERD), (DIRECT, HERD)])
def test_a_report_can_be_shown_and_saved_without_nginx(
    tmp_path: Path, proxies: tuple[str, ...]
) -> None:
    found = Report(
        machine=report.machine(),
        repeats=3,
        seconds=2.0,
        rows=report.rows([SCENARIO], samples(*proxies)),
        idle=0.001,
        memory={"herd": 70_000_000},
        notes=["a note"],
    )
    out = io.StringIO()
    report.show(found, [SCENARIO], Console(file=out, width=160))
    report.save(found, tmp_path / "report.json")
    assert "200" in out.getvalue()
    assert "a note" in out.getvalue()
    assert msgspec.json.decode((tmp_path / "report.json").read_bytes(), type=Report) == found


def test_quantiles() -> None:
    values = [float(number) for number in range(100)]
    assert report.quantile(values, 0.5) == 50.0
    assert report.quantile(values, 0.99) == 99.0
    assert report.quantile([], 0.5) == 0.0
