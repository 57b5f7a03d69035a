"""The driver: events in, actions carried out, tickets granted, one record for each request."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from herd.core import actions as ac
from herd.core import events as ev
from herd.core.fleet import EngineReport, NodeReport, Replica
from herd.core.request import Failure, Outcome, Refusal, Request, Result
from herd.core.scheduler import Policy, Scheduler
from herd.fleet.driver import Driver
from herd.ops.clock import unix_clock

BROKEN = Failure(kind="broken", message="the engine fell over", retryable=True)


class Fleet:
    """A driver on real time, with what it recorded and released."""

    def __init__(self, policy: Policy) -> None:
        self.outcomes: list[Outcome] = []
        self.released: list[str] = []
        self.loads: list[ac.Preload | ac.Unload] = []
        self.scheduler = Scheduler(policy)
        self.driver = Driver(
            self.scheduler,
            unix_clock(),
            record=self.outcomes.append,
            release=self.released.append,
            load=self.loads.append,
        )

    def join(self, node: str, *, slots: int = 1) -> None:
        replica = Replica(model="tiny:latest", name="tiny", slots=slots)
        engine = EngineReport(
            id="vllm-8000", kind="vllm", url=f"http://{node}", replicas=(replica,)
        )
        self.driver.feed(ev.NodeReported(NodeReport(node=node, name=node, engines=(engine,))))


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    fleet = Fleet(Policy(patience=0.2, max_attempts=2))
    yield fleet
    fleet.driver.close()


def request(name: str = "r1", model: str = "tiny:latest") -> Request:
    return Request(
        id=name,
        dialect="openai",
        operation="chat",
        endpoint="/v1/chat/completions",
        asked=model,
        model=model,
        kinds=frozenset({"vllm"}),
    )


async def test_a_free_slot_is_granted_at_once(fleet: Fleet) -> None:
    fleet.join("a")
    ticket = fleet.driver.submit(request())
    grant = await asyncio.wait_for(ticket.next(), 1)
    assert isinstance(grant, ac.Dispatch)
    assert (grant.target.replica.node, ticket.attempt) == ("a", 1)
    assert fleet.driver.open == 1


async def test_an_end_is_recorded_once(fleet: Fleet) -> None:
    fleet.join("a")
    ticket = fleet.driver.submit(request())
    await ticket.next()
    ticket.first_frame()
    ticket.finished(Result(frames=3))
    ticket.left()
    ticket.failed(BROKEN, began=True)
    [outcome] = fleet.outcomes
    assert outcome.ending == "completed"
    assert outcome.first_frame is not None
    assert outcome.result == Result(frames=3)
    assert fleet.driver.open == 0


async def test_who_waits_is_woken_by_the_slot_that_comes_free(fleet: Fleet) -> None:
    fleet.join("a")
    first, second = fleet.driver.submit(request("r1")), fleet.driver.submit(request("r2"))
    await first.next()
    waiting = asyncio.create_task(second.next())
    await asyncio.sleep(0)
    assert not waiting.done()
    assert second.expected_wait is not None
    first.finished(Result())
    grant = await asyncio.wait_for(waiting, 1)
    assert isinstance(grant, ac.Dispatch)
    assert grant.request == "r2"


async def test_patience_is_kept_by_a_timer(fleet: Fleet) -> None:
    fleet.join("a")
    first, second = fleet.driver.submit(request("r1")), fleet.driver.submit(request("r2"))
    await first.next()
    loop = asyncio.get_running_loop()
    started = loop.time()
    grant = await asyncio.wait_for(second.next(), 2)
    assert isinstance(grant, Refusal)
    assert grant.kind == "expired"
    assert 0.15 < loop.time() - started < 1.0
    [outcome] = fleet.outcomes
    assert (outcome.request.id, outcome.ending) == ("r2", "rejected")


async def test_a_refusal_is_granted_too(fleet: Fleet) -> None:
    ticket = fleet.driver.submit(request(model="nope:latest"))
    grant = await asyncio.wait_for(ticket.next(), 1)
    assert isinstance(grant, Refusal)
    assert grant.kind == "unknown_model"
    assert [outcome.ending for outcome in fleet.outcomes] == ["rejected"]


async def test_a_failed_attempt_is_followed_by_another(fleet: Fleet) -> None:
    fleet.join("a")
    fleet.join("b")
    ticket = fleet.driver.submit(request())
    first = await ticket.next()
    ticket.failed(BROKEN, began=False)
    second = await asyncio.wait_for(ticket.next(), 1)
    assert isinstance(first, ac.Dispatch)
    assert isinstance(second, ac.Dispatch)
    assert first.target.replica.node != second.target.replica.node
    assert ticket.attempt == 2
    ticket.failed(BROKEN, began=False)
    last = await asyncio.wait_for(ticket.next(), 1)
    assert isinstance(last, Refusal)
    assert last.failure == BROKEN
    assert [outcome.ending for outcome in fleet.outcomes] == ["failed"]


async def test_one_who_leaves_the_queue_is_forgotten(fleet: Fleet) -> None:
    fleet.join("a")
    first, second = fleet.driver.submit(request("r1")), fleet.driver.submit(request("r2"))
    await first.next()
    waiting = asyncio.create_task(second.next())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    second.left()
    first.finished(Result())
    assert [(o.request.id, o.ending) for o in fleet.outcomes] == [
        ("r2", "cancelled"),
        ("r1", "completed"),
    ]


async def test_a_node_that_goes_breaks_silent_attempts_off(fleet: Fleet) -> None:
    fleet.join("a", slots=2)
    silent, streaming = fleet.driver.submit(request("r1")), fleet.driver.submit(request("r2"))
    broken: list[tuple[str, Failure]] = []
    for ticket in (silent, streaming):
        await ticket.next()
        name = ticket.request.id
        ticket.on_abort(lambda failure, name=name: broken.append((name, failure)))  # type: ignore[misc]
    streaming.first_frame()
    fleet.driver.feed(ev.NodeGone("a", "its lid was closed"))
    [(name, failure)] = broken
    assert name == "r1"
    assert (failure.kind, failure.retryable) == ("node_lost", True)
    assert "its lid was closed" in failure.message


async def test_a_node_that_leaves_is_released_when_its_work_is_done(fleet: Fleet) -> None:
    fleet.join("a")
    ticket = fleet.driver.submit(request())
    await ticket.next()
    fleet.driver.feed(ev.NodeLeaving("a"))
    assert fleet.released == []
    ticket.finished(Result())
    assert fleet.released == ["a"]


async def test_drained_waits_for_the_last_request(fleet: Fleet) -> None:
    fleet.join("a", slots=2)
    tickets = [fleet.driver.submit(request("r1")), fleet.driver.submit(request("r2"))]
    for ticket in tickets:
        await ticket.next()
    fleet.driver.feed(ev.Stopping())
    drained = asyncio.create_task(fleet.driver.drained())
    tickets[0].finished(Result())
    await asyncio.sleep(0.01)
    assert not drained.done()
    tickets[1].left()
    await asyncio.wait_for(drained, 1)


async def test_drained_does_not_wait_for_nothing(fleet: Fleet) -> None:
    await asyncio.wait_for(fleet.driver.drained(), 1)


async def test_a_stopping_driver_refuses(fleet: Fleet) -> None:
    fleet.join("a")
    fleet.driver.feed(ev.Stopping())
    grant = await fleet.driver.submit(request()).next()
    assert isinstance(grant, Refusal)
    assert grant.kind == "stopping"
