"""Sizes, rates, powers and parameter counts as they are written."""

from __future__ import annotations

import pytest

from herd.engines import quantities


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80GB", 80 * 10**9),
        ("80gb", 80 * 10**9),
        ("80 GB", 80 * 10**9),
        ("64GiB", 64 * 2**30),
        ("1.5TB", 1_500_000_000_000),
        ("512MiB", 512 * 2**20),
        ("1000", 1000),
        ("12B", 12),
    ],
)
def test_a_size_is_bytes(text: str, expected: int) -> None:
    assert quantities.size(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "80XB", "-1GB", "80GB/s", "1iB", "nan", "1e9", "8 0GB"])
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size such as"):
        quantities.size(text)


@pytest.mark.parametrize(("text", "expected"), [("2TB/s", 2e12), ("400GB/s", 4e11), ("1e", None)])
def test_a_rate_is_bytes_per_second(text: str, expected: float | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match="is not a rate such as"):
            quantities.rate(text)
    else:
        assert quantities.rate(text) == expected


@pytest.mark.parametrize("text", ["2TB/min", "2Tbit/s", "fast", "/s"])
def test_what_is_not_a_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a rate such as"):
        quantities.rate(text)


@pytest.mark.parametrize(("text", "expected"), [("300W", 300), ("1.2kW", 1200), ("65", 65)])
def test_a_power_is_watts(text: str, expected: float) -> None:
    assert quantities.watts(text) == expected


@pytest.mark.parametrize("text", ["", "W", "300V", "-3W"])
def test_what_is_not_a_power_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a power such as"):
        quantities.watts(text)


@pytest.mark.parametrize(
    ("label", "expected"),
    [("134.52M", 134_520_000), ("8B", 8 * 10**9), ("8.0b", 8 * 10**9), ("1T", 10**12), ("", 0)],
)
def test_a_label_tells_the_parameters(label: str, expected: int) -> None:
    assert quantities.parameters(label) == expected


@pytest.mark.parametrize("label", ["8x7B", "large", "-3B", "30B-A3B"])
def test_a_label_that_is_no_number_tells_nothing(label: str) -> None:
    assert quantities.parameters(label) == 0
