"""Engines that fail: another answers, or the client is told the true cause; never a false end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from devtools.testbed import CHAT, FAST, SLOW, Answer, Engine, Testbed, until
from herd.core.request import Outcome
from herd.sim.faults import Break
from tests.gateway.bodies import (
    body,
    each_dialect,
    each_generating,
    error_text,
    streamed_or_not,
)

STREAMED = ["/api/chat", "/api/generate", "/v1/chat/completions", "/v1/completions", "/v1/messages"]
#: A path, and what kind of engine answers it; on a vLLM those of Ollama are translated.
EVERY_STREAM = [
    *((path, "ollama") for path in STREAMED),
    ("/v1/chat/completions", "openai"),
    ("/v1/completions", "openai"),
    ("/api/chat", "openai"),
    ("/api/generate", "openai"),
]
every_stream = pytest.mark.parametrize(
    ("path", "dialect"), EVERY_STREAM, ids=[f"{path}-{kind}" for path, kind in EVERY_STREAM]
)


async def two(bed: Testbed) -> tuple[Engine, Engine]:
    """Engines of which the first is asked first."""
    return await bed.add("first", facts=FAST), await bed.add("second", facts=SLOW)


def endings(outcome: Outcome) -> list[str | None]:
    return [attempt.ending for attempt in outcome.attempts]


def failures(outcome: Outcome) -> list[str]:
    return [attempt.failure.kind for attempt in outcome.attempts if attempt.failure is not None]


# Before the first byte


@pytest.mark.parametrize("status", [404, 408, 425, 429, 500, 502, 503, 504])
async def test_another_engine_answers_where_one_fails(bed: Testbed, status: int) -> None:
    first, second = await two(bed)
    first.server.faults.status = status
    answer = await bed.ask("/api/chat", body("/api/chat"))
    assert answer.status == 200
    assert answer.lines()[-1]["done"] is True
    assert answer.headers["Herd-Node"] == "second"
    assert (first.server.served, second.server.served) == (0, 1)
    outcome = await bed.outcome(answer.headers["Herd-Request-Id"])
    assert endings(outcome) == ["failed", "completed"]
    assert outcome.attempts[0].failure is not None
    assert outcome.attempts[0].failure.status == status


@pytest.mark.parametrize("status", [400, 401, 403, 413, 422, 501])
async def test_what_the_request_itself_causes_is_not_tried_elsewhere(
    bed: Testbed, status: int
) -> None:
    first, second = await two(bed)
    first.server.faults.status = status
    answer = await bed.ask("/api/chat", body("/api/chat"))
    assert answer.status == status
    assert answer.json() == {"error": "emulated failure"}
    assert answer.headers["Herd-Node"] == "first"
    assert second.tap.on("/api/chat") == []
    assert (await bed.only_outcome()).ending == "failed"


@each_generating
@streamed_or_not
async def test_an_engine_that_is_gone_is_passed_over(bed: Testbed, path: str, stream: bool) -> None:
    first, _ = await two(bed)
    await first.tap.stop()
    answer = await bed.ask(path, body(path, stream=stream))
    assert answer.status == 200
    assert answer.headers["Herd-Node"] == "second"
    outcome = await bed.outcome(answer.headers["Herd-Request-Id"])
    assert failures(outcome) in (["connect"], ["broken"], [])


@each_dialect
async def test_where_all_engines_fail_the_last_ones_own_error_is_told(
    bed: Testbed, path: str
) -> None:
    first, second = await two(bed)
    first.server.faults.status = 500
    second.server.faults.status = 503
    answer = await bed.ask(path, body(path))
    [said] = [traffic.answer for traffic in second.tap.on(path)]
    assert (answer.status, answer.body) == (503, said.body)
    assert answer.headers["Herd-Node"] == "second"
    assert answer.headers["Herd-Attempts"] == "2"
    assert (await bed.only_outcome()).ending == "failed"


@each_dialect
async def test_where_no_engine_can_be_reached_the_cause_is_told(bed: Testbed, path: str) -> None:
    engine = await bed.add()
    await engine.tap.stop()
    answer = await bed.ask(path, body(path))
    assert answer.status in {502, 503}
    text = error_text(path, answer.json())
    assert "connect" in text or "closed the connection" in text
    assert int(answer.headers["Retry-After"]) >= 1
    outcome = await bed.only_outcome()
    assert outcome.ending in {"failed", "rejected"}
    assert outcome.request.id == answer.headers["Herd-Request-Id"]


async def test_no_more_attempts_are_made_than_the_owner_allows(tmp_path: Path) -> None:
    async with Testbed(tmp_path, max_attempts=2) as bed:
        engines = [await bed.add(str(number)) for number in range(3)]
        for engine in engines:
            engine.server.faults.status = 500
        answer = await bed.ask("/api/chat", body("/api/chat"))
        assert answer.status == 500
        assert sum(len(engine.tap.on("/api/chat")) for engine in engines) == 2


@streamed_or_not
async def test_an_engine_that_breaks_off_before_its_first_byte_is_no_loss(
    bed: Testbed, stream: bool
) -> None:
    first, _ = await two(bed)
    first.server.faults.break_after = 0
    answer = await bed.ask("/v1/messages", body("/v1/messages", stream=stream))
    assert answer.status == 200
    assert answer.headers["Herd-Node"] == "second"
    outcome = await bed.outcome(answer.headers["Herd-Request-Id"])
    assert failures(outcome) == ["broken"]


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/messages"])
async def test_an_empty_stream_is_no_answer(bed: Testbed, path: str) -> None:
    first, _ = await two(bed)
    first.server.faults.break_after = 0
    first.server.faults.how = "silent"
    answer = await bed.ask(path, body(path, stream=True))
    assert answer.status == 200
    assert answer.headers["Herd-Node"] == "second"


@each_dialect
async def test_an_answer_that_does_not_begin_is_given_up_in_time(tmp_path: Path, path: str) -> None:
    async with Testbed(tmp_path, first_byte_timeout=0.3) as bed:
        engine = await bed.add()
        engine.server.faults.mute = True
        started = asyncio.get_running_loop().time()
        answer = await bed.ask(path, body(path))
        took = asyncio.get_running_loop().time() - started
        assert answer.status == 504
        assert "no first byte" in error_text(path, answer.json())
        assert 0.3 <= took < 1.5
        outcome = await bed.only_outcome()
        assert (outcome.ending, failures(outcome)) == ("failed", ["timeout"])


async def test_an_answer_that_does_not_begin_is_asked_for_elsewhere(tmp_path: Path) -> None:
    async with Testbed(tmp_path, first_byte_timeout=0.3) as bed:
        first, _ = await two(bed)
        first.server.faults.mute = True
        answer = await bed.ask("/api/chat", body("/api/chat"))
        assert answer.status == 200
        assert answer.headers["Herd-Attempts"] == "2"


# In the middle of a stream


def told(path: str, answer: Answer) -> str:
    """The error at a stream's end; the stream does not say that it is complete."""
    frames: list[Any]
    if path.startswith("/api/"):
        frames = answer.lines()
        assert not any(frame.get("done") for frame in frames)
        assert set(frames[-1]) == {"error"}
        error = frames[-1]["error"]
        return str(error)
    frames = answer.events()
    assert "[DONE]" not in frames
    assert not any(frame.get("type") == "message_stop" for frame in frames)
    assert answer.body.endswith(b"\n\n")
    if path == "/v1/messages":
        assert b"event: error\ndata: " in answer.body
    else:
        reasons = [c["finish_reason"] for f in frames if "choices" in f for c in f["choices"]]
        assert not any(reasons)
    return error_text(path, frames[-1])


@every_stream
@pytest.mark.parametrize("how", ["cut", "silent"])
async def test_a_stream_that_breaks_ends_in_an_error(
    bed: Testbed, path: str, dialect: Any, how: Break
) -> None:
    engine = await bed.add(dialect=dialect)
    engine.server.faults.break_after = 3
    engine.server.faults.how = how
    answer = await bed.ask(path, body(path, stream=True))
    assert answer.status == 200
    text = told(path, answer)
    if how == "cut":
        assert "closed the connection" in text
    else:
        assert "before it was complete" in text
    outcome = await bed.only_outcome()
    assert (outcome.ending, failures(outcome)) == ("failed", ["broken"])
    assert outcome.request.id == answer.headers["Herd-Request-Id"]


@every_stream
async def test_an_engine_that_tells_of_its_death_is_believed(
    bed: Testbed, path: str, dialect: Any
) -> None:
    engine = await bed.add(dialect=dialect)
    engine.server.faults.break_after = 3
    engine.server.faults.how = "error"
    answer = await bed.ask(path, body(path, stream=True))
    assert the_error(path, answer)
    outcome = await bed.only_outcome()
    assert outcome.ending == "failed"
    assert outcome.attempts[0].ending == "failed"


def the_error(path: str, answer: Answer) -> str:
    """The one error near the end, the engine's or else the router's.

    A vLLM ends such a stream with `[DONE]` all the same; that is its own, and clients raise at the
    error before they see it.
    """
    assert b"message_stop" not in answer.body
    assert b'"done":true' not in answer.body
    frames = answer.lines() if path.startswith("/api/") else answer.events()
    frames = [frame for frame in frames if frame != "[DONE]"]
    errors = [frame["error"] for frame in frames if "error" in frame]
    assert len(errors) == 1
    return str(errors[0])


@every_stream
async def test_a_stream_that_stalls_ends_in_an_error(
    tmp_path: Path, path: str, dialect: Any
) -> None:
    async with Testbed(tmp_path, idle_timeout=0.3) as bed:
        engine = await bed.add(dialect=dialect, decode_rate=20.0, answer_tokens=(60, 60))
        engine.server.faults.stall_after = 3
        answer = await bed.ask(path, body(path, stream=True))
        assert "no data for 0.3 s" in told(path, answer)
        outcome = await bed.only_outcome()
        assert (outcome.ending, failures(outcome)) == ("failed", ["timeout"])
        await until(lambda: engine.server.cancelled == 1, "the end of the engine's job")


async def test_a_stream_that_has_begun_is_not_begun_again(bed: Testbed) -> None:
    first, second = await two(bed)
    first.server.faults.break_after = 3
    answer = await bed.ask("/api/chat", body("/api/chat"))
    assert told("/api/chat", answer)
    assert second.tap.on("/api/chat") == []


async def test_what_came_before_the_break_reached_the_client(bed: Testbed) -> None:
    engine = await bed.add()
    engine.server.faults.break_after = 3
    answer = await bed.ask("/api/chat", body("/api/chat"))
    said = engine.tap.on("/api/chat")[0].answer.body
    assert said.count(b"\n") == 3
    assert answer.body.startswith(said)


@streamed_or_not
async def test_an_engine_that_dies_before_a_whole_answer_is_replaced(
    bed: Testbed, stream: bool
) -> None:
    """Nothing of an answer that does not stream has gone out, however late it fails."""
    first, _ = await two(bed)
    first.server.faults.break_after = 0 if stream else 5
    answer = await bed.ask("/v1/completions", body("/v1/completions", stream=stream))
    assert answer.status == 200
    assert answer.headers["Herd-Node"] == "second"


# The queue


@each_dialect
async def test_a_full_queue_is_told_with_the_time_to_come_back(tmp_path: Path, path: str) -> None:
    async with Testbed(tmp_path, max_waiting=1) as bed:
        await bed.add(slots=1, decode_rate=5.0)
        tasks = bed.router.driver.scheduler.tasks
        running = asyncio.create_task(bed.ask(path, body(path)))
        await until(lambda: len(tasks) == 1)
        waiting = asyncio.create_task(bed.ask(path, body(path)))
        await until(lambda: bed.router.driver.scheduler.waiting_count == 1)
        refused = await bed.ask(path, body(path))
        assert refused.status == 503
        assert "server busy" in error_text(path, refused.json())
        assert int(refused.headers["Retry-After"]) >= 1
        if path == "/v1/messages":
            assert refused.json()["error"]["type"] == "overloaded_error"
        outcome = await bed.outcome(refused.headers["Herd-Request-Id"])
        assert outcome.ending == "rejected"
        assert outcome.refusal is not None
        assert outcome.refusal.kind == "queue_full"
        for task in (running, waiting):
            task.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)


async def test_patience_ends(tmp_path: Path) -> None:
    async with Testbed(tmp_path, patience=0.3) as bed:
        engine = await bed.add(slots=1, decode_rate=5.0)
        running = asyncio.create_task(bed.ask("/api/chat", body("/api/chat")))
        await until(lambda: engine.server.running == 1)
        refused = await bed.ask("/api/chat", body("/api/chat"))
        assert refused.status == 503
        assert "no device came free within" in refused.json()["error"]
        assert int(refused.headers["Retry-After"]) >= 1
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_model_whose_node_has_gone_is_not_called_unknown(bed: Testbed) -> None:
    engine = await bed.add()
    async with bed.http.delete(f"/herd/v1/engines/{engine.node}") as response:
        assert response.status == 204
    refused = await bed.ask("/api/chat", body("/api/chat"))
    assert refused.status == 503
    assert f"no node that has model '{CHAT}' is reachable" in refused.json()["error"]
