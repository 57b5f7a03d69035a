"""A sum of points, as a published router for the same kind of fleet scores its nodes.

Its terms and their limits are as published; where a published term leaves a shape open, the
simplest one between its limits is taken, and said below. What nodes report is as old as their last
heartbeat; what the router has queued itself it knows at once. That is kinder than what was
measured of it, where one heartbeat's worth of requests saw the same state.
"""

from __future__ import annotations

from collections.abc import Sequence

from herd.core.fleet import Load, NodeReport
from herd.core.request import Result
from herd.sim.push import PushRouter, model_at
from herd.sim.records import Site
from herd.sim.workloads import Arrival

HEARTBEAT = 5.0

LOADED, RECENT, ON_DISK = 50.0, 30.0, 10.0
#: Seconds for which a model counts as recently unloaded.
RECENTLY = 1800.0
MEMORY = 20.0
QUEUED, QUEUED_MOST = 6.0, 30.0
#: Points lost for each 10 s of expected wait.
WAIT, WAIT_MOST = 0.1, 25.0
ROLE = 25.0
AVAILABLE = 10.0
CONTEXT = 15.0
SESSION, PREFIX = 20.0, 10.0
#: Bytes from which a model wants the fastest device with all of the points for its role.
LARGE = 20e9


class SumOfPoints(PushRouter):
    """The highest sum wins, ties to the node that was registered first."""

    heartbeat: float | None = HEARTBEAT

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._reports: dict[int, NodeReport] = {}
        #: Of the last report: bytes in use, and the models in memory.
        self._used: dict[int, int] = {}
        self._loaded: dict[int, frozenset[str]] = {}
        #: When a model was last seen in memory, by device.
        self._seen: dict[tuple[int, str], float] = {}
        self._latency: dict[tuple[int, str], float] = {}
        self._sessions: dict[int, int] = {}
        self._prefixes: dict[tuple[str, int], int] = {}

    def reported(self, site: Site, report: NodeReport) -> None:
        """Keep what it says until it says something else."""
        self._reports[site.index] = report
        replicas = [replica for engine in report.engines for replica in engine.replicas]
        self._used[site.index] = sum(replica.memory_bytes for replica in replicas)
        self._loaded[site.index] = frozenset(
            replica.model for replica in replicas if replica.residency == "resident"
        )
        self._look(site)

    def heard(self, site: Site, load: Load) -> None:  # noqa: ARG002 - a router's method
        """Note what is still in memory."""
        self._look(site)

    def choose(self, arrival: Arrival, sites: Sequence[Site]) -> Site:
        """Take the most points."""
        best = max(site.device.kind.bandwidth for site in sites)
        return max(sites, key=lambda site: (self._points(arrival, site, best), -site.index))

    def note_sent(self, arrival: Arrival, site: Site) -> None:
        """Remember the session's node and the prefix's."""
        self._sessions[arrival.session] = site.index
        if arrival.turn.prefix.hashes:
            first = arrival.turn.prefix.hashes[0]
            self._prefixes[arrival.request.model, first] = site.index

    def note_ended(self, request: str, site: Site, result: Result | None) -> None:
        """Learn how long the model takes there."""
        if result is None:
            return
        record = self.world.records[request]
        key = site.index, record.arrival.request.model
        took = record.completion
        self._latency[key] = 0.8 * self._latency.get(key, took) + 0.2 * took

    def _look(self, site: Site) -> None:
        for model in self._loaded[site.index]:
            self._seen[site.index, model] = self.world.now

    def _points(self, arrival: Arrival, site: Site, best: float) -> float:
        model = arrival.request.model
        depth = self.open_of.get((site.index, model), 0)
        loaded, headroom = self._memory(site, model)
        wait = depth * self._latency.get((site.index, model), 0.0)
        size = model_at(site, model).weight_bytes
        role = ROLE * min(1.0, size / LARGE) * site.device.kind.bandwidth / best
        return (
            loaded
            + MEMORY * headroom
            - min(QUEUED_MOST, QUEUED * depth)
            - min(WAIT_MOST, WAIT * wait)
            + role
            + AVAILABLE * (1.0 - (self._reports[site.index].load.cpu or 0.0))
            + self._context(arrival, site)
            + self._affinity(arrival, site) / (1.0 + depth / 2.0)
        )

    def _memory(self, site: Site, model: str) -> tuple[float, float]:
        """Points for where the model is, and free memory over what it needs, at most 1."""
        if model in self._loaded[site.index]:
            return LOADED, 1.0
        free = max(0.0, site.device.spec.memory_bytes - self._used[site.index])
        headroom = min(1.0, free / (2.0 * model_at(site, model).weight_bytes))
        seen = self._seen.get((site.index, model))
        recent = seen is not None and self.world.now - seen <= RECENTLY
        return RECENT if recent else ON_DISK, headroom

    def _context(self, arrival: Arrival, site: Site) -> float:
        """From 15 points for a context much larger than the prompt to -15 for one too small."""
        room = site.device.spec.default_context
        return max(-CONTEXT, CONTEXT * (1.0 - arrival.request.prompt_tokens / room))

    def _affinity(self, arrival: Arrival, site: Site) -> float:
        points = SESSION if self._sessions.get(arrival.session) == site.index else 0.0
        hashes = arrival.turn.prefix.hashes
        key = arrival.request.model, hashes[0] if hashes else 0
        return points + (PREFIX if self._prefixes.get(key) == site.index else 0.0)
