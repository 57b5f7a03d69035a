"""The requests that wait, in the order in which they have a claim to be served.

Priority classes come first. Within a class it is start-time fair queueing (Goyal, Vin and Cheng,
1996), which needs no rate of the server: each client's flow has a virtual time, which a request of
its own moves on by its cost in seconds of the best device; who asks after a pause begins at the
virtual time that service has reached. Among flows the least virtual finish goes first, so a short
request of somebody who has asked little passes a long one and the hundreds of a script, and each
flow gets its share. Within a flow the shorter goes first, as long as the longer has not waited for
`1 / AGING` times the difference: the client has as many answers as early as can be.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from herd.core.request import Priority
from herd.core.task import Task

#: Seconds of cost that a second of waiting outweighs among one client's own requests. Less would
#: serve the mean better and let a long request of a busy client wait without end.
AGING: Final = 0.2
_RANKS: Final[dict[Priority, int]] = {"high": 1, "normal": 2, "low": 3}
#: Flows from which those that wait for nothing are forgotten, but for half as many of those that
#: have had more than the others.
FLOWS: Final = 1024
#: The rank of requests whose deadline leaves no more time to wait, whatever their class.
URGENT: Final = 0

#: One client's requests of one rank.
_FlowKey = tuple[int, str]
#: A flow's place in the line of one model: rank, virtual finish of its first, arrival, client.
_Head = tuple[int, float, int, str]
#: A task's place in its flow: cost less what its wait has earned, arrival, the task itself.
_Place = tuple[float, int, Task]


class _Flow:
    __slots__ = ("client", "rank", "time", "waiting")

    def __init__(self, rank: int, client: str) -> None:
        self.rank = rank
        self.client = client
        #: Virtual time: the cost of what was served of it, or of others while it had nothing.
        self.time = 0.0
        #: By model, the tasks that wait, in the order of the flow.
        self.waiting: dict[str, list[_Place]] = {}

    def head(self, model: str) -> _Head | None:
        """Its place in the model's line; None if it has nothing there."""
        places = self.waiting.get(model)
        if not places:
            return None
        first = places[0][2]
        return self.rank, self.time + first.cost, first.sequence, self.client


class Line:
    """All waiting requests. Bounded by whoever lets them in."""

    def __init__(self) -> None:
        self._flows: dict[_FlowKey, _Flow] = {}
        #: By model, the flows that have requests for it, in their order.
        self._heads: dict[str, list[_Head]] = {}
        self._counts: dict[str, int] = {}
        #: Virtual time that service has reached, by rank.
        self._served: dict[int, float] = {}
        #: Flows from which on some are forgotten.
        self._most = FLOWS
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def models(self) -> Collection[str]:
        """Models that somebody waits for."""
        return self._counts.keys()

    def count(self, model: str) -> int:
        """Requests that wait for a model."""
        return self._counts.get(model, 0)

    def stand(self, task: Task) -> None:
        """Give a task its rank and the place that it would have, without letting it wait."""
        task.rank = URGENT if task.urgent else _RANKS[task.request.priority]
        if not self._count:
            task.order = (task.rank, task.cost, task.sequence)
            return
        flow = self._flow(task)
        places = flow.waiting.get(task.request.model, ())
        ahead = sum([other[2].cost for other in places[: bisect.bisect_left(places, _place(task))]])
        task.order = (task.rank, flow.time + ahead + task.cost, task.sequence)

    def add(self, task: Task) -> None:
        """Let a task wait at its place. Its `cost` is what it takes of its client's share."""
        self.stand(task)
        flow, model = self._flow(task), task.request.model
        self._leave(flow, model)
        bisect.insort(flow.waiting.setdefault(model, []), _place(task))
        self._enter(flow, model)
        self._count += 1
        self._counts[model] = self._counts.get(model, 0) + 1

    def remove(self, task: Task) -> bool:
        """Let a task wait no longer; False if it did not wait."""
        flow, model = self._flows.get((task.rank, task.request.client)), task.request.model
        places = flow.waiting.get(model, []) if flow is not None else []
        index = bisect.bisect_left(places, _place(task))
        if flow is None or index >= len(places) or places[index][2] is not task:
            return False
        self._leave(flow, model)
        del places[index]
        if places:
            self._enter(flow, model)
        else:
            del flow.waiting[model]
        self._count -= 1
        self._counts[model] -= 1
        if not self._counts[model]:
            del self._counts[model]
        if not self._count:
            # Nobody competes, so nobody is owed anything.
            self._flows.clear()
            self._served.clear()
        return True

    def charge(self, task: Task) -> None:
        """Count a task that is served against its flow's share, if anybody else waits."""
        if not self._count:
            return
        flow = self._flow(task)
        served = max(self._served.get(flow.rank, 0.0), flow.time)
        # Time goes on by a part of each one's share of the service: else clients that come but
        # once, one after the other, would all begin at one time, and pass a long request for ever.
        waiting = sum([1 for each in self._flows.values() if each.waiting or each is flow])
        self._served[flow.rank] = served + AGING * task.cost / waiting
        self._move(flow, task.cost)

    def refund(self, task: Task) -> None:
        """Take a charge back: the attempt came to nothing, and another is wanted."""
        flow = self._flows.get((task.rank, task.request.client))
        if flow is not None:
            self._move(flow, -task.cost)

    def ordered(self, models: Iterable[str]) -> Iterator[Task]:
        """Yield who waits for one of the models, first who is to be served first.

        Gives each its `order` as it comes by. The line must not change meanwhile.
        """
        chosen = set(models)
        heads = heapq.merge(*(self._heads[model] for model in chosen if model in self._heads))
        seen: set[_FlowKey] = set()
        #: The next of each flow that has come by: its place among all, and where it is in its flow.
        turns: list[tuple[int, float, int, list[_Place], int]] = []
        for rank, finish, sequence, client in heads:
            while turns and turns[0][:3] < (rank, finish, sequence):
                yield _turn(turns)
            if (rank, client) not in seen:
                seen.add((rank, client))
                flow = self._flows[rank, client]
                places = _merged(flow, chosen)
                first = places[0][2]
                turn = (rank, flow.time + first.cost, first.sequence, places, 0)
                heapq.heappush(turns, turn)
        while turns:
            yield _turn(turns)

    def _flow(self, task: Task) -> _Flow:
        key = task.rank, task.request.client
        flow = self._flows.get(key)
        if flow is None:
            if len(self._flows) >= self._most:
                self._forget()
            flow = self._flows[key] = _Flow(*key)
        if not flow.waiting:
            flow.time = max(flow.time, self._served.get(task.rank, 0.0))
        return flow

    def _forget(self) -> None:
        """Drop flows that wait for nothing, but for those that have had most beyond a new one."""
        idle = [
            (flow.time - self._served.get(flow.rank, 0.0), key)
            for key, flow in self._flows.items()
            if not flow.waiting
        ]
        kept = heapq.nlargest(FLOWS // 2, (each for each in idle if each[0] > 0.0))
        for key in {key for _, key in idle}.difference(key for _, key in kept):
            del self._flows[key]
        self._most = max(FLOWS, 2 * len(self._flows))

    def _move(self, flow: _Flow, cost: float) -> None:
        for model in flow.waiting:
            self._leave(flow, model)
        flow.time += cost
        for model in flow.waiting:
            self._enter(flow, model)

    def _enter(self, flow: _Flow, model: str) -> None:
        head = flow.head(model)
        if head is not None:
            bisect.insort(self._heads.setdefault(model, []), head)

    def _leave(self, flow: _Flow, model: str) -> None:
        head = flow.head(model)
        if head is None:
            return
        heads = self._heads[model]
        # The very sum that entered it, so it is found.
        del heads[bisect.bisect_left(heads, head)]
        if not heads:
            del self._heads[model]


def _place(task: Task) -> _Place:
    return task.cost + AGING * task.arrived, task.sequence, task


def _merged(flow: _Flow, models: set[str]) -> list[_Place]:
    lists = [places for model, places in flow.waiting.items() if model in models]
    return lists[0] if len(lists) == 1 else sorted(place for places in lists for place in places)


def _turn(turns: list[tuple[int, float, int, list[_Place], int]]) -> Task:
    """Take the first turn's task and let the next of its flow have a turn."""
    rank, finish, sequence, places, index = heapq.heappop(turns)
    task = places[index][2]
    task.order = (rank, finish, sequence)
    if index + 1 < len(places):
        following = places[index + 1][2]
        turn = (rank, finish + following.cost, following.sequence, places, index + 1)
        heapq.heappush(turns, turn)
    return task
