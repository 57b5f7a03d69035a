"""Time for everything that does I/O: one clock, monotonic, that reads as Unix time."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]


def unix_clock() -> Clock:
    """Return a clock of seconds since 1970 that never jumps.

    The offset between wall clock and monotonic clock is taken once, so that durations survive an
    NTP step; the price is that a step after the start is not seen.
    """
    offset = time.time() - time.monotonic()  # noqa: TID251 - the one place that may
    monotonic = time.monotonic
    return lambda: offset + monotonic()
