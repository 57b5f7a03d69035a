"""The last outcomes, in memory: there before the store has them, and for the live page."""

from __future__ import annotations

from collections import OrderedDict

from herd.core.request import Outcome


class Recent:
    """A bounded list of outcomes, newest last."""

    def __init__(self, limit: int = 500) -> None:
        self._limit = limit
        self._outcomes: OrderedDict[str, Outcome] = OrderedDict()
        #: All that were ever added, for rates.
        self.total = 0

    def add(self, outcome: Outcome) -> None:
        """Keep one more, and forget the oldest if there are too many."""
        self.total += 1
        self._outcomes[outcome.request.id] = outcome
        if len(self._outcomes) > self._limit:
            self._outcomes.popitem(last=False)

    def get(self, request_id: str) -> Outcome | None:
        """Return an outcome if it is recent."""
        return self._outcomes.get(request_id)

    def latest(self, count: int) -> list[Outcome]:
        """Return the newest ones, newest first."""
        newest: list[Outcome] = []
        for outcome in reversed(self._outcomes.values()):
            if len(newest) >= count:
                break
            newest.append(outcome)
        return newest
