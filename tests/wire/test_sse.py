from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.wire.sse import MAX_EVENT, Event, EventTooLongError, SseParser

STREAM = (
    b": keepalive 1/1\n\n"
    b'data: {"a":1}\n\n'
    b"event: message_stop\r\ndata: {}\r\n\r\n"
    b"id: 7\nretry: 10\ndata:first\ndata: second\n\n"
    b"data: [DONE]\n\n"
)
EVENTS = [
    Event(b'{"a":1}'),
    Event(b"{}", "message_stop"),
    Event(b"first\nsecond"),
    Event(b"[DONE]"),
]


def test_cuts_a_stream_into_events() -> None:
    assert SseParser().feed(STREAM) == EVENTS


@pytest.mark.parametrize("at", range(len(STREAM) + 1))
def test_a_split_anywhere_changes_nothing(at: int) -> None:
    parser = SseParser()

    assert parser.feed(STREAM[:at]) + parser.feed(STREAM[at:]) == EVENTS


@given(st.lists(st.integers(0, len(STREAM))))
def test_many_splits_change_nothing(cuts: list[int]) -> None:
    parser = SseParser()
    edges = [0, *sorted(cuts), len(STREAM)]

    events = [event for start, end in pairwise(edges) for event in parser.feed(STREAM[start:end])]

    assert events == EVENTS


def test_an_event_waits_for_its_blank_line() -> None:
    parser = SseParser()

    assert parser.feed(b"data: 1\n") == []
    assert parser.feed(b"\n") == [Event(b"1")]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\n\n"])
def test_the_end_of_the_stream_completes_the_last_event(end: bytes) -> None:
    parser = SseParser()

    assert parser.feed(b"data: [DONE]" + end) + parser.finish() == [Event(b"[DONE]")]


def test_an_event_without_data_is_none() -> None:
    assert SseParser().feed(b"event: ping\n\ndata: 1\n\n") == [Event(b"1")]


def test_an_endless_line_is_refused() -> None:
    with pytest.raises(EventTooLongError, match="more than 16777216 bytes"):
        SseParser().feed(b"data: " + b"x" * MAX_EVENT)


def test_endless_lines_of_one_event_are_refused() -> None:
    parser = SseParser()
    parser.feed(b"data: " + b"x" * (MAX_EVENT - 10) + b"\n")

    with pytest.raises(EventTooLongError):
        parser.feed(b"data: 12345678901\n")
