"""Named points in time, of which the driver only needs to know the earliest."""

from __future__ import annotations

import heapq
from typing import Literal

TimerKind = Literal["patience", "silence", "look", "urgent"]
#: What a timer is for: its kind, and the request or node.
TimerName = tuple[TimerKind, str]

#: Dropped entries that the heap may hold beyond as many as are set, before it is swept.
_SPARE = 64


class Timers:
    """A heap with lazy deletion; setting a name again moves it."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, TimerName]] = []
        self._set: dict[TimerName, float] = {}
        self._told: float | None = None

    def set(self, name: TimerName, at: float) -> None:
        """Let `name` come due at `at`, in place of any time set for it before."""
        if self._set.get(name) != at:
            self._set[name] = at
            heapq.heappush(self._heap, (at, name))
            if len(self._heap) > 2 * len(self._set) + _SPARE:
                self._heap = [(at, name) for name, at in self._set.items()]
                heapq.heapify(self._heap)

    def bring_forward(self, name: TimerName, at: float) -> None:
        """Let `name` come due at `at`, unless it is due sooner."""
        if self._set.get(name, at) >= at:
            self.set(name, at)

    def drop(self, name: TimerName) -> None:
        """Forget `name`; it need not be set."""
        self._set.pop(name, None)

    def due(self, now: float) -> list[TimerName]:
        """Take out everything that is due, in the order of its time."""
        self._told = None
        names = []
        while self._heap and self._heap[0][0] <= now:
            at, name = heapq.heappop(self._heap)
            if self._set.get(name) == at:
                del self._set[name]
                names.append(name)
        return names

    def moved(self) -> float | None:
        """The earliest time, if it is another one than was told before."""
        while self._heap and self._set.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        if not self._heap or self._heap[0][0] == self._told:
            return None
        self._told = self._heap[0][0]
        return self._told
