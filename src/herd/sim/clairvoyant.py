"""A policy that knows what nobody can: every answer's length and every device's true rates.

It holds requests back, and whenever something changes it plans greedily: of all pairs of a waiting
request and a device it takes the one that would be done first (the min-min rule of Ibarra and Kim,
1977, which is shortest-first where devices are equal), lets the request run if the device is free
for it, or keeps the place for it if it is not, and goes on with the rest. Delays that a request
inflicts on those already running beside it count as its own. It knows nothing of arrivals to come:
it is a yardstick for what knowledge is worth, not a bound; for that see `bound`.
"""

from __future__ import annotations

import bisect

from herd.core.fleet import Load, NodeReport
from herd.core.request import Failure, Result
from herd.sim.fleets import alone
from herd.sim.outlook import Outlook
from herd.sim.records import Record, Site
from herd.sim.workloads import Arrival
from herd.sim.world import World

#: Waiting requests that are planned at once, the shortest first; the others would only wait.
_PLANNED = 40


class Clairvoyant:
    """Late binding, shortest first, with true figures."""

    heartbeat: float | None = None

    def __init__(self) -> None:
        self._world: World | None = None
        #: Waiting requests by the least seconds that they could take, then by arrival.
        self._waiting: list[tuple[float, int, Record]] = []
        self._homes: dict[str, list[Site]] = {}
        self._arrivals = 0
        self._tried: dict[str, set[int]] = {}
        #: Devices that could serve a request, with the least seconds that it takes there.
        self._options: dict[str, list[tuple[float, int, Site]]] = {}
        #: What devices are going to do, as far as nothing has changed there since.
        self._outlooks: dict[int, Outlook] = {}

    @property
    def world(self) -> World:
        """The world that it is attached to; raises RuntimeError before that."""
        if self._world is None:
            raise RuntimeError("not attached to a world")
        return self._world

    def attach(self, world: World) -> None:
        """Begin."""
        self._world = world
        for site in world.sites:
            for model in site.device.spec.models:
                self._homes.setdefault(model.name, []).append(site)

    def arrive(self, arrival: Arrival) -> None:
        """Take it into the plan."""
        self._wait(self.world.records[arrival.request.id])
        self._plan()

    def first_frame(self, request: str, attempt: int) -> None:  # noqa: ARG002 - a router's method
        """Know more of how long it will run."""
        self._forget(request)

    def finished(self, request: str, attempt: int, result: Result) -> None:  # noqa: ARG002 - a router's method
        """Use the place that is free now."""
        self._tried.pop(request, None)
        self._forget(request)
        self._plan()

    def failed(self, request: str, attempt: int, failure: Failure, *, began: bool) -> None:  # noqa: ARG002 - a router's method
        """Plan anew, without the device that failed it."""
        record = self.world.records[request]
        self._forget(request)
        if not began and record.site is not None:
            self._tried.setdefault(request, set()).add(record.site)
            self._wait(record)
        self._plan()

    def reported(self, site: Site, report: NodeReport) -> None:  # noqa: ARG002 - a router's method
        """Plan anew: a device may have come back."""
        self._plan()

    def heard(self, site: Site, load: Load) -> None:
        """Do nothing."""

    def gone(self, site: Site, reason: str) -> None:
        """Do nothing: its attempts fail next."""

    def woken(self) -> None:
        """Do nothing."""

    def load_ended(self, site: Site, model: str, error: str) -> None:
        """Do nothing: it orders no loads."""

    def _wait(self, record: Record) -> None:
        tried = self._tried.get(record.id, ())
        turn = record.arrival.turn
        options = []
        least = float("inf")
        for site in self._homes.get(turn.request.model, ()):
            model = site.device.model(turn.request.model)
            if model is not None and site.index not in tried:
                whole = alone(site.device, model, turn.prompt_tokens, turn.output_tokens)
                fresh = turn.prompt_tokens - turn.shared
                least = min(least, whole)
                # Less is possible, where another session's prompt begins alike, and not looked for.
                options.append(
                    (alone(site.device, model, fresh, turn.output_tokens), site.index, site)
                )
        if not options:
            self.world.refuse(record.id)
            return
        options.sort()
        self._options[record.id] = options
        self._arrivals += 1
        bisect.insort(self._waiting, (least, self._arrivals, record))

    def _plan(self) -> None:
        """Start everything whose best place is free."""
        if not self._waiting:
            return
        chosen = self._waiting[:_PLANNED]
        left = [(self._best(entry[2]), entry) for entry in chosen]
        taken: set[int] = set()
        while left:
            index = min(range(len(left)), key=lambda each: left[each][0][0])
            (_, place), entry = left.pop(index)
            if place is None:
                break
            record = entry[2]
            taken.add(place.site.index)
            if place.take(record.arrival.turn, self.world.now):
                self._waiting.remove(entry)
                del self._options[record.id]
                self.world.send(record.id, place.site)
            # The others' best places have not changed, but for those who wanted this one.
            left = [
                (self._best(other[2]) if best[1] is place else best, other) for best, other in left
            ]
        for number in taken:
            del self._outlooks[number]

    def _best(self, record: Record) -> tuple[float, Outlook | None]:
        best: tuple[float, Outlook | None] = float("inf"), None
        for least, _, site in self._options[record.id]:
            if least >= best[0]:
                break
            if site.present:
                place = self._outlook(site)
                cost = place.cost(record.arrival.turn, self.world.now)
                if cost < best[0]:
                    best = cost, place
        return best

    def _outlook(self, site: Site) -> Outlook:
        found = self._outlooks.get(site.index)
        if found is None:
            found = self._outlooks[site.index] = Outlook(site, self.world.now)
        return found

    def _forget(self, request: str) -> None:
        site = self.world.records[request].site
        if site is not None:
            self._outlooks.pop(site, None)
