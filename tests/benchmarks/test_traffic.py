"""Requests and answers have the sizes that the report speaks of, and are what Herd expects."""

from __future__ import annotations

import time

import msgspec
import pytest

from benchmarks import traffic
from benchmarks.traffic import Form
from herd.core.request import Dialect
from herd.wire.meter import Meter
from herd.wire.peek import peek


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_has_its_size_and_names_its_model(*, stream: bool) -> None:
    body = traffic.request_body("short:latest", stream=stream)
    assert len(body) == traffic.REQUEST_BYTES
    assert (peek(body).model, peek(body).stream) == ("short:latest", stream)


@pytest.mark.parametrize("form", ["sse", "ndjson"])
def test_a_whole_answer_has_its_size(form: Form) -> None:
    answer = traffic.whole_answer(form)
    assert len(answer) == traffic.ANSWER_BYTES
    msgspec.json.decode(answer)


@pytest.mark.parametrize(("form", "dialect"), [("sse", "openai"), ("ndjson", "ollama")])
def test_a_stream_is_complete_after_its_frames(form: Form, dialect: Dialect) -> None:
    meter = Meter(dialect)
    frames = [traffic.frame(form, number) for number in range(traffic.FRAMES)]
    sent = b"".join(meter.feed(frame, 0.0) for frame in frames) + meter.finish(0.0)
    assert meter.complete
    assert sent.count(traffic.SEPARATORS[form]) == traffic.FRAMES


@pytest.mark.parametrize("form", ["sse", "ndjson"])
def test_a_frame_tells_when_it_was_sent(form: Form) -> None:
    before = time.monotonic_ns()
    frame = traffic.frame(form, 0)
    sent = traffic.sent_at(frame)
    assert sent is not None
    assert before <= sent <= time.monotonic_ns()
    assert 130 <= len(frame) <= 190


def test_what_has_no_time_tells_none() -> None:
    assert traffic.sent_at(traffic.frame("sse", traffic.FRAMES - 1)) is None


def test_the_model_tells_the_rate() -> None:
    assert traffic.rate_of(traffic.frames_model(100)) == 100
    assert traffic.rate_of(traffic.SHORT_MODEL) is None
