"""Measures an answer that passes through, without parsing its frames.

The relay hands every chunk to `feed` and sends on what comes back: the same bytes, held back only
as far as a frame is not complete, so that an error can always be added as a frame of its own. What
the end of the stream says (usage, timings, finish reason, and whether it is the end at all) is
read once, from the last few kilobytes.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct

from herd.core.request import Result, Timings, Usage

#: How an answer is framed and ends.
Form = Literal["ollama", "openai", "anthropic"]

#: The tail is cut back whenever it has grown to this; the cost per byte stays constant.
_TAIL = 32 * 1024
#: Frames that the end of a stream may spread over: finish reason, usage, terminator, and spare.
_FRAMES = 6
#: No count or duration is as large; beyond it other programs' integers end.
_LARGEST = 2**53
_NS = 1e-9
_MS = 1e-3


class Filter(Protocol):
    """What stands between an engine's stream and the client: a meter or a translator."""

    #: The stream's own terminator was seen.
    complete: bool
    #: The engine reported an error inside the stream.
    error: str | None

    @property
    def result(self) -> Result:
        """What the stream told of itself, once it has ended."""

    def feed(self, data: bytes, now: float) -> bytes:
        """Take a chunk; return what may go to the client now."""

    def finish(self, now: float) -> bytes:
        """The engine closed the stream; return what is left for the client."""


class Meter:
    """A filter that changes nothing."""

    def __init__(self, form: Form) -> None:
        self.complete = False
        self.error: str | None = None
        self.result = Result()
        self._form = form
        self._separators = (b"\n",) if form == "ollama" else (b"\n\n", b"\r\n\r\n")
        self._separator = self._separators[0]
        self._head = b""
        self._begun = False
        self._pending = b""
        self._tail: list[bytes] = []
        self._tail_size = 0
        self._tail_limit = _TAIL
        self._bytes = 0
        self._frames = 0

    def feed(self, data: bytes, now: float) -> bytes:  # noqa: ARG002 - a translator needs it
        """Return the whole frames so far."""
        if self._pending:
            data = self._pending + data
            self._pending = b""
        if not data.endswith(self._separator):
            data = self._hold_back(data)
        if not self._begun:
            data = self._await_answer(data)
        self._bytes += len(data)
        self._frames += data.count(self._separator)
        self._tail.append(data)
        self._tail_size += len(data)
        if self._tail_size > self._tail_limit:
            self._cut()
        return data

    def finish(self, now: float) -> bytes:  # noqa: ARG002 - a translator needs it
        """Read the end; return what was held back, unless it is the stump of a frame."""
        left, self._pending = self._pending, b""
        ending = _ENDINGS[self._form](b"".join([self._head, *self._tail, left]))
        self._tail = []
        left = left if ending.complete or ending.error is not None else b""
        self.complete = ending.complete
        self.error = ending.error
        self.result = Result(
            usage=ending.usage,
            timings=ending.timings,
            finish_reason=ending.finish_reason,
            bytes_out=self._bytes + len(left),
            frames=self._frames,
        )
        return left

    def _hold_back(self, data: bytes) -> bytes:
        """Keep the part behind the last whole frame; an engine has either separator."""
        cut = 0
        for separator in self._separators:
            found = data.rfind(separator)
            if found >= cut:
                cut, self._separator = found + len(separator), separator
        self._pending = data[cut:]
        return data[:cut]

    def _await_answer(self, data: bytes) -> bytes:
        """Keep comments back until the first frame that is none, and let them go with it.

        Engines send them while they read a long prompt. They are no answer yet: another replica
        can take over from an engine that dies before its first real frame.
        """
        at = 0
        while data.startswith(b":", at):
            at = data.find(self._separator, at) + len(self._separator)
        if at < len(data):
            self._begun = True
            return data
        self._pending = data + self._pending
        return b""

    def _cut(self) -> None:
        """Forget what is far from the end, save the first frame, where Anthropic tells of usage."""
        tail = b"".join(self._tail)
        if self._form == "anthropic" and not self._head:
            self._head = tail[: tail.find(self._separator) + len(self._separator)]
        cut = len(tail)
        for _ in range(_FRAMES + 1):
            cut = tail.rfind(self._separator, 0, cut)
            if cut < 0:
                break
        tail = tail[cut + 1 :] if cut >= 0 else tail
        self._tail = [tail]
        self._tail_size = len(tail)
        # A single frame may be longer than the limit; looking again pays when it has doubled.
        self._tail_limit = max(_TAIL, 2 * self._tail_size)


def measure(form: Form, body: bytes) -> Result:
    """Read the usage of an answer that came whole; an answer without any gives an empty result."""
    found = _decode(body)
    if found is None:
        return Result(bytes_out=len(body))
    if form == "ollama":
        usage, timings, reason = found.ollama_usage(), found.ollama_timings(), found.done_reason
    else:
        usage = _usage(found.usage)
        timings = _timings(found.timings)
        reason = found.stop_reason or _finish_reason(found.choices)
    return Result(
        usage=usage,
        timings=timings,
        finish_reason=reason if isinstance(reason, str) else "",
        bytes_out=len(body),
    )


class _Frame(Struct):
    """The fields of any dialect's frame that tell of its end. Anything goes, nothing fails."""

    # Ollama
    done: Any = None
    done_reason: Any = None
    load_duration: Any = None
    prompt_eval_count: Any = None
    prompt_eval_duration: Any = None
    eval_count: Any = None
    eval_duration: Any = None
    error: Any = None
    # OpenAI
    choices: Any = None
    usage: Any = None
    timings: Any = None
    # Anthropic
    type: Any = None
    delta: Any = None
    message: Any = None
    stop_reason: Any = None

    def ollama_usage(self) -> Usage:
        """Token counts by Ollama's names."""
        return Usage(
            prompt_tokens=_count(self.prompt_eval_count), completion_tokens=_count(self.eval_count)
        )

    def ollama_timings(self) -> Timings:
        """Durations by Ollama's names, from nanoseconds."""
        return Timings(
            load=_scaled(self.load_duration, _NS),
            prefill=_scaled(self.prompt_eval_duration, _NS),
            decode=_scaled(self.eval_duration, _NS),
        )


class _Ending(Struct):
    complete: bool = False
    error: str | None = None
    usage: Usage = Usage()
    timings: Timings = Timings()
    finish_reason: str = ""


_frame = msgspec.json.Decoder(_Frame)


def _ollama_ending(tail: bytes) -> _Ending:
    line = tail.rstrip(b"\n").rpartition(b"\n")[2]
    last = _decode(line)
    if last is None:
        return _Ending()
    if last.error is not None:
        return _Ending(error=_text(last.error))
    return _Ending(
        complete=last.done is True,
        usage=last.ollama_usage(),
        timings=last.ollama_timings(),
        finish_reason=_text(last.done_reason or ""),
    )


def _openai_ending(tail: bytes) -> _Ending:
    ending = _Ending()
    for data in _events(tail):
        if data == b"[DONE]":
            ending.complete = True
            continue
        found = _decode(data)
        if found is None:
            continue
        if found.error is not None:
            ending.error = _text(found.error)
        if found.usage is not None:
            ending.usage = _usage(found.usage)
        if found.timings is not None:
            ending.timings = _timings(found.timings)
            if ending.usage == Usage():
                ending.usage = _timed(found.timings)
        ending.finish_reason = _finish_reason(found.choices) or ending.finish_reason
    ending.complete = ending.complete and ending.error is None
    return ending


def _anthropic_ending(tail: bytes) -> _Ending:
    ending = _Ending()
    usage: dict[str, Any] = {}
    for data in _events(tail):
        found = _decode(data)
        if found is None:
            continue
        if found.type == "message_stop":
            ending.complete = True
        elif found.type == "message_start" and isinstance(found.message, dict):
            usage |= _known(found.message.get("usage"))
        elif found.type == "message_delta":
            usage |= _known(found.usage)
            if isinstance(found.delta, dict):
                ending.finish_reason = _text(found.delta.get("stop_reason") or "")
        elif found.type == "error":
            ending.error = _text(found.error)
    ending.usage = _usage(usage)
    ending.complete = ending.complete and ending.error is None
    return ending


_ENDINGS = {"ollama": _ollama_ending, "openai": _openai_ending, "anthropic": _anthropic_ending}


def _events(tail: bytes) -> list[bytes]:
    """The data of the last events; the first may be cut and is then not JSON."""
    return [line[5:].strip() for line in tail.splitlines() if line.startswith(b"data:")]


def _decode(data: bytes) -> _Frame | None:
    try:
        return _frame.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _known(usage: Any) -> dict[str, Any]:
    """Return the counts that are told; later frames may leave some out, or null."""
    if not isinstance(usage, dict):
        return {}
    return {name: count for name, count in usage.items() if count is not None}


def _usage(usage: Any) -> Usage:
    """Usage by OpenAI's or Anthropic's names."""
    if not isinstance(usage, dict):
        return Usage()
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    read = _count(usage.get("cache_read_input_tokens"))
    prompt = _count(usage.get("prompt_tokens", usage.get("input_tokens")))
    if read is not None and prompt is not None:
        prompt += read  # Anthropic counts cached tokens apart
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=_count(usage.get("completion_tokens", usage.get("output_tokens"))),
        cached_tokens=read if read is not None else _count(cached),
    )


def _timed(timings: Any) -> Usage:
    """Usage by llama.cpp's timings, which it adds also where nobody asked for usage."""
    if not isinstance(timings, dict):
        return Usage()
    fresh, cached = _count(timings.get("prompt_n")), _count(timings.get("cache_n"))
    return Usage(
        prompt_tokens=None if fresh is None else fresh + (cached or 0),
        completion_tokens=_count(timings.get("predicted_n")),
        cached_tokens=cached,
    )


def _timings(timings: Any) -> Timings:
    """Durations by llama.cpp's names, from milliseconds."""
    if not isinstance(timings, dict):
        return Timings()
    return Timings(
        prefill=_scaled(timings.get("prompt_ms"), _MS),
        decode=_scaled(timings.get("predicted_ms"), _MS),
    )


def _finish_reason(choices: Any) -> str:
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return _text(choices[0].get("finish_reason") or "")
    return ""


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= _LARGEST else None


def _scaled(value: Any, unit: float) -> float | None:
    return value * unit if isinstance(value, int | float) and 0 <= value <= _LARGEST else None


def _text(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("message", value)
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
