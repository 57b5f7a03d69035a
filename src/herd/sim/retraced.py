"""A router that does again what was recorded: each request to the same place at the same time.

What such a run has wrong is the rebuilt fleet's fault alone, not a policy's.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from herd.core.fleet import Load, NodeReport
from herd.core.request import Failure, Result
from herd.sim.records import Site
from herd.sim.workloads import Arrival
from herd.sim.world import World


class Retraced:
    """Sends each request where and as long after its arrival as it was sent."""

    heartbeat: float | None = None

    def __init__(self, places: Mapping[str, tuple[str, float]]) -> None:
        #: By request: the device's name, and seconds from arrival to dispatch.
        self._places = places
        self._due: list[tuple[float, str]] = []
        self._world: World | None = None

    @property
    def world(self) -> World:
        """The world that it is attached to; raises RuntimeError before that."""
        if self._world is None:
            raise RuntimeError("not attached to a world")
        return self._world

    def attach(self, world: World) -> None:
        """Begin."""
        self._world = world

    def arrive(self, arrival: Arrival) -> None:
        """Keep it until its time."""
        waited = self._places[arrival.request.id][1]
        heapq.heappush(self._due, (self.world.now + waited, arrival.request.id))
        self.woken()

    def woken(self) -> None:
        """Send what is due."""
        while self._due and self._due[0][0] <= self.world.now:
            _, request = heapq.heappop(self._due)
            self.world.send(request, self.world.site(self._places[request][0]))
        if self._due:
            self.world.wake(self._due[0][0])

    def first_frame(self, request: str, attempt: int) -> None:
        """Do nothing."""

    def finished(self, request: str, attempt: int, result: Result) -> None:
        """Do nothing."""

    def failed(self, request: str, attempt: int, failure: Failure, *, began: bool) -> None:  # noqa: ARG002 - a router's method
        """Give it up: in the record it was answered there."""
        if not began:
            self.world.refuse(request)

    def reported(self, site: Site, report: NodeReport) -> None:
        """Do nothing."""

    def heard(self, site: Site, load: Load) -> None:
        """Do nothing."""

    def load_ended(self, site: Site, model: str, error: str) -> None:
        """Do nothing: it orders none."""

    def gone(self, site: Site, reason: str) -> None:
        """Do nothing."""
