"""What engines that speak OpenAI's dialect answer: the parts that another dialect needs.

One shape serves whole answers and the chunks of a stream, chat and completions: llama.cpp, vLLM,
LM Studio and MLX differ only in which of these fields they leave out or add to.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

from herd.core import request as core

#: Characters of an error text that are passed on; a stack trace or a web page has more.
MAX_ERROR = 2000


class FunctionPart(Struct):
    """A function call, or the next fragment of its arguments (a string of JSON)."""

    name: str | None = None
    arguments: Raw = Raw()


class CallPart(Struct):
    """A tool call or a fragment of one; `index` says of which where several run in parallel."""

    index: int | None = None
    id: str | None = None
    function: FunctionPart | None = None


class Piece(Struct):
    """A `message` or a `delta`. llama.cpp and LM Studio think in `reasoning_content`."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[CallPart] | None = None

    @property
    def thinking(self) -> str:
        """The thoughts under either name."""
        return self.reasoning_content or self.reasoning or ""


class Choice(Struct):
    """One choice. `logprobs` stays undecoded, since few ask for it."""

    index: int = 0
    delta: Piece | None = None
    message: Piece | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Raw = Raw()

    @property
    def piece(self) -> Piece:
        """What the choice carries, in whichever field its kind of answer has it."""
        return self.delta or self.message or Piece(content=self.text)


class PromptDetails(Struct):
    """How much of the prompt was cached."""

    cached_tokens: int | None = None


class Usage(Struct):
    """Token counts."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None


class Timings(Struct):
    """llama.cpp's own clock, in milliseconds; `cache_n` prompt tokens came from its cache."""

    cache_n: int | None = None
    prompt_ms: float | None = None
    predicted_ms: float | None = None


class Answer(Struct):
    """A whole answer or one chunk of a stream."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    error: Raw = Raw()


class TopToken(Struct):
    """A token that could have been next."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(TopToken):
    """The token that was next, with its rivals."""

    top_logprobs: list[TopToken] | None = None


class Logprobs(Struct):
    """Log probabilities in chat's shape, which llama.cpp uses for completions too."""

    content: list[TokenLogprob] | None = None


class Vector(Struct):
    """One embedding."""

    embedding: list[float]
    index: int = 0


class Embeddings(Struct):
    """An answer of `/v1/embeddings`."""

    data: list[Vector]
    usage: Usage | None = None


answers: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)
embeddings: msgspec.json.Decoder[Embeddings] = msgspec.json.Decoder(Embeddings)
_logprobs: msgspec.json.Decoder[Logprobs | None] = msgspec.json.Decoder(Logprobs | None)


def is_given(raw: Raw) -> bool:
    """Whether an undecoded field was there and not null."""
    return bytes(raw) not in (b"", b"null")


def token_logprobs(choice: Choice) -> list[TokenLogprob]:
    """Decode a choice's log probabilities; raises `msgspec.DecodeError` on another shape."""
    if not is_given(choice.logprobs):
        return []
    decoded = _logprobs.decode(choice.logprobs)
    return (decoded.content if decoded else None) or []


def arguments_text(function: FunctionPart) -> bytes:
    """The arguments, or this fragment of them, as JSON text; some engines send the object bare."""
    raw = bytes(function.arguments)
    if raw.startswith(b'"'):
        return msgspec.json.decode(raw, type=str).encode()
    return raw if is_given(function.arguments) else b""


def result_of(usage: Usage | None, timings: Timings | None, finish_reason: str) -> core.Result:
    """The outcome's part that the engine reported; what it left out stays None."""
    usage = usage or Usage()
    timings = timings or Timings()
    details = usage.prompt_tokens_details or PromptDetails()
    cached = timings.cache_n if details.cached_tokens is None else details.cached_tokens
    return core.Result(
        usage=core.Usage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=cached,
        ),
        timings=core.Timings(
            prefill=None if timings.prompt_ms is None else timings.prompt_ms / 1e3,
            decode=None if timings.predicted_ms is None else timings.predicted_ms / 1e3,
        ),
        finish_reason=finish_reason,
    )


def error_text(body: bytes) -> str:
    """The message inside an error body of any engine's shape; empty if the body says nothing.

    Known shapes: `{"error": {"message": ...}}` (llama.cpp, vLLM, LM Studio), `{"error": "text"}`
    (MLX, LM Studio), `{"detail": ...}` (FastAPI), `{"message": ...}`, and plain text.
    """
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body.decode("utf-8", "replace").strip()[:MAX_ERROR]
    return _message(value)[:MAX_ERROR]


def _message(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:  # FastAPI's list of validation errors
        return "; ".join(_message(item) for item in value)
    if isinstance(value, dict):
        for key in ("error", "detail", "message", "msg"):
            if value.get(key):
                return _message(value[key])
    return msgspec.json.encode(value).decode()
