"""Two attempts at one whole answer: the first to have it wins, and all hear of it rightly."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest
from aiohttp import web

from herd.core import actions as ac
from herd.core import events as ev
from herd.core.decision import Decision
from herd.core.fleet import ReplicaKey
from herd.core.request import Failure, Request, Result
from herd.core.scheduler import Scheduler
from herd.fleet.driver import Driver, Ticket
from herd.gateway.exchange import Exchange
from herd.gateway.race import Race
from herd.gateway.relay import AttemptFailed, Beaten, ClientGone, Relay, Whole
from herd.ops.clock import unix_clock

FELL = Failure(kind="broken", message="fell over", retryable=True)
LOST = Failure(kind="node_lost", message="lid closed", retryable=True)
EXCHANGE = cast(Exchange, None)


def dispatch(attempt: int) -> ac.Dispatch:
    key = ReplicaKey(f"n{attempt}", "e", "m:latest")
    return ac.Dispatch(
        "r",
        attempt,
        ac.Target(replica=key, node_name=key.node, kind="vllm", url="http://n", model="m"),
        Decision(at=0.0, chosen=key, estimates=(), reason=""),
        beside=attempt > 1,
    )


class Chooser:
    """A scheduler that cancels whoever runs beside the one that has answered."""

    def __init__(self) -> None:
        self.heard: list[ev.Event] = []
        self.tasks: dict[str, object] = {}
        self.running: set[int] = set()
        self.then: list[ac.Action] = []

    def handle(self, event: ev.Event, now: float) -> list[ac.Action]:
        del now
        then, self.then = self.then, []
        for action in then:
            if isinstance(action, ac.Dispatch):
                self.running.add(action.attempt)
        match event:
            case ev.RequestArrived() | ev.TimerDue():
                return then
            case ev.Answered(attempt=attempt):
                beaten, self.running = self.running - {attempt}, {attempt}
                then += [ac.Cancel("r", number) for number in beaten]
            case ev.Failed(attempt=attempt):
                self.running.discard(attempt)
        self.heard.append(event)
        return then


class Fetch:
    """One attempt of the fake relay, ended by the test."""

    def __init__(self) -> None:
        self.ends: asyncio.Future[Whole] = asyncio.get_running_loop().create_future()
        self.beaten_off = False

    def break_off(self, failure: Failure) -> None:
        self.ends.set_exception(AttemptFailed(failure))

    def beaten(self) -> None:
        self.beaten_off = True
        if not self.ends.done():
            self.ends.set_exception(Beaten())


class FakeRelay:
    """Fetches what the test says, and keeps what goes to the client."""

    def __init__(self) -> None:
        self.fetches: dict[int, Fetch] = {}
        self.delivered: list[bytes] = []
        self.cancelled: list[int] = []
        self.client_gone = False
        #: What happens as soon as the answer has gone out.
        self.after: Callable[[], object] = lambda: None

    async def fetch(self, _: Exchange, asked: ac.Dispatch, ticket: Ticket) -> Whole:
        fetch = self.fetches[asked.attempt] = Fetch()
        ticket.under_way(asked.attempt, fetch)
        try:
            return await fetch.ends
        except asyncio.CancelledError:
            self.cancelled.append(asked.attempt)
            raise
        finally:
            ticket.over(asked.attempt)

    async def deliver(self, _: Exchange, whole: Whole) -> web.StreamResponse:
        if self.client_gone:
            raise ClientGone("hung up")
        self.delivered.append(whole.body)
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(self.after)
        return web.Response()


class Course:
    """A race under way: one attempt runs, and `join` sends a second one after it."""

    def __init__(self) -> None:
        self.scheduler = Chooser()
        self.driver = Driver(
            cast(Scheduler, self.scheduler),
            unix_clock(),
            record=lambda _: None,
            release=lambda _: None,
            load=lambda _: None,
        )
        request = Request(
            id="r", dialect="openai", operation="embedding", endpoint="/", asked="m", model="m"
        )
        self.relay = FakeRelay()
        self.scheduler.then = [dispatch(1)]
        self.ticket = self.driver.submit(request)
        self.reported: list[tuple[int, str]] = []
        race = Race(cast(Relay, self.relay), EXCHANGE, self.ticket, self.report)
        self.run = asyncio.create_task(race.run(dispatch(1)))

    def report(self, asked: ac.Dispatch, failed: AttemptFailed) -> None:
        self.reported.append((asked.attempt, failed.failure.message))
        self.ticket.failed(asked.attempt, failed.failure, began=False)

    async def join(self) -> None:
        await settle()
        self.scheduler.then = [dispatch(2)]
        self.driver.feed(ev.TimerDue())
        await settle()

    def answers(self, attempt: int) -> None:
        result = Result(frames=attempt)
        self.relay.fetches[attempt].ends.set_result(Whole(200, {}, b"%d" % attempt, result))

    def fails(self, attempt: int, failure: Failure = FELL) -> None:
        self.relay.fetches[attempt].ends.set_exception(AttemptFailed(failure))

    async def ends(self) -> None:
        await asyncio.wait_for(self.run, 1)

    @property
    def heard(self) -> list[ev.Event]:
        return self.scheduler.heard


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def won(attempt: int) -> list[ev.Event]:
    return [ev.Answered("r", attempt), ev.Finished("r", attempt, Result(frames=attempt))]


async def test_one_attempt_alone_answers_the_client() -> None:
    course = Course()
    await settle()
    course.answers(1)
    await course.ends()
    assert course.relay.delivered == [b"1"]
    assert course.heard == won(1)


@pytest.mark.parametrize(("winner", "loser"), [(1, 2), (2, 1)])
async def test_the_first_answer_goes_to_the_client_and_the_other_is_stopped(
    winner: int, loser: int
) -> None:
    course = Course()
    await course.join()
    course.answers(winner)
    await course.ends()
    assert course.relay.delivered == [b"%d" % winner]
    assert course.relay.fetches[loser].beaten_off
    assert course.heard == won(winner)


async def test_two_answers_at_once_are_one_to_the_client() -> None:
    course = Course()
    await course.join()
    course.answers(2)
    course.answers(1)
    await course.ends()
    assert len(course.relay.delivered) == 1
    assert len([event for event in course.heard if isinstance(event, ev.Finished)]) == 1


@pytest.mark.parametrize(("first", "last"), [(1, 2), (2, 1)])
async def test_when_one_fails_the_other_is_waited_for(first: int, last: int) -> None:
    course = Course()
    await course.join()
    course.fails(first)
    await settle()
    assert not course.run.done()
    course.answers(last)
    await course.ends()
    assert course.relay.delivered == [b"%d" % last]
    assert course.heard == [ev.Failed("r", first, FELL, began=False), *won(last)]


@pytest.mark.parametrize(("first", "last"), [(1, 2), (2, 1)])
async def test_when_both_fail_the_last_failure_is_raised_and_each_is_told_once(
    first: int, last: int
) -> None:
    course = Course()
    await course.join()
    course.fails(first, FELL)
    await settle()
    course.fails(last, LOST)
    with pytest.raises(AttemptFailed) as raised:
        await course.ends()
    assert raised.value.failure == LOST
    assert course.reported == [(first, FELL.message), (last, LOST.message)]


async def test_a_failure_without_a_second_is_raised_at_once() -> None:
    course = Course()
    await settle()
    course.fails(1)
    with pytest.raises(AttemptFailed):
        await course.ends()
    assert course.reported == [(1, FELL.message)]


async def test_a_node_that_is_lost_breaks_off_its_own_attempt_alone() -> None:
    course = Course()
    await course.join()
    course.scheduler.then = [ac.Abort("r", 1, LOST)]
    course.driver.feed(ev.TimerDue())
    await settle()
    course.answers(2)
    await course.ends()
    assert course.reported == [(1, LOST.message)]
    assert course.relay.delivered == [b"2"]


async def test_a_client_that_leaves_stops_both() -> None:
    course = Course()
    await course.join()
    course.run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await course.ends()
    assert sorted(course.relay.cancelled) == [1, 2]


async def test_a_client_that_leaves_while_only_the_second_is_left_stops_it() -> None:
    course = Course()
    await course.join()
    course.fails(1)
    await settle()
    course.run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await course.ends()
    assert course.relay.cancelled == [2]


async def test_a_client_that_is_gone_when_the_answer_comes_has_not_been_answered() -> None:
    course = Course()
    await course.join()
    course.relay.client_gone = True
    course.answers(2)
    with pytest.raises(ClientGone):
        await course.ends()
    assert not [event for event in course.heard if isinstance(event, ev.Finished)]


@pytest.mark.parametrize("winner", [1, 2])
async def test_a_client_that_hangs_up_when_it_has_its_answer_was_answered(winner: int) -> None:
    course = Course()
    await course.join()
    course.relay.after = course.run.cancel
    course.answers(winner)
    await asyncio.wait([course.run], timeout=1)
    assert course.heard == won(winner)


async def test_a_fault_of_our_own_in_the_second_leaves_the_first_alone() -> None:
    course = Course()
    await course.join()
    course.relay.fetches[2].ends.set_exception(ZeroDivisionError("ours"))
    await settle()
    course.answers(1)
    await course.ends()
    assert course.relay.delivered == [b"1"]
    assert course.reported == [(2, "internal error: ZeroDivisionError('ours')")]
