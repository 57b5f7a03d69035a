"""How long answers will be: learned distributions by model, client and kind of request.

Each client of a model has a sketch of its own answers. Where it has few, it leans on all answers
of that model, these on all of their kind, and these on a prior, each standing in for a few answers
(a hierarchical model with fixed concentrations). Forgets by time.
"""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Final

from msgspec import Struct

from herd.core import priors
from herd.core.request import Request
from herd.core.statistics import BUCKETS, Sketch, lognormal, middle

#: Seconds in which an answer's weight halves: habits of people and versions of tools last weeks.
HALF_LIFE = 7 * 86400.0
#: Answers that the level above stands for. The clients of a model differ by a factor of about 1.5
#: in their means, single answers of one by 2.2 (0.4 and 0.8 as logarithms): 0.8^2 / 0.4^2.
LEANING = 4.0
#: Answers that the prior stands for: nearly none, as nobody knows what a fleet is asked.
LEANING_PRIOR = 1.0
#: Spread of the prior, as the standard deviation of the logarithm; its mean is ANSWER_TOKENS.
SPREAD = 1.0
#: Sketches that are kept; the longest unused go.
SKETCHES = 2000
#: Share of an answer that one longer than all known ones is expected to still take: what a
#: heavy-tailed length (Pareto, shape 5) would on average.
BEYOND = 0.25
#: Less of a distribution's tail than this says nothing.
_TAIL = 0.002
#: A view is renewed when its sketch, or the one of all answers, has grown by this much.
_GROWN_OWN = 1.02
_GROWN = 1.05

#: Operation; with a model; with a client.
Key = tuple[str, ...]
_MIDDLES: Final = tuple(middle(place) for place in range(BUCKETS))
#: A lognormal's mean is its median times exp(spread ** 2 / 2).
_PRIOR_MEDIAN = priors.ANSWER_TOKENS / 2.718281828459045 ** (SPREAD**2 / 2)


class LengthsState(Struct, frozen=True, array_like=True):
    """One sketch at rest."""

    key: tuple[str, ...]
    landmark: float
    version: int
    counts: dict[int, float]


def _above(values: Iterable[float]) -> list[float]:
    """Return the sums of each value and all after it, and 0 at the end."""
    return list(accumulate(reversed(tuple(values)), initial=0.0))[::-1]


class _View:
    """A distribution, ready to be asked."""

    __slots__ = ("_mass", "_tail", "above", "leaf", "prior")

    def __init__(self, shares: Sequence[float], *, prior: float, leaf: int, above: int) -> None:
        #: How much of it is the prior's.
        self.prior = prior
        #: Versions of the sketches that it was made from.
        self.leaf = leaf
        self.above = above
        #: Share, and sum of share times tokens, of each bucket and all above it.
        self._tail = _above(shares)
        self._mass = _above(map(operator.mul, shares, _MIDDLES))

    def mean(self, limit: float | None = None) -> float:
        """Mean of the answers, cut off at `limit`."""
        if limit is None:
            return self._mass[0]
        above = bisect_right(_MIDDLES, limit)
        return self._mass[0] - self._mass[above] + self._tail[above] * limit

    def quantile(self, share: float) -> float:
        """Tokens that a share of the answers does not exceed."""
        low, high = 0, BUCKETS - 1
        while low < high:
            center = (low + high) // 2
            if 1.0 - self._tail[center + 1] >= share - 1e-9:
                high = center
            else:
                low = center + 1
        return _MIDDLES[low]

    def remaining(self, produced: float) -> float:
        """Mean of what is still to come of answers that are longer than `produced`."""
        above = bisect_right(_MIDDLES, produced)
        if self._tail[above] < _TAIL:
            return BEYOND * produced
        return self._mass[above] / self._tail[above] - produced


_PRIOR_SHARES: Final = lognormal(_PRIOR_MEDIAN, SPREAD)
_PRIOR: Final = _View(_PRIOR_SHARES, prior=1.0, leaf=0, above=0)


class AnswerLengths:
    """Lengths of answers in tokens. An embedding has none. Bounded in memory."""

    def __init__(self) -> None:
        self._sketches: OrderedDict[Key, Sketch] = OrderedDict()
        self._views: dict[Key, _View] = {}
        self._now = 0.0

    def expect(self, request: Request) -> float:
        """Return the mean of what is believed of its answer, bounded by the client's limit."""
        if request.operation == "embedding":
            return 0.0
        view, limit = self._view(request), request.max_tokens
        if limit is None or limit > _MIDDLES[-1]:
            expected = view.mean() + view.prior * (priors.ANSWER_TOKENS - _PRIOR.mean())
        else:
            # Of an answer of which nothing is known but its limit, the limit is a hint.
            hint = min(priors.ANSWER_TOKENS, limit)
            expected = view.mean(limit) + view.prior * (hint - _PRIOR.mean(limit))
        return max(1.0, expected)

    def quantile(self, request: Request, share: float) -> float:
        """Return the tokens that its answer does not exceed with that probability (0 to 1)."""
        if request.operation == "embedding":
            return 0.0
        return _limited(self._view(request).quantile(share), request)

    def remaining(self, request: Request, produced: float) -> float:
        """Return the mean of what is still to come after so many tokens; at least one."""
        if request.operation == "embedding":
            return 0.0
        left = max(1.0, self._view(request).remaining(produced))
        if request.max_tokens is not None:
            left = min(left, max(1.0, request.max_tokens - produced))
        return left

    def add(self, request: Request, tokens: int, now: float) -> None:
        """Learn from an answer that ended by itself or by the client's limit."""
        self._now = max(self._now, now)
        for key in _keys(request):
            sketch = self._sketches.get(key)
            if sketch is None:
                sketch = self._sketches[key] = Sketch(HALF_LIFE)
            self._sketches.move_to_end(key)
            sketch.add(tokens, now)
        while len(self._sketches) > SKETCHES:
            key, _ = self._sketches.popitem(last=False)
            self._views.pop(key, None)

    def state(self) -> tuple[LengthsState, ...]:
        """Return what is to be kept, the longest unused first."""
        return tuple(LengthsState(key, *each.state()) for key, each in self._sketches.items())

    def restore(self, states: tuple[LengthsState, ...], now: float) -> None:
        """Go on from what was kept until `now`; raises ValueError if it cannot have been."""
        restored: OrderedDict[Key, Sketch] = OrderedDict()
        for state in states[-SKETCHES:]:
            restored[state.key] = Sketch(HALF_LIFE)
            restored[state.key].restore(state.landmark, state.version, state.counts)
        self._sketches = restored
        self._now = max(self._now, now)
        self._views.clear()

    def _view(self, request: Request) -> _View:
        """Return the distribution of a request's answer, as new as matters."""
        everybody, model, own = _keys(request)
        whole = self._sketches.get(everybody)
        if whole is None:
            return _PRIOR
        # A client without answers of its own has the view of all clients of its model, and so on.
        leaf = self._sketches.get(own)
        if leaf is None:
            own, leaf = model, self._sketches.get(model)
        if leaf is None:
            own, leaf = everybody, whole
        view = self._views.get(own)
        if (
            view is None
            or leaf.version > _GROWN_OWN * view.leaf
            or whole.version > _GROWN * view.above
        ):
            view = self._views[own] = self._make((everybody, model, own), leaf, whole)
        return view

    def _make(self, keys: tuple[Key, ...], leaf: Sketch, whole: Sketch) -> _View:
        shares, prior = _PRIOR_SHARES, 1.0
        for key in dict.fromkeys(keys):
            sketch = self._sketches.get(key)
            weight = sketch.weight(self._now) if sketch is not None else 0.0
            leaning = LEANING if prior < 1.0 else LEANING_PRIOR
            if sketch is not None and weight > 0.0:
                shares = sketch.blend(shares, weight / (leaning + weight))
                prior *= leaning / (leaning + weight)
        return _View(shares, prior=prior, leaf=leaf.version, above=whole.version)


def _keys(request: Request) -> tuple[Key, Key, Key]:
    operation, model = request.operation, request.model
    return (operation,), (operation, model), (operation, model, request.client)


def _limited(tokens: float, request: Request) -> float:
    return tokens if request.max_tokens is None else min(tokens, request.max_tokens)
