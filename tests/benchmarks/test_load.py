"""The load counts what comes back, and does not accept just anything."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import load, traffic
from benchmarks.backend import BackendProcess
from benchmarks.load import LoadError, Scenario
from benchmarks.traffic import Form


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder: Path = tmp_path_factory.mktemp("backend")
    with BackendProcess(folder) as backend:
        yield backend.port


def run(scenario: Scenario, port: int, seconds: float = 0.5) -> load.Sample:
    return load.run(scenario, port, cpu=time.process_time, warm_up=0.1, seconds=seconds)


@pytest.mark.parametrize("form", ["sse", "ndjson"])
def test_streams_come_at_their_rate(port: int, form: Form) -> None:
    scenario = Scenario(name="s", title="s", unit="frame", form=form, connections=4, rate=100)
    sample = run(scenario, port)
    assert sample.count / sample.seconds == pytest.approx(400, rel=0.3)
    assert len(sample.delays) > 100
    assert sample.delays == sorted(sample.delays)
    assert sample.cpu > 0


def test_requests_follow_one_another(port: int) -> None:
    sample = run(Scenario(name="r", title="r", unit="request", connections=2), port)
    assert sample.count == pytest.approx(len(sample.delays), abs=4)
    assert 0 < sample.delays[0] <= sample.delays[-1] < 0.5


def test_requests_can_be_paced(port: int) -> None:
    scenario = Scenario(name="r", title="r", unit="request", connections=4, rate=100)
    sample = run(scenario, port)
    assert sample.count / sample.seconds == pytest.approx(100, rel=0.3)


def test_an_answer_that_is_not_the_expected_one_ends_the_run(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(traffic.PATHS, "sse", "/nowhere")
    with pytest.raises(LoadError, match="answered 404"):
        run(Scenario(name="r", title="r", unit="request", connections=1), port)
