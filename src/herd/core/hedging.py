"""When to send a request a second time, to another device, while the first is still silent.

Whoever answers first wins and the other is cancelled (Dean and Barroso, The Tail at Scale, CACM 56,
2013). They wait for the 95th percentile of the expected time first, which bounds what it costs to a
twentieth of the requests; here a budget bounds it once more (`core/budget.py`). It is for short
work alone: a long answer would occupy two devices for long, and one that streams has an owner.
"""

from __future__ import annotations

import math

from herd.core.request import Request

#: Tokens of an answer that is short: a classification, a title, a yes or no.
SHORT_ANSWER = 64
#: Standard deviations to the 95th percentile of a normal distribution.
P95 = 1.645
#: Seconds before which no hedge is worth its while, whatever was predicted: nobody sees less, and
#: a connection that has to be made first may take it.
LEAST = 0.05
#: Before anything is known, two of three predictions are believed to be right within a factor of 2.
PRIOR_SPREAD = math.log(2.0)
#: Outcomes that this belief weighs as much as.
PRIOR_WEIGHT = 5.0
#: Seconds after which an outcome weighs half: a choice, between a device that has just begun to
#: throttle and one that is asked a few times an hour.
HALF_LIFE = 600.0


class Spread:
    """How far predictions are off: the root mean square of log(actual / predicted).

    About zero, not about the mean, so that predictions that are always too short count as well.
    Weighted by age; constant in size.
    """

    __slots__ = ("_at", "_squares", "_weight")

    def __init__(self) -> None:
        self._at = 0.0
        self._squares = 0.0
        self._weight = 0.0

    @property
    def value(self) -> float:
        """The spread in log seconds: with 0.7, two of three are right within a factor of 2."""
        squares = self._squares + PRIOR_WEIGHT * PRIOR_SPREAD**2
        return math.sqrt(squares / (self._weight + PRIOR_WEIGHT))

    def add(self, actual: float, predicted: float, now: float) -> None:
        """Take in how long one took, or, if it was cut short, how long it had not ended."""
        if actual <= 0.0 or predicted <= 0.0:
            return
        if now > self._at:
            kept = 0.5 ** ((now - self._at) / HALF_LIFE)
            self._squares *= kept
            self._weight *= kept
            self._at = now
        self._squares += math.log(actual / predicted) ** 2
        self._weight += 1.0


def hedgeable(request: Request) -> bool:
    """Whether the request is short, and answered in one piece: an embedding or a few tokens.

    Nothing of it has gone to the client before the answer is whole, so either attempt's will do.
    """
    if request.stream:
        return False
    if request.operation == "embedding":
        return True
    return request.max_tokens is not None and request.max_tokens <= SHORT_ANSWER


def hedge_at(predicted: float, spread: float) -> float:
    """Seconds after its start at which an attempt without an answer is in its slowest twentieth.

    The 95th percentile of a lognormal time whose median is `predicted`.
    """
    return max(LEAST, predicted * math.exp(P95 * spread))


def due(predicted: float, spread: float, other: float) -> float:
    """Seconds after the first attempt's start at which a second, of `other` seconds, is worth it.

    Not before as long was waited as the other would take: nobody knows how long a late one will
    still be, and who spends no more on the way out than was lost already never loses more than
    twice the best (the ski-rental argument; Karlin et al., Algorithmica 3, 1988).
    """
    return max(hedge_at(predicted, spread), other)
