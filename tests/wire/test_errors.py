"""Errors in each dialect: the status, the shape, and what the official clients make of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, get_args

import anthropic
import ollama
import openai
import pytest
from aiohttp import web

from herd.core.request import Dialect, Failure, FailureKind, Refusal, RefusalKind
from herd.wire import errors
from herd.wire.errors import Problem

STATUS: dict[RefusalKind, int] = {
    "unknown_model": 404,
    "incapable": 400,
    "context": 400,
    "too_big": 500,
    "unreachable": 503,
    "queue_full": 503,
    "expired": 503,
    "engine_failed": 502,
    "stopping": 503,
}
OPENAI: dict[int, str] = {400: "invalid_request_error", 404: "not_found_error"}
ANTHROPIC: dict[int, str] = {
    400: "invalid_request_error",
    404: "not_found_error",
    503: "overloaded_error",
}


def problem(kind: RefusalKind) -> Problem:
    return errors.from_refusal(Refusal(kind=kind, message=f"because of {kind}", retry_after=7.0))


def test_every_kind_is_in_the_table() -> None:
    assert set(STATUS) == set(get_args(RefusalKind))


@pytest.mark.parametrize("kind", get_args(RefusalKind))
def test_each_refusal_has_its_status_and_keeps_its_words(kind: RefusalKind) -> None:
    found = problem(kind)
    assert found.status == STATUS[kind]
    assert found.message == f"because of {kind}"
    assert found.retry_after == 7.0


@pytest.mark.parametrize("kind", get_args(FailureKind))
def test_a_timeout_of_the_engine_is_a_gateway_timeout(kind: FailureKind) -> None:
    failure = Failure(kind=kind, message="x")
    found = errors.from_refusal(Refusal(kind="engine_failed", message="x", failure=failure))
    assert found.status == (504 if kind == "timeout" else 502)


@pytest.mark.parametrize("kind", get_args(RefusalKind))
def test_ollamas_shape(kind: RefusalKind) -> None:
    assert json.loads(errors.body("ollama", problem(kind), "req_1")) == {
        "error": f"because of {kind}"
    }


@pytest.mark.parametrize("kind", get_args(RefusalKind))
def test_openais_shape(kind: RefusalKind) -> None:
    code = {"unknown_model": "model_not_found", "context": "context_length_exceeded"}.get(kind)
    assert json.loads(errors.body("openai", problem(kind), "req_1")) == {
        "error": {
            "message": f"because of {kind}",
            "type": OPENAI.get(STATUS[kind], "api_error"),
            "param": "model" if kind == "unknown_model" else None,
            "code": code,
        }
    }


@pytest.mark.parametrize("kind", get_args(RefusalKind))
def test_anthropics_shape(kind: RefusalKind) -> None:
    assert json.loads(errors.body("anthropic", problem(kind), "req_1")) == {
        "type": "error",
        "error": {
            "type": ANTHROPIC.get(STATUS[kind], "api_error"),
            "message": f"because of {kind}",
        },
        "request_id": "req_1",
    }


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, "authentication_error"),
        (403, "permission_error"),
        (413, "request_too_large"),
        (418, "api_error"),
        (429, "rate_limit_error"),
        (504, "timeout_error"),
    ],
)
def test_anthropics_words_for_other_statuses(status: int, kind: str) -> None:
    body = json.loads(errors.body("anthropic", Problem(status=status, message="x")))
    assert body["error"]["type"] == kind
    assert body["request_id"] is None


@pytest.mark.parametrize("dialect", get_args(Dialect))
def test_a_message_may_have_anything_in_it(dialect: Dialect) -> None:
    text = 'a "quoted"\nline\r\n\r\ndata: [DONE]\n\n \u2028 好'
    found = Problem(status=500, message=text)
    body = errors.body(dialect, found)
    assert b"\n" not in body
    assert text in _texts(json.loads(body))


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _texts(item)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize(
    ("dialect", "before", "after"),
    [
        ("ollama", b"", b"\n"),
        ("openai", b"data: ", b"\n\n"),
        ("anthropic", b"event: error\ndata: ", b"\n\n"),
    ],
)
def test_a_frame_is_the_body_framed(dialect: Dialect, before: bytes, after: bytes) -> None:
    found = problem("engine_failed")
    body = errors.body(dialect, found, "req_1")
    assert errors.frame(dialect, found, "req_1") == before + body + after


# What the official clients make of them

BROKEN = Problem(status=502, message="the engine ended the answer before it was complete")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[str]:
    """A server that answers every request by `handler`."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def refusing(dialect: Dialect, found: Problem) -> Handler:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(
            status=found.status,
            body=errors.body(dialect, found, "req_1"),
            content_type="application/json",
        )

    return answer


def breaking_off(dialect: Dialect, content_type: str, begun: bytes) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": content_type})
        await response.prepare(request)
        await response.write(begun)
        await response.write(errors.frame(dialect, BROKEN, "req_1"))
        await response.write_eof()
        return response

    return answer


async def take_all(stream: AsyncIterable[Any], seen: list[Any]) -> None:
    """Read a stream to its end, keeping what came before it raised."""
    async for part in stream:
        seen.append(part)  # noqa: PERF401 - what came before it raises is kept


HELLO: list[Any] = [{"role": "user", "content": "hi"}]


async def test_openais_client_raises_what_a_refusal_means() -> None:
    async with (
        served(refusing("openai", problem("unknown_model"))) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client,
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="m", messages=HELLO)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


async def test_openais_client_raises_an_error_inside_a_stream() -> None:
    begun = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    begun["choices"] = [{"index": 0, "delta": {"content": "Hel"}, "finish_reason": None}]
    handler = breaking_off(
        "openai", "text/event-stream", b"data: " + json.dumps(begun).encode() + b"\n\n"
    )
    async with (
        served(handler) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
        seen: list[Any] = []
        with pytest.raises(openai.APIError, match="before it was complete"):
            await take_all(stream, seen)
    assert [chunk.choices[0].delta.content for chunk in seen] == ["Hel"]


async def test_anthropics_client_raises_what_a_refusal_means() -> None:
    async with (
        served(refusing("anthropic", problem("unreachable"))) as url,
        anthropic.AsyncAnthropic(base_url=url, api_key="x", max_retries=0) as client,
    ):
        with pytest.raises(anthropic.InternalServerError) as caught:
            await client.messages.create(model="m", max_tokens=5, messages=HELLO)
    assert caught.value.status_code == 503
    assert "because of unreachable" in str(caught.value)


async def test_anthropics_client_raises_an_error_inside_a_stream() -> None:
    message: dict[str, Any] = {
        "id": "1",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": "m",
    }
    message |= {"stop_reason": None, "usage": {"input_tokens": 1, "output_tokens": 0}}
    start = {"type": "message_start", "message": message}
    begun = b"event: message_start\ndata: " + json.dumps(start).encode() + b"\n\n"
    async with (
        served(breaking_off("anthropic", "text/event-stream", begun)) as url,
        anthropic.AsyncAnthropic(base_url=url, api_key="x", max_retries=0) as client,
    ):
        stream = await client.messages.create(model="m", max_tokens=5, messages=HELLO, stream=True)
        seen: list[Any] = []
        with pytest.raises(anthropic.APIStatusError, match="before it was complete"):
            await take_all(stream, seen)
    assert [event.type for event in seen] == ["message_start"]


async def test_ollamas_client_raises_what_a_refusal_means() -> None:
    async with served(refusing("ollama", problem("unknown_model"))) as url:
        client = ollama.AsyncClient(host=url)
        with pytest.raises(ollama.ResponseError, match="because of unknown_model") as caught:
            await client.chat(model="m", messages=HELLO)
        await client._client.aclose()
    assert caught.value.status_code == 404


async def test_ollamas_client_raises_an_error_inside_a_stream() -> None:
    begun = b'{"model":"m","message":{"role":"assistant","content":"Hel"},"done":false}\n'
    async with served(breaking_off("ollama", "application/x-ndjson", begun)) as url:
        client = ollama.AsyncClient(host=url)
        seen: list[Any] = []
        stream = await client.chat(model="m", messages=HELLO, stream=True)
        with pytest.raises(ollama.ResponseError, match="before it was complete"):
            await take_all(stream, seen)
        await client._client.aclose()
    assert [part.message.content for part in seen] == ["Hel"]
