"""A clock of work done, by which many jobs share one device without being touched one by one.

This is the virtual time of processor sharing (Parekh and Gallager, 1993): while the pace changes
with the number of jobs, each job's end stays at a fixed reading of the clock.
"""

from __future__ import annotations

import heapq


class WorkClock:
    """Counts work in the seconds that it takes one job alone; runs at `pace` of real time."""

    def __init__(self) -> None:
        self.pace = 0.0
        self._now = 0.0
        self._done = 0.0
        self._order = 0
        #: End of each job as a reading of the clock; of equal ones the first that was added.
        self._ends: dict[str, tuple[float, int, str]] = {}
        self._heap: list[tuple[float, int, str]] = []

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, job: str, work: float) -> None:
        """Begin a job that needs so much work."""
        self._order += 1
        end = (self._done + work, self._order, job)
        self._ends[job] = end
        heapq.heappush(self._heap, end)

    def remove(self, job: str) -> None:
        """Forget a job; nothing happens if it is not there."""
        self._ends.pop(job, None)
        if len(self._heap) > 2 * len(self._ends) + 16:
            self._heap = list(self._ends.values())
            heapq.heapify(self._heap)

    def pop(self) -> str:
        """Return the job that ends next, which is done now; raises IndexError if there is none."""
        self._drop_removed()
        end, _, job = heapq.heappop(self._heap)
        del self._ends[job]
        self._done = max(self._done, end)
        return job

    def next_due(self) -> float | None:
        """When the next job ends at the present pace; None if nothing is under way."""
        self._drop_removed()
        return self.when(self._heap[0][0]) if self._heap else None

    def reading(self, now: float) -> float:
        """Return the work done by `now` at the present pace."""
        return self._done + max(0.0, now - self._now) * self.pace

    def when(self, reading: float) -> float | None:
        """When so much work will be done at the present pace; None if it stands still."""
        if not self.pace:
            return None
        return self._now + max(0.0, reading - self._done) / self.pace

    def move(self, now: float) -> None:
        """Let time pass. An idle clock starts again at zero, which keeps it precise."""
        if self._ends:
            self._done = self.reading(now)
        else:
            self._done = 0.0
        self._now = now

    def _drop_removed(self) -> None:
        while self._heap and self._ends.get(self._heap[0][2]) != self._heap[0]:
            heapq.heappop(self._heap)
