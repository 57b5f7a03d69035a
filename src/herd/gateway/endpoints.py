"""The inference endpoints: what each path means, and which engines can answer it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from msgspec import Struct

from herd.core.fleet import Capability, EngineKind
from herd.core.request import Dialect, Operation
from herd.engines.registry import kinds_for
from herd.wire.meter import Form

#: Engines whose answers on OpenAI's paths can be translated into Ollama's dialect.
_TRANSLATED: Final[dict[str, str]] = {
    "/api/chat": "/v1/chat/completions",
    "/api/generate": "/v1/chat/completions",
    "/api/embed": "/v1/embeddings",
    "/api/embeddings": "/v1/embeddings",
}


class Endpoint(Struct, frozen=True, kw_only=True):
    """One inference path."""

    path: str
    dialect: Dialect
    operation: Operation
    form: Form
    #: What the dialect takes a missing `stream` for.
    streams: bool
    needs: Capability
    #: Kinds of engine that serve the path themselves, and all that can answer it.
    native: frozenset[EngineKind]
    kinds: frozenset[EngineKind]


def _endpoint(
    path: str, dialect: Dialect, operation: Operation, *, streams: bool = False
) -> Endpoint:
    native = kinds_for(path)
    translated = kinds_for(_TRANSLATED[path]) if path in _TRANSLATED else frozenset()
    return Endpoint(
        path=path,
        dialect=dialect,
        operation=operation,
        form=dialect,
        streams=streams,
        needs="embedding" if operation == "embedding" else "completion",
        native=native,
        kinds=native | translated,
    )


ENDPOINTS: Final[Mapping[str, Endpoint]] = MappingProxyType(
    {
        endpoint.path: endpoint
        for endpoint in (
            _endpoint("/api/chat", "ollama", "chat", streams=True),
            _endpoint("/api/generate", "ollama", "completion", streams=True),
            _endpoint("/api/embed", "ollama", "embedding"),
            _endpoint("/api/embeddings", "ollama", "embedding"),
            _endpoint("/v1/chat/completions", "openai", "chat"),
            _endpoint("/v1/completions", "openai", "completion"),
            _endpoint("/v1/embeddings", "openai", "embedding"),
            _endpoint("/v1/messages", "anthropic", "chat"),
        )
    }
)
