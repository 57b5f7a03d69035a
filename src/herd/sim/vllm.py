"""OpenAI's API as vLLM speaks it: requests, answers, model listing and metrics."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

import msgspec

from herd.sim.ask import Ask, Lengths, make_answer, output_tokens
from herd.sim.gowords import Problem
from herd.sim.openai import (
    DONE,
    ChatRequest,
    CompletionRequest,
    chat_tokens,
    format_schema,
    frame,
)
from herd.sim.spec import Finished, ModelSpec
from herd.sim.text import logprob, tokenise

VERSION = "0.32.0"
JSON = "application/json"
METRICS = "text/plain; version=1.0.0; charset=utf-8"
NOT_FOUND = b'{"detail":"Not Found"}'
NOT_ALLOWED = b'{"detail":"Method Not Allowed"}'
NO_TOOLS = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
_FINGERPRINT = f"vllm-{VERSION}-00000000"
_FIELD = re.compile(r"at `\$\.?([^`]*)`")

_encode = msgspec.json.encode
_T = TypeVar("_T")


def decode(body: bytes, kind: type[_T], required: str) -> _T:
    """Read a request's body; raises `Problem` 400 worded as vLLM, a Python program, does."""
    try:
        given = json.loads(body)
    except ValueError as error:
        place = f"body.{getattr(error, 'pos', 0)}"
        context = f"'ctx': {{'error': '{getattr(error, 'msg', error)}'}}"
        raise _invalid("json_invalid", place, "JSON decode error", {}, context) from error
    if isinstance(given, dict) and required not in given:
        raise _invalid("missing", f"body.{required}", "Field required", given)
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        found = _FIELD.search(str(error))
        place = f"body.{found[1]}" if found else "body"
        raise _invalid("type_error", place, str(error), given) from error


def not_json() -> Problem:
    """Return the problem of a request without `Content-Type: application/json`."""
    text = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
    return Problem(400, text, early=True)


def too_long(context: int, tokens: int) -> Problem:
    """Return the problem of a prompt that leaves no room for an answer."""
    return Problem(
        400,
        f"This model's maximum context length is {context} tokens. However, your request has "
        f"{tokens} input tokens. Please reduce the length of the input messages.",
    )


def chat_ask(request: ChatRequest, lengths: Lengths) -> Ask:
    """Reduce a chat to what the engine needs; raises `Problem`."""
    if request.tools:
        raise Problem(400, NO_TOOLS)
    schema = format_schema(request.response_format)
    tokens = chat_tokens(request.messages or [])
    answer = make_answer(tokens, lengths, schema, request.min_tokens)
    limit = request.max_completion_tokens or request.max_tokens
    return Ask(
        model=request.model,
        stream=bool(request.stream),
        tokens=tokens,
        answer=answer,
        output_tokens=output_tokens(answer, limit),
        top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        usage=request.stream_options is not None and request.stream_options.include_usage,
    )


def completion_ask(request: CompletionRequest, lengths: Lengths) -> Ask:
    """Reduce a completion to what the engine needs; vLLM's own default limit is 16 tokens."""
    prompt = request.prompt if isinstance(request.prompt, str) else " ".join(request.prompt)
    answer = make_answer(tokens := tuple(tokenise(prompt)), lengths)
    return Ask(
        model=request.model,
        stream=bool(request.stream),
        tokens=tokens,
        answer=answer,
        output_tokens=output_tokens(answer, request.max_tokens or 16),
        usage=request.stream_options is not None and request.stream_options.include_usage,
    )


def error(problem: Problem) -> bytes:
    """Return an error's body; the code is a number here."""
    kinds = {400: "BadRequestError", 404: "NotFoundError", 503: "ServiceUnavailableError"}
    kind = "Bad Request" if problem.early else kinds.get(problem.status, "InternalServerError")
    body = {
        "message": problem.message,
        "type": kind,
        "param": problem.field,
        "code": problem.status,
    }
    return _encode({"error": body})


def unknown_model(name: str, served: str) -> Problem:
    """Return the problem of a model that is not served here."""
    text = f"The model `{name}` does not exist. Valid aliases: {served}."
    return Problem(404, text, field="model")


def models(spec: ModelSpec, context: int, now: float) -> bytes:
    """Return the body of GET /v1/models."""
    permission = {
        "id": "modelperm-0000000000000000",
        "object": "model_permission",
        "created": int(now),
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    row = {
        "id": spec.name,
        "object": "model",
        "created": int(now),
        "owned_by": "vllm",
        "root": f"/models/{spec.name}",
        "parent": None,
        "max_model_len": context,
        "permission": [permission],
    }
    return _encode({"object": "list", "data": [row]})


def metrics(model: str, gauges: dict[str, float], counters: dict[str, float]) -> bytes:
    """Return the body of GET /metrics; names come without their `vllm:`."""
    label = f'{{engine="0",model_name="{model}"}}'
    lines: list[str] = []
    for kind, values in (("gauge", gauges), ("counter", counters)):
        for name, value in values.items():
            full = f"vllm:{name}_total" if kind == "counter" else f"vllm:{name}"
            lines += [f"# TYPE {full} {kind}", f"{full}{label} {float(value)}"]
    return ("\n".join(lines) + "\n").encode()


def cache_config(block: int, blocks: int) -> bytes:
    """Return the line of GET /metrics that tells of the pool, with a few of its labels."""
    labels = {
        "block_size": block,
        "engine": 0,
        "kv_cache_size_tokens": block * blocks,
        "num_gpu_blocks": blocks,
    }
    shown = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return f"# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{{{shown}}} 1.0\n".encode()


class _Shape:
    """What both kinds of answer have in common."""

    stream_type = "text/event-stream; charset=utf-8"
    whole_type = JSON
    headers_first = True
    prefix = ""
    kind = ""

    def __init__(self, ask: Ask, now: float) -> None:
        self.stream_headers: dict[str, str] = {}
        self._ask = ask
        self._id = f"{self.prefix}-{(ask.answer.seed + int(now * 1e6)) % 2**64:016x}"
        self._created = int(now)
        self._head = self._start(self.kind)

    def closing(self, done: Finished, now: float) -> bytes:  # noqa: ARG002 - as every shape
        """Return the reason (unless the last piece told it), the usage, and the terminator."""
        end = b"" if self._ask.pieces == self._ask.output_tokens else self._last(b'""')
        if self._ask.usage:
            usage = {**self._meta(), "choices": [], "usage": _usage(done)}
            end += frame({**usage, "system_fingerprint": _FINGERPRINT})
        return end + DONE

    def broken(self, now: float) -> bytes:  # noqa: ARG002 - as every shape
        """Return the error event that comes when the engine process dies."""
        dead = Problem(500, "EngineCore encountered an issue. See stack trace for the root cause.")
        return b"data: %b\n\n%b" % (error(dead), DONE)

    def token(self, number: int, now: float) -> bytes:  # noqa: ARG002 - as every shape
        """Return one event; the last within a limit also tells the reason."""
        text = self._ask.answer.encoded(number)
        if number + 1 == self._ask.pieces == self._ask.output_tokens:
            return self._last(text)
        return self._chunk(number, text)

    def _chunk(self, number: int, text: bytes) -> bytes:
        raise NotImplementedError

    def _last(self, text: bytes) -> bytes:
        raise NotImplementedError

    def _reason(self) -> str:
        return "stop" if self._ask.stopped else "length"

    def _fingerprint(self) -> bytes:
        """The last chunk of all carries it."""
        return b"" if self._ask.usage else b',"system_fingerprint":"%b"' % _FINGERPRINT.encode()

    def _meta(self, kind: str = "") -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind or self.kind,
            "created": self._created,
            "model": self._ask.model,
        }

    def _start(self, kind: str) -> bytes:
        return _encode(self._meta(kind))[:-1] + b',"choices":['


class Chat(_Shape):
    """Answers of /v1/chat/completions."""

    prefix = "chatcmpl"
    kind = "chat.completion.chunk"

    def opening(self, now: float) -> bytes:  # noqa: ARG002 - as every shape
        """Return the role's event."""
        return (
            b'data: %b{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,'
            b'"finish_reason":null}],"prompt_token_ids":null,"prompt_text":null}\n\n' % self._head
        )

    def whole(self, done: Finished, now: float) -> bytes:  # noqa: ARG002 - as every shape
        """Return everything in one object."""
        ask = self._ask
        shown = None
        if ask.top_logprobs is not None:
            shown = {"content": [self._logprob(number) for number in range(ask.pieces)]}
        message: dict[str, Any] = {
            "role": "assistant",
            "content": ask.answer.text(ask.pieces),
            **dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning")),
        }
        choice = {
            "index": 0,
            "message": message,
            "logprobs": shown,
            "finish_reason": self._reason(),
            **dict.fromkeys(("stop_reason", "token_ids", "routed_experts")),
        }
        rest = ("prompt_logprobs", "prompt_token_ids", "prompt_text", "kv_transfer_params")
        return _encode(
            {
                **self._meta("chat.completion"),
                "choices": [choice],
                "service_tier": None,
                "system_fingerprint": _FINGERPRINT,
                "usage": _whole_usage(done),
                **dict.fromkeys((*rest, "ec_transfer_params", "metrics")),
            }
        )

    def _chunk(self, number: int, text: bytes) -> bytes:
        shown = b"null"
        if self._ask.top_logprobs is not None:
            shown = _encode({"content": [self._logprob(number)]})
        return (
            b'data: %b{"index":0,"delta":{"content":%b},"logprobs":%b,"finish_reason":null,'
            b'"token_ids":null}]}\n\n' % (self._head, text, shown)
        )

    def _last(self, text: bytes) -> bytes:
        return (
            b'data: %b{"index":0,"delta":{"content":%b},"logprobs":null,"finish_reason":"%b",'
            b'"stop_reason":null,"token_ids":null}]%b}\n\n'
            % (self._head, text, self._reason().encode(), self._fingerprint())
        )

    def _logprob(self, number: int) -> dict[str, Any]:
        text = self._ask.answer.piece(number)
        value = logprob(self._ask.answer, number)
        shown = {"token": text, "logprob": value, "bytes": list(text.encode())}
        return {**shown, "top_logprobs": [shown] * (self._ask.top_logprobs or 0)}


class Completion(_Shape):
    """Answers of /v1/completions."""

    prefix = "cmpl"
    kind = "text_completion"

    def opening(self, now: float) -> bytes:  # noqa: ARG002 - as every shape
        """Nothing precedes the first token."""
        return b""

    def whole(self, done: Finished, now: float) -> bytes:  # noqa: ARG002 - as every shape
        """Return everything in one object."""
        text = self._ask.answer.text(self._ask.pieces)
        nothing = ("stop_reason", "token_ids", "prompt_logprobs", "prompt_token_ids")
        choice: dict[str, Any] = {
            "index": 0,
            "text": text,
            "logprobs": None,
            "finish_reason": self._reason(),
            **dict.fromkeys((*nothing, "routed_experts")),
        }
        return _encode(
            {
                **self._meta(),
                "choices": [choice],
                "service_tier": None,
                "system_fingerprint": _FINGERPRINT,
                "usage": _whole_usage(done),
                **dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "metrics")),
            }
        )

    def _chunk(self, number: int, text: bytes) -> bytes:  # noqa: ARG002 - as every shape
        return self._event(text, b"null", b"")

    def _last(self, text: bytes) -> bytes:
        return self._event(text, b'"%b"' % self._reason().encode(), self._fingerprint())

    def _event(self, text: bytes, reason: bytes, tail: bytes) -> bytes:
        return (
            b'data: %b{"index":0,"text":%b,"logprobs":null,"finish_reason":%b,"stop_reason":null,'
            b'"prompt_token_ids":null,"token_ids":null}]%b}\n\n' % (self._head, text, reason, tail)
        )


def _invalid(kind: str, place: str, message: str, given: Any, context: str = "") -> Problem:
    shown = f"<dict of {len(given)} items>" if isinstance(given, dict) else type(given).__name__
    parts = [f"'type': '{kind}', 'loc': '{place}', 'msg': '{message}', 'input': '{shown}'"]
    text = ", ".join([*parts, context] if context else parts)
    return Problem(400, f"1 validation error:\n  {{{text}}}", early=True, field=place)


def _usage(done: Finished) -> dict[str, Any]:
    return {
        "prompt_tokens": done.prompt_tokens,
        "total_tokens": done.prompt_tokens + done.output_tokens,
        "completion_tokens": done.output_tokens,
    }


def _whole_usage(done: Finished) -> dict[str, Any]:
    return {
        **_usage(done),
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }
