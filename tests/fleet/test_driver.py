"""The driver: events in, actions carried out, tickets granted, one record for each request."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import cast

import pytest

from herd.core import actions as ac
from herd.core import events as ev
from herd.core.decision import Decision
from herd.core.fleet import EngineReport, NodeReport, Replica, ReplicaKey
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


class UnderWay:
    """An attempt, and how it was ended from outside; None where it was beaten."""

    def __init__(self) -> None:
        self.ended: list[Failure | None] = []

    def break_off(self, failure: Failure) -> None:
        self.ended.append(failure)

    def beaten(self) -> None:
        self.ended.append(None)


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
    ticket.first_frame(1)
    ticket.finished(1, Result(frames=3))
    ticket.left()
    ticket.failed(1, BROKEN, began=True)
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
    first.finished(1, Result())
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
    ticket.failed(1, BROKEN, began=False)
    second = await asyncio.wait_for(ticket.next(), 1)
    assert isinstance(first, ac.Dispatch)
    assert isinstance(second, ac.Dispatch)
    assert first.target.replica.node != second.target.replica.node
    assert ticket.attempt == 2
    ticket.failed(2, BROKEN, began=False)
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
    first.finished(1, Result())
    assert [(o.request.id, o.ending) for o in fleet.outcomes] == [
        ("r2", "cancelled"),
        ("r1", "completed"),
    ]


async def test_a_node_that_goes_breaks_silent_attempts_off(fleet: Fleet) -> None:
    fleet.join("a", slots=2)
    silent, streaming = fleet.driver.submit(request("r1")), fleet.driver.submit(request("r2"))
    attempts = [UnderWay(), UnderWay()]
    for ticket, attempt in zip((silent, streaming), attempts, strict=True):
        await ticket.next()
        ticket.under_way(1, attempt)
    streaming.first_frame(1)
    fleet.driver.feed(ev.NodeGone("a", "its lid was closed"))
    [failure] = attempts[0].ended
    assert attempts[1].ended == []
    assert failure is not None
    assert (failure.kind, failure.retryable) == ("node_lost", True)
    assert "its lid was closed" in failure.message


async def test_a_node_that_leaves_is_released_when_its_work_is_done(fleet: Fleet) -> None:
    fleet.join("a")
    ticket = fleet.driver.submit(request())
    await ticket.next()
    fleet.driver.feed(ev.NodeLeaving("a"))
    assert fleet.released == []
    ticket.finished(1, Result())
    assert fleet.released == ["a"]


async def test_drained_waits_for_the_last_request(fleet: Fleet) -> None:
    fleet.join("a", slots=2)
    tickets = [fleet.driver.submit(request("r1")), fleet.driver.submit(request("r2"))]
    for ticket in tickets:
        await ticket.next()
    fleet.driver.feed(ev.Stopping())
    drained = asyncio.create_task(fleet.driver.drained())
    tickets[0].finished(1, Result())
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


# A ticket by itself, in the hands of a driver


class Script:
    """A scheduler that does as it is told, and keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[ev.Event] = []
        self.tasks: dict[str, object] = {}
        self.then: list[ac.Action] = []

    def handle(self, event: ev.Event, now: float) -> list[ac.Action]:
        del now
        self.heard.append(event)
        then, self.then = self.then, []
        return then


def scripted() -> tuple[Script, Driver]:
    script = Script()
    driver = Driver(
        cast(Scheduler, script),
        unix_clock(),
        record=lambda _: None,
        release=lambda _: None,
        load=lambda _: None,
    )
    return script, driver


def dispatch(attempt: int, *, beside: bool = False) -> ac.Dispatch:
    key = ReplicaKey("a", "e", "tiny:latest")
    return ac.Dispatch(
        "r1",
        attempt,
        ac.Target(replica=key, node_name="a", kind="vllm", url="http://a", model="tiny"),
        Decision(at=0.0, chosen=key, estimates=(), reason=""),
        beside=beside,
    )


async def test_a_second_attempt_goes_to_whoever_starts_it_and_is_no_grant() -> None:
    script, driver = scripted()
    ticket = driver.submit(request())
    script.then = [dispatch(1)]
    driver.feed(ev.TimerDue())
    await asyncio.wait_for(ticket.next(), 1)
    started: list[ac.Dispatch] = []
    ticket.on_beside(started.append)
    script.then = [dispatch(2, beside=True)]
    driver.feed(ev.TimerDue())
    assert [one.attempt for one in started] == [2]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(ticket.next(), 0.02)


async def test_a_second_attempt_waits_for_whoever_can_start_it() -> None:
    script, driver = scripted()
    ticket = driver.submit(request())
    script.then = [dispatch(1), dispatch(2, beside=True)]
    driver.feed(ev.TimerDue())
    started: list[ac.Dispatch] = []
    ticket.on_beside(started.append)
    ticket.on_beside(None)
    ticket.on_beside(started.append)
    assert [one.attempt for one in started] == [2]


@pytest.mark.parametrize("early", [False, True], ids=["under way", "before it began"])
async def test_attempts_are_ended_by_their_number(early: bool) -> None:
    script, driver = scripted()
    ticket = driver.submit(request())
    first, second = UnderWay(), UnderWay()
    script.then = [ac.Abort("r1", 1, BROKEN), ac.Cancel("r1", 2)]
    if early:
        driver.feed(ev.TimerDue())
    ticket.under_way(1, first)
    ticket.under_way(2, second)
    if not early:
        driver.feed(ev.TimerDue())
    assert (first.ended, second.ended) == ([BROKEN], [None])


async def test_an_attempt_that_is_over_cannot_be_ended() -> None:
    script, driver = scripted()
    ticket = driver.submit(request())
    attempt = UnderWay()
    ticket.under_way(1, attempt)
    ticket.over(1)
    script.then = [ac.Cancel("r1", 1)]
    driver.feed(ev.TimerDue())
    assert attempt.ended == []


async def test_what_became_of_an_attempt_is_told_by_its_number() -> None:
    script, driver = scripted()
    ticket = driver.submit(request())
    script.heard.clear()
    ticket.answered(2)
    ticket.finished(2, Result(frames=1))
    ticket.failed(1, BROKEN, began=False)
    assert script.heard == [
        ev.Answered("r1", 2),
        ev.Finished("r1", 2, Result(frames=1)),
        ev.Failed("r1", 1, BROKEN, False),
    ]


async def test_a_fault_of_our_own_ends_all_attempts() -> None:
    script, driver = scripted()
    ticket = driver.submit(request())
    script.then = [dispatch(1)]
    driver.feed(ev.TimerDue())
    await ticket.next()
    ticket.on_beside(lambda _: None)
    script.then = [dispatch(2, beside=True)]
    driver.feed(ev.TimerDue())
    script.heard.clear()
    ticket.broken(BROKEN)
    assert script.heard == [
        ev.Failed("r1", 2, BROKEN, True),
        ev.Failed("r1", 1, BROKEN, True),
        ev.ClientLeft("r1"),
    ]
