"""A device that does not answer a short request in time: a second one does, over real sockets."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from devtools.testbed import FAST, Engine, Testbed, until
from herd.core.request import Outcome
from tests.gateway.bodies import EMBEDDING, GENERATING, body

SHORT: dict[str, dict[str, Any]] = {
    "/api/chat": {"options": {"num_predict": 2}},
    "/v1/chat/completions": {"max_tokens": 2},
}
#: Every endpoint whose whole answers may be hedged, with a body that makes them short.
EVERY: dict[str, dict[str, Any]] = {path: {} for path in EMBEDDING} | {
    path: {"stream": False, **SHORT.get(path, {"max_tokens": 2})} for path in GENERATING
}
EVERY["/api/generate"] = {"stream": False, **SHORT["/api/chat"]}
#: A mute engine would be waited for until `first_byte_timeout`, 20 s.
SOON = 8.0


#: Of an engine's speed, so little that an answer takes minutes.
STUCK = 1e-6


async def two(bed: Testbed, path: str = "/api/embed") -> tuple[Engine, Engine]:
    """Engines of which the first is asked first, as it has the path's model in memory."""
    first = await bed.add("first", facts=FAST)
    assert (await bed.ask(path, body(path, **EVERY[path]))).status == 200
    return first, await bed.add("second", facts=FAST)


async def last_outcome(bed: Testbed) -> Outcome:
    """Return the outcome of the request after the one that warmed the first engine."""
    await until(lambda: bed.router.recent.total == 2, "the second outcome")
    return await bed.outcome(bed.router.recent.latest(1)[0].request.id)


def endings(outcome: Outcome) -> list[str | None]:
    return [attempt.ending for attempt in outcome.attempts]


@pytest.mark.parametrize("path", EVERY)
async def test_another_device_answers_where_one_is_mute(bed: Testbed, path: str) -> None:
    first, second = await two(bed, path)
    first.server.faults.mute = True
    answer = await asyncio.wait_for(bed.ask(path, body(path, **EVERY[path])), SOON)
    [told] = second.tap.on(path)
    assert (answer.status, answer.body) == (200, told.answer.body)
    assert answer.headers["Herd-Node"] == "second"
    outcome = await bed.outcome(answer.headers["Herd-Request-Id"])
    assert (outcome.ending, endings(outcome)) == ("completed", ["cancelled", "completed"])
    assert outcome.decision is not None
    assert outcome.decision.chosen.node == second.node


async def test_the_loser_is_cut_off_at_its_engine(bed: Testbed) -> None:
    first, _ = await two(bed)
    first.server.throttle(STUCK)
    await asyncio.wait_for(bed.ask("/v1/embeddings", body("/v1/embeddings")), SOON)
    await until(lambda: first.server.cancelled, "the end of the beaten attempt")
    assert [node.running for node in bed.router.driver.scheduler.nodes.values()] == [0, 0]


async def test_a_first_that_breaks_off_leaves_the_second_its_time(bed: Testbed) -> None:
    first, second = await two(bed)
    first.server.faults.mute = second.server.faults.mute = True
    asked = asyncio.create_task(bed.ask("/api/embed", body("/api/embed")))
    await until(lambda: second.tap.on("/api/embed"), "the second attempt")
    await first.tap.stop()
    await asyncio.sleep(0.1)
    assert not asked.done()
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    outcome = await last_outcome(bed)
    assert (outcome.ending, endings(outcome)) == ("cancelled", ["failed", "cancelled"])


async def test_a_client_that_leaves_cuts_both_off(bed: Testbed) -> None:
    first, second = await two(bed)
    first.server.throttle(STUCK)
    second.server.throttle(STUCK)
    asked = asyncio.create_task(bed.ask("/api/embed", body("/api/embed")))
    await until(lambda: second.tap.on("/api/embed"), "the second attempt")
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    await until(lambda: first.server.cancelled and second.server.cancelled, "both cancellations")
    outcome = await last_outcome(bed)
    assert (outcome.ending, endings(outcome)) == ("cancelled", ["cancelled", "cancelled"])


async def test_a_second_that_fails_leaves_the_first_its_time(bed: Testbed) -> None:
    first, second = await two(bed)
    first.server.faults.mute = True
    second.server.faults.status = 500
    asked = asyncio.create_task(bed.ask("/api/embed", body("/api/embed")))
    await until(lambda: second.tap.on("/api/embed"), "the second attempt")
    await asyncio.sleep(0.2)
    assert not asked.done()
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    assert endings(await last_outcome(bed)) == ["cancelled", "failed"]


async def test_where_both_time_out_the_cause_is_told_once(tmp_path: Path) -> None:
    async with Testbed(tmp_path, first_byte_timeout=1.5) as bed:
        first, second = await two(bed)
        first.server.faults.mute = second.server.faults.mute = True
        answer = await bed.ask("/v1/embeddings", body("/v1/embeddings"))
        assert answer.status == 504
        outcome = await last_outcome(bed)
        assert (outcome.ending, endings(outcome)) == ("failed", ["failed", "failed"])
        assert len(first.tap.on("/v1/embeddings")) == len(second.tap.on("/v1/embeddings")) == 1
        assert len(bed.router.recent.latest(9)) == 2


async def test_a_stream_is_never_doubled(bed: Testbed) -> None:
    first, second = await two(bed, "/v1/messages")
    first.server.faults.mute = True
    asked = asyncio.create_task(
        bed.ask("/v1/messages", body("/v1/messages", stream=True, max_tokens=2))
    )
    await asyncio.sleep(2.0)
    assert second.tap.on("/v1/messages") == []
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)


async def test_a_mute_device_does_not_double_the_load_of_the_others(bed: Testbed) -> None:
    """Four wait for it, and the budget of so few requests is one hedge."""
    first, second = await two(bed)
    first.server.faults.mute = True
    asked = [asyncio.create_task(bed.ask("/api/embed", body("/api/embed"))) for _ in range(4)]
    await until(lambda: any(task.done() for task in asked), "the answer by the second")
    await asyncio.sleep(1.0)
    assert len(first.tap.on("/api/embed")) == 5
    assert len(second.tap.on("/api/embed")) == 1
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
