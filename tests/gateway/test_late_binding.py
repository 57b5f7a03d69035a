"""Requests wait in the router, where they can still go elsewhere, and never on an engine."""

from __future__ import annotations

import asyncio
import itertools
from typing import Literal

import pytest

from devtools.testbed import FAST, SLOW, Testbed, until
from tests.gateway.bodies import body


@pytest.mark.parametrize("dialect", ["ollama", "openai"])
async def test_what_an_engine_has_no_slot_for_waits_in_the_router(
    bed: Testbed, dialect: Literal["ollama", "openai"]
) -> None:
    engine = await bed.add(dialect=dialect, slots=1, decode_rate=40.0)
    path = "/api/chat"
    asked = [asyncio.create_task(bed.ask(path, body(path))) for _ in range(4)]
    most_there = most_held = 0

    def over() -> bool:
        nonlocal most_there, most_held
        # One waits there, without a slot, while its model loads.
        most_there = max(most_there, engine.server.running + engine.server.waiting)
        most_held = max(most_held, bed.router.driver.scheduler.waiting_count)
        return all(task.done() for task in asked)

    await until(over, "four answers", within=10)
    answers = [task.result() for task in asked]
    assert [answer.status for answer in answers] == [200] * 4
    assert most_there == 1
    assert most_held == 3
    waited = sorted(float(answer.headers["Herd-Waited"]) for answer in answers)
    # Each answer takes 0.2 s, and the next begins when it ends.
    assert all(later > sooner + 0.1 for sooner, later in itertools.pairwise(waited))


async def test_the_slots_of_a_replica_are_used(bed: Testbed) -> None:
    engine = await bed.add(slots=3, decode_rate=20.0)
    asked = [asyncio.create_task(bed.ask("/api/chat", body("/api/chat"))) for _ in range(4)]
    await until(lambda: engine.server.running == 3, "three jobs")
    assert bed.router.driver.scheduler.waiting_count == 1
    assert {(await task).status for task in asked} == {200}


async def test_what_waits_goes_to_whoever_is_free_first(bed: Testbed) -> None:
    """It was to wait for the one engine, when another joins."""
    slow = await bed.add("slow", slots=1, decode_rate=4.0, facts=SLOW)
    first = asyncio.create_task(bed.ask("/api/chat", body("/api/chat")))
    await until(lambda: slow.server.running == 1, "the job")
    second = asyncio.create_task(bed.ask("/api/chat", body("/api/chat")))
    await until(lambda: bed.router.driver.scheduler.waiting_count == 1, "the queue")
    await bed.add("fast", facts=FAST)
    answer = await second
    assert answer.headers["Herd-Node"] == "fast"
    assert not first.done()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


async def test_the_fleet_shows_the_plan(bed: Testbed) -> None:
    engine = await bed.add(slots=1, decode_rate=20.0)
    asked = [asyncio.create_task(bed.ask("/api/chat", body("/api/chat"))) for _ in range(3)]
    await until(lambda: bed.router.driver.scheduler.waiting_count == 2, "the queue")
    fleet = (await bed.get("/herd/v1/fleet")).json()
    assert (fleet["running"], fleet["waiting"]) == (1, 2)
    [node] = fleet["nodes"]
    assert (node["running"], node["planned"]) == (1, 2)
    states = [request["state"] for request in fleet["requests"]]
    assert states[0] in {"running", "streaming"}
    assert states[1:] == ["waiting", "waiting"]
    assert {request["replica"]["node"] for request in fleet["requests"]} == {engine.node}
    for request in fleet["requests"]:
        detail = (await bed.get(f"/herd/v1/requests/{request['id']}")).json()
        assert detail["outcome"] is None
        assert detail["open"]["id"] == request["id"]
    await asyncio.gather(*asked)
