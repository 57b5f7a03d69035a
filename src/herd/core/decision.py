"""Estimates, the seven signals that explain them, and decisions."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from herd.core.fleet import ReplicaKey

#: Why a replica cannot serve a request, from what may mend itself soon to what never will.
ExclusionKind = Literal["tried", "unreachable", "context", "too_big", "incapable"]


class Signals(Struct, frozen=True, kw_only=True, gc=False):
    """Seconds that each cause adds to the predicted completion; a saving is negative.

    They add up to the estimate, so that an owner can read where the time goes.
    """

    #: Loading the model where it is not in memory.
    residency: float = 0.0
    #: Reloading what loading it would evict.
    memory: float = 0.0
    #: Work ahead on the device.
    queue: float = 0.0
    #: Prefill and decode at the present concurrency.
    speed: float = 0.0
    #: Prefill saved by a cached prefix, and what the device's other requests lose by this one.
    affinity: float = 0.0
    #: Expected loss: an attempt that comes to nothing, as some there lately did, and others' use.
    availability: float = 0.0
    #: Reload forced by a larger context.
    context: float = 0.0

    @property
    def total(self) -> float:
        """Predicted seconds from now until the request is done."""
        return (
            self.residency
            + self.memory
            + self.queue
            + self.speed
            + self.affinity
            + self.availability
            + self.context
        )


class Exclusion(Struct, frozen=True, gc=False):
    """Why a replica cannot serve a request, for the machine and in words."""

    kind: ExclusionKind
    reason: str


class Estimate(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One candidate replica as it looked when the decision was made."""

    replica: ReplicaKey
    signals: Signals = Signals()
    #: Predicted seconds until it is done; None if it cannot serve the request.
    total: float | None = None
    #: The part of `signals.affinity` that others on the device lose; not the request's own time.
    harm: float = 0.0
    #: The part of `signals.availability` that others' use of the device is expected to cost.
    used: float = 0.0
    #: Why it cannot.
    excluded: Exclusion | None = None


class Decision(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The chosen replica, the estimates of all candidates, and why."""

    at: float
    chosen: ReplicaKey
    estimates: tuple[Estimate, ...]
    reason: str
    #: Candidates of a large fleet that are not among the estimates.
    more: int = 0
