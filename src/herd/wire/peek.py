"""Reads of a request's body only what routing needs; the rest is never decoded."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Raw, Struct

from herd.core.request import Prefix
from herd.wire.caller import body_session
from herd.wire.prefix import prefix_of

#: Bytes of JSON text for a token; English prose has 4 to 5 letters a token, JSON some overhead.
BYTES_PER_TOKEN = 4.0
#: Tokens that a vision model makes of an image; 576 for LLaVA's 336-pixel tower, more for others.
TOKENS_PER_IMAGE = 1000

#: A key with its quotes cannot stand inside a JSON string, where the quotes would be escaped.
_IMAGE_MARKS = (b'"image_url"', b'"input_image"', b'"images"', b'"image"')
#: No word is so long: a text that begins like this is a picture.
_BASE64 = re.compile(r"(?:data:[^,]{0,200},)?[A-Za-z0-9+/_=-]{1000}")
#: Bytes that JSON's `\uXXXX` has more than the character that it usually stands for.
_ESCAPE_EXCESS = 3
#: Beyond this a number is no sensible limit, and other programs' integers end.
_LARGEST = 2**53


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
    #: For finding the conversation in caches; empty with images, whose bytes are no tokens.
    prefix: Prefix = Prefix()
    #: What the body calls its conversation; empty if it does not.
    session: str = ""
    #: OpenAI's `service_tier`, as it came.
    tier: Any = None


class _Body(Struct):
    """All dialects at once: a field that another dialect has does no harm."""

    model: Any = ""
    name: Any = ""
    stream: Any = None
    messages: Raw = Raw(b"")
    prompt: Raw = Raw(b"")
    images: Raw = Raw(b"")
    system: Raw = Raw(b"")
    input: Raw = Raw(b"")
    tools: Raw = Raw(b"")
    max_tokens: Any = None
    max_completion_tokens: Any = None
    options: Any = None
    keep_alive: Any = None
    think: Any = None
    prompt_cache_key: Any = None
    session_id: Any = None
    metadata: Raw = Raw(b"")
    service_tier: Any = None


_decoder = msgspec.json.Decoder(_Body)
_NOTHING = (b"", b"null", b"[]", b'""')
_LONGEST_NOTHING = 4
_ZERO = (0, "0", "0s", "0m", "0h")


def peek(body: bytes) -> Peek:
    """Read a JSON body of any dialect; raises `BadBody`."""
    try:
        return _peek(body)
    except msgspec.DecodeError as error:
        raise BadBody("missing request body" if not body.strip() else str(error)) from error
    except UnicodeDecodeError as error:
        raise BadBody(f"JSON is not UTF-8: {error.reason}") from error
    except RecursionError as error:
        raise BadBody("JSON is nested too deeply") from error


def _peek(body: bytes) -> Peek:
    found = _decoder.decode(body)
    model = found.model or found.name or ""
    if not isinstance(model, str):
        raise BadBody("model must be a string")
    options = found.options if isinstance(found.options, dict) else {}
    every = (
        found.messages,
        found.prompt,
        found.images,
        found.system,
        found.input,
        found.tools,
    )
    parts = [bytes(part) for part in every if part]
    # One look for what all marks have in common spares most bodies the other four.
    images = b"image" in body and any(mark in body for mark in _IMAGE_MARKS)
    return Peek(
        model=model,
        stream=found.stream if isinstance(found.stream, bool) else None,
        prompt_tokens=_tokens(parts, images=images),
        max_tokens=_positive(found.max_completion_tokens)
        or _positive(found.max_tokens)
        or _positive(options.get("num_predict")),
        context=_positive(options.get("num_ctx")),
        images=images and _has_images(found),
        tools=not _is_nothing(found.tools),
        thinking=found.think not in (None, False),
        empty=_is_nothing(found.messages)
        and _is_nothing(found.prompt)
        and _is_nothing(found.input),
        unload=found.keep_alive in _ZERO and found.keep_alive is not False,
        prefix=Prefix() if images else _prefix(found),
        session=body_session(found.prompt_cache_key, found.session_id, found.metadata),
        tier=found.service_tier,
    )


def _prefix(body: _Body) -> Prefix:
    """The parts in the order in which templates put them: tools, then system, then the rest."""
    parts = [bytes(part) for part in (body.tools, body.system, body.messages, body.prompt) if part]
    return prefix_of(parts, bytes_per_token=BYTES_PER_TOKEN)


def _positive(value: Any) -> int | None:
    return value if type(value) is int and 0 < value <= _LARGEST else None


def _is_nothing(part: Raw) -> bool:
    return len(part) <= _LONGEST_NOTHING and bytes(part) in _NOTHING


def _tokens(parts: list[bytes], *, images: bool) -> int:
    if not images:
        size = sum(map(_size, parts))
        return max(1, int(size / BYTES_PER_TOKEN))
    pictures, text = 0, 0
    for part in parts:
        for string in _strings(part):
            if _BASE64.match(string):
                pictures += 1
            else:
                text += len(string) if string.isascii() else len(string.encode())
    return max(1, int(text / BYTES_PER_TOKEN) + pictures * TOKENS_PER_IMAGE)


def _size(part: bytes) -> int:
    """Bytes of JSON text, the same whether or not the client escapes what is not ASCII."""
    if b"\\" not in part:
        return len(part)
    return len(part) - _ESCAPE_EXCESS * part.count(b"\\u")


def _strings(part: bytes) -> list[str]:
    found: list[str] = []
    stack: list[Any] = [msgspec.json.decode(part)]
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
    if not _is_nothing(body.images):
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
