"""What Ollama answers: the objects of `/api/chat` and `/api/generate`, fields in its order."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

import msgspec
from msgspec import Raw, Struct

from herd.core.request import Result
from herd.wire import openai_answer as openai

#: OpenAI's reasons that are plain endings in Ollama's words.
_PLAIN: Final = frozenset({"tool_calls", "function_call"})
#: Reasons by which vLLM says that the answer is not all that there should be.
_BROKEN: Final = frozenset({"abort", "error"})


class Called(Struct):
    """A function that the model calls; its arguments are an object."""

    index: int
    name: str
    arguments: Raw


class ToolCall(Struct, kw_only=True, omit_defaults=True):
    """A tool call."""

    id: str = ""
    function: Called


class TopToken(Struct):
    """A token that could have been next."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Struct, omit_defaults=True):
    """The token that was next; its rivals are left out where nobody asked for them."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopToken] | None = None


class Part(Struct, kw_only=True):
    """What a line carries of the answer."""

    text: str = ""
    thinking: str = ""
    tool_calls: list[ToolCall] | None = None
    logprobs: list[TokenLogprob] | None = None


class Metrics(Struct, kw_only=True, frozen=True):
    """Token counts, and durations in whole nanoseconds; a count that nobody knows is None."""

    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


class Ending(Struct, kw_only=True, frozen=True):
    """How the answer ended, in Ollama's words."""

    reason: str
    metrics: Metrics = Metrics()


class _Message(Struct, kw_only=True, omit_defaults=True):
    role: str
    content: str
    thinking: str = ""
    tool_calls: list[ToolCall] | None = None


class _ChatLine(Struct, kw_only=True, omit_defaults=True):
    model: str
    created_at: str
    message: _Message
    done: bool
    done_reason: str = ""
    logprobs: list[TokenLogprob] | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


class _GenerateLine(Struct, kw_only=True, omit_defaults=True):
    model: str
    created_at: str
    response: str
    thinking: str = ""
    done: bool
    done_reason: str = ""
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None
    tool_calls: list[ToolCall] | None = None
    logprobs: list[TokenLogprob] | None = None


_encoder: Final = msgspec.json.Encoder()
_object: Final = msgspec.json.Decoder(dict[str, Raw])
_NO_PART: Final = Part()


def answer_line(
    endpoint: str, model: str, now: float, part: Part = _NO_PART, ending: Ending | None = None
) -> bytes:
    """Return one object of an answer on `/api/chat` or `/api/generate`, without a line end.

    With an `ending` it is the last (or only) one. `model` is the name as it was asked for.
    """
    if endpoint == "/api/chat":
        line: _ChatLine | _GenerateLine = _ChatLine(
            model=model,
            created_at=created_at(now),
            message=_Message(
                role="assistant",
                content=part.text,
                thinking=part.thinking,
                tool_calls=part.tool_calls,
            ),
            done=ending is not None,
            logprobs=part.logprobs,
        )
    else:
        line = _GenerateLine(
            model=model,
            created_at=created_at(now),
            response=part.text,
            thinking=part.thinking,
            done=ending is not None,
            tool_calls=part.tool_calls,
            logprobs=part.logprobs,
        )
    if ending is not None:
        _close(line, ending)
    return _encoder.encode(line)


def created_at(now: float) -> str:
    """Return unix seconds as RFC 3339 in UTC, without trailing zeros, as Go writes it."""
    whole, dot, fraction = datetime.fromtimestamp(now, UTC).isoformat()[:-6].partition(".")
    return f"{whole}{dot}{fraction.rstrip('0')}Z"


def error_line(message: str) -> bytes:
    """Return an error in Ollama's shape, without a line end."""
    return _encoder.encode({"error": message})


def done_reason(finish_reason: str) -> str:
    """Return Ollama's word for OpenAI's; raises `ValueError` where the answer was broken off."""
    if finish_reason in _BROKEN:
        raise ValueError(f"the engine broke off its answer ({finish_reason})")
    return "stop" if finish_reason in _PLAIN else finish_reason


def measure(result: Result, *, started: float, first: float | None, now: float) -> Metrics:
    """Return the metrics of an answer that began at `started` and ended `now`, in unix seconds.

    Prefill and decode are the engine's own where it told them; else `first`, when the first token
    came, divides them, and without it all of the time counts as decode. Nothing was loaded.
    """
    total = max(now - started, 0.0)
    before_first = 0.0 if first is None else min(max(first - started, 0.0), total)
    prefill, decode = result.timings.prefill, result.timings.decode
    return Metrics(
        total_duration=_nanoseconds(total),
        load_duration=0,
        prompt_eval_count=result.usage.prompt_tokens,
        prompt_eval_duration=_nanoseconds(before_first if prefill is None else prefill),
        eval_count=result.usage.completion_tokens,
        eval_duration=_nanoseconds(total - before_first if decode is None else decode),
    )


def tool_call(index: int, identity: str, name: str, arguments: bytes) -> ToolCall:
    """Return a tool call whose `arguments` are JSON; raises `ValueError` if not of an object."""
    text = arguments.strip() or b"{}"
    try:
        _object.decode(text)
    except msgspec.DecodeError as error:
        raise ValueError(
            f'the model called "{name}" with arguments that are not a JSON object'
        ) from error
    # One line, since lines divide the stream; numbers and strings keep their spelling.
    compact = msgspec.json.format(text, indent=-1)
    return ToolCall(id=identity, function=Called(index, name, Raw(compact)))


def logprobs_of(
    tokens: Iterable[openai.TokenLogprob], top_logprobs: int
) -> list[TokenLogprob] | None:
    """Return log probabilities in Ollama's shape, with so many rivals each; None if there are none.

    An engine may send one rival more than was asked for.
    """
    made = [
        TokenLogprob(
            token.token,
            token.logprob,
            _bytes(token),
            [
                TopToken(rival.token, rival.logprob, _bytes(rival))
                for rival in (token.top_logprobs or [])[:top_logprobs]
            ]
            or None,
        )
        for token in tokens
    ]
    return made or None


def _bytes(token: openai.TopToken) -> list[int]:
    return list(token.token.encode()) if token.bytes is None else token.bytes


def _close(line: _ChatLine | _GenerateLine, ending: Ending) -> None:
    line.done_reason = ending.reason
    metrics = ending.metrics
    line.total_duration = metrics.total_duration
    line.load_duration = metrics.load_duration
    line.prompt_eval_count = metrics.prompt_eval_count
    line.prompt_eval_duration = metrics.prompt_eval_duration
    line.eval_count = metrics.eval_count
    line.eval_duration = metrics.eval_duration


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
