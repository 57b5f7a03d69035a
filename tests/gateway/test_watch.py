"""Time-outs of attempts: broken off when late, told apart from a client that left."""

from __future__ import annotations

import asyncio

from herd.core.request import Failure
from herd.gateway.watch import TICK, Watch, Watchdog
from herd.ops.clock import unix_clock

CLOCK = unix_clock()
#: A time-out may be late by a tick.
LATE = TICK + 0.5


async def stuck(watch: Watch) -> Failure | None:
    """Get no further; returns why this was broken off, None if others cancelled it."""
    try:
        await asyncio.get_running_loop().create_future()
    except asyncio.CancelledError:
        return watch.caught()
    finally:
        watch.end()
    return None


async def watched(dog: Watchdog, seconds: float) -> tuple[asyncio.Task[Failure | None], Watch]:
    """Start an attempt that gets no further."""
    started: asyncio.Future[Watch] = asyncio.get_running_loop().create_future()

    async def attempt() -> Failure | None:
        watch = dog.start(CLOCK() + seconds)
        started.set_result(watch)
        return await stuck(watch)

    task = asyncio.create_task(attempt())
    return task, await started


async def test_what_is_late_is_broken_off_and_says_what_did_not_come() -> None:
    dog = Watchdog(CLOCK)
    task, watch = await watched(dog, 0.1)
    watch.what = "no data"
    failure = await asyncio.wait_for(task, LATE)
    assert failure == Failure(kind="timeout", message="no data", retryable=True)


async def test_a_clients_delay_is_no_reason_to_ask_elsewhere() -> None:
    dog = Watchdog(CLOCK)
    task, watch = await watched(dog, 0.1)
    watch.blame = "client"
    failure = await asyncio.wait_for(task, LATE)
    assert failure is not None
    assert not failure.retryable


async def test_what_gets_further_is_left_alone() -> None:
    dog = Watchdog(CLOCK)
    task, watch = await watched(dog, 0.1)
    watch.deadline += 60
    await asyncio.sleep(LATE)
    assert not task.done()
    task.cancel()
    assert await task is None
    dog.close()


async def test_a_client_that_leaves_is_not_taken_for_a_time_out() -> None:
    dog = Watchdog(CLOCK)
    task, _ = await watched(dog, 60)
    task.cancel()
    assert await task is None
    dog.close()


async def test_a_client_that_leaves_at_the_same_moment_has_left() -> None:
    dog = Watchdog(CLOCK)
    task, watch = await watched(dog, 60)
    watch.break_off(Failure(kind="timeout", message="late"))
    task.cancel()
    assert await task is None
    dog.close()


async def test_breaking_off_twice_is_breaking_off_once() -> None:
    dog = Watchdog(CLOCK)
    task, watch = await watched(dog, 60)
    first = Failure(kind="node_lost", message="gone")
    watch.break_off(first)
    watch.break_off(Failure(kind="timeout", message="late"))
    assert await task == first
    dog.close()


async def test_who_is_beaten_is_told_apart_from_who_is_late() -> None:
    dog = Watchdog(CLOCK)
    task, watch = await watched(dog, 60)
    watch.beaten()
    assert await task is not None
    assert watch.blame == "rival"
    dog.close()


async def test_the_timer_rests_when_there_is_nothing_to_watch() -> None:
    dog = Watchdog(CLOCK)
    task, _ = await watched(dog, 0.01)
    await asyncio.wait_for(task, LATE)
    # It goes on when there is something again.
    task, _ = await watched(dog, 0.01)
    assert await asyncio.wait_for(task, LATE) is not None
