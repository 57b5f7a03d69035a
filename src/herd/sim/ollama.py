"""Ollama's own API: requests as it reads them, answers as it writes them."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from herd.sim.ask import Ask, Lengths, check_top_logprobs, make_answer, output_tokens
from herd.sim.gowords import keep_alive, stamp
from herd.sim.spec import Finished
from herd.sim.text import Answer, logprob, render, tokenise

JSON = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"

#: What Ollama answers, word for word.
QUEUE_FULL = "server busy, please try again.  maximum pending requests exceeded"
NO_EMBEDDINGS = "This server does not support embeddings. Start it with `--embeddings`"
INPUT_TOO_LONG = "the input length exceeds the context length"
NO_IMAGES = (
    '{"error":{"code":400,"message":"Multimodal data provided, but model does not support '
    'multimodal requests.","type":"invalid_request_error"}}'
)
MODEL_DIED = "an error was encountered while running the model: unexpected EOF"
RAW_MIX = "raw mode does not support template, system, or context"

_encode = msgspec.json.encode


class Message(Struct):
    """A turn of a chat."""

    role: str = ""
    content: str | None = ""
    thinking: str = ""
    images: list[str] | None = None
    tool_calls: list[Any] | None = None


class ChatRequest(Struct):
    """POST /api/chat."""

    model: str = ""
    messages: list[Message] | None = None
    stream: bool | None = None
    format: Any = None
    keep_alive: Any = None
    tools: list[Any] | None = None
    options: dict[str, Any] | None = None
    think: bool | str | None = None
    logprobs: bool = False
    top_logprobs: int = 0


class GenerateRequest(Struct):
    """POST /api/generate."""

    model: str = ""
    prompt: str = ""
    suffix: str = ""
    system: str = ""
    template: str = ""
    context: list[int] | None = None
    raw: bool = False
    images: list[str] | None = None
    stream: bool | None = None
    format: Any = None
    keep_alive: Any = None
    options: dict[str, Any] | None = None
    think: bool | str | None = None
    logprobs: bool = False
    top_logprobs: int = 0


class EmbedRequest(Struct):
    """POST /api/embed, and /api/embeddings with `prompt`."""

    model: str = ""
    input: Any = None
    prompt: str = ""
    truncate: bool | None = None
    dimensions: int = 0
    keep_alive: Any = None
    options: dict[str, Any] | None = None


class NamedRequest(Struct):
    """Requests that name a model: show, delete."""

    model: str = ""
    name: str = ""

    @property
    def either(self) -> str:
        """The name; `name` is its deprecated field."""
        return self.model or self.name


class CopyRequest(Struct):
    """POST /api/copy."""

    source: str = ""
    destination: str = ""


class CreateRequest(Struct):
    """POST /api/create, as far as it makes a model from another."""

    model: str = ""
    name: str = ""
    from_: str = msgspec.field(default="", name="from")
    system: str = ""
    stream: bool | None = None


def context_option(options: dict[str, Any] | None) -> int | None:
    """Return the `num_ctx` that a request asks for."""
    value = (options or {}).get("num_ctx")
    return value if isinstance(value, int) and value > 0 else None


def chat_ask(request: ChatRequest, lengths: Lengths) -> Ask:
    """Reduce a chat to what the engine needs; raises `Problem`."""
    turns = [
        (message.role, " ".join((message.content or "", *(message.images or ()))))
        for message in request.messages or ()
    ]
    return _ask(request, render(turns), lengths)


def generate_ask(request: GenerateRequest, lengths: Lengths) -> Ask:
    """Reduce a generate request to what the engine needs; raises `Problem`."""
    prompt = " ".join((request.prompt, *(request.images or ())))
    if request.raw:
        tokens = tuple(tokenise(prompt))
    else:
        turns = [("system", request.system)] if request.system else []
        tokens = (*(request.context or ()), *render([*turns, ("user", prompt)]))
    return _ask(request, tuple(token & 0xFFFFFFFF for token in tokens), lengths)


def loaded(model: str, *, chat: bool, unload: bool, now: float) -> bytes:
    """Return the answer to a request without a prompt, which only loads or unloads."""
    said: dict[str, Any] = (
        {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
    )
    reason = "unload" if unload else "load"
    head = {"model": model, "created_at": stamp(now)}
    return _encode({**head, **said, "done": True, "done_reason": reason})


def embedded(model: str, vectors: list[list[float]], done: Finished) -> bytes:
    """Return the answer of /api/embed."""
    return _encode(
        {
            "model": model,
            "embeddings": vectors,
            "total_duration": _nanoseconds(done.load + done.queue + done.prefill),
            "load_duration": _nanoseconds(done.load),
            "prompt_eval_count": done.prompt_tokens,
        }
    )


def embedded_one(vector: list[float]) -> bytes:
    """Return the answer of /api/embeddings."""
    return _encode({"embedding": vector})


def status(text: str) -> bytes:
    """Return a step of making a model."""
    return _encode({"status": text})


def error(message: str) -> bytes:
    """Return an error's body."""
    return _encode({"error": message})


class _Shape:
    """What chat and generate have in common."""

    stream_type = NDJSON
    whole_type = JSON
    headers_first = False

    def __init__(self, ask: Ask) -> None:
        self.stream_headers: dict[str, str] = {}
        self._ask = ask
        self._head = b'{"model":%b,"created_at":"' % _encode(ask.model)

    def opening(self, now: float) -> bytes:  # noqa: ARG002 - as every shape
        """Nothing precedes the first token."""
        return b""

    def token(self, number: int, now: float) -> bytes:
        """Return one line."""
        ask = self._ask
        extra = b""
        if ask.top_logprobs is not None:
            extra = b',"logprobs":' + _encode([token_logprob(ask.answer, number, ask.top_logprobs)])
        text = ask.answer.encoded(number)
        return b'%b%b%b,"done":false%b}\n' % (
            self._head,
            stamp(now).encode(),
            self._said(text),
            extra,
        )

    def closing(self, done: Finished, now: float) -> bytes:
        """Return the last line, with the figures."""
        return self._last(b'""', done, now, b"") + b"\n"

    def whole(self, done: Finished, now: float) -> bytes:
        """Return everything in one object."""
        ask = self._ask
        extra = b""
        if ask.top_logprobs is not None:
            shown = [token_logprob(ask.answer, n, ask.top_logprobs) for n in range(ask.pieces)]
            extra = b',"logprobs":' + _encode(shown)
        return self._last(_encode(ask.answer.text(ask.pieces)), done, now, extra)

    def broken(self, now: float) -> bytes:  # noqa: ARG002 - as every shape
        """Return the line that tells of the model's death."""
        return error(MODEL_DIED) + b"\n"

    def _said(self, text: bytes) -> bytes:
        """Return the answer's field, from the time stamp's closing quote on."""
        raise NotImplementedError

    def _context(self) -> bytes:
        return b""

    def _last(self, text: bytes, done: Finished, now: float, extra: bytes) -> bytes:
        reason = b"stop" if self._ask.stopped else b"length"
        figures = {
            "total_duration": _nanoseconds(done.load + done.queue + done.prefill + done.decode),
            "load_duration": _nanoseconds(done.load),
            "prompt_eval_count": done.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(done.prefill),
            "eval_count": done.output_tokens,
            "eval_duration": _nanoseconds(done.decode),
        }
        return b"".join(
            (
                self._head,
                stamp(now).encode(),
                self._said(text),
                b',"done":true,"done_reason":"%b"' % reason,
                self._context(),
                extra,
                b",",
                _encode(figures)[1:],
            )
        )


class Chat(_Shape):
    """Answers of /api/chat."""

    def _said(self, text: bytes) -> bytes:
        return b'","message":{"role":"assistant","content":%b}' % text


class Generate(_Shape):
    """Answers of /api/generate."""

    def __init__(self, ask: Ask, *, raw: bool) -> None:
        super().__init__(ask)
        self._raw = raw

    def _said(self, text: bytes) -> bytes:
        return b'","response":%b' % text

    def _context(self) -> bytes:
        if self._raw:
            return b""
        return b',"context":' + _encode((*self._ask.tokens, *self._ask.produced))


def token_logprob(answer: Answer, number: int, top: int) -> dict[str, Any]:
    """Return a token with its log-probability and that of `top` alternatives."""
    shown = [_probability(answer, number + other, number) for other in range(max(1, top))]
    return {**shown[0], "top_logprobs": shown} if top else shown[0]


def _probability(answer: Answer, number: int, rank: int) -> dict[str, Any]:
    # A piece near the chosen one serves as its alternative, and is less probable.
    text = answer.piece(number % max(1, answer.length))
    value = logprob(answer, number) - 2.0 * (number - rank)
    return {"token": text, "logprob": value, "bytes": list(text.encode())}


def _ask(request: ChatRequest | GenerateRequest, tokens: tuple[int, ...], lengths: Lengths) -> Ask:
    check_top_logprobs(request.top_logprobs)
    options = request.options or {}
    limit, least = options.get("num_predict"), options.get("min_tokens")
    # The real one has no `min_tokens`, and ignores options that it does not know.
    answer = make_answer(tokens, lengths, request.format, least if isinstance(least, int) else None)
    return Ask(
        model=request.model,
        stream=request.stream is not False,
        tokens=tokens,
        answer=answer,
        output_tokens=output_tokens(answer, limit if isinstance(limit, int) else None),
        context=context_option(request.options),
        keep_alive=keep_alive(request.keep_alive),
        top_logprobs=request.top_logprobs if request.logprobs else None,
    )


def _nanoseconds(seconds: float) -> int:
    # Ollama leaves zeros out, but no real duration is zero.
    return max(1, round(seconds * 1e9))
