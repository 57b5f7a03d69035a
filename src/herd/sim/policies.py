"""Push policies to compare with, from a coin to one that knows every device's true rates.

Their names are the ones by which results list them. Ties go to whoever was found first, but by
lot where a policy says nothing but "the least": else small fleets would see one device loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from herd.core.request import Result
from herd.sim.clairvoyant import Clairvoyant
from herd.sim.herd_router import HerdRouter
from herd.sim.points import SumOfPoints
from herd.sim.push import (
    AnswerMeans,
    PushRouter,
    load_time,
    model_at,
    service_time,
    warm,
)
from herd.sim.records import Site
from herd.sim.workloads import Arrival
from herd.sim.world import Router

#: Prompts whose blocks a device is believed to have in its caches.
_REMEMBERED = 32


class Random(PushRouter):
    """Any device that has the model."""

    def choose(self, arrival: Arrival, sites: Sequence[Site]) -> Site:  # noqa: ARG002 - a policy's method
        """Draw one."""
        return self.draw.choice(sites)


class RoundRobin(PushRouter):
    """One after the other, for each model."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._turn: dict[str, int] = {}

    def choose(self, arrival: Arrival, sites: Sequence[Site]) -> Site:
        """Take the next."""
        turn = self._turn.get(arrival.request.model, 0)
        self._turn[arrival.request.model] = turn + 1
        return sites[turn % len(sites)]


class LeastConnections(PushRouter):
    """The device with the fewest requests out."""

    def choose(self, arrival: Arrival, sites: Sequence[Site]) -> Site:  # noqa: ARG002 - a policy's method
        """Take the least loaded; one of them by lot."""
        return self.least(sites)

    def least(self, sites: Sequence[Site]) -> Site:
        """Return one of the devices with the fewest requests out."""
        fewest = min(self.open.get(site.index, 0) for site in sites)
        return self.draw.choice([s for s in sites if self.open.get(s.index, 0) == fewest])


class WeightedConnections(PushRouter):
    """Connections weighted by speed: the fewest requests for the device's true decode rate."""

    def choose(self, arrival: Arrival, sites: Sequence[Site]) -> Site:
        """Take the least of (n + 1) / rate."""
        return min(
            sites,
            key=lambda site: (
                (self.open.get(site.index, 0) + 1)
                / model_at(site, arrival.request.model).decode_rate,
                site.index,
            ),
        )


class WarmFirst(LeastConnections):
    """A device that has the model in memory, if there is one; the least loaded of them."""

    def choose(self, arrival: Arrival, sites: Sequence[Site]) -> Site:
        """Take a warm one."""
        resident = [site for site in sites if warm(site, arrival.request.model)]
        return self.least(resident or sites)


class TwoChoices(PushRouter):
    """The less loaded of two drawn by lot (Mitzenmacher, 2001)."""

    def choose(self, arrival: Arrival, sites: Sequence[Site]) -> Site:  # noqa: ARG002 - a policy's method
        """Draw two, take the one with fewer requests out."""
        one, other = self.draw.sample(list(sites), 2)
        return min(one, other, key=lambda site: self.open.get(site.index, 0))


class PrefixAffinity(LeastConnections):
    """The device that has seen most of the prompt, whatever its load; else the least loaded."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        #: Latest device by model and block.
        self._seen: dict[tuple[int, str], dict[tuple[int, ...], int]] = {}

    def choose(self, arrival: Arrival, sites: Sequence[Site]) -> Site:
        """Take the longest match."""
        found = {site.index: self._match(arrival, site) for site in sites}
        longest = max(found.values())
        return self.least([site for site in sites if found[site.index] == longest])

    def note_sent(self, arrival: Arrival, site: Site) -> None:
        """Remember its latest prompts."""
        prompts = self._seen.setdefault((site.index, arrival.request.model), {})
        prompts.pop(arrival.turn.prefix.hashes, None)
        prompts[arrival.turn.prefix.hashes] = 0
        if len(prompts) > _REMEMBERED:
            del prompts[next(iter(prompts))]

    def _match(self, arrival: Arrival, site: Site) -> int:
        wanted = arrival.turn.prefix.hashes
        prompts = self._seen.get((site.index, arrival.request.model), {})
        best = 0
        for known in prompts:
            # Hashes are chained: equal at one place is equal up to it.
            while best < min(len(known), len(wanted)) and known[best] == wanted[best]:
                best += 1
        return best


class ShortestDelay(PushRouter):
    """Shortest expected delay: (n + 1) times the request's own time at the true rates, and load.

    The classic rule for unequal servers, with the mean answer for the length it cannot know.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.answers = AnswerMeans()

    def choose(self, arrival: Arrival, sites: Sequence[Site]) -> Site:
        """Take the least delay."""
        output = self.answers.expect(arrival.turn)

        def delay(site: Site) -> tuple[float, int]:
            service = service_time(site, arrival.turn, output)
            ahead = self.open.get(site.index, 0)
            return (ahead + 1) * service + load_time(site, arrival.request.model), site.index

        return min(sites, key=delay)

    def note_ended(self, request: str, site: Site, result: Result | None) -> None:  # noqa: ARG002 - a policy's method
        """Learn lengths."""
        self.answers.add(self.world.records[request].arrival.request.model, result)


class LeastWork(ShortestDelay):
    """Least work ahead in seconds, every request out at its own expected time, at true rates.

    Stronger than the classic rule where requests are as unequal as devices.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._work: dict[int, dict[str, float]] = {}

    def choose(self, arrival: Arrival, sites: Sequence[Site]) -> Site:
        """Take the least of work ahead, load and own time."""
        output = self.answers.expect(arrival.turn)

        def delay(site: Site) -> tuple[float, int]:
            ahead = sum(
                self._left(request, seconds)
                for request, seconds in self._work.get(site.index, {}).items()
            )
            own = service_time(site, arrival.turn, output)
            load = load_time(site, arrival.request.model)
            return ahead / site.device.spec.together + own + load, site.index

        return min(sites, key=delay)

    def note_sent(self, arrival: Arrival, site: Site) -> None:
        """Remember the work."""
        seconds = service_time(site, arrival.turn, self.answers.expect(arrival.turn))
        seconds += load_time(site, arrival.request.model)
        self._work.setdefault(site.index, {})[arrival.request.id] = seconds

    def note_ended(self, request: str, site: Site, result: Result | None) -> None:
        """Forget the work, learn the length."""
        super().note_ended(request, site, result)
        self._work[site.index].pop(request, None)

    def _left(self, request: str, seconds: float) -> float:
        record = self.world.records[request]
        sent = record.dispatched if record.dispatched is not None else self.world.now
        if record.started is None or record.started < sent:
            return seconds
        return max(0.1 * seconds, seconds - (self.world.now - record.started))


def _herd(_: int) -> Router:
    return HerdRouter()


def _clairvoyant(_: int) -> Router:
    return Clairvoyant()


#: Makers by name; each takes the run's seed.
POLICIES: dict[str, Callable[[int], Router]] = {
    "herd": _herd,
    "random": Random,
    "round-robin": RoundRobin,
    "least-connections": LeastConnections,
    "weighted-connections": WeightedConnections,
    "warm-first": WarmFirst,
    "shortest-delay": ShortestDelay,
    "least-work": LeastWork,
    "prefix-affinity": PrefixAffinity,
    "two-choices": TwoChoices,
    "sum-of-points": SumOfPoints,
    "clairvoyant": _clairvoyant,
}
