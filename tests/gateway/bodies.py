"""One request for every inference endpoint, streamed and not."""

from __future__ import annotations

from typing import Any

import pytest

from devtools.testbed import CHAT, EMBEDDER

HELLO = [{"role": "user", "content": "Say hello to everyone here, please."}]

#: Endpoint, and a body without `stream`.
GENERATING: dict[str, dict[str, Any]] = {
    "/api/chat": {"model": CHAT, "messages": HELLO},
    "/api/generate": {"model": CHAT, "prompt": "Say hello"},
    "/v1/chat/completions": {"model": CHAT, "messages": HELLO},
    "/v1/completions": {"model": CHAT, "prompt": "Say hello"},
    "/v1/messages": {"model": CHAT, "messages": HELLO, "max_tokens": 50},
}
EMBEDDING: dict[str, dict[str, Any]] = {
    "/api/embed": {"model": EMBEDDER, "input": ["one", "two"]},
    "/api/embeddings": {"model": EMBEDDER, "prompt": "one"},
    "/v1/embeddings": {"model": EMBEDDER, "input": "one"},
}
ENDPOINTS = GENERATING | EMBEDDING

each_generating = pytest.mark.parametrize("path", GENERATING)
each_endpoint = pytest.mark.parametrize("path", ENDPOINTS)
streamed_or_not = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
#: The chat endpoint of every dialect.
each_dialect = pytest.mark.parametrize(
    "path", ["/api/chat", "/v1/chat/completions", "/v1/messages"]
)


def body(path: str, **changes: Any) -> dict[str, Any]:
    """Return the endpoint's request with changes."""
    return {**ENDPOINTS[path], **changes}


def error_text(path: str, answer: dict[str, Any]) -> str:
    """Check an error's shape by the endpoint's dialect, and return its message."""
    if path.startswith("/v1/messages"):
        assert answer["type"] == "error"
        assert set(answer["error"]) == {"type", "message"}
        text = answer["error"]["message"]
    elif path.startswith("/v1/"):
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        text = answer["error"]["message"]
    else:
        assert set(answer) == {"error"}
        text = answer["error"]
    assert isinstance(text, str)
    return text
