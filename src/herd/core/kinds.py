"""What the kinds of engine can be told, where decisions rest on it."""

from __future__ import annotations

from typing import Final

from herd.core.fleet import EngineKind

#: Ollama's own endpoints, which take `keep_alive` and `options.num_ctx`.
_OLLAMAS: Final = frozenset({"/api/chat", "/api/generate", "/api/embed", "/api/embeddings"})


def carries_context(kind: EngineKind, endpoint: str) -> bool:
    """Whether a request on this endpoint can tell this kind of engine how a model is to stay.

    That is what context to load it with and how long to keep it. OpenAI's and Anthropic's
    requests have no words for either, and engines other than Ollama take neither from a request.
    """
    return kind == "ollama" and endpoint in _OLLAMAS
