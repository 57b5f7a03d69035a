"""How crowded a device was over a stretch of time, from two readings of a running sum."""

from __future__ import annotations


class Crowd:
    """Counts what runs on a device, and the share of it that one request would have had so far.

    The share of n equal requests is 1/n each, so what matters of a changing n is its harmonic
    mean: beside nobody for a minute and beside two others for another is as beside a half.
    """

    __slots__ = ("_at", "_sum", "count")

    def __init__(self) -> None:
        #: Requests that run now.
        self.count = 0
        self._sum = 0.0
        self._at = 0.0

    def enter(self, now: float) -> float:
        """One more runs from now on; returns the reading at its start."""
        reading = self.reading(now)
        self.count += 1
        return reading

    def leave(self, now: float) -> float:
        """One less runs from now on; returns the reading at its end."""
        reading = self.reading(now)
        self.count -= 1
        return reading

    def reading(self, now: float) -> float:
        """Seconds, each weighed by the share of one request in it."""
        if now > self._at:
            if self.count:
                self._sum += (now - self._at) / self.count
            self._at = now
        return self._sum


def mean(seconds: float, share: float) -> float:
    """Return the harmonic mean of what ran over so many seconds, between two readings."""
    return max(1.0, seconds / share) if share > 0.0 else 1.0
