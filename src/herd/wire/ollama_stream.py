"""The event stream of an engine that speaks OpenAI's dialect, as Ollama's lines of JSON."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from herd.core.request import Result
from herd.wire import openai_answer as openai
from herd.wire.ollama_answer import (
    Ending,
    Part,
    answer_line,
    done_reason,
    error_line,
    logprobs_of,
    measure,
    tool_call,
)
from herd.wire.ollama_request import Translated
from herd.wire.sse import Event, EventTooLongError, SseParser

_DONE: Final = b"[DONE]"


class _OpenCall(Struct):
    """A tool call whose arguments are still coming."""

    index: int
    id: str = ""
    name: str = ""
    arguments: bytes = b""


class StreamTranslator:
    """Translates one stream. Text goes out as it comes; tool calls once they are whole.

    The last line, with its metrics, waits for the engine's `[DONE]`, or for the clean end of a
    stream that told its finish reason and usage. An engine that reports an error, or sends what
    cannot be understood, ends the answer with a line that holds only the error.
    """

    def __init__(self, translated: Translated, *, started: float) -> None:
        self._translated = translated
        self._started = started
        self._sse = SseParser()
        self._calls: list[_OpenCall] = []
        self._first: float | None = None
        self._finish_reason = ""
        self._usage: openai.Usage | None = None
        self._timings: openai.Timings | None = None
        self._over = False
        self._bytes_out = 0
        self._frames = 0
        #: The engine's stream came to its proper end, and so has ours.
        self.complete = False
        #: What the engine reported, or what is wrong with what it sent; ours has ended with it.
        self.error: str | None = None

    def feed(self, data: bytes, now: float) -> bytes:
        """Take the next bytes of the stream; return lines that are ready, if any."""
        if self._over:
            return b""
        try:
            events = self._sse.feed(data)
        except EventTooLongError as error:
            return self._count(self._fail(str(error)))
        return self._count(self._translate(events, now))

    def finish(self, now: float) -> bytes:
        """Say that the stream has ended cleanly; return the lines that waited for it, if any."""
        if self._over:
            return b""
        lines = self._translate([e for e in self._sse.finish() if _is_whole(e)], now)
        ended = self.complete or self.error is not None
        if not ended and self._finish_reason and self._usage is not None:
            lines += self._end(now)
        self._over = True
        return self._count(lines)

    @property
    def result(self) -> Result:
        """What the stream has yielded so far."""
        result = openai.result_of(self._usage, self._timings, self._finish_reason)
        return msgspec.structs.replace(result, bytes_out=self._bytes_out, frames=self._frames)

    def _translate(self, events: list[Event], now: float) -> bytes:
        lines = []
        for event in events:
            lines.append(self._event(event, now))
            if self._over:
                break
        return b"".join(lines)

    def _event(self, event: Event, now: float) -> bytes:
        if event.data == _DONE:
            return self._end(now)
        if event.name == "error":
            return self._fail(openai.error_text(event.data))
        try:
            return self._chunk(openai.answers.decode(event.data), now)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return self._fail(f"the engine sent an event that cannot be read: {error}")

    def _chunk(self, chunk: openai.Answer, now: float) -> bytes:
        if openai.is_given(chunk.error):
            return self._fail(openai.error_text(bytes(chunk.error)))
        self._usage = chunk.usage or self._usage
        self._timings = chunk.timings or self._timings
        return b"".join(self._choice(choice, now) for choice in chunk.choices or [])

    def _choice(self, choice: openai.Choice, now: float) -> bytes:
        piece = choice.piece
        tokens = openai.token_logprobs(choice) if self._translated.logprobs else []
        logprobs = logprobs_of(tokens, self._translated.top_logprobs)
        part = Part(text=piece.content or "", thinking=piece.thinking, logprobs=logprobs)
        has_part = bool(part.text or part.thinking or part.logprobs)
        if self._first is None and (has_part or piece.tool_calls):
            self._first = now
        for call in piece.tool_calls or []:
            self._collect(call)
        line = self._line(part, now) if has_part else b""
        if choice.finish_reason:
            self._finish_reason = choice.finish_reason
            line += self._called(now)
        return line

    def _collect(self, call: openai.CallPart) -> None:
        function = call.function or openai.FunctionPart()
        target = self._open_call(call, begins=bool(call.id or function.name))
        target.id = target.id or call.id or ""
        target.name += function.name or ""
        target.arguments += openai.arguments_text(function)

    def _open_call(self, call: openai.CallPart, *, begins: bool) -> _OpenCall:
        """The call that a fragment belongs to; without an index, a name or id begins the next."""
        for known in reversed(self._calls):
            if known.index == call.index or (call.index is None and not begins):
                return known
        index = len(self._calls) if call.index is None else call.index
        self._calls.append(_OpenCall(index))
        return self._calls[-1]

    def _called(self, now: float) -> bytes:
        calls, self._calls = self._calls, []
        if not calls:
            return b""
        try:
            whole = [tool_call(c.index, c.id, c.name, c.arguments) for c in calls]
        except ValueError as error:
            return self._fail(str(error))
        return self._line(Part(tool_calls=whole), now)

    def _end(self, now: float) -> bytes:
        self._over = True
        if not self._finish_reason:  # the engine stopped without a word of why
            return b""
        try:
            reason = done_reason(self._finish_reason)
        except ValueError as error:
            return self._fail(str(error))
        self.complete = True
        metrics = measure(self.result, started=self._started, first=self._first, now=now)
        return self._line(Part(), now, Ending(reason=reason, metrics=metrics))

    def _fail(self, message: str) -> bytes:
        self._over = True
        self.error = message or "the engine reported an error without saying which"
        self._frames += 1
        return error_line(self.error) + b"\n"

    def _line(self, part: Part, now: float, ending: Ending | None = None) -> bytes:
        self._frames += 1
        translated = self._translated
        return answer_line(translated.endpoint, translated.asked, now, part, ending) + b"\n"

    def _count(self, lines: bytes) -> bytes:
        self._bytes_out += len(lines)
        return lines


def _is_whole(event: Event) -> bool:
    """Whether the rest that a stream ended with is an event and not the stump of one."""
    if event.data == _DONE:
        return True
    try:
        openai.answers.decode(event.data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True
