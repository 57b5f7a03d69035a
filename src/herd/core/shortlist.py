"""Which of a model's many replicas are worth a closer look for a request.

To score a thousand replicas for every request would cost a millisecond, and most of them are twins
of one another or far behind. So for a model with more than `ALL` replicas, they stand in lists: of
idle devices by the seconds that a request takes there, apart for those that have the model in
memory and those that have to load it, and of busy ones by when they would be done with it. The
first of each, and those that had the conversation before, are scored exactly. The lists are by a
typical request and may be off in detail, not in the large.
"""

from __future__ import annotations

import bisect
from collections import OrderedDict
from typing import Final

from herd.core.fleet import ReplicaKey
from herd.core.request import Prefix
from herd.core.state import ReplicaState

#: Replicas of a model up to which all are scored.
ALL: Final = 24
#: Replicas that are scored of a model with more: idle and in memory, idle and not, and busy.
WARM: Final = 8
COLD: Final = 4
BUSY: Final = 6
#: A request by which the lists are ordered: tokens of its prompt and of its answer.
PROMPT: Final = 500.0
ANSWER: Final = 250.0
#: Beginnings of conversations that are remembered, with where they were last.
CONVERSATIONS: Final = 4096
#: Blocks from the end of a prompt in which the end of its last turn is looked for.
TURN_BLOCKS: Final = 64

_Place = tuple[float, ReplicaKey]


class Shortlist:
    """The replicas of one model in the order of what they promise."""

    def __init__(self, old: Shortlist | None = None) -> None:
        self._replicas: dict[ReplicaKey, ReplicaState] = {}
        self._warm: list[_Place] = []
        self._cold: list[_Place] = []
        self._busy: list[_Place] = []
        self._where: dict[ReplicaKey, tuple[list[_Place], float]] = {}
        #: By the end of a prompt, where it was read; those who made the `old` list know it still.
        self._homes: OrderedDict[int, ReplicaKey] = old._homes if old else OrderedDict()  # noqa: SLF001 - its own kind

    def update(self, replica: ReplicaState, now: float) -> None:
        """Give a new or changed replica its place."""
        self._leave(replica.key)
        self._replicas[replica.key] = replica
        if replica.node.draining or not replica.up:
            return
        rates = replica.learning.rates
        seconds = rates.overhead + PROMPT / rates.prefill + ANSWER / rates.decode
        if not replica.occupied:
            seconds += rates.load
        node = replica.node
        if node.running or node.planned:
            # What is ahead, as an absolute time: it stays true while time passes.
            ends = [end for end, _, _ in node.busy(now)]
            work = sum([task.booking.work for task in node.planned.values() if task.booking])
            ahead = (sum(ends) / len(ends) if ends else 0.0) + work
            place = now + ahead + seconds, replica.key
            places = self._busy
        else:
            place = seconds, replica.key
            places = self._warm if replica.occupied else self._cold
        bisect.insort(places, place)
        self._where[replica.key] = (places, place[0])

    def began(self, prefix: Prefix, key: ReplicaKey) -> None:
        """Note where a prompt is read: its next turn may want to go there."""
        if prefix.hashes:
            self._homes[prefix.hashes[-1]] = key
            self._homes.move_to_end(prefix.hashes[-1])
            if len(self._homes) > CONVERSATIONS:
                self._homes.popitem(last=False)

    def top(self, prefix: Prefix) -> list[ReplicaState]:
        """Return the replicas worth a closer look, in an order that does not depend on chance."""
        first = (*self._warm[:WARM], *self._cold[:COLD], *self._busy[:BUSY])
        keys = dict.fromkeys([key for _, key in first])
        homes = self._homes
        for block in reversed(prefix.hashes[-TURN_BLOCKS:]):
            if block in homes:
                keys[homes[block]] = None
                break
        replicas = self._replicas
        return [replicas[key] for key in keys if key in replicas]

    def _leave(self, key: ReplicaKey) -> None:
        where = self._where.pop(key, None)
        if where is not None:
            places, value = where
            # The very place that was entered, so it is found.
            del places[bisect.bisect_left(places, (value, key))]
