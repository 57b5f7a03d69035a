"""Bad input is refused in Go's words, durations are read as Go reads them."""

from __future__ import annotations

from typing import Any

import pytest

from herd.sim.gowords import Problem, decode, keep_alive, stamp
from herd.sim.ollama import ChatRequest


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (0, 0.0),
        (1.5, 1.5),
        (-1, -1.0),
        ("0", 0.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("0.5h", 1800.0),
        ("-1m", -60.0),
        ("250ms", 0.25),
    ],
)
def test_keep_alive_is_seconds_or_a_duration(value: Any, seconds: float | None) -> None:
    assert keep_alive(value) == seconds


@pytest.mark.parametrize("value", ["-1", "abc", "5 minutes", "5", "", "1x", True, [1]])
def test_anything_else_is_no_keep_alive(value: Any) -> None:
    with pytest.raises(Problem) as raised:
        keep_alive(value)

    assert raised.value.status == 400


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "missing request body"),
        (b"{not json", "invalid character 'n' looking for beginning of object key string"),
        (b'{"model": x}', "invalid character 'x' looking for beginning of value"),
        (b'{"model": "m"', "unexpected EOF"),
        (
            b'{"model": 1}',
            "json: cannot unmarshal number into Go struct field .model of type string",
        ),
    ],
)
def test_a_bad_body_is_told_as_go_tells_it(body: bytes, words: str) -> None:
    with pytest.raises(Problem) as raised:
        decode(body, ChatRequest)

    assert (raised.value.status, raised.value.message) == (400, words)


@pytest.mark.parametrize(
    ("now", "text"),
    [
        (0.0, "1970-01-01T00:00:00Z"),
        (1_795_428_342.5, "2026-11-23T10:05:42.5Z"),
    ],
)
def test_a_stamp_has_no_trailing_zeros(now: float, text: str) -> None:
    assert stamp(now) == text
