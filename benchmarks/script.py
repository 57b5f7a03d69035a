"""Writes a simulated workload out as real requests, with the same lengths and prefixes.

The answer of an emulated engine is a function of the prompt, so whole conversations can be written
beforehand. The simulator then gets of each what the router will see (its own estimate of the
prompt, its own hashes of the body) and what the engine will see (tokens), so that nothing but time
is left in which the two could differ.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from herd.core.request import Prefix
from herd.sim.ask import make_answer
from herd.sim.text import Answer, render
from herd.sim.workloads import Session, Turn, Workload
from herd.wire.peek import BYTES_PER_TOKEN, peek

#: Answers of the engines: as short as can be, so that `min_tokens` alone decides.
ANSWER_TOKENS: Final = (1, 1)
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
#: Tokens that an engine adds to a text that it embeds.
_TEXT_ENDS: Final = 2


class Line(Struct, frozen=True):
    """One request as it is sent."""

    path: str
    body: bytes
    client: str
    stream: bool
    #: Seconds from the end of the session's request before.
    think: float
    #: Text that the answer must have; empty for an embedding.
    answer: str


class Part(Struct, frozen=True):
    """The requests of one session."""

    start: float
    lines: tuple[Line, ...]


class Script(Struct, frozen=True):
    """The requests to send, and the workload to simulate; session by session the same."""

    parts: tuple[Part, ...]
    workload: Workload


def write(workload: Workload, *, speed: float, seed: int) -> Script:
    """Write a workload out, with all that its clients do `speed` times as fast."""
    parts, sessions = [], []
    for number, session in enumerate(workload.sessions):
        writer = _Writer(random.Random(f"script/{seed}/{number}"))  # noqa: S311 - no secret
        written = [writer.turn(turn, turn.think / speed) for turn in session.turns]
        start = session.start / speed
        parts.append(Part(start, tuple(line for line, _ in written)))
        sessions.append(Session(start, tuple(turn for _, turn in written)))
    return Script(tuple(parts), Workload(workload.name, tuple(sessions)))


class _Writer:
    """Writes one session; remembers what has been said in its conversation."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._messages: list[dict[str, str]] = []
        #: Tokens that the conversation has so far, by the workload.
        self._tokens = 0

    def turn(self, turn: Turn, think: float) -> tuple[Line, Turn]:
        """Write a turn; return it as it is sent, and as it is to be simulated."""
        if turn.request.operation == "embedding":
            return self._embedding(turn, think)
        if turn.shared != self._tokens or not self._messages:
            self._begin(turn)
        width = self._width(turn)
        # The role's mark and the one of the answer are tokens too. Of the answer before, the token
        # that ended it is none of the conversation.
        ended = len(self._messages) > 1
        words = turn.prompt_tokens - turn.shared - (1 if ended else 2)
        text = _words(self._draw, max(1, words), width)
        self._messages.append({"role": "user", "content": text})
        tokens = render((each["role"], each["content"]) for each in self._messages)
        answer = make_answer(tokens, ANSWER_TOKENS, None, turn.output_tokens)
        line = self._line(turn, think, answer)
        said = answer.text(answer.length)
        self._messages.append({"role": "assistant", "content": said})
        self._tokens = turn.prompt_tokens + turn.output_tokens
        return line, _simulated(turn, line, tokens, answer)

    def _begin(self, turn: Turn) -> None:
        """Begin a conversation with its client's own system prompt."""
        # Clients have texts of their own; all sessions of one have the same.
        text = random.Random(f"system/{turn.request.client}/{turn.shared}")  # noqa: S311 - no secret
        words = _words(text, max(1, turn.shared - 1), BYTES_PER_TOKEN)
        self._messages = [{"role": "system", "content": words}]

    def _width(self, turn: Turn) -> float:
        """Bytes for a token, such that the router's estimate is wrong as in the workload."""
        return BYTES_PER_TOKEN * turn.request.prompt_tokens / turn.prompt_tokens

    def _line(self, turn: Turn, think: float, answer: Answer) -> Line:
        request = turn.request
        body: dict[str, Any] = {"model": request.model, "messages": self._messages}
        body["stream"] = request.stream
        if request.dialect == "ollama":
            body["options"] = {"min_tokens": turn.output_tokens}
        else:
            body["min_tokens"] = turn.output_tokens
            if request.stream:
                body["stream_options"] = {"include_usage": True}
        return Line(
            path=request.endpoint,
            body=msgspec.json.encode(body),
            client=request.client,
            stream=request.stream,
            think=think,
            answer=answer.text(answer.length),
        )

    def _embedding(self, turn: Turn, think: float) -> tuple[Line, Turn]:
        request = turn.request
        text = _words(self._draw, max(1, turn.prompt_tokens - _TEXT_ENDS), self._width(turn))
        line = Line(
            path=request.endpoint,
            body=msgspec.json.encode({"model": request.model, "input": text}),
            client=request.client,
            stream=False,
            think=think,
            answer="",
        )
        return line, _simulated(turn, line, (), None)


def _simulated(turn: Turn, line: Line, tokens: tuple[int, ...], answer: Answer | None) -> Turn:
    """Return the turn with what the router and the engine will see of the line."""
    seen = peek(line.body)
    request = msgspec.structs.replace(turn.request, prompt_tokens=seen.prompt_tokens)
    changed: Mapping[str, Any] = {
        "request": request,
        "prefix": seen.prefix,
        "think": line.think,
        "cached_as": Prefix(tokens, 1),
        "produced": () if answer is None else answer.tokens(answer.length),
    }
    if tokens:
        changed = {**changed, "prompt_tokens": len(tokens)}
    return msgspec.structs.replace(turn, **changed)


def _words(draw: random.Random, count: int, width: float) -> str:
    """Return so many words of random letters, with `width` bytes for each and its space."""
    length = max(1.0, width - 1.0)
    whole = int(length)
    sizes = (whole + (draw.random() < length - whole) for _ in range(count))
    return " ".join("".join(draw.choices(_LETTERS, k=size)) for size in sizes)
