"""The official clients of the three dialects work against the router as against an engine."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest

from devtools.testbed import CHAT, EMBEDDER, Testbed
from tests.gateway.bodies import HELLO as _HELLO

#: The clients' types for messages are of no interest here.
HELLO: Any = _HELLO


@pytest.fixture(params=["ollama", "openai"], ids=["on-ollama", "on-vllm"])
async def chatty(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Testbed]:
    """A fleet of one engine, of either kind."""
    async with Testbed(tmp_path) as bed:
        await bed.add(dialect=request.param)
        yield bed


@pytest.fixture
async def embedding(bed: Testbed) -> Testbed:
    await bed.add()
    return bed


@pytest.fixture
async def of_openai(bed: Testbed) -> AsyncIterator[openai.AsyncOpenAI]:
    await bed.add()
    async with openai_client(bed) as client:
        yield client


@contextlib.asynccontextmanager
async def ollama_client(bed: Testbed) -> AsyncIterator[ollama.AsyncClient]:
    client = ollama.AsyncClient(bed.url)
    try:
        yield client
    finally:
        await client.close()  # type: ignore[no-untyped-call]


def openai_client(bed: Testbed) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{bed.url}/v1", api_key="any", max_retries=0)


async def test_openai_chat(chatty: Testbed) -> None:
    async with openai_client(chatty) as client:
        answer = await client.chat.completions.create(model=CHAT, messages=HELLO)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8


async def test_openai_streamed_chat(chatty: Testbed) -> None:
    async with openai_client(chatty) as client:
        stream = await client.chat.completions.create(
            model=CHAT,
            messages=HELLO,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    assert len("".join(c.choices[0].delta.content or "" for c in chunks if c.choices)) > 10
    assert chunks[-1].usage is not None


async def test_openai_completion(chatty: Testbed) -> None:
    async with openai_client(chatty) as client:
        answer = await client.completions.create(model=CHAT, prompt="Say hello")
        stream = await client.completions.create(model=CHAT, prompt="Say hello", stream=True)
        text = "".join([chunk.choices[0].text async for chunk in stream])
    assert text == answer.choices[0].text


async def test_openai_embeddings(of_openai: openai.AsyncOpenAI) -> None:
    """The client asks for base64 by itself and decodes it."""
    answer = await of_openai.embeddings.create(model=EMBEDDER, input=["one", "two"])
    assert [len(row.embedding) for row in answer.data] == [32, 32]


async def test_openai_models(of_openai: openai.AsyncOpenAI) -> None:
    names = [model.id async for model in of_openai.models.list()]
    assert names == sorted([CHAT, EMBEDDER])
    assert (await of_openai.models.retrieve(CHAT)).id == CHAT


async def test_openai_model_of_a_namespace(bed: Testbed) -> None:
    """Names with a slash are retrieved too, as Hugging Face's are."""
    await bed.add()
    async with openai_client(bed) as client:
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("who/knows")


async def test_openai_unknown_model(of_openai: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        await of_openai.chat.completions.create(model="nope", messages=HELLO)
    assert raised.value.code == "model_not_found"


async def test_ollama_chat(chatty: Testbed) -> None:
    async with ollama_client(chatty) as client:
        answer = await client.chat(CHAT, HELLO)
        parts = [part async for part in await client.chat(CHAT, HELLO, stream=True)]
    assert answer.message.content
    assert answer.eval_count == 8
    assert parts[-1].done
    assert "".join(part.message.content or "" for part in parts) == answer.message.content


async def test_ollama_generate(chatty: Testbed) -> None:
    async with ollama_client(chatty) as client:
        answer = await client.generate(CHAT, "Say hello")
        parts = [part async for part in await client.generate(CHAT, "Say hello", stream=True)]
    assert answer.done
    assert len("".join(part.response or "" for part in parts)) > 10


async def test_ollama_embed(embedding: Testbed) -> None:
    async with ollama_client(embedding) as client:
        answer = await client.embed(EMBEDDER, ["one", "two"])
        old = await client.embeddings(EMBEDDER, "one")
    assert [len(vector) for vector in answer.embeddings] == [32, 32]
    assert len(old.embedding) == 32


async def test_ollama_listings(chatty: Testbed) -> None:
    async with ollama_client(chatty) as client:
        listed = await client.list()
        shown = await client.show(CHAT)
    assert CHAT in [row.model for row in listed.models]
    assert "completion" in (shown.capabilities or [])
    assert shown.modelinfo is not None


async def test_ollama_ps(bed: Testbed) -> None:
    await bed.add(dialect="openai")
    async with ollama_client(bed) as client:
        [row] = (await client.ps()).models
    assert row.model == CHAT


async def test_ollama_unknown_model(bed: Testbed) -> None:
    await bed.add()
    async with ollama_client(bed) as client:
        with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as raised:
            await client.chat("nope", HELLO)
    assert raised.value.status_code == 404


async def test_ollama_broken_stream(bed: Testbed) -> None:
    """A client sees that an answer is not whole: it raises."""
    engine = await bed.add()
    engine.server.faults.break_after = 3
    async with ollama_client(bed) as client:
        stream = await client.chat(CHAT, HELLO, stream=True)
        with pytest.raises(ollama.ResponseError, match="closed the connection"):
            async for _ in stream:
                pass


async def test_openai_broken_stream(bed: Testbed) -> None:
    engine = await bed.add()
    engine.server.faults.break_after = 3
    async with openai_client(bed) as client:
        stream = await client.chat.completions.create(model=CHAT, messages=HELLO, stream=True)
        with pytest.raises(openai.APIError, match="closed the connection"):
            async for _ in stream:
                pass


async def test_anthropic_broken_stream(bed: Testbed) -> None:
    engine = await bed.add()
    engine.server.faults.break_after = 3
    async with anthropic.AsyncAnthropic(base_url=bed.url, api_key="any", max_retries=0) as client:
        with pytest.raises(anthropic.APIStatusError, match="closed the connection"):
            async with client.messages.stream(
                model=CHAT,
                max_tokens=50,
                messages=HELLO,
            ) as stream:
                await stream.get_final_message()


async def test_anthropic_message(bed: Testbed) -> None:
    await bed.add()
    async with anthropic.AsyncAnthropic(base_url=bed.url, api_key="any", max_retries=0) as client:
        answer = await client.messages.create(model=CHAT, max_tokens=50, messages=HELLO)
        assert answer.stop_reason == "end_turn"
        async with client.messages.stream(
            model=CHAT,
            max_tokens=50,
            messages=HELLO,
        ) as stream:
            streamed = await stream.get_final_message()
    assert [block.to_dict()["text"] for block in streamed.content] == [
        block.to_dict()["text"] for block in answer.content
    ]
    assert streamed.usage.output_tokens == 8


async def test_anthropic_unknown_model(bed: Testbed) -> None:
    await bed.add()
    async with anthropic.AsyncAnthropic(base_url=bed.url, api_key="any", max_retries=0) as client:
        with pytest.raises(anthropic.NotFoundError, match="model 'nope' not found"):
            await client.messages.create(model="nope", max_tokens=50, messages=HELLO)
