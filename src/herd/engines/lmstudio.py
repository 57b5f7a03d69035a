"""LM Studio, by its REST API (`/api/v0`, and `/api/v1` since 0.4).

Written from its documentation (lmstudio.ai/docs/developer/rest) and not run against the real
thing, which is not free software and could not be recorded.
"""

from __future__ import annotations

from typing import ClassVar, Final

import msgspec
from msgspec import Raw, Struct

from herd.core.fleet import Capability, EngineKind, Replica, Residency
from herd.core.names import canonical
from herd.engines import quantities
from herd.engines.adapter import Count, Survey, SurveyCache, read_rows
from herd.engines.http import Http

_STATES: Final[dict[str, Residency]] = {"loaded": "resident", "loading": "loading"}
_TYPES: Final[dict[str, tuple[Capability, ...]]] = {
    # Models that were not trained for tools get them by a format of LM Studio's own.
    "llm": ("completion", "tools"),
    "vlm": ("completion", "tools", "vision"),
    "embeddings": ("embedding",),
}


class LmStudio:
    """An LM Studio server.

    Its Anthropic endpoint is left to translation: releases before 0.4.1 lack it, and answer a
    path that they do not know with 200 and an error inside.
    """

    kind: ClassVar[EngineKind] = "lmstudio"
    ports: ClassVar[tuple[int, ...]] = (1234,)
    paths: ClassVar[frozenset[str]] = frozenset(
        {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"}
    )

    async def detect(self, http: Http, url: str) -> bool:
        """Whether it has LM Studio's listing, in which every model has a type and a state."""
        answer = await http.peek(f"{url}/api/v0/models")
        return answer is not None and answer.maybe(_Models) is not None

    async def survey(self, http: Http, url: str, cache: SurveyCache | None = None) -> Survey:  # noqa: ARG002 - there is nothing worth keeping
        """List its models; sizes and slots come with releases that have `/api/v1`."""
        listing = await http.fetch(f"{url}/api/v0/models", _Listing)
        details = (await http.get(f"{url}/api/v1/models")).maybe(_Details)
        by_key = {detail.key: detail for detail in details.models} if details else {}
        rows = read_rows(listing.data, _Row, f"{url}/api/v0/models")
        return Survey(
            replicas=tuple(_replica(row, raw, by_key.get(_key(row.id))) for row, raw in rows)
        )


class _Row(Struct):
    id: str
    type: str
    state: str
    max_context_length: Count = 0
    loaded_context_length: Count = 0


class _Models(Struct):
    data: list[_Row]


class _Listing(Struct):
    data: list[Raw]


class _Config(Struct):
    parallel: Count = 1


class _Instance(Struct):
    id: str
    config: _Config = msgspec.field(default_factory=_Config)


class _Detail(Struct):
    key: str
    size_bytes: Count = 0
    params_string: str | None = None
    loaded_instances: list[_Instance] = msgspec.field(default_factory=list)


class _Details(Struct):
    models: list[_Detail]


def _key(name: str) -> str:
    """Return the model's key from an instance's name: a second instance is `key:2`."""
    key, colon, number = name.rpartition(":")
    return key if colon and number.isdecimal() else name


def _replica(row: _Row, listing: bytes, detail: _Detail | None) -> Replica:
    instances = detail.loaded_instances if detail else []
    return Replica(
        model=canonical(row.id),
        name=row.id,
        residency=_STATES.get(row.state, "disk"),
        size=detail.size_bytes if detail else 0,
        parameters=quantities.parameters(detail.params_string or "") if detail else 0,
        context_length=row.max_context_length,
        loaded_context=row.loaded_context_length,
        capabilities=_TYPES.get(row.type, ()),
        slots=next((max(one.config.parallel, 1) for one in instances if one.id == row.id), 1),
        listing=listing,
    )
