"""What every dialect's request comes down to, and what a dialect makes of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from msgspec import Struct

from herd.sim.gowords import Problem
from herd.sim.spec import Finished
from herd.sim.text import Answer, answer

#: Shortest and longest answer in tokens.
Lengths = tuple[int, int]


class Ask(Struct, frozen=True, kw_only=True):
    """A request for an answer, in any dialect."""

    #: As the client wrote it.
    model: str
    stream: bool
    #: The prompt, a number for each token, and the answer it will get.
    tokens: tuple[int, ...]
    answer: Answer
    #: How many tokens the engine will generate, the ending one included.
    output_tokens: int
    #: Load-time settings, where the dialect has them.
    context: int | None = None
    keep_alive: float | None = None
    #: Alternatives to show with each token's probability; None for no probabilities.
    top_logprobs: int | None = None
    #: The client asked for the usage at the stream's end (OpenAI).
    usage: bool = False

    @property
    def stopped(self) -> bool:
        """Whether the answer comes to its own end, before any limit."""
        return self.output_tokens > self.answer.length

    @property
    def pieces(self) -> int:
        """Pieces of text in the answer; the token that ends it has none."""
        return min(self.output_tokens, self.answer.length)

    @property
    def produced(self) -> tuple[int, ...]:
        """What the answer adds to the conversation, as tokens."""
        return self.answer.tokens(self.pieces)


class Shape(Protocol):
    """A dialect's form of one answer. `now` is in seconds since 1970."""

    #: Content types of the stream and of the whole, and the stream's further headers.
    stream_type: str
    whole_type: str
    stream_headers: dict[str, str]
    #: Whether a stream's headers are sent at once, or only with its first token.
    headers_first: bool

    def opening(self, now: float) -> bytes:
        """Return what precedes the first token."""

    def token(self, number: int, now: float) -> bytes:
        """Return the frame of a piece of the answer, counted from 0."""

    def closing(self, done: Finished, now: float) -> bytes:
        """Return what follows the last token, terminator included."""

    def whole(self, done: Finished, now: float) -> bytes:
        """Return the answer to a request that does not stream."""

    def broken(self, now: float) -> bytes:
        """Return what a stream ends with when the model's process has died."""


def output_tokens(answer_: Answer, limit: int | None) -> int:
    """Return the tokens that an engine generates within a limit; None or below 1 is no limit."""
    natural = answer_.length + 1
    return natural if limit is None or limit < 1 else min(natural, limit)


def make_answer(
    tokens: Sequence[int], lengths: Lengths, schema: Any = None, least: int | None = None
) -> Answer:
    """Return the answer to a prompt, as JSON where the request's format demands it.

    Text comes to its end after `least` tokens at the earliest, the ending one included.
    """
    found = answer(tokens, *lengths, schema=schema or None)
    if found.pieces or least is None or least - 1 <= found.length:
        return found
    return Answer(found.seed, least - 1)


def check_top_logprobs(number: int) -> None:
    """Raise `Problem` 400 where Ollama does."""
    if not 0 <= number <= 20:  # noqa: PLR2004 - the API's limit
        raise Problem(400, "top_logprobs must be between 0 and 20")
