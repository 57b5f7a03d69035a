"""The questions, and the official clients that ask them."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

import anthropic
import ollama
import openai
from anthropic import AsyncAnthropic
from msgspec import Struct
from openai import AsyncOpenAI

from herd.core.request import Dialect

#: Seconds for one answer; a large model of an Ollama that is running here may have to be loaded.
ANSWER_LIMIT: Final = 120.0
#: Tokens of the longest answer; short ones keep the demo short.
ANSWER_TOKENS: Final = 48
_REQUEST_ID: Final = "Herd-Request-Id"
_NODE: Final = "Herd-Node"
_TEXTS: Final = (
    "Why is the sky blue?",
    "Name three rivers in Europe.",
    "What is a shepherd?",
    "Write a line about the sea.",
    "What do bees make?",
    "How do clouds form?",
    "Tell me about the Moon.",
    "What is bread made of?",
    "Describe a winter morning.",
    "Why do cats purr?",
    "What is a harbour?",
    "Give me a good book title.",
    "How does a bicycle stay up?",
    "What is the use of salt?",
    "Say something about trees.",
    "Where do swallows go?",
    "What is a good breakfast?",
    "Describe the colour green.",
    "What does a lighthouse do?",
    "Tell me about old maps.",
    "How is paper made?",
    "Why do leaves fall?",
    "What is in a compass?",
    "Name a few kinds of cheese.",
)
_KINDS: Final[tuple[tuple[Dialect, bool], ...]] = (
    ("openai", True),
    ("ollama", True),
    ("anthropic", True),
    ("openai", False),
    ("ollama", False),
    ("anthropic", False),
)


class Question(Struct, frozen=True):
    """What is asked, of which model, how."""

    text: str
    model: str
    dialect: Dialect
    stream: bool


class Reply(Struct):
    """What has come of a question so far."""

    #: Empty until the answer's headers are there.
    request: str = ""
    node: str = ""
    text: str = ""
    #: Seconds until the first piece of a streamed answer.
    first: float | None = None


def questions(model: str, count: int, *, skip: int = 0) -> list[Question]:
    """Return `count` questions in all dialects, streamed and not; 24 different ones, in turn."""
    return [
        Question(_TEXTS[number % len(_TEXTS)], model, *_KINDS[number % len(_KINDS)])
        for number in range(skip, skip + count)
    ]


async def ask(url: str, question: Question, reply: Reply) -> None:
    """Ask the router at `url` with the dialect's official client; the reply fills as it comes.

    Raises what the client raises.
    """
    begun = time.monotonic()

    async def headers(response: Any) -> None:
        reply.request = response.headers.get(_REQUEST_ID, "")
        reply.node = response.headers.get(_NODE, "")

    asked = {"openai": _openai, "ollama": _ollama, "anthropic": _anthropic}[question.dialect]
    # The clients do not all show headers, but all let their HTTP client's hook see them.
    async with aclosing(asked(url, question, {"response": [headers]})) as pieces:
        async for piece in pieces:
            if question.stream and piece and reply.first is None:
                reply.first = time.monotonic() - begun
            reply.text += piece


async def _openai(url: str, question: Question, hooks: Any) -> AsyncGenerator[str]:
    async with AsyncOpenAI(
        base_url=f"{url}/v1",
        api_key="demo",
        max_retries=0,
        timeout=ANSWER_LIMIT,
        http_client=openai.DefaultAsyncHttpxClient(event_hooks=hooks),
    ) as client:
        if question.stream:
            async for chunk in await client.chat.completions.create(
                model=question.model,
                messages=[{"role": "user", "content": question.text}],
                max_tokens=ANSWER_TOKENS,
                stream=True,
                stream_options={"include_usage": True},
            ):
                for choice in chunk.choices:
                    yield choice.delta.content or ""
        else:
            whole = await client.chat.completions.create(
                model=question.model,
                messages=[{"role": "user", "content": question.text}],
                max_tokens=ANSWER_TOKENS,
            )
            yield whole.choices[0].message.content or ""


async def _anthropic(url: str, question: Question, hooks: Any) -> AsyncGenerator[str]:
    async with AsyncAnthropic(
        base_url=url,
        api_key="demo",
        max_retries=0,
        timeout=ANSWER_LIMIT,
        http_client=anthropic.DefaultAsyncHttpxClient(event_hooks=hooks),
    ) as client:
        if question.stream:
            async for event in await client.messages.create(
                model=question.model,
                messages=[{"role": "user", "content": question.text}],
                max_tokens=ANSWER_TOKENS,
                stream=True,
            ):
                if event.type == "content_block_delta" and event.delta.type == "text_delta":
                    yield event.delta.text
        else:
            whole = await client.messages.create(
                model=question.model,
                messages=[{"role": "user", "content": question.text}],
                max_tokens=ANSWER_TOKENS,
            )
            yield "".join(block.text for block in whole.content if block.type == "text")


async def _ollama(url: str, question: Question, hooks: Any) -> AsyncGenerator[str]:
    client = ollama.AsyncClient(url, timeout=ANSWER_LIMIT, event_hooks=hooks)
    messages = [{"role": "user", "content": question.text}]
    options = {"num_predict": ANSWER_TOKENS}
    try:
        if question.stream:
            async for part in await client.chat(
                question.model, messages, options=options, stream=True
            ):
                yield part.message.content or ""
        else:
            whole = await client.chat(question.model, messages, options=options)
            yield whole.message.content or ""
    finally:
        await client.close()  # type: ignore[no-untyped-call]
