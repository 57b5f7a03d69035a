"""Which replica a waiting request should run on: the best prediction, now or after a wait.

Late binding: a request starts only where it would be done first, and only when it can start there.
Each request that waits is planned for one replica; who stands behind it in the line sees the work
that it will bring, whatever its model.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from herd.core import signals
from herd.core.decision import Decision, Estimate, Exclusion
from herd.core.fleet import ReplicaKey
from herd.core.state import ReplicaState
from herd.core.task import Candidate, Task

#: Free candidates within this share of the best count as equal, the one that rested longest wins:
#: twin devices share the work, noise in the rates does not pile it on one of them, and what was
#: unlucky at first is tried again. One whose rates are in doubt may be off by more: by so many
#: times its doubt (the standard deviation of their logarithm). Chosen by simulations of whole
#: fleets: 0.03 and 0 made answers 3 % later on average, more of either was no better.
TIE = 0.1
CURIOSITY = 0.5
#: Candidates of which a decision keeps the signals; of a larger fleet the best, and how many more.
KEPT = 32


class Choice(Struct, frozen=True, gc=False):
    """The best candidate for a request."""

    best: Candidate
    candidates: Sequence[Candidate]
    excluded: Sequence[Estimate]
    #: Replicas of a large fleet that were not worth a closer look.
    more: int = 0

    @property
    def passed_over(self) -> bool:
        """Another candidate could start at once, and would be done later."""
        return any(candidate.hold <= 0.0 for candidate in self.candidates)

    def decision(self, now: float) -> Decision:
        """Put the choice into words."""
        best = self.best
        kept = list(self.candidates)
        if len(kept) > KEPT:
            kept = sorted(kept, key=lambda candidate: candidate.total)[:KEPT]
            if best not in kept:
                kept[-1] = best
        excluded = self.excluded[: KEPT // 2]
        more = self.more + len(self.candidates) + len(self.excluded) - len(kept) - len(excluded)
        return Decision(
            at=now,
            chosen=best.replica.key,
            estimates=(*(candidate.estimate() for candidate in kept), *excluded),
            reason=_reason(self),
            more=more,
        )


def choose(
    task: Task, replicas: Sequence[ReplicaState], now: float, *, whole: bool = True
) -> Choice | list[Estimate]:
    """Return the best candidate, or all exclusions if there is none.

    `whole` if these are all replicas of its model.
    """
    candidates, excluded = _look(task, replicas, now, lenient=False)
    if not candidates and whole:
        # Nobody has what the request needs: an engine that checks this itself says so best.
        candidates, excluded = _look(task, replicas, now, lenient=True)
    if not candidates:
        return excluded
    return Choice(_best(candidates), candidates, excluded)


def _look(
    task: Task, replicas: Sequence[ReplicaState], now: float, *, lenient: bool
) -> tuple[list[Candidate], list[Estimate]]:
    candidates: list[Candidate] = []
    excluded: list[Estimate] = []
    for replica in replicas:
        if task.tried and replica.key in task.tried:
            why = Exclusion("tried", "has failed this request")
            excluded.append(Estimate(replica=replica.key, excluded=why))
            continue
        met = signals.meets(task, replica, lenient=lenient)
        if isinstance(met, float):
            candidates.append(signals.score(task, replica, now, met))
        else:
            excluded.append(Estimate(replica=replica.key, excluded=met))
    return candidates, excluded


def better(task: Task, replica: ReplicaState, now: float) -> bool:
    """Whether a task that is planned elsewhere might be done sooner on this replica."""
    booking = task.booking
    if booking is None or replica is booking.replica or replica.key in task.tried:
        return True
    if now >= booking.at + booking.hold:
        # It should have started there by now, and has not: the plan means nothing any more.
        return True
    met = signals.meets(task, replica)
    if not isinstance(met, float):
        return False
    there = booking.at + booking.total - now
    return signals.score(task, replica, now, met).total < there


def _best(candidates: list[Candidate]) -> Candidate:
    best = min(candidates, key=_total)
    # A conversation that leaves its cache behind loses it for its later turns, too.
    scale = max(0.0, abs(best.total) - best.saved)
    near = [
        each
        for each in candidates
        if each.hold <= 0.0
        and each.total - best.total <= (TIE + CURIOSITY * each.replica.learning.doubt) * scale
    ]
    # Whoever has to wait for the best, and has no equal that is free, waits.
    return min(near, key=_rested) if near else best


def _total(candidate: Candidate) -> float:
    return candidate.total


def _rested(candidate: Candidate) -> tuple[int, ReplicaKey]:
    return candidate.replica.last_used, candidate.replica.key


def _reason(choice: Choice) -> str:
    best = choice.best
    others = [each.total for each in choice.candidates if each is not best]
    if not others:
        return f"the only candidate, predicted {best.total:.2f} s"
    margin = min(others) - best.total
    if margin < 0.0 or margin <= TIE * best.total:
        return f"predicted {best.total:.2f} s, as good as equal to the next, and rested longest"
    return f"predicted {best.total:.2f} s, {margin:.2f} s sooner than the next"
