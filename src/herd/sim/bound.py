"""A bound below which no scheduler can bring the mean completion of given arrivals.

Claim. Let requests arrive at fixed times. Let request i need q(i,d) seconds of prefill and g(i,d)
of decode when it has device d for itself, where everything counts as cached that any other
request could have left in a cache before it: those of other sessions, and its own session's
earlier turns. Then for all prices P(d,t), D(d,t) >= 0 of a second of prefill and of decode,

    sum of completions >= sum over i of min over d, C of [ C + the cheapest q(i,d) seconds by P
        and the cheapest g(i,d) seconds by D, within the first C seconds after i's arrival ]
      - sum over d of the integral of P(d,t) + G(d) D(d,t),    with C >= q(i,d) + g(i,d).

Proof. Take any schedule of the emulated engines. A request runs on one device d. Measure what it
gets there in the seconds that the same progress takes alone. Per second it gets at most one: p
prefills have a p-th of the rate each, n jobs decode at n ** -alpha. So it needs q and g such
seconds (reading less of its prompt than q is impossible, loads and lost attempts add to them),
one after the other, hence C >= q + g; and since no moment can yield more than a second of either,
they cost at least what the cheapest q and g seconds before its completion cost. All prefills of a
device together get at most one second per second, all decodes at most n * n ** -alpha <= G(d) =
N(d) ** (1 - alpha), with N(d) its slots times the models that its memory can hold at once. (An
engine that batches has one model, and n of its jobs decode at most at n / (1 + m (n - 1)) <= G(d),
which is that of its slots.) So what all requests pay is at most the integral that is subtracted,
and what each pays with its completion is at least its minimum. This is weak duality: prices of
zero give the bound "each request alone on its best device", others add that devices have to be
shared.

A good price for a second of a device is the number of requests that it delays. Prices begin as
shares of the number of requests that the known schedule had waiting for each device, and go on by
subgradient steps (Polyak, 1969). They are constant in cells of time; a request counts as having
the whole of its first and last cell, and as complete when its last cell begins, if that is later
than q + g. Both lower the bound. Wide cells cost less, so the search begins with them and splits
them; the bound is the best value at any width.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from itertools import product

from msgspec import Struct

from herd.sim.fleets import Device, Fleet, alone
from herd.sim.records import Record

#: Cells of time for a mean completion of the known schedule, and at most.
_CELLS_PER_MEAN = 20.0
_MOST_CELLS = 4000
#: Cells are this many times wider at first, and from level to level.
_WIDTHS = (8, 4, 2, 1)
#: A step is this share of Polyak's at first; the share grows after a better value and shrinks after
#: a worse one. A value worse by more than `_FALL` of the gap sends the search back to its best
#: prices. Found by trying, on five fleets; they change how high the bound is, never its truth.
_FIRST = 0.05
_GROW = 1.5
_SHRINK = 0.6
_FALL = 0.03
#: Shares of the waiting requests that are tried as prices.
_SHARES = (0.0, 0.2, 0.4, 0.6)

#: Prices by device: of prefill and of decode, cell by cell.
_Prices = list[tuple[list[float], list[float]]]


class _Option(Struct, frozen=True):
    """A device that could serve a request: seconds of prefill and of decode."""

    device: int
    prefill: float
    decode: float


class _Job(Struct, frozen=True):
    """A request: when it came, and where it could go, the fastest first."""

    at: float
    options: tuple[_Option, ...]


def lower_bound(fleet: Fleet, records: Sequence[Record], *, steps: int = 10) -> float:
    """Return a mean completion, in seconds, that no schedule of the completed requests beats.

    More steps, at each of four widths of cells, give a better (higher) bound; none give "each
    alone on its best device".
    """
    done = [record for record in records if record.ending == "completed"]
    jobs = _jobs(fleet, done)
    known = sum(record.completion for record in done)
    end = max(record.ended or 0.0 for record in done)
    cell = max(end / _MOST_CELLS, known / len(done) / _CELLS_PER_MEAN)
    shares = [_together(device) for device in fleet.devices]
    if not steps:
        return _Search(jobs, shares, cell, int(end / cell) + 2).best(known, 0) / len(done)
    best = -math.inf
    search: _Search | None = None
    for width in _WIDTHS:
        if search is None:
            wide = cell * width
            cells = int(end / wide) + 2
            search = _Search(jobs, shares, wide, cells)
            search.begin(_crowds(done, len(shares), wide, cells))
        else:
            search = search.split()
        best = max(best, search.best(known, steps))
    return best / len(done)


def alone_bound(fleet: Fleet, records: Sequence[Record]) -> float:
    """Return the mean completion of requests that each have the best device for themselves."""
    return lower_bound(fleet, records, steps=0)


class _Search:
    """Looks for prices that give a high bound."""

    def __init__(
        self, jobs: Sequence[_Job], shares: Sequence[float], cell: float, cells: int
    ) -> None:
        self._jobs = jobs
        self._shares = shares
        self._cell = cell
        self._cells = cells
        self._prices: _Prices = [([0.0] * cells, [0.0] * cells) for _ in shares]
        self._chosen = self._prices

    def split(self) -> _Search:
        """Return a search that goes on from the best prices found, with cells half as wide."""
        found = _Search(self._jobs, self._shares, self._cell / 2.0, 2 * self._cells)
        found._prices = [(_doubled(prefill), _doubled(decode)) for prefill, decode in self._chosen]
        found._chosen = found._prices
        return found

    def begin(self, crowds: Sequence[Sequence[float]]) -> None:
        """Take the share of the crowds as prices that gives the best bound."""
        best, chosen = -math.inf, self._prices
        for prefill, decode in product(_SHARES, repeat=2):
            self._prices = [
                ([prefill * each for each in crowd], [decode * each for each in crowd])
                for crowd in crowds
            ]
            value, _ = self._value()
            if value > best:
                best, chosen = value, self._prices
        self._prices = chosen

    def best(self, known: float, steps: int) -> float:
        """Return the best sum found; `known` is the sum of a schedule, which no bound exceeds."""
        best, scale = -math.inf, _FIRST
        usage: _Prices = []
        for _ in range(steps + 1):
            value, here = self._value()
            if value > best:
                best, usage, scale = value, here, scale * _GROW
                self._chosen = _copied(self._prices)
            else:
                scale *= _SHRINK
                if value < best - _FALL * (known - best):
                    self._prices, value, here = _copied(self._chosen), best, usage
            if not self._step(_copied(here), scale * (known - value)):
                break
        return best

    def _value(self) -> tuple[float, _Prices]:
        """Return the bound at the present prices, and what requests would use at them."""
        usage: _Prices = [([0.0] * self._cells, [0.0] * self._cells) for _ in self._shares]
        total = sum(self._cheapest(job, usage) for job in self._jobs)
        for (prefill, decode), share in zip(self._prices, self._shares, strict=True):
            total -= self._cell * (sum(prefill) + share * sum(decode))
        return total, usage

    def _cheapest(self, job: _Job, usage: _Prices) -> float:
        first = min(self._cells - 1, int(job.at / self._cell))
        best, chosen, last = math.inf, job.options[0], first
        for option in job.options:
            if option.prefill + option.decode >= best:
                break  # the rest take longer still, even alone
            cost, end = self._scan(job.at, first, option, best)
            if cost < best:
                best, chosen, last = cost, option, end
        prices = self._prices[chosen.device]
        used = usage[chosen.device]
        for price, amount, use in zip(prices, (chosen.prefill, chosen.decode), used, strict=True):
            count = math.ceil(amount / self._cell)
            cheap = heapq.nsmallest(count, range(first, last + 1), key=price.__getitem__)
            for number, index in enumerate(cheap):
                use[index] += min(self._cell, amount - number * self._cell)
        return best

    def _scan(self, at: float, first: int, option: _Option, limit: float) -> tuple[float, int]:
        """Return the least cost on one device, and the cell of the completion that has it."""
        alone_ = option.prefill + option.decode
        prefill = _Cheapest(self._prices[option.device][0], option.prefill, self._cell)
        decode = _Cheapest(self._prices[option.device][1], option.decode, self._cell)
        best, best_end = math.inf, first
        for index in range(first, self._cells):
            least = max(alone_, index * self._cell - at)
            if least >= min(limit, best):
                break
            prefill.add(index)
            decode.add(index)
            if (index + 1 - first) * self._cell >= alone_ or index == self._cells - 1:
                cost = least + prefill.cost + decode.cost
                if cost < best:
                    best, best_end = cost, index
        return best, best_end

    def _step(self, usage: _Prices, gap: float) -> bool:
        """Raise prices where more is used than there is, lower them elsewhere."""
        norm = 0.0
        for prices, used, share in zip(self._prices, usage, self._shares, strict=True):
            for price, use, most in zip(prices, used, (1.0, share), strict=True):
                room = self._cell * most
                for index, amount in enumerate(use):
                    use[index] = amount - room
                    if amount > room or price[index] > 0.0:
                        norm += use[index] ** 2
        if norm <= 0.0 or gap <= 0.0:
            return False
        step = gap / norm
        for prices, used in zip(self._prices, usage, strict=True):
            for price, excess in zip(prices, used, strict=True):
                price[:] = [
                    max(0.0, old + step * over) for old, over in zip(price, excess, strict=True)
                ]
        return True


def _copied(lists: _Prices) -> _Prices:
    return [(prefill[:], decode[:]) for prefill, decode in lists]


def _doubled(prices: Sequence[float]) -> list[float]:
    return [price for price in prices for _ in range(2)]


class _Cheapest:
    """The cost of the cheapest `amount` of seconds among cells that come one by one."""

    def __init__(self, prices: Sequence[float], amount: float, cell: float) -> None:
        self._prices = prices
        self._cell = cell
        self._count = math.ceil(amount / cell)
        #: Seconds of the dearest cell that are not needed.
        self._spare = self._count * cell - amount
        #: Prices of the cheapest cells so far, negated: the dearest first.
        self._heap: list[float] = []
        self._sum = 0.0

    def add(self, index: int) -> None:
        """Let one more cell be there."""
        price = self._prices[index]
        if len(self._heap) < self._count:
            heapq.heappush(self._heap, -price)
            self._sum += price
        elif self._heap and price < -self._heap[0]:
            self._sum += price + heapq.heapreplace(self._heap, -price)

    @property
    def cost(self) -> float:
        """Price of the seconds; what cells that are still missing would cost is left out."""
        if not self._heap:
            return 0.0
        return max(0.0, self._cell * self._sum + self._spare * self._heap[0])


def _jobs(fleet: Fleet, records: Iterable[Record]) -> list[_Job]:
    records = list(records)
    caches = _Caches(records)
    jobs = []
    for record in records:
        turn = record.arrival.turn
        fresh = max(1, turn.prompt_tokens - caches.most(record))
        options = [
            _Option(
                index,
                alone(device, model, fresh, 0.0),
                alone(device, model, 0.0, turn.output_tokens),
            )
            for index, device in enumerate(fleet.devices)
            if (model := device.model(turn.request.model)) is not None
        ]
        options.sort(key=lambda option: option.prefill + option.decode)
        jobs.append(_Job(record.arrival.at, tuple(options)))
    return jobs


class _Caches:
    """Which blocks any request could have left in a cache."""

    def __init__(self, records: Iterable[Record]) -> None:
        #: By model and block: the first turn of each session that has it, two sessions at most.
        self._known: dict[tuple[str, int], dict[int, int]] = {}
        for record in records:
            arrival = record.arrival
            for block in (*arrival.turn.prefix.hashes, *arrival.turn.produced):
                turns = self._known.setdefault((arrival.request.model, block), {})
                if arrival.session in turns:
                    turns[arrival.session] = min(turns[arrival.session], arrival.number)
                elif len(turns) < 2:  # noqa: PLR2004 - one of two is another than the one who asks
                    turns[arrival.session] = arrival.number

    def most(self, record: Record) -> int:
        """Return the most tokens of the prompt that can be found cached."""
        arrival = record.arrival
        prefix = arrival.turn.prefix
        count = 0
        for block in prefix.hashes:
            turns = self._known[arrival.request.model, block]
            if not any(
                session != arrival.session or number < arrival.number
                for session, number in turns.items()
            ):
                break
            count += 1
        return count * prefix.block


def _crowds(records: Iterable[Record], devices: int, cell: float, cells: int) -> list[list[float]]:
    """Return how many requests besides one each device had before it, cell by cell."""
    crowds = [[0.0] * cells for _ in range(devices)]
    for record in records:
        crowd = crowds[record.site or 0]
        for index in range(int(record.arrival.at / cell), int((record.ended or 0.0) / cell)):
            crowd[index] += 1.0
    return [[max(0.0, count - 1.0) for count in crowd] for crowd in crowds]


def _together(device: Device) -> float:
    """Most seconds of decode, as they would take alone, that a device can do in a second."""
    spec = device.spec
    if spec.batching is not None:
        return spec.together
    sizes = sorted(
        model.memory(min(spec.default_context, model.context_length), spec.slots)
        for model in spec.models
    )
    models, used = 0, 0
    for size in sizes:
        used += size
        if used > spec.memory_bytes:
            break
        models += 1
    return float(max(1, spec.slots * models) ** (1.0 - spec.alpha))
