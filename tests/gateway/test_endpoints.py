"""Every endpoint answers, streamed and not, from an Ollama and from a vLLM, and says who answered."""

from __future__ import annotations

from typing import Any

import pytest

from devtools.testbed import CHAT, FAST, SLOW, Answer, Testbed, until
from herd.sim.faults import Faults
from tests.gateway.bodies import body, each_endpoint, each_generating, streamed_or_not

TRANSLATED = ["/api/chat", "/api/generate"]
SERVED_BY_VLLM = [*TRANSLATED, "/v1/chat/completions", "/v1/completions"]


def text_of(path: str, answer: Answer, *, stream: bool) -> str:
    """The answer's text, and a check that it says that it is complete."""
    frames: list[Any]
    if path.startswith("/api/"):
        frames = answer.lines() if stream else [answer.json()]
        assert frames[-1]["done"] is True
        if path == "/api/chat":
            return "".join(frame["message"]["content"] for frame in frames)
        return "".join(frame["response"] for frame in frames)
    if path == "/v1/messages":
        if not stream:
            return "".join(block["text"] for block in answer.json()["content"])
        frames = answer.events()
        assert frames[-1] == {"type": "message_stop"}
        deltas = [f["delta"]["text"] for f in frames if f["type"] == "content_block_delta"]
        return "".join(deltas)
    if stream:
        frames = answer.events()
        assert frames.pop() == "[DONE]"
    else:
        frames = [answer.json()]
    choices = [choice for frame in frames for choice in frame["choices"]]
    assert choices[-1]["finish_reason"] == "stop"
    if path == "/v1/completions":
        return "".join(choice["text"] for choice in choices)
    part = "delta" if stream else "message"
    return "".join(choice[part].get("content") or "" for choice in choices)


@each_generating
@streamed_or_not
async def test_an_ollama_answers(bed: Testbed, path: str, stream: bool) -> None:
    engine = await bed.add()
    answer = await bed.ask(path, body(path, stream=stream))
    assert answer.status == 200
    assert len(text_of(path, answer, stream=stream).split()) >= 4
    assert engine.server.served == 1


@pytest.mark.parametrize("path", SERVED_BY_VLLM)
@streamed_or_not
async def test_a_vllm_answers(bed: Testbed, path: str, stream: bool) -> None:
    await bed.add(dialect="openai")
    answer = await bed.ask(path, body(path, stream=stream))
    assert answer.status == 200
    assert len(text_of(path, answer, stream=stream).split()) >= 4


@pytest.mark.parametrize("path", TRANSLATED)
async def test_a_translated_stream_is_typed_as_ollamas(bed: Testbed, path: str) -> None:
    await bed.add(dialect="openai")
    whole = await bed.ask(path, body(path, stream=False))
    assert whole.headers["Content-Type"] == "application/json; charset=utf-8"
    streamed = await bed.ask(path, body(path))
    assert streamed.headers["Content-Type"] == "application/x-ndjson"
    assert len(streamed.lines()) > 2
    last = streamed.lines()[-1]
    assert last["model"] == CHAT
    assert last["eval_count"] == 8
    assert last["prompt_eval_count"] > 0


async def test_a_stream_is_passed_on_while_it_runs(bed: Testbed) -> None:
    engine = await bed.add(decode_rate=20.0, answer_tokens=(20, 20))
    async with bed.http.post("/api/chat", json=body("/api/chat")) as response:
        await response.content.readline()
        assert engine.server.running == 1
        assert bed.router.driver.scheduler.tasks
        await response.read()
    assert engine.server.served == 1


@each_endpoint
async def test_the_headers_tell_who_answered(bed: Testbed, path: str) -> None:
    engine = await bed.add("the-box")
    request = body(path)
    answer = await bed.ask(path, request)
    told = {name: value for name, value in answer.headers.items() if name.startswith("Herd-")}
    request_id = told.pop("Herd-Request-Id")
    waited = told.pop("Herd-Waited")
    del told["Herd-Version"]
    assert told == {
        "Herd-Node": "the-box",
        "Herd-Engine": f"ollama-{engine.tap.port}",
        "Herd-Model": request["model"],
        "Herd-Attempts": "1",
    }
    assert 0.0 <= float(waited) < 1.0
    outcome = await bed.outcome(request_id)
    assert outcome.ending == "completed"
    assert outcome.request.endpoint == path
    assert outcome.attempts[0].replica.node == engine.node


@streamed_or_not
async def test_the_headers_of_a_retry_tell_the_node_that_answered(
    bed: Testbed, stream: bool
) -> None:
    first = await bed.add("first", facts=FAST)
    second = await bed.add("second", facts=SLOW)
    first.server.faults.status = 500
    path = "/v1/chat/completions"
    answer = await bed.ask(path, body(path, stream=stream))
    assert answer.status == 200
    assert len(first.tap.on(path)) == 1
    assert answer.headers["Herd-Attempts"] == "2"
    assert answer.headers["Herd-Node"] == "second"
    assert answer.headers["Herd-Engine"] == f"ollama-{second.tap.port}"
    outcome = await bed.outcome(answer.headers["Herd-Request-Id"])
    assert [attempt.ending for attempt in outcome.attempts] == ["failed", "completed"]


async def test_two_requests_have_different_ids(bed: Testbed) -> None:
    await bed.add()
    answers = [await bed.ask("/api/chat", body("/api/chat", stream=False)) for _ in range(2)]
    assert len({answer.headers["Herd-Request-Id"] for answer in answers}) == 2


async def test_a_connection_to_the_engine_serves_many_requests(bed: Testbed) -> None:
    engine = await bed.add()
    for stream in (True, False, True):
        assert (await bed.ask("/api/chat", body("/api/chat", stream=stream))).status == 200
    assert len({traffic.connection for traffic in engine.tap.on("/api/chat")}) == 1


async def test_the_result_is_measured(bed: Testbed) -> None:
    await bed.add()
    answer = await bed.ask("/v1/messages", body("/v1/messages", stream=True))
    outcome = await bed.outcome(answer.headers["Herd-Request-Id"])
    assert outcome.result is not None
    assert outcome.result.usage.completion_tokens == 8
    assert outcome.result.bytes_out == len(answer.body)
    assert outcome.result.finish_reason == "end_turn"


async def test_a_fault_that_is_switched_off_is_forgotten(bed: Testbed) -> None:
    engine = await bed.add()
    engine.server.faults.status = 500
    assert (await bed.ask("/api/chat", body("/api/chat"))).status == 500
    engine.server.faults.status = Faults().status
    await until(lambda: bed.router.recent.total == 1)
    answer = await bed.ask("/api/chat", body("/api/chat"))
    assert answer.status == 200
    assert float(answer.headers["Herd-Waited"]) > 0.5  # the replica had a rest first
