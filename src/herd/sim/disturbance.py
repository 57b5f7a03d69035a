"""What befalls devices during a run."""

from __future__ import annotations

import random
from typing import Literal

from msgspec import Struct

from herd.sim.fleets import Fleet

DisturbanceKind = Literal["leaves", "throttles", "owner"]


class Disturbance(Struct, frozen=True, kw_only=True):
    """From `at` until `until` a device is gone, hot, or used by its owner.

    One that leaves breaks its connections and comes back with nothing in memory. Heat and owner
    leave `speed` (0 to 1) of it; of the owner the agent's reports show the load.
    """

    kind: DisturbanceKind
    device: str
    at: float
    until: float
    speed: float = 0.5


def some(kind: DisturbanceKind, fleet: Fleet, *, length: float, seed: int) -> list[Disturbance]:
    """Let a third of the devices, at least one, be disturbed for a fifth of the time each."""
    draw = random.Random(f"{kind}/{fleet.name}/{seed}")  # noqa: S311 - an experiment, no secret
    count = max(1, len(fleet.devices) // 3)
    found = []
    for device in draw.sample(fleet.devices, count):
        at = draw.uniform(0.1, 0.6) * length
        speed = 0.5 if kind == "throttles" else 0.3
        found.append(
            Disturbance(kind=kind, device=device.name, at=at, until=at + 0.2 * length, speed=speed)
        )
    return found
