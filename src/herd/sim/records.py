"""Requests, attempts and devices while a run goes on, and what is left of them after it."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from herd.core.fleet import Load, NodeReport
from herd.sim.emulated import Engine
from herd.sim.engines import emulate
from herd.sim.fleets import Device, Fleet
from herd.sim.spec import Job
from herd.sim.workloads import Arrival

Ending = Literal["completed", "failed", "rejected"]

#: Share of its processors that a device uses at rest.
IDLE = 0.05


class Record:
    """One request. Times are absolute, in virtual seconds."""

    __slots__ = (
        "arrival",
        "attempt",
        "attempts",
        "beside",
        "cached",
        "dispatched",
        "ended",
        "ending",
        "first",
        "site",
        "started",
    )

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival
        #: The attempt that is out, and one that was sent beside it.
        self.attempt: Attempt | None = None
        self.beside: Attempt | None = None
        self.attempts = 0
        #: Of the last attempt: its device, when it was sent, and when it got its slot there.
        self.site: int | None = None
        self.dispatched: float | None = None
        self.started: float | None = None
        #: First frame of a streamed answer, as its client saw it.
        self.first: float | None = None
        self.ended: float | None = None
        self.ending: Ending | None = None
        self.cached = 0

    @property
    def id(self) -> str:
        """The request's id."""
        return self.arrival.request.id

    def out(self, number: int) -> Attempt | None:
        """The attempt of that number, if it is out."""
        for attempt in (self.attempt, self.beside):
            if attempt is not None and attempt.number == number:
                return attempt
        return None

    def back(self, attempt: Attempt) -> None:
        """The attempt is no longer out."""
        if attempt is self.attempt:
            self.attempt = self.beside
        self.beside = None

    @property
    def completion(self) -> float:
        """Seconds from arrival to end; raises ValueError while it is open."""
        if self.ended is None:
            raise ValueError(f"{self.id} is open")
        return self.ended - self.arrival.at


class Attempt:
    """An attempt that is out, on its way or on its device."""

    __slots__ = ("began", "job", "number", "over", "record", "site")

    def __init__(self, record: Record, number: int, site: Site, job: Job) -> None:
        self.record = record
        self.number = number
        self.site = site
        self.job = job
        #: Its client has seen a part of the answer.
        self.began = False
        #: It was broken off.
        self.over = False


class Site:
    """A device while the world turns."""

    def __init__(self, index: int, device: Device) -> None:
        self.index = index
        self.device = device
        #: What is true of its models, by name.
        self.models = {model.name: model for model in device.spec.models}
        self.engine: Engine = emulate(device.spec, resident=device.resident)
        self.present = True
        #: Attempts by the id of their job.
        self.attempts: dict[str, Attempt] = {}
        self.load = Load(cpu=IDLE)
        #: When the engine will next have something to tell, as planned.
        self.due: float | None = None
        #: Slowdowns at work, by the number of what caused them.
        self.speeds: dict[int, float] = {}
        self.told: NodeReport | None = None
        #: Something may have changed that a report would tell.
        self.changed = True

    @property
    def name(self) -> str:
        """The node's identity."""
        return self.device.name


class Run(Struct, frozen=True):
    """A run that is over."""

    fleet: Fleet
    records: list[Record]
    #: Models that were loaded, and how many of those only because a request named another context.
    loads: int
    reloads: int
    #: When the last request ended.
    end: float
