"""What the relay reads out of an engine's headers."""

from __future__ import annotations

import pytest

from herd.gateway import relay


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5", 5.0),
        (" 0 ", 0.0),
        ("", None),
        ("-3", None),
        ("soon", None),
        ("٣", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
    ],
)
def test_how_long_an_engine_wants_to_be_left_alone(value: str, seconds: float | None) -> None:
    assert relay._retry_after(value) == seconds
