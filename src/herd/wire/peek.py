"""Reads of a request's body only what routing needs; the rest is never decoded."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

#: Bytes of JSON text for a token; English prose has 4 to 5 letters a token, JSON some overhead.
BYTES_PER_TOKEN = 4.0
#: Tokens that a vision model makes of an image; 576 for LLaVA's 336-pixel tower, more for others.
TOKENS_PER_IMAGE = 1000

#: A key with its quotes cannot stand inside a JSON string, where the quotes would be escaped.
_IMAGE_MARKS = (b'"image_url"', b'"input_image"', b'"images"', b'"image"')


class BadBody(Exception):
    """The body cannot be read; the text says why."""


class Peek(Struct, frozen=True, kw_only=True):
    """What routing needs to know of a body."""

    #: As the client wrote it; empty if missing.
    model: str
    #: None where the client did not say: dialects differ in their default.
    stream: bool | None
    prompt_tokens: int
    max_tokens: int | None
    context: int | None
    images: bool
    tools: bool
    thinking: bool
    #: No prompt at all, by which Ollama's clients load and unload models.
    empty: bool
    #: Zero keep_alive, which with an empty prompt unloads.
    unload: bool


class _Body(Struct):
    """All dialects at once: a field that another dialect has does no harm."""

    model: Any = ""
    name: Any = ""
    stream: Any = None
    messages: Raw = Raw(b"")
    prompt: Raw = Raw(b"")
    system: Raw = Raw(b"")
    input: Raw = Raw(b"")
    tools: Raw = Raw(b"")
    max_tokens: Any = None
    max_completion_tokens: Any = None
    options: Any = None
    keep_alive: Any = None
    think: Any = None


_decoder = msgspec.json.Decoder(_Body)
_NOTHING = (b"", b"null", b"[]", b'""')
_ZERO = (0, "0", "0s", "0m", "0h")


def peek(body: bytes) -> Peek:
    """Read a JSON body of any dialect; raises `BadBody`."""
    try:
        found = _decoder.decode(body)
    except msgspec.DecodeError as error:
        raise BadBody("missing request body" if not body.strip() else str(error)) from error
    except RecursionError as error:
        raise BadBody("JSON is nested too deeply") from error
    model = found.model or found.name or ""
    if not isinstance(model, str):
        raise BadBody("model must be a string")
    options = found.options if isinstance(found.options, dict) else {}
    limit = found.max_completion_tokens or found.max_tokens or options.get("num_predict")
    parts = (found.messages, found.prompt, found.system, found.input, found.tools)
    images = any(mark in body for mark in _IMAGE_MARKS)
    return Peek(
        model=model,
        stream=found.stream if isinstance(found.stream, bool) else None,
        prompt_tokens=_tokens(parts, images=images),
        max_tokens=limit if isinstance(limit, int) and limit > 0 else None,
        context=_positive(options.get("num_ctx")),
        images=images and _has_images(found),
        tools=bytes(found.tools) not in _NOTHING,
        thinking=found.think not in (None, False),
        empty=all(bytes(part) in _NOTHING for part in (found.messages, found.prompt, found.input)),
        unload=found.keep_alive in _ZERO and found.keep_alive is not False,
    )


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _tokens(parts: tuple[Raw, ...], *, images: bool) -> int:
    size = sum(len(bytes(part)) for part in parts)
    if not images:
        return max(1, int(size / BYTES_PER_TOKEN))
    pictures, text = 0, 0
    for part in parts:
        for string in _strings(part):
            # No word is so long: text that has no space for so many bytes is base64.
            if len(string) > 1000 and " " not in string[:1000]:  # noqa: PLR2004
                pictures += 1
            else:
                text += len(string)
    return max(1, int(text / BYTES_PER_TOKEN) + pictures * TOKENS_PER_IMAGE)


def _strings(part: Raw) -> list[str]:
    found: list[str] = []
    stack: list[Any] = [msgspec.json.decode(part)] if bytes(part) else []
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, dict):
            stack.extend(item.values())
    return found


def _has_images(body: _Body) -> bool:
    """Whether a message has a picture in any dialect's way, empty lists not counted."""
    if bytes(body.prompt) not in _NOTHING:
        return True  # `/api/generate` has its images beside the prompt
    messages = msgspec.json.decode(body.messages or b"[]")
    if not isinstance(messages, list):
        return False
    for message in messages:
        if not isinstance(message, dict):
            continue
        if message.get("images"):
            return True
        content = message.get("content")
        if isinstance(content, list) and any(
            isinstance(part, dict) and part.get("type") in {"image_url", "image", "input_image"}
            for part in content
        ):
            return True
    return False
