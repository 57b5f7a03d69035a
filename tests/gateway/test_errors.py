"""What is wrong with a request is told in the shape of the dialect in which it came."""

from __future__ import annotations

from pathlib import Path

import anthropic
import openai
import pytest

from devtools.testbed import CHAT, EMBEDDER, Testbed
from herd.wire.link import PATH as LINK_PATH
from tests.gateway.bodies import ENDPOINTS, HELLO, body, each_dialect, each_endpoint, error_text


@each_endpoint
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b'{"model": 5}',
        b'{"model": "\xff"}',
        b'{"model": "a", "prompt": ' + b"[" * 100_000,
    ],
    ids=["empty", "cut", "list", "string", "number", "not-utf-8", "deep"],
)
async def test_a_body_that_cannot_be_read(bed: Testbed, path: str, raw: bytes) -> None:
    async with bed.http.post(path, data=raw) as response:
        assert response.status == 400
        assert response.headers["Content-Type"].startswith("application/json")
        assert error_text(path, await response.json())
    assert bed.router.recent.total == 0


async def test_a_missing_body_is_told_in_ollamas_words(bed: Testbed) -> None:
    async with bed.http.post("/api/chat", data=b"") as response:
        assert await response.json() == {"error": "missing request body"}


@each_endpoint
async def test_a_missing_model(bed: Testbed, path: str) -> None:
    without = {name: value for name, value in ENDPOINTS[path].items() if name != "model"}
    answer = await bed.ask(path, without)
    text = error_text(path, answer.json())
    if path == "/api/generate":
        assert (answer.status, text) == (404, "model '' not found")
    else:
        assert (answer.status, text) == (400, "model is required")


@each_endpoint
async def test_an_unknown_model(bed: Testbed, path: str) -> None:
    await bed.add()
    answer = await bed.ask(path, body(path, model="nope"))
    assert answer.status == 404
    assert error_text(path, answer.json()) == "model 'nope' not found"
    outcome = await bed.only_outcome()
    assert outcome.ending == "rejected"
    assert outcome.request.id == answer.headers["Herd-Request-Id"]
    assert outcome.refusal is not None
    assert outcome.refusal.kind == "unknown_model"


@each_dialect
async def test_a_model_that_cannot_do_what_is_asked(bed: Testbed, path: str) -> None:
    """A vLLM would not check it, so the router refuses."""
    await bed.add(dialect="openai")
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    answer = await bed.ask(path, body(path, tools=tools))
    assert answer.status == 400
    assert "lacks tools" in error_text(path, answer.json())


@each_dialect
async def test_a_prompt_that_is_too_long_for_every_context(bed: Testbed, path: str) -> None:
    await bed.add(dialect="openai", default_context=64)
    long = [{"role": "user", "content": "many words " * 100}]
    answer = await bed.ask(path, body(path, messages=long))
    assert answer.status == 400
    assert "exceeds the context of 64" in error_text(path, answer.json())


@each_endpoint
async def test_a_body_that_is_too_large(tmp_path: Path, path: str) -> None:
    async with Testbed(tmp_path, max_body=10_000) as bed:
        await bed.add()
        answer = await bed.ask(path, body(path, padding="x" * 20_000))
        assert answer.status == 413
        assert "too large" in error_text(path, answer.json())
        # The router still answers.
        assert (await bed.ask(path, body(path, stream=False))).status == 200


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
@each_endpoint
async def test_a_wrong_method(bed: Testbed, path: str, method: str) -> None:
    async with bed.http.request(method, path) as response:
        assert response.status == 405
        assert response.headers["Allow"] == "POST"
        assert await response.text() == "405 method not allowed"


@pytest.mark.parametrize(
    "path", ["/nope", "/api/nope", "/v1/nope", "/v1/messages/count_tokens", "/herd/v1/nope"]
)
async def test_an_unknown_path(bed: Testbed, path: str) -> None:
    """As Ollama answers in all its dialects."""
    for answer in (await bed.get(path), await bed.ask(path, {})):
        assert answer.status == 404
        assert answer.headers["Content-Type"] == "text/plain"
        assert answer.body == b"404 page not found"


async def test_an_error_has_openais_type_and_code(bed: Testbed) -> None:
    await bed.add()
    path = "/v1/chat/completions"
    answer = await bed.ask(path, body(path, model="nope"))
    assert answer.json()["error"] == {
        "message": "model 'nope' not found",
        "type": "not_found_error",
        "param": "model",
        "code": "model_not_found",
    }


async def test_an_error_has_anthropics_type_and_the_requests_id(bed: Testbed) -> None:
    await bed.add()
    answer = await bed.ask("/v1/messages", body("/v1/messages", model="nope"))
    error = answer.json()
    assert error["error"]["type"] == "not_found_error"
    assert error["request_id"] == answer.headers["Herd-Request-Id"]


async def test_the_official_clients_understand_the_errors(bed: Testbed) -> None:
    messages = [{"role": "user", "content": 7}]
    async with openai.AsyncOpenAI(base_url=f"{bed.url}/v1", api_key="any", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="model is required"):
            await client.chat.completions.create(model="", messages=messages)  # type: ignore[arg-type]
    async with anthropic.AsyncAnthropic(base_url=bed.url, api_key="any", max_retries=0) as claude:
        with pytest.raises(anthropic.BadRequestError, match="model is required"):
            await claude.messages.create(model="", messages=messages, max_tokens=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("raw", [b"", b"{", b'{"model": "\xff"}', b'{"model": 5}', b"{}"])
async def test_show_refuses_a_body_that_it_cannot_read(bed: Testbed, raw: bytes) -> None:
    async with bed.http.post("/api/show", data=raw) as response:
        assert response.status == 400
        assert error_text("/api/show", await response.json())


async def test_text_that_is_not_utf_8_is_refused_where_it_has_to_be_translated(
    bed: Testbed,
) -> None:
    await bed.add(dialect="openai")
    raw = b'{"model":"%s","messages":[{"role":"user","content":"\xff"}]}' % CHAT.encode()
    async with bed.http.post("/api/chat", data=raw) as response:
        assert response.status == 400
        assert error_text("/api/chat", await response.json())


async def test_field_names_that_are_not_utf_8_are_refused_where_they_have_to_be_read(
    bed: Testbed,
) -> None:
    await bed.add(dialect="openai")
    path = "/v1/chat/completions"
    raw = b'{"model":"%s","\xff":1,"messages":[]}' % CHAT.upper().encode()
    async with bed.http.post(path, data=raw) as response:
        assert response.status == 400
        assert error_text(path, await response.json())


async def test_a_request_that_cannot_be_translated_says_why(bed: Testbed) -> None:
    await bed.add(dialect="openai")
    answer = await bed.ask("/api/chat", {"model": CHAT, "messages": [], "keep_alive": 0})
    assert answer.status == 400
    assert "cannot unload" in error_text("/api/chat", answer.json())
    assert (await bed.only_outcome()).ending == "failed"


async def test_an_embedder_is_not_asked_to_chat(bed: Testbed) -> None:
    await bed.add()
    answer = await bed.ask("/v1/chat/completions", {"model": EMBEDDER, "messages": HELLO})
    assert answer.status == 400
    assert "does not support chat" in error_text("/v1/chat/completions", answer.json())


async def test_every_answer_says_that_it_is_herds(bed: Testbed) -> None:
    for answer in (await bed.get("/nope"), await bed.get("/"), await bed.ask("/api/chat", [])):
        assert answer.headers["Herd-Version"]
        assert answer.headers["Server"] == "Herd"


async def test_the_agents_link_is_no_ordinary_path(bed: Testbed) -> None:
    assert (await bed.get(LINK_PATH)).status == 426
