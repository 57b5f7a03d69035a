"""Which replica a waiting request should run on: the best prediction, now or after a wait.

Late binding: a request starts only where it would be done first, and only when a slot is free
there. So the requests of one model are looked at in their order, each sees the work that those
before it are planned to bring, and whoever's best replica has a free slot goes.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable

from msgspec import Struct

from herd.core import signals
from herd.core.decision import Decision, Estimate, Exclusion
from herd.core.lengths import AnswerLengths
from herd.core.state import ReplicaState, Task

#: Candidates within this share of the best count as equal, and the one that rested longest wins:
#: twin devices share the work, and noise in the rates does not pile it on one of them.
TIE = 0.03


class Choice(Struct, frozen=True):
    """The best candidate for a request."""

    replica: ReplicaState
    estimate: Estimate
    estimates: tuple[Estimate, ...]
    #: Seconds that it has to be held back; 0 if it can start at once.
    hold: float
    #: Another candidate could start at once, and would be done later.
    passed_over: bool

    def decision(self, now: float) -> Decision:
        """Put the choice into words."""
        return Decision(
            at=now, chosen=self.replica.key, estimates=self.estimates, reason=_reason(self)
        )


class _Candidate(Struct):
    total: float
    hold: float
    replica: ReplicaState
    estimate: Estimate


class _Slots:
    """When the slots of a replica are free, as the requests before would leave them.

    What runs there is looked at only once no slot is free now: most requests find one.
    """

    __slots__ = ("_booked", "_free", "_now", "_replica", "_waits")

    def __init__(self, replica: ReplicaState, now: float) -> None:
        self._replica = replica
        self._now = now
        self._free = max(1, replica.spec.slots) - len(replica.running)
        #: Seconds until those are free that were free now and are taken in the plan.
        self._booked: list[float] = []
        #: Seconds until each slot is free, as a heap; None as long as one is free now.
        self._waits: list[float] | None = None

    @property
    def wait(self) -> float:
        """Seconds until the next slot is free."""
        return 0.0 if self._free > 0 else self._heap()[0]

    def take(self, until: float) -> None:
        """Have the next free slot taken for so many seconds from now."""
        if self._free > 0:
            self._free -= 1
            self._booked.append(until)
        else:
            heapq.heapreplace(self._heap(), until)

    def _heap(self) -> list[float]:
        if self._waits is None:
            taken = signals.slot_waits(self._replica, self._now)
            # More may run than there are slots, after an engine came back with fewer: the first
            # to end then free nothing.
            self._waits = (taken + self._booked)[-max(1, self._replica.spec.slots) :]
            heapq.heapify(self._waits)
        return self._waits


class Plan:
    """A look ahead over the replicas of one model, as the requests before would leave them."""

    def __init__(
        self, replicas: Iterable[ReplicaState], answers: AnswerLengths, now: float
    ) -> None:
        self._replicas = tuple(replicas)
        self._answers = answers
        self._now = now
        self._slots = {replica.key: _Slots(replica, now) for replica in self._replicas}

    @property
    def exhausted(self) -> bool:
        """No replica has a free slot left, so nobody further back can start now."""
        return all(slots.wait > 0.0 for slots in self._slots.values())

    def choose(self, task: Task) -> Choice | tuple[Estimate, ...]:
        """Return the best candidate, or all exclusions if there is none."""
        candidates, estimates = self._look(task, lenient=False)
        if not candidates:
            # Nobody has what the request needs: an engine that checks this itself says so best.
            candidates, estimates = self._look(task, lenient=True)
        if not candidates:
            return tuple(estimates)
        best = _best(candidates)
        return Choice(
            replica=best.replica,
            estimate=best.estimate,
            estimates=tuple(estimates),
            hold=best.hold,
            passed_over=any(candidate.hold <= 0.0 for candidate in candidates),
        )

    def book(self, choice: Choice) -> None:
        """Count the chosen request's work for those who come after it."""
        parts = choice.estimate.signals
        work = parts.total - parts.queue - choice.estimate.harm
        self._slots[choice.replica.key].take(choice.hold + work)

    def _look(self, task: Task, *, lenient: bool) -> tuple[list[_Candidate], list[Estimate]]:
        answer = self._answers.expect(task.request)
        candidates: list[_Candidate] = []
        estimates = []
        for replica in self._replicas:
            excluded = _excluded(task, replica, lenient=lenient)
            if excluded is not None:
                estimates.append(Estimate(replica=replica.key, excluded=excluded))
                continue
            wait = max(self._slots[replica.key].wait, _stand_back(task, replica, self._now))
            found, hold = signals.estimate(task, replica, answer=answer, wait=wait, now=self._now)
            estimates.append(found)
            candidates.append(_Candidate(found.signals.total, hold, replica, found))
        return candidates, estimates


def expected_wait(
    task: Task, replicas: Iterable[ReplicaState], queue: Collection[str]
) -> float | None:
    """Predicted seconds that a request waits if all others in its model's queue come first.

    From the backlog, the slots, and the mean length of what runs: cheap enough to be asked for
    every request that is refused. None if nothing runs from which to judge.
    """
    there = [replica for replica in replicas if not signals.unreachable(replica)]
    lengths = [run.predicted for replica in there for run in replica.running.values()]
    if not lengths:
        return None
    slots = sum(max(1, replica.spec.slots) for replica in there)
    backlog = len(queue) - (task.request.id in queue) + 0.5 * len(lengths)
    return backlog / slots * sum(lengths) / len(lengths)


def _excluded(task: Task, replica: ReplicaState, *, lenient: bool) -> Exclusion | None:
    if replica.key in task.tried:
        return Exclusion("tried", "has failed this request")
    return signals.exclusion(task.request, replica, lenient=lenient)


def _best(candidates: list[_Candidate]) -> _Candidate:
    least = min(candidate.total for candidate in candidates)
    limit = least + TIE * abs(least)
    near = [candidate for candidate in candidates if candidate.total <= limit]
    return min(near, key=lambda candidate: (candidate.replica.last_used, candidate.replica.key))


def _stand_back(task: Task, replica: ReplicaState, now: float) -> float:
    """Seconds to leave the device to an earlier request that waits for its memory.

    Without this a busy model would never become idle, and the cold one would starve.
    """
    reserved = replica.node.reserved
    if reserved is None or reserved.sequence >= task.sequence or reserved.replica == replica.key:
        return 0.0
    return max(0.05, reserved.until - now)


def _reason(choice: Choice) -> str:
    others = (e.total for e in choice.estimates if e.total is not None and e is not choice.estimate)
    following = min(others, default=None)
    total = choice.estimate.total or 0.0
    if following is None:
        return f"the only candidate, predicted {total:.2f} s"
    margin = following - total
    if abs(margin) <= TIE * total:
        return f"predicted {total:.2f} s, equal to the next, and rested longest"
    return f"predicted {total:.2f} s, {margin:.2f} s sooner than the next"
