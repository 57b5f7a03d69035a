"""Twenty-five ways of asking: dialects, streamed or whole, official clients or bare bytes.

Each is held to what the engine answers when it is asked directly. What the router passes through
is compared byte for byte, frames included, apart from ids and times; what it translates for
Ollama's clients is compared piece by piece with the engine's own answer in OpenAI's dialect.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import aiohttp
import anthropic
import ollama
import openai
from msgspec import Struct

from devtools.engines import MODEL

TOKENS = 8
#: llama.cpp's own field, which must reach it.
UNCACHED = {"cache_prompt": False}
GREEDY: dict[str, Any] = {"temperature": 0, "seed": 1}
SAMPLING = GREEDY | {"max_tokens": TOKENS}
OPTIONS = GREEDY | {"num_predict": TOKENS}
PROMPTS = (
    "Why is the sky blue?",
    "Say hello in one sentence.",
    "What is 2 plus 2?",
    "Who wrote Hamlet?",
    "Name three colours, größer als π, 数え切れない.",
    "Where does rain come from?",
    "What is gravity?",
    "List three fruits.",
)


class Direct(Struct, frozen=True):
    """One request as bytes, put to an engine or to the router."""

    path: str
    fields: Callable[[str], dict[str, Any]]

    def body(self, prompt: str) -> bytes:
        return json.dumps({"model": MODEL} | self.fields(prompt)).encode()


def said(prompt: str) -> list[Any]:
    """One turn of a user, in any dialect."""
    return [{"role": "user", "content": prompt}]


def turns(prompt: str) -> list[Any]:
    """A conversation with a system message, in any dialect but Anthropic's."""
    return [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": prompt},
    ]


STREAM = {"stream": True}
COUNT: Any = {"include_usage": True}
COUNTED = {"stream": True, "stream_options": COUNT}
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
EMBEDDING, MESSAGES = "/v1/embeddings", "/v1/messages"

#: What is asked directly, and through the router as the same bytes.
DIRECT: Mapping[str, Direct] = {
    "chat": Direct(CHAT, lambda p: {"messages": said(p)} | SAMPLING | UNCACHED),
    "chat-stream": Direct(CHAT, lambda p: {"messages": said(p)} | SAMPLING | UNCACHED | COUNTED),
    "chat-turns": Direct(CHAT, lambda p: {"messages": turns(p)} | SAMPLING),
    "chat-logprobs": Direct(
        CHAT,
        lambda p: {"messages": said(p), "logprobs": True, "top_logprobs": 3} | SAMPLING | STREAM,
    ),
    "completion": Direct(COMPLETION, lambda p: {"prompt": p} | SAMPLING | UNCACHED),
    "completion-stream": Direct(
        COMPLETION, lambda p: {"prompt": p} | SAMPLING | UNCACHED | COUNTED
    ),
    "embedding": Direct(EMBEDDING, lambda p: {"input": p, "encoding_format": "float"}),
    "messages": Direct(MESSAGES, lambda p: {"messages": said(p)} | SAMPLING | UNCACHED),
    "messages-stream": Direct(MESSAGES, lambda p: {"messages": said(p)} | SAMPLING | STREAM),
}


class Reference(Struct, frozen=True):
    """An answer as bytes."""

    status: int
    content_type: str
    body: bytes

    def whole(self) -> Any:
        """The JSON object of an answer in one piece."""
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The JSON objects of a stream of events."""
        lines = self.body.decode().splitlines()
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        return [json.loads(text) for text in data if text != "[DONE]"]


async def fetch(session: aiohttp.ClientSession, url: str, body: bytes) -> Reference:
    headers = {"Content-Type": "application/json"}
    async with session.post(url, data=body, headers=headers) as answer:
        return Reference(answer.status, answer.headers["Content-Type"], await answer.read())


VOLATILE = re.compile(
    rb'("id":"chatcmpl-)[^"]+'
    rb'|("created":)\d+'
    rb'|("(?:prompt|predicted)_(?:ms|per_token_ms|per_second)":)[-+.\deE]+'
)


def masked(answer: Reference) -> Reference:
    """Blot out ids and times, and nothing else."""
    body = VOLATILE.sub(lambda match: (match[1] or match[2] or match[3]) + b"*", answer.body)
    return Reference(answer.status, answer.content_type, body)


def lasting(value: Any) -> Any:
    """Leave out ids and times from decoded JSON."""
    if isinstance(value, list):
        return [lasting(item) for item in value]
    if isinstance(value, dict):
        return {
            key: lasting(item)
            for key, item in value.items()
            if key not in {"created", "timings"} and not str(item).startswith("chatcmpl-")
        }
    return value


# What Ollama's clients are to get, told from the engine's answer in OpenAI's dialect


def ollama_whole(answer: Reference) -> dict[str, Any]:
    """The answer's parts that both dialects have."""
    found = answer.whole()
    choice, usage = found["choices"][0], found["usage"]
    return {
        "text": choice["message"]["content"] if "message" in choice else choice["text"],
        "done": True,
        "done_reason": choice["finish_reason"],
        "prompt_eval_count": usage["prompt_tokens"],
        "eval_count": usage["completion_tokens"],
    }


def ollama_pieces(answer: Reference) -> tuple[list[str], dict[str, Any]]:
    """The pieces of text in their order, and how the last line ends the answer."""
    pieces: list[str] = []
    reason, usage = "", dict[str, int]()
    for event in answer.events():
        for choice in event["choices"]:
            text = choice["delta"].get("content") if "delta" in choice else choice["text"]
            pieces += [text] if text else []
            reason = choice["finish_reason"] or reason
        usage = event.get("usage") or usage
    ending = {
        "text": "",
        "done": True,
        "done_reason": reason,
        "prompt_eval_count": usage["prompt_tokens"],
        "eval_count": usage["completion_tokens"],
    }
    return pieces, ending


def ollama_line(line: Mapping[str, Any]) -> dict[str, Any]:
    """The same parts of one of Ollama's objects."""
    assert line["model"] == MODEL
    message = line.get("message")
    return {
        "text": message["content"] if message else line["response"],
        **{name: line.get(name) for name in ("done", "done_reason")},
        **{name: line.get(name) for name in ("prompt_eval_count", "eval_count")},
    }


def ollama_stream(lines: list[Mapping[str, Any]]) -> tuple[list[str], dict[str, Any]]:
    """Pieces and ending of a stream of Ollama's; only the last line may end it."""
    parts = [ollama_line(line) for line in lines]
    assert not any(part["done"] for part in parts[:-1])
    return [part["text"] for part in parts[:-1]], parts[-1]


def vector(answer: Reference) -> list[float]:
    found: list[float] = answer.whole()["data"][0]["embedding"]
    return found


def as_float32(numbers: Sequence[float]) -> bytes:
    """A vector in the 32 bits per number that the engine computes with."""
    return struct.pack(f"<{len(numbers)}f", *numbers)


class Clients(Struct):
    """All clients, pointed at the router."""

    session: aiohttp.ClientSession
    url: str
    openai: openai.AsyncOpenAI
    anthropic: anthropic.AsyncAnthropic
    ollama: ollama.AsyncClient

    async def post(self, path: str, fields: dict[str, Any]) -> Reference:
        body = json.dumps({"model": MODEL} | fields).encode()
        return await fetch(self.session, self.url + path, body)

    async def ndjson(self, path: str, fields: dict[str, Any]) -> list[Any]:
        answer = await self.post(path, fields)
        assert answer.content_type == "application/x-ndjson"
        assert answer.body.endswith(b"\n")
        return [json.loads(line) for line in answer.body.splitlines()]


Ask = Callable[[Clients, str], Awaitable[Any]]


class Kind(Struct, frozen=True):
    """A way of asking; what comes is to be what `expected` makes of the direct answer."""

    dialect: str
    #: Which direct answer it is compared with.
    direct: str
    ask: Ask
    expected: Callable[[Reference], Any]
    embeds: bool = False


def as_bytes(name: str) -> Kind:
    """Ask with the same bytes as the engine was asked with."""
    direct = DIRECT[name]

    async def ask(clients: Clients, prompt: str) -> Reference:
        return masked(await fetch(clients.session, clients.url + direct.path, direct.body(prompt)))

    dialect = "anthropic" if direct.path == MESSAGES else "openai"
    return Kind(dialect, name, ask, masked, embeds=direct.path == EMBEDDING)


async def openai_chat(clients: Clients, prompt: str) -> Any:
    answer = await clients.openai.chat.completions.create(
        model=MODEL, messages=said(prompt), **SAMPLING, extra_body=UNCACHED
    )
    return lasting(answer.to_dict())


async def openai_chat_stream(clients: Clients, prompt: str) -> Any:
    stream = await clients.openai.chat.completions.create(
        model=MODEL,
        messages=said(prompt),
        stream=True,
        stream_options=COUNT,
        **SAMPLING,
        extra_body=UNCACHED,
    )
    return [lasting(chunk.to_dict()) async for chunk in stream]


async def openai_completion(clients: Clients, prompt: str) -> Any:
    answer = await clients.openai.completions.create(
        model=MODEL, prompt=prompt, **SAMPLING, extra_body=UNCACHED
    )
    return lasting(answer.to_dict())


async def openai_completion_stream(clients: Clients, prompt: str) -> Any:
    stream = await clients.openai.completions.create(
        model=MODEL,
        prompt=prompt,
        stream=True,
        stream_options=COUNT,
        **SAMPLING,
        extra_body=UNCACHED,
    )
    return [lasting(chunk.to_dict()) async for chunk in stream]


async def openai_embedding(clients: Clients, prompt: str) -> Any:
    """The client asks for base64 by itself."""
    answer = await clients.openai.embeddings.create(model=MODEL, input=prompt)
    return as_float32(answer.data[0].embedding)


async def anthropic_messages(clients: Clients, prompt: str) -> Any:
    answer = await clients.anthropic.messages.create(
        model=MODEL,
        messages=said(prompt),
        max_tokens=TOKENS,
        extra_body=UNCACHED | GREEDY,
    )
    return lasting(answer.to_dict())


async def anthropic_messages_stream(clients: Clients, prompt: str) -> Any:
    stream = await clients.anthropic.messages.create(
        model=MODEL,
        messages=said(prompt),
        max_tokens=TOKENS,
        stream=True,
        extra_body=GREEDY,
    )
    return [lasting(event.to_dict()) async for event in stream]


async def ollama_chat(clients: Clients, prompt: str) -> Any:
    answer = await clients.ollama.chat(MODEL, said(prompt), options=OPTIONS)
    return ollama_line(answer.model_dump())


async def ollama_chat_stream(clients: Clients, prompt: str) -> Any:
    stream = await clients.ollama.chat(MODEL, said(prompt), options=OPTIONS, stream=True)
    return ollama_stream([part.model_dump() async for part in stream])


async def ollama_generate(clients: Clients, prompt: str) -> Any:
    answer = await clients.ollama.generate(MODEL, prompt, options=OPTIONS)
    return ollama_line(answer.model_dump())


async def ollama_generate_stream(clients: Clients, prompt: str) -> Any:
    stream = await clients.ollama.generate(MODEL, prompt, options=OPTIONS, stream=True)
    return ollama_stream([part.model_dump() async for part in stream])


async def ollama_raw_stream(clients: Clients, prompt: str) -> Any:
    stream = await clients.ollama.generate(MODEL, prompt, options=OPTIONS, raw=True, stream=True)
    return ollama_stream([part.model_dump() async for part in stream])


async def ollama_embed(clients: Clients, prompt: str) -> Any:
    answer = await clients.ollama.embed(MODEL, prompt)
    return list(answer.embeddings[0])


async def bare_ollama_turns(clients: Clients, prompt: str) -> Any:
    fields = {"messages": turns(prompt), "options": OPTIONS, "stream": False}
    return ollama_line((await clients.post("/api/chat", fields)).whole())


async def bare_ollama_chat_stream(clients: Clients, prompt: str) -> Any:
    """Without a `stream`, Ollama streams."""
    return ollama_stream(
        await clients.ndjson("/api/chat", {"messages": said(prompt), "options": OPTIONS})
    )


async def bare_ollama_raw(clients: Clients, prompt: str) -> Any:
    fields = {"prompt": prompt, "options": OPTIONS, "stream": False, "raw": True}
    return ollama_line((await clients.post("/api/generate", fields)).whole())


async def bare_ollama_embeddings(clients: Clients, prompt: str) -> Any:
    answer = await clients.post("/api/embeddings", {"prompt": prompt})
    return answer.whole()["embedding"]


#: 25 ways of asking, each with 8 prompts.
KINDS: Mapping[str, Kind] = {f"bytes-{name}": as_bytes(name) for name in DIRECT} | {
    "openai-chat": Kind("openai", "chat", openai_chat, lambda d: lasting(d.whole())),
    "openai-chat-stream": Kind(
        "openai", "chat-stream", openai_chat_stream, lambda d: lasting(d.events())
    ),
    "openai-completion": Kind(
        "openai", "completion", openai_completion, lambda d: lasting(d.whole())
    ),
    "openai-completion-stream": Kind(
        "openai", "completion-stream", openai_completion_stream, lambda d: lasting(d.events())
    ),
    "openai-embedding": Kind(
        "openai", "embedding", openai_embedding, lambda d: as_float32(vector(d)), embeds=True
    ),
    "anthropic-messages": Kind(
        "anthropic", "messages", anthropic_messages, lambda d: lasting(d.whole())
    ),
    "anthropic-messages-stream": Kind(
        "anthropic", "messages-stream", anthropic_messages_stream, lambda d: lasting(d.events())
    ),
    "ollama-chat": Kind("ollama", "chat", ollama_chat, ollama_whole),
    "ollama-chat-stream": Kind("ollama", "chat-stream", ollama_chat_stream, ollama_pieces),
    "ollama-generate": Kind("ollama", "chat", ollama_generate, ollama_whole),
    "ollama-generate-stream": Kind("ollama", "chat-stream", ollama_generate_stream, ollama_pieces),
    "ollama-raw-stream": Kind("ollama", "completion-stream", ollama_raw_stream, ollama_pieces),
    "ollama-embed": Kind("ollama", "embedding", ollama_embed, vector, embeds=True),
    "bytes-ollama-turns": Kind("ollama", "chat-turns", bare_ollama_turns, ollama_whole),
    "bytes-ollama-chat-stream": Kind(
        "ollama", "chat-stream", bare_ollama_chat_stream, ollama_pieces
    ),
    "bytes-ollama-embeddings": Kind(
        "ollama", "embedding", bare_ollama_embeddings, vector, embeds=True
    ),
}
