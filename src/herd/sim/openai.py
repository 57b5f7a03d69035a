"""OpenAI's API as Ollama speaks it: requests as it reads them, answers as it writes them."""

from __future__ import annotations

import base64
import struct
from typing import Any

import msgspec
from msgspec import Struct

from herd.sim.ask import Ask, Lengths, check_top_logprobs, make_answer, output_tokens
from herd.sim.gowords import Problem
from herd.sim.ollama import token_logprob
from herd.sim.spec import Finished
from herd.sim.text import render

JSON = "application/json"
SSE = "text/event-stream"
DONE = b"data: [DONE]\n\n"
_FINGERPRINT = "fp_ollama"
_ERROR_TYPES = {400: "invalid_request_error", 404: "not_found_error"}

_encode = msgspec.json.encode


class StreamOptions(Struct):
    """`stream_options`."""

    include_usage: bool = False


class ChatMessage(Struct):
    """A turn of a chat; its content is text or a list of parts."""

    role: str = ""
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[Any] | None = None


class ChatRequest(Struct):
    """POST /v1/chat/completions."""

    model: str = ""
    messages: list[ChatMessage] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    #: vLLM's own. The emulated Ollama heeds it as well, which the real one does not: with a server
    #: whose answers are short it fixes an answer's length without a limit that a router would see.
    min_tokens: int | None = None
    response_format: dict[str, Any] | None = None
    tools: list[Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class CompletionRequest(Struct):
    """POST /v1/completions."""

    model: str = ""
    prompt: str | list[str] = ""
    suffix: str = ""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None


class EmbeddingsRequest(Struct):
    """POST /v1/embeddings."""

    model: str = ""
    input: Any = None
    encoding_format: str = "float"
    dimensions: int = 0


def chat_tokens(messages: list[ChatMessage]) -> tuple[int, ...]:
    """Return a chat as tokens."""
    return render((message.role, content_text(message.content)) for message in messages)


def content_text(content: str | list[dict[str, Any]] | None) -> str:
    """Return the text of a turn; a picture counts as its address."""
    if content is None or isinstance(content, str):
        return content or ""
    return " ".join(_part_text(part) for part in content)


def has_images(messages: list[ChatMessage]) -> bool:
    """Whether any turn has a picture."""
    return any(
        part.get("type") == "image_url"
        for message in messages
        if isinstance(message.content, list)
        for part in message.content
    )


def format_schema(response_format: dict[str, Any] | None) -> Any:
    """Return what the answer has to be: None, "json" or a schema."""
    kind = (response_format or {}).get("type")
    if kind == "json_schema":
        schema = ((response_format or {}).get("json_schema") or {}).get("schema")
        return schema or "json"
    return "json" if kind == "json_object" else None


def chat_ask(request: ChatRequest, lengths: Lengths) -> Ask:
    """Reduce a chat to what the engine needs; raises `Problem`.

    Ollama ignores `max_completion_tokens`.
    """
    if not request.messages:
        raise Problem(400, "[] is too short - 'messages'", early=True)
    check_top_logprobs(request.top_logprobs or 0)
    answer = make_answer(
        tokens := chat_tokens(request.messages),
        lengths,
        format_schema(request.response_format),
        request.min_tokens,
    )
    return Ask(
        model=request.model,
        stream=bool(request.stream),
        tokens=tokens,
        answer=answer,
        output_tokens=output_tokens(answer, request.max_tokens),
        top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        usage=request.stream_options is not None and request.stream_options.include_usage,
    )


def completion_ask(request: CompletionRequest, lengths: Lengths) -> Ask:
    """Reduce a completion to what the engine needs; a prompt is one turn of the user's."""
    prompt = request.prompt if isinstance(request.prompt, str) else " ".join(request.prompt)
    answer = make_answer(tokens := render([("user", prompt)]), lengths)
    return Ask(
        model=request.model,
        stream=bool(request.stream),
        tokens=tokens,
        answer=answer,
        output_tokens=output_tokens(answer, request.max_tokens),
        usage=request.stream_options is not None and request.stream_options.include_usage,
    )


def embeddings(model: str, vectors: list[list[float]], done: Finished, *, as_base64: bool) -> bytes:
    """Return the answer of /v1/embeddings; base64 holds little-endian 32-bit floats."""
    rows = [
        {
            "object": "embedding",
            "embedding": base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
            if as_base64
            else vector,
            "index": index,
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": done.prompt_tokens, "total_tokens": done.prompt_tokens}
    return _encode({"object": "list", "data": rows, "model": model, "usage": usage}) + b"\n"


def error(status: int, message: str) -> bytes:
    """Return an error's body."""
    kind = _ERROR_TYPES.get(status, "api_error")
    return _encode({"error": {"message": message, "type": kind, "param": None, "code": None}})


def usage_of(done: Finished) -> dict[str, int]:
    """Return the figures of an answer."""
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.output_tokens,
        "total_tokens": done.prompt_tokens + done.output_tokens,
    }


def frame(value: Any) -> bytes:
    """Return a value as one event of a stream."""
    return b"data: %b\n\n" % _encode(value)


class _Shape:
    """What both kinds of answer have in common."""

    stream_type = SSE
    whole_type = JSON
    headers_first = False
    prefix = ""

    def __init__(self, ask: Ask, now: float) -> None:
        self.stream_headers: dict[str, str] = {}
        self._ask = ask
        self._created = int(now)
        # Ollama's ids are random numbers below 999, and do collide.
        self._id = f"{self.prefix}-{(ask.answer.seed + int(now * 1e6)) % 999}"

    def opening(self, now: float) -> bytes:  # noqa: ARG002 - as every shape
        """Nothing precedes the first token."""
        return b""

    def _reason(self) -> str:
        return "stop" if self._ask.stopped else "length"


class Chat(_Shape):
    """Answers of /v1/chat/completions."""

    prefix = "chatcmpl"

    def __init__(self, ask: Ask, now: float) -> None:
        super().__init__(ask, now)
        self._head = self._start("chat.completion.chunk", ask.model)

    def token(self, number: int, now: float) -> bytes:  # noqa: ARG002 - as every shape
        """Return one event; the first tells the role."""
        ask = self._ask
        role = b"" if number else b'"role":"assistant",'
        extra = b""
        if ask.top_logprobs is not None:
            shown = {"content": [token_logprob(ask.answer, number, ask.top_logprobs)]}
            extra = b',"logprobs":' + _encode(shown)
        return b'data: %b{"index":0,"delta":{%b"content":%b},"finish_reason":null%b}]}\n\n' % (
            self._head,
            role,
            ask.answer.encoded(number),
            extra,
        )

    def closing(self, done: Finished, now: float) -> bytes:  # noqa: ARG002 - as every shape
        """Return the reason, the usage if asked for, and the terminator."""
        role = b"" if self._ask.pieces else b'"role":"assistant","content":""'
        end = b'data: %b{"index":0,"delta":{%b},"finish_reason":"%b"}]}\n\n' % (
            self._head,
            role,
            self._reason().encode(),
        )
        if self._ask.usage:
            figures = _encode(usage_of(done))
            end += b'data: %b],"usage":%b}\n\n' % (self._head, figures)
        return end + DONE

    def whole(self, done: Finished, now: float) -> bytes:  # noqa: ARG002 - as every shape
        """Return everything in one object."""
        ask = self._ask
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": ask.answer.text(ask.pieces)},
            "finish_reason": self._reason(),
        }
        if ask.top_logprobs is not None:
            shown = [token_logprob(ask.answer, n, ask.top_logprobs) for n in range(ask.pieces)]
            choice["logprobs"] = {"content": shown}
        head = self._start("chat.completion", ask.model)
        return b'%b%b],"usage":%b}\n' % (head, _encode(choice), _encode(usage_of(done)))

    def broken(self, now: float) -> bytes:  # noqa: ARG002 - as every shape
        """Return the empty chunk without a model that comes when the model's process dies."""
        head = self._start("chat.completion.chunk", "")
        return b'data: %b{"index":0,"delta":{"content":""},"finish_reason":null}]}\n\n' % head

    def _start(self, kind: str, model: str) -> bytes:
        """Return everything up to the first choice."""
        head = {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": model,
            "system_fingerprint": _FINGERPRINT,
        }
        return _encode(head)[:-1] + b',"choices":['


class Completion(_Shape):
    """Answers of /v1/completions."""

    prefix = "cmpl"

    def token(self, number: int, now: float) -> bytes:
        """Return one event."""
        return self._chunk(self._ask.answer.encoded(number), b"null", now)

    def closing(self, done: Finished, now: float) -> bytes:
        """Return the reason, the usage if asked for, and the terminator."""
        end = self._chunk(b'""', b'"%b"' % self._reason().encode(), now)
        if self._ask.usage:
            last = {**self._head(now), "choices": [], **self._tail(), "usage": usage_of(done)}
            end += frame(last)
        return end + DONE

    def whole(self, done: Finished, now: float) -> bytes:  # noqa: ARG002 - as every shape
        """Return everything in one object."""
        text = self._ask.answer.text(self._ask.pieces)
        choice = {"text": text, "index": 0, "finish_reason": self._reason()}
        head = {"id": self._id, "object": "text_completion", "created": self._created}
        rest = {"choices": [choice], "usage": usage_of(done)}
        return _encode({**head, **self._tail(), **rest}) + b"\n"

    def broken(self, now: float) -> bytes:
        """Return the empty chunk that comes when the model's process dies."""
        return self._chunk(b'""', b"null", now)

    def _head(self, now: float) -> dict[str, Any]:
        return {"id": self._id, "object": "text_completion", "created": int(now)}

    def _tail(self) -> dict[str, Any]:
        return {"model": self._ask.model, "system_fingerprint": _FINGERPRINT}

    def _chunk(self, text: bytes, reason: bytes, now: float) -> bytes:
        # With include_usage every chunk carries a usage of zeros.
        tail: dict[str, Any] = self._tail()
        if self._ask.usage:
            tail["usage"] = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        return b'data: %b,"choices":[{"text":%b,"index":0,"finish_reason":%b}],%b\n\n' % (
            _encode(self._head(now))[:-1],
            text,
            reason,
            _encode(tail)[1:],
        )


def _part_text(part: dict[str, Any]) -> str:
    if part.get("type") == "image_url":
        picture = part.get("image_url")
        return str(picture.get("url", "") if isinstance(picture, dict) else picture)
    return str(part.get("text", ""))
