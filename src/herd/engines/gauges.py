"""Reads a gauge out of Prometheus text, the little of that format that engines' queues need."""

from __future__ import annotations

import re


def total(text: bytes, name: str, **labels: str) -> float | None:
    """Return the sum of a metric's samples that have these labels; None if there is none.

    A server with several engines inside has a sample for each of them. The format is
    Prometheus' text exposition format 0.0.4: a line is `name{label="value",...} number`.
    """
    sample = re.compile(rf"^{re.escape(name)}(?:\{{(.*)\}})?\s+(\S+)", re.MULTILINE)
    found: float | None = None
    for inside, number in sample.findall(text.decode(errors="replace")):
        if all(f'{label}="{value}"' in inside.split(",") for label, value in labels.items()):
            try:
                found = (found or 0.0) + float(number)
            except ValueError:
                continue
    return found


def count(text: bytes, name: str) -> int | None:
    """Return a gauge that counts things; None if it is absent or no sensible number."""
    number = total(text, name)
    return int(number) if number is not None and 0 <= number < 2**53 else None
