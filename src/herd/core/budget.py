"""What the fleet may spend on second attempts: a leaky bucket that requests fill.

A bound per request does not stop a storm: where everything fails, three attempts each are three
times the load on devices that are down already. So attempts beyond the first are a share of the
requests that came lately. (Beyer et al., Site Reliability Engineering, 2016, chapter 21: three
attempts for each request, and a budget of retries over all of them; Finagle's `RetryBudget`: 20 %
of the requests, on top of a floor per second, deposits that expire after 1 to 60 s.)
"""

from __future__ import annotations

import math

#: Finagle's share of requests that may be retried.
RETRY_SHARE = 0.2
#: Second attempts beside a slow first one that paid best in Dean and Barroso, The Tail at Scale
#: (CACM 56, 2013): 2 % more requests cut the 99.9th percentile of a benchmark to a twenty-fifth.
HEDGE_SHARE = 0.02
#: Seconds for which a request's deposit counts, the longest that Finagle takes: answers of language
#: models take long, so what fails together was asked for over a long time.
WINDOW = 60.0
#: Tokens per second that come without any request, so that small fleets can retry too: a device
#: that goes down with 60 requests after a quiet minute costs none of them its second attempt.
RETRY_FLOOR = 1.0
#: One hedge a minute for those who ask for little.
HEDGE_FLOOR = 1.0 / WINDOW


class Budget:
    """Tokens for second attempts. Never negative, constant in size, and a function of its calls.

    Each request deposits `share` of a token and each second `floor` of one; what is there leaks
    away with time constant `window`. So over any long time no more is spent than `share` of the
    requests and `floor` of the seconds, and at once no more than what the last `window` brought.
    `now` must not fall.
    """

    __slots__ = ("_at", "_floor", "_share", "_tokens", "_window")

    def __init__(self, *, share: float, floor: float, now: float = 0.0) -> None:
        if share < 0.0 or floor < 0.0:
            raise ValueError("a budget's share and floor are not negative")
        self._share = share
        self._floor = floor
        self._window = WINDOW
        #: A bucket that nobody has touched holds what the floor fills it with.
        self._tokens = self._rest
        self._at = now

    def deposit(self, now: float) -> None:
        """A request came."""
        self._leak(now)
        self._tokens += self._share

    def spend(self, now: float) -> bool:
        """Take one token, if there is one; False, and nothing taken, if not."""
        self._leak(now)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def left(self, now: float) -> float:
        """Tokens that are there; a whole one is needed to spend."""
        self._leak(now)
        return self._tokens

    @property
    def _rest(self) -> float:
        """Where floor and leak are in balance."""
        return self._floor * self._window

    def _leak(self, now: float) -> None:
        if now > self._at:
            kept = math.exp((self._at - now) / self._window)
            self._tokens = self._rest + (self._tokens - self._rest) * kept
            self._at = now


def retries() -> Budget:
    """Return the budget for attempts after a failed one."""
    return Budget(share=RETRY_SHARE, floor=RETRY_FLOOR)


def hedges() -> Budget:
    """Return the budget for attempts beside a slow one."""
    return Budget(share=HEDGE_SHARE, floor=HEDGE_FLOOR)
