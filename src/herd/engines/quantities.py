"""Quantities as people and engines write them: `80GB`, `2TB/s`, `300W`, `134.52M`."""

from __future__ import annotations

import re
from typing import Final

_DECIMAL: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_NUMBER: Final = r"(\d+(?:\.\d+)?|\.\d+)"
_SIZE: Final = re.compile(rf"{_NUMBER}\s*([KMGTP]?)(I?)B?", re.IGNORECASE)
_PARAMETERS: Final = re.compile(rf"{_NUMBER}\s*([KMBT]?)", re.IGNORECASE)
_POWER: Final = re.compile(rf"{_NUMBER}\s*(K?)W?", re.IGNORECASE)
_MAGNITUDE: Final = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def size(text: str) -> int:
    """Return bytes: `80GB` is 80 * 10^9, `80GiB` is 80 * 2^30, a bare number is bytes.

    Raises `ValueError` for anything else.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[3] and not match[2]):
        raise ValueError(f"{text!r} is not a size such as 80GB or 64GiB")
    unit = match[2].upper()
    power = list(_DECIMAL).index(unit)
    return round(float(match[1]) * (1024**power if match[3] else _DECIMAL[unit]))


def rate(text: str) -> float:
    """Return bytes per second, of `2TB/s` or `400GB/s`; raises `ValueError` for anything else."""
    amount, slash, unit = text.strip().partition("/")
    if slash and unit.strip().lower() not in {"s", "sec"}:
        raise ValueError(f"{text!r} is not a rate such as 400GB/s or 2TB/s")
    try:
        return float(size(amount))
    except ValueError:
        raise ValueError(f"{text!r} is not a rate such as 400GB/s or 2TB/s") from None


def watts(text: str) -> float:
    """Return watts, of `300W`, `1.2kW` or a bare number; raises `ValueError` for anything else."""
    match = _POWER.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a power such as 300W")
    return float(match[1]) * (1000 if match[2] else 1)


def parameters(text: str) -> int:
    """Return a parameter count from a label such as `134.52M` or `8B`; 0 if it is none."""
    match = _PARAMETERS.fullmatch(text.strip())
    return round(float(match[1]) * _MAGNITUDE[match[2].upper()]) if match else 0
