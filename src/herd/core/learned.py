"""All that was learned of the fleet: where it lives while nodes come and go, and how it is kept."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from herd.core.fleet import ReplicaKey
from herd.core.learning import LearningState, ReplicaLearning
from herd.core.lengths import AnswerLengths, LengthsState
from herd.core.priors import Rates
from herd.core.prompts import Prompts, PromptsState
from herd.core.shared import Device, Shared, SharedState

#: Of the state's layout and meaning; what has another is not read.
VERSION = 1
#: Replicas, devices and models that are remembered; the longest unused go.
REPLICAS = 4000
DEVICES = 1000
MODELS = 1000

Key = TypeVar("Key")
Value = TypeVar("Value")


class LearnedReplica(Struct, frozen=True, array_like=True):
    """What was learned of one replica."""

    key: ReplicaKey
    outcomes: int
    state: LearningState


class Learned(Struct, frozen=True, kw_only=True):
    """What was learned of the fleet, to go on with after a restart."""

    version: int = VERSION
    #: When it was taken, in the scheduler's time.
    at: float = 0.0
    replicas: tuple[LearnedReplica, ...] = ()
    devices: dict[str, SharedState] = {}
    models: dict[str, SharedState] = {}
    lengths: tuple[LengthsState, ...] = ()
    prompts: tuple[PromptsState, ...] = ()


class SharedTable:
    """What was learned, by replica, device, model and client. It outlives the nodes it came from.

    Whatever is restored waits for the report of its node, as only that gives the prior which the
    corrections are corrections of.
    """

    def __init__(self) -> None:
        #: Tokens of prompts, beside what is estimated of them.
        self.prompts = Prompts()
        self._devices: OrderedDict[str, Device] = OrderedDict()
        self._models: OrderedDict[str, Shared] = OrderedDict()
        self._replicas: OrderedDict[ReplicaKey, ReplicaLearning] = OrderedDict()
        self._kept: OrderedDict[ReplicaKey, LearnedReplica] = OrderedDict()

    def model(self, name: str) -> Shared:
        """Return what all replicas of a model share."""
        found = self._models.get(name)
        if found is None:
            found = self._models[name] = Shared()
        self._models.move_to_end(name)
        _shrink(self._models, MODELS)
        return found

    def device(self, node: str) -> Device:
        """Return what all replicas on a node share."""
        found = self._devices.get(node)
        if found is None:
            found = self._devices[node] = Device()
        self._devices.move_to_end(node)
        _shrink(self._devices, DEVICES)
        return found

    def replica(self, key: ReplicaKey, prior: Rates) -> ReplicaLearning:
        """Return what is known of a replica, which now has this prior."""
        found = self._replicas.get(key)
        if found is None:
            found = ReplicaLearning(prior, self.device(key.node), self.model(key.model))
            self._replicas[key] = found
            kept = self._kept.pop(key, None)
            if kept is not None:
                found.restore(kept.state, kept.outcomes)
        else:
            found.reprime(prior)
        self._replicas.move_to_end(key)
        for forgotten in _shrink(self._replicas, REPLICAS):
            forgotten.leave()
        return found

    def learned(self, answers: AnswerLengths, now: float) -> Learned:
        """Return what is to be kept."""
        replicas = [
            LearnedReplica(key, each.outcomes, each.state())
            for key, each in self._replicas.items()
            if each.outcomes
        ]
        return Learned(
            at=now,
            replicas=(*self._kept.values(), *replicas)[-REPLICAS:],
            devices={name: each.state() for name, each in self._devices.items()},
            models={name: each.state() for name, each in self._models.items()},
            lengths=answers.state(),
            prompts=self.prompts.state(),
        )

    def restore(self, learned: Learned) -> None:
        """Go on from what was kept; for a table that has learned nothing yet."""
        for name, state in learned.devices.items():
            self.device(name).restore(state)
        for name, state in learned.models.items():
            self.model(name).restore(state)
        self.prompts.restore(learned.prompts)
        self._kept.update((each.key, each) for each in learned.replicas[-REPLICAS:])


def check(learned: Learned) -> None:
    """Raise ValueError if it is of another version, or has numbers that are none."""
    if learned.version != VERSION:
        raise ValueError(f"learned state has version {learned.version}, this one knows {VERSION}")
    if not _finite(msgspec.to_builtins(learned, str_keys=False)):
        raise ValueError("learned state has numbers that are not finite")


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(_finite(each) for each in value.values())
    if isinstance(value, list | tuple):
        return all(_finite(each) for each in value)
    return True


def _shrink(table: OrderedDict[Key, Value], most: int) -> list[Value]:
    """Take out the longest unused beyond so many."""
    return [table.popitem(last=False)[1] for _ in range(len(table) - most)]
