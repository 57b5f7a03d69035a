"""What is asked and what is answered: the bytes that backend and load agree on.

The model's name tells the backend how to answer: `short` in one piece, `frames-100` as a stream of
100 frames a second. So the same requests go through any proxy unchanged.
"""

from __future__ import annotations

import time
from typing import Final, Literal

import msgspec
from msgspec import Struct

Form = Literal["sse", "ndjson"]

#: Frames of a stream, its terminator among them.
FRAMES: Final = 200
#: Frames per second of a stream, for which the backend has models.
RATES: Final = (100, 200)
REQUEST_BYTES: Final = 300
ANSWER_BYTES: Final = 1024
SHORT_MODEL: Final = "short:latest"
PATHS: Final[dict[Form, str]] = {"sse": "/v1/chat/completions", "ndjson": "/api/chat"}
SEPARATORS: Final[dict[Form, bytes]] = {"sse": b"\n\n", "ndjson": b"\n"}

_MARK: Final = b'"content":"'
_DIGITS: Final = 16
_CREATED: Final = "2026-11-23T10:05:42.842695000Z"
#: Splits of one frame's text around the time at which it is sent.
_CHUNK: Final = (
    b'data: {"id":"chatcmpl-288","object":"chat.completion.chunk","created":1795428370,'
    b'"model":"frames","choices":[{"index":0,"delta":'
)
_SSE: Final = (
    _CHUNK + b'{"content":"',
    b'"},"finish_reason":null}]}\n\n',
)
_NDJSON: Final = (
    f'{{"model":"frames:latest","created_at":"{_CREATED}",'
    '"message":{"role":"assistant","content":"'.encode(),
    b'"},"done":false}\n',
)
_USAGE: Final = b'"usage":{"prompt_tokens":60,"completion_tokens":198,"total_tokens":258}'
_SSE_END: Final = (
    _CHUNK + b'{},"finish_reason":"stop"}],' + _USAGE + b"}\n\n",
    b"data: [DONE]\n\n",
)
_NDJSON_END: Final = (
    f'{{"model":"frames:latest","created_at":"{_CREATED}","message":{{"role":"assistant",'
    '"content":""},"done":true,"done_reason":"stop","total_duration":2000000000,'
    '"load_duration":600000,"prompt_eval_count":60,"prompt_eval_duration":20000000,'
    '"eval_count":199,"eval_duration":1980000000}\n'.encode(),
)


class Asked(Struct):
    """What the backend reads of a request."""

    model: str = ""
    stream: bool | None = None


def frames_model(rate: int) -> str:
    """Return the model that streams so many frames a second."""
    return f"frames-{rate}:latest"


def rate_of(model: str) -> int | None:
    """Return the frames per second of a model's streams; None if it answers in one piece."""
    name, _, rate = model.partition(":")[0].partition("-")
    return int(rate) if name == "frames" and rate.isdecimal() else None


def request_body(model: str, *, stream: bool) -> bytes:
    """Return a chat request of `REQUEST_BYTES`, the same in both dialects."""
    body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": ""}]}
    missing = REQUEST_BYTES - len(msgspec.json.encode(body))
    body["messages"] = [{"role": "user", "content": _prose(missing)}]
    return msgspec.json.encode(body)


def whole_answer(form: Form) -> bytes:
    """Return an unstreamed answer of `ANSWER_BYTES`."""
    empty = msgspec.json.encode(_answer(form, ""))
    return msgspec.json.encode(_answer(form, _prose(ANSWER_BYTES - len(empty))))


def frame(form: Form, number: int) -> bytes:
    """Return a stream's frame by its number from 0, stamped with the time."""
    end = _SSE_END if form == "sse" else _NDJSON_END
    left = FRAMES - number
    if left <= len(end):
        return end[-left]
    head, tail = _SSE if form == "sse" else _NDJSON
    return b"%b%0*d%b" % (head, _DIGITS, time.monotonic_ns(), tail)


def sent_at(data: bytes) -> int | None:
    """Return when the first frame in the data was sent, in monotonic nanoseconds."""
    start = data.find(_MARK) + len(_MARK)
    digits = data[start : start + _DIGITS]
    return int(digits) if len(digits) == _DIGITS and digits.isdigit() else None


def _answer(form: Form, text: str) -> dict[str, object]:
    if form == "ndjson":
        return {
            "model": SHORT_MODEL,
            "created_at": _CREATED,
            "message": {"role": "assistant", "content": text},
            "done": True,
            "done_reason": "stop",
            "total_duration": 2_000_000,
            "load_duration": 600_000,
            "prompt_eval_count": 60,
            "prompt_eval_duration": 400_000,
            "eval_count": 180,
            "eval_duration": 900_000,
        }
    return {
        "id": "chatcmpl-288",
        "object": "chat.completion",
        "created": 1795428370,
        "model": SHORT_MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 60, "completion_tokens": 180, "total_tokens": 240},
    }


def _prose(length: int) -> str:
    text = "The quick brown fox jumps over the lazy dog. "
    return (text * (length // len(text) + 1))[:length]
