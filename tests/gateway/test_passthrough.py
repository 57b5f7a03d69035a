"""What goes to an engine that speaks the client's dialect, and what comes back, byte for byte."""

from __future__ import annotations

import json

import aiohttp
import pytest

from devtools.testbed import CHAT, EMBEDDER, Message, Testbed
from tests.gateway.bodies import (
    ENDPOINTS,
    HELLO,
    body,
    each_dialect,
    each_endpoint,
    each_generating,
    streamed_or_not,
)

#: A key that no engine knows, a number that no float keeps, white space, and an escape.
ODD = b'{ "model" : "%s",\n "x_unknown": {"deep": [1e400, 12345678901234567890123]},\t%s }'


def odd(path: str) -> bytes:
    fields = dict(ENDPOINTS[path])
    model = fields.pop("model")
    rest = json.dumps(fields)[1:-1] + ', "user": "\\u00e9\\/"'
    return ODD % (model.encode(), rest.encode())


@each_endpoint
@streamed_or_not
async def test_the_client_gets_the_engines_bytes(bed: Testbed, path: str, stream: bool) -> None:
    engine = await bed.add()
    got = await bed.ask(path, body(path, stream=stream))
    [traffic] = engine.tap.on(path)
    said = traffic.answer
    assert got.status == 200
    assert got.body == said.body
    assert len(got.body) > 50
    assert got.headers["Content-Type"] == said.headers["Content-Type"]


@each_generating
@streamed_or_not
async def test_the_answer_is_the_one_of_the_engine_asked_directly(
    bed: Testbed, path: str, stream: bool
) -> None:
    engine = await bed.add()
    request = body(path, stream=stream, temperature=0)
    got = await bed.ask(path, request)
    async with aiohttp.ClientSession(engine.server.url) as http, http.post(path, json=request) as r:
        direct = await r.read()
    assert masked(got.body) == masked(direct)


def masked(text: bytes) -> list[object]:
    """The frames, without what differs from one answer to the next."""
    frames: list[object] = []
    for line in text.splitlines():
        data = line.removeprefix(b"data: ")
        if not data.startswith(b"{"):
            frames.append(data)
            continue
        frame = json.loads(data)
        for key in [*frame]:
            if key in {"id", "created", "created_at"} or key.endswith("_duration"):
                frame[key] = None
        if isinstance(frame.get("message"), dict):
            frame["message"].pop("id", None)
        frames.append(frame)
    return frames


@each_endpoint
async def test_the_engine_gets_the_clients_body_untouched(bed: Testbed, path: str) -> None:
    engine = await bed.add()
    sent = odd(path)
    async with bed.http.post(path, data=sent) as response:
        await response.read()
    [traffic] = engine.tap.on(path)
    assert traffic.request.body == sent


async def test_another_spelling_of_the_model_is_left_to_ollama(bed: Testbed) -> None:
    engine = await bed.add()
    sent = b'{"model":"LLAMA3.2:3B","prompt":"hi","stream":false}'
    async with bed.http.post("/api/generate", data=sent) as response:
        answer = await response.json()
    assert engine.tap.on("/api/generate")[0].request.body == sent
    assert answer["model"] == "LLAMA3.2:3B"


async def test_an_engine_that_knows_one_spelling_gets_that_one_and_the_rest_as_it_came(
    bed: Testbed,
) -> None:
    engine = await bed.add(dialect="openai")
    path = "/v1/chat/completions"
    before = len(engine.tap.on(path))
    sent = (
        b'{"x":1e400,"model":"LLAMA3.2:3B","messages":%s,"y":"\\u00e9"}'
        % json.dumps(HELLO).encode()
    )
    async with bed.http.post(path, data=sent) as response:
        assert response.status == 200
        assert response.headers["Herd-Model"] == CHAT
    received = engine.tap.on(path)[before].request.body
    assert received == sent.replace(b"LLAMA3.2:3B", CHAT.encode())


async def sent_to_engine(bed: Testbed, path: str, query: str, headers: dict[str, str]) -> Message:
    engine = await bed.add()
    answer = await bed.ask(path + query, body(path, stream=False), headers=headers)
    assert answer.status == 200
    request = engine.tap.on(path)[0].request
    assert request.headers["Host"] == f"127.0.0.1:{engine.tap.port}"
    return request


@each_dialect
async def test_the_clients_credentials_stay_in_the_router(bed: Testbed, path: str) -> None:
    secrets = {
        "Authorization": "Bearer hush-1",
        "X-Api-Key": "hush-2",
        "Cookie": "session=hush-3",
        "Proxy-Authorization": "Basic hush-4",
        "api-key": "hush-5",
        "X-Goog-Api-Key": "hush-6",
    }
    request = await sent_to_engine(bed, path, "", secrets)
    assert "hush" not in str(request.headers)


@each_dialect
async def test_the_page_that_asks_is_not_told_to_the_engine(bed: Testbed, path: str) -> None:
    """Ollama refuses an `Origin` that it does not know, and a `Host` that is not its own."""
    headers = {"Origin": "https://evil.example", "Referer": "https://evil.example/", "Host": "herd"}
    request = await sent_to_engine(bed, path, "", headers)
    assert "evil" not in str(request.headers)


async def test_the_query_reaches_the_engine(bed: Testbed) -> None:
    request = await sent_to_engine(bed, "/v1/messages", "?beta=true&x=%20a", {})
    assert request.first == "POST /v1/messages?beta=true&x=%20a HTTP/1.1"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("User-Agent", "claude-cli/9.9"),
        ("anthropic-version", "2023-06-01"),
        ("anthropic-beta", "tools-2026"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("X-Request-Id", "abc"),
        ("Accept", "application/json"),
    ],
)
async def test_a_harmless_header_reaches_the_engine(bed: Testbed, name: str, value: str) -> None:
    request = await sent_to_engine(bed, "/v1/messages", "", {name: value})
    assert request.headers[name] == value


async def test_a_client_without_a_user_agent_is_not_given_one(bed: Testbed) -> None:
    engine = await bed.add()
    skip = ("User-Agent", "Accept")
    await bed.ask("/api/chat", body("/api/chat", stream=False), skip_auto_headers=skip)
    request = engine.tap.on("/api/chat")[0].request
    assert request.headers["User-Agent"] is None


async def test_the_engines_own_refusal_passes_through_unchanged(bed: Testbed) -> None:
    engine = await bed.add()
    path = "/api/chat"
    got = await bed.ask(path, body(path, keep_alive="5 minutes"))
    said = engine.tap.on(path)[0].answer
    assert said.first.startswith("HTTP/1.1 400")
    assert (got.status, got.body) == (400, said.body)
    assert got.headers["Content-Type"] == said.headers["Content-Type"]
    assert got.headers["Herd-Node"] == "one"
    outcome = await bed.only_outcome()
    assert outcome.ending == "failed"
    assert len(outcome.attempts) == 1


async def test_a_capability_that_ollama_misses_is_told_in_its_own_words(bed: Testbed) -> None:
    await bed.add()
    got = await bed.ask("/api/chat", {"model": EMBEDDER, "messages": HELLO})
    assert (got.status, got.json()) == (400, {"error": f'"{EMBEDDER}" does not support chat'})


async def test_an_empty_chat_loads_the_model_and_is_answered_whole(bed: Testbed) -> None:
    engine = await bed.add()
    got = await bed.ask("/api/chat", {"model": CHAT, "messages": []})
    assert got.json()["done_reason"] == "load"
    assert got.body == engine.tap.on("/api/chat")[0].answer.body
    assert (await bed.only_outcome()).ending == "completed"
