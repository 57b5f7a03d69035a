"""Errors in the shape of the dialect in which the client asked."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from herd.core.request import Dialect, Refusal, RefusalKind

_STATUS: dict[RefusalKind, int] = {
    "unknown_model": 404,
    "incapable": 400,
    "context": 400,
    # Ollama's own answer when a model does not fit is a 500; it is no mistake in the request.
    "too_big": 500,
    "unreachable": 503,
    "queue_full": 503,
    "expired": 503,
    "engine_failed": 502,
    "stopping": 503,
}
_GATEWAY_TIMEOUT = 504
#: OpenAI's codes, by which its clients tell errors apart.
_CODES: dict[RefusalKind, str] = {
    "unknown_model": "model_not_found",
    "context": "context_length_exceeded",
}
_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "invalid_request_error",
}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class Problem(Struct, frozen=True, kw_only=True):
    """An error before it takes a dialect's shape."""

    status: int
    message: str
    #: OpenAI's code; empty for none.
    code: str = ""
    retry_after: float | None = None


def from_refusal(refusal: Refusal) -> Problem:
    """What a refusal means in HTTP."""
    status = _STATUS[refusal.kind]
    failure = refusal.failure
    if failure is not None and failure.kind == "timeout":
        status = _GATEWAY_TIMEOUT
    return Problem(
        status=status,
        message=refusal.message,
        code=_CODES.get(refusal.kind, ""),
        retry_after=refusal.retry_after,
    )


def body(dialect: Dialect, problem: Problem, request_id: str = "") -> bytes:
    """Return the JSON body of an error."""
    return msgspec.json.encode(_shape(dialect, problem, request_id))


def frame(dialect: Dialect, problem: Problem, request_id: str = "") -> bytes:
    """Return an error as a frame inside a stream that has begun."""
    text = body(dialect, problem, request_id)
    if dialect == "ollama":
        return text + b"\n"
    if dialect == "anthropic":
        return b"event: error\ndata: " + text + b"\n\n"
    return b"data: " + text + b"\n\n"


def _shape(dialect: Dialect, problem: Problem, request_id: str) -> dict[str, object]:
    if dialect == "ollama":
        return {"error": problem.message}
    if dialect == "anthropic":
        kind = _ANTHROPIC_TYPES.get(problem.status, "api_error")
        return {
            "type": "error",
            "error": {"type": kind, "message": problem.message},
            "request_id": request_id or None,
        }
    return {
        "error": {
            "message": problem.message,
            "type": _OPENAI_TYPES.get(problem.status, "api_error"),
            "param": "model" if problem.code == "model_not_found" else None,
            "code": problem.code or None,
        }
    }
