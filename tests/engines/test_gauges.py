"""Gauges in Prometheus text."""

from __future__ import annotations

from devtools.replay import recorded, recording
from herd.engines import gauges

TEXT = b"""# HELP a:running How many run.
# TYPE a:running gauge
a:running{engine="0",state="x"} 2.0
a:running{engine="1",state="y"} 3.0
a:running_by_reason{engine="0"} 7.0
a:plain 4 1700000000
a:bad NaN
a:worse soup
"""


def test_samples_of_several_engines_add_up() -> None:
    assert gauges.total(TEXT, "a:running") == 5


def test_labels_choose_samples() -> None:
    assert gauges.total(TEXT, "a:running", state="y") == 3


def test_a_metric_without_labels_and_with_a_time_is_read() -> None:
    assert gauges.count(TEXT, "a:plain") == 4


def test_an_absent_metric_is_none() -> None:
    assert gauges.total(TEXT, "a:run") is None
    assert gauges.total(TEXT, "a:running", state="z") is None


def test_what_is_no_count_is_none() -> None:
    assert gauges.count(TEXT, "a:bad") is None
    assert gauges.count(TEXT, "a:worse") is None


def test_bytes_that_are_no_text_are_no_gauge() -> None:
    assert gauges.total(b"\xff\xfe\x00", "a") is None


def test_recorded_metrics_of_vllm_are_read() -> None:
    text = recorded(recording("vllm")[2]).body

    assert gauges.count(text, "vllm:num_requests_waiting") == 0
    assert gauges.total(text, "vllm:engine_sleep_state", sleep_state="awake") == 1
