"""What the policies to compare with have in common: they choose on arrival and push.

A request goes at once to the device chosen, and waits there in the engine's own queue, first come
first served. If the attempt fails before its client has seen anything, the policy chooses again
among the other devices, up to three times, as a proxy with retries does.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from herd.core.fleet import Load, NodeReport
from herd.core.request import Failure, Result
from herd.sim.fleets import alone
from herd.sim.records import Site
from herd.sim.spec import ModelSpec
from herd.sim.workloads import Arrival, Turn
from herd.sim.world import World

ATTEMPTS = 3


class PushRouter:
    """Base of the push policies: subclasses choose, and may note what was sent and ended."""

    heartbeat: float | None = None

    def __init__(self, seed: int = 0) -> None:
        self.draw = random.Random(f"policy/{seed}")  # noqa: S311 - an experiment, no secret
        #: Requests that are out, by device and by device and model.
        self.open: dict[int, int] = {}
        self.open_of: dict[tuple[int, str], int] = {}
        self._homes: dict[str, list[Site]] = {}
        self._world: World | None = None
        self._sent: dict[str, Site] = {}
        self._tried: dict[str, set[int]] = {}

    @property
    def world(self) -> World:
        """The world that it is attached to; raises RuntimeError before that."""
        if self._world is None:
            raise RuntimeError("not attached to a world")
        return self._world

    def choose(self, arrival: Arrival, sites: Sequence[Site]) -> Site:
        """Return one of the devices that have the model, of which there is at least one."""
        raise NotImplementedError

    def note_sent(self, arrival: Arrival, site: Site) -> None:
        """Remember what was sent, if the policy needs to."""

    def note_ended(self, request: str, site: Site, result: Result | None) -> None:
        """Remember how an attempt ended, if the policy needs to; None if it failed."""

    def attach(self, world: World) -> None:
        """Begin."""
        self._world = world
        for site in world.sites:
            for model in site.device.spec.models:
                self._homes.setdefault(model.name, []).append(site)

    def arrive(self, arrival: Arrival) -> None:
        """Choose and push."""
        request = arrival.request
        tried = self._tried.get(request.id, ())
        sites = [
            site
            for site in self._homes.get(request.model, ())
            if site.present and site.index not in tried
        ]
        if not sites:
            self._tried.pop(request.id, None)
            self.world.refuse(request.id)
            return
        site = self.choose(arrival, sites) if len(sites) > 1 else sites[0]
        self._count(site, request.model, 1)
        self._sent[request.id] = site
        self.note_sent(arrival, site)
        self.world.send(request.id, site)

    def first_frame(self, request: str, attempt: int) -> None:
        """Do nothing."""

    def finished(self, request: str, attempt: int, result: Result) -> None:  # noqa: ARG002 - a router's method
        """Count it out."""
        self._ended(request, result)
        self._tried.pop(request, None)

    def failed(self, request: str, attempt: int, failure: Failure, *, began: bool) -> None:  # noqa: ARG002 - a router's method
        """Try another device, if there may be an attempt."""
        site = self._ended(request, None)
        if began:
            self._tried.pop(request, None)
        elif attempt >= ATTEMPTS:
            self._tried.pop(request, None)
            self.world.refuse(request)
        else:
            self._tried.setdefault(request, set()).add(site.index)
            self.arrive(self.world.records[request].arrival)

    def reported(self, site: Site, report: NodeReport) -> None:
        """Do nothing."""

    def heard(self, site: Site, load: Load) -> None:
        """Do nothing."""

    def gone(self, site: Site, reason: str) -> None:
        """Do nothing: a health check, of which only the result is seen here, finds it."""

    def woken(self) -> None:
        """Do nothing."""

    def load_ended(self, site: Site, model: str, error: str) -> None:
        """Do nothing: these policies order no loads."""

    def _ended(self, request: str, result: Result | None) -> Site:
        site = self._sent.pop(request)
        self._count(site, self.world.records[request].arrival.request.model, -1)
        self.note_ended(request, site, result)
        return site

    def _count(self, site: Site, model: str, change: int) -> None:
        self.open[site.index] = self.open.get(site.index, 0) + change
        key = site.index, model
        self.open_of[key] = self.open_of.get(key, 0) + change


def model_at(site: Site, name: str) -> ModelSpec:
    """Return the model as it is on the device; raises LookupError if it is not."""
    try:
        return site.models[name]
    except KeyError:
        raise LookupError(f"{site.name} has no {name}") from None


def warm(site: Site, model: str) -> bool:
    """Whether the model is in the device's memory, or on its way there."""
    return site.engine.holds(model)


def load_time(site: Site, model: str) -> float:
    """True seconds of loading the model if it is not in memory."""
    if warm(site, model):
        return 0.0
    return model_at(site, model).weight_bytes / site.device.spec.load_rate


def service_time(site: Site, turn: Turn, output: float, cached: float = 0.0) -> float:
    """True seconds of a turn that has the device for itself, with an answer of that length."""
    model = model_at(site, turn.request.model)
    return alone(site.device, model, turn.prompt_tokens - cached, output)


class AnswerMeans:
    """What a policy that does not know lengths expects of them: the mean so far."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}

    def expect(self, turn: Turn) -> float:
        """Return the mean length of the model's answers; of the first, a guess."""
        if turn.request.operation == "embedding":
            return 0.0
        total, count = self._sums.get(turn.request.model, (0.0, 0))
        return total / count if count else 256.0

    def add(self, model: str, result: Result | None) -> None:
        """Take an answer in."""
        tokens = result.usage.completion_tokens if result is not None else None
        if tokens is not None:
            total, count = self._sums.get(model, (0.0, 0))
            self._sums[model] = total + tokens, count + 1
