"""Anthropic's API as Ollama speaks it."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from herd.sim.ask import Ask, Lengths, make_answer, output_tokens
from herd.sim.gowords import Problem
from herd.sim.openai import JSON, SSE
from herd.sim.spec import Finished
from herd.sim.text import render

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}
#: Ollama's estimate of the prompt in `message_start`: characters for each token.
_CHARACTERS_PER_TOKEN = 4

_encode = msgspec.json.encode


class Turn(Struct):
    """A turn of a chat."""

    role: str = ""
    content: str | list[dict[str, Any]] = ""


class MessagesRequest(Struct):
    """POST /v1/messages."""

    model: str = ""
    max_tokens: int = 0
    messages: list[Turn] | None = None
    system: str | list[dict[str, Any]] | None = None
    stream: bool | None = None
    tools: list[Any] | None = None


def messages_ask(request: MessagesRequest, lengths: Lengths) -> Ask:
    """Reduce a chat to what the engine needs; raises `Problem`."""
    if request.max_tokens <= 0:
        raise Problem(400, "max_tokens is required and must be positive", early=True)
    if not request.messages:
        raise Problem(400, "messages is required", early=True)
    turns = [(turn.role, _text(turn.content)) for turn in request.messages]
    if request.system:
        turns.insert(0, ("system", _text(request.system)))
    answer = make_answer(tokens := render(turns), lengths)
    return Ask(
        model=request.model,
        stream=bool(request.stream),
        tokens=tokens,
        answer=answer,
        output_tokens=output_tokens(answer, request.max_tokens),
    )


def estimate_tokens(request: MessagesRequest) -> int:
    """Return the guess that opens a stream, before the prompt has been counted."""
    texts = [_text(turn.content) for turn in request.messages or ()]
    texts.append(_text(request.system or ""))
    return max(1, sum(map(len, texts)) // _CHARACTERS_PER_TOKEN)


def error(status: int, message: str) -> bytes:
    """Return an error's body."""
    kind = _ERROR_TYPES.get(status, "api_error")
    body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_0"}
    return _encode(body)


class Messages:
    """Answers of /v1/messages."""

    stream_type = SSE
    whole_type = JSON
    headers_first = False

    def __init__(self, ask: Ask, estimate: int, now: float) -> None:
        self.stream_headers = {"Cache-Control": "no-cache", "Connection": "keep-alive"}
        self._ask = ask
        self._estimate = estimate
        self._id = f"msg_{(ask.answer.seed << 32) + int(now * 1e6) % 2**32:024x}"

    def opening(self, now: float) -> bytes:  # noqa: ARG002 - as every shape
        """Return the message's frame and its one block's."""
        start = {
            "type": "message_start",
            "message": {
                **self._head(),
                "content": [],
                "usage": {"input_tokens": self._estimate, "output_tokens": 0},
            },
        }
        block = {"type": "content_block_start", "index": 0}
        return _event(start) + _event({**block, "content_block": {"type": "text", "text": ""}})

    def token(self, number: int, now: float) -> bytes:  # noqa: ARG002 - as every shape
        """Return one event."""
        return (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
            b'"delta":{"type":"text_delta","text":%b}}\n\n' % self._ask.answer.encoded(number)
        )

    def closing(self, done: Finished, now: float) -> bytes:  # noqa: ARG002 - as every shape
        """Return the block's end, the true figures, and the terminator."""
        delta = {
            "type": "message_delta",
            "delta": {"stop_reason": self._reason()},
            "usage": _usage(done),
        }
        stop = {"type": "content_block_stop", "index": 0}
        return _event(stop) + _event(delta) + _event({"type": "message_stop"})

    def whole(self, done: Finished, now: float) -> bytes:  # noqa: ARG002 - as every shape
        """Return everything in one object."""
        text = self._ask.answer.text(self._ask.pieces)
        body = {
            **self._head(),
            "content": [{"type": "text", "text": text}],
            "stop_reason": self._reason(),
            "usage": _usage(done),
        }
        return _encode(body) + b"\n"

    def broken(self, now: float) -> bytes:  # noqa: ARG002 - as every shape
        """The stream just ends when the model's process dies."""
        return b""

    def _head(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._ask.model,
        }

    def _reason(self) -> str:
        return "end_turn" if self._ask.stopped else "max_tokens"


def _usage(done: Finished) -> dict[str, int]:
    return {"input_tokens": done.prompt_tokens, "output_tokens": done.output_tokens}


def _event(value: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (value["type"].encode(), _encode(value))


def _text(content: str | list[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    # A tool's result has its text, or further blocks, in `content`.
    return " ".join(str(part.get("text") or part.get("content") or "") for part in content)
