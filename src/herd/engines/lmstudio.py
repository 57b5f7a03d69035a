"""LM Studio, by its REST API (`/api/v0`, and `/api/v1` since 0.4).

Written from its documentation (lmstudio.ai/docs/developer/rest) and not run against the real
thing, which is not free software and could not be recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Final

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from herd.core.actions import Stay, Target
from herd.core.fleet import Capability, EngineKind, Replica, Residency
from herd.core.names import canonical
from herd.engines import quantities
from herd.engines.adapter import Count, Name, Survey, SurveyCache, check, read_rows
from herd.engines.http import EngineError, Http

_LOAD: Final = "/api/v1/models/load"
_UNLOAD: Final = "/api/v1/models/unload"
_STATES: Final[dict[str, Residency]] = {"loaded": "resident", "loading": "loading"}
_TYPES: Final[dict[str, tuple[Capability, ...]]] = {
    # Models that were not trained for tools get them by a format of LM Studio's own.
    "llm": ("completion", "tools"),
    "vlm": ("completion", "tools", "vision"),
    "embeddings": ("embedding",),
}


class LoadRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Load a new instance of a model."""

    model: Name
    context_length: Count | UnsetType = UNSET


class UnloadRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Let an instance go."""

    instance_id: Name


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
    controls: ClassVar[Mapping[str, type[Struct]]] = MappingProxyType(
        {_LOAD: LoadRequest, _UNLOAD: UnloadRequest}
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

    async def load(self, http: Http, target: Target, stay: Stay) -> None:
        """Load it unless it is loaded: to load it again would make a second instance of it.

        Needs release 0.4; how long the model stays, its owner has set there.
        """
        details = (await http.get(f"{target.url}/api/v1/models")).maybe(_Details)
        if details is None:
            raise EngineError(f"{target.url} has no /api/v1: LM Studio before 0.4 loads by request")
        key = _key(target.model)
        if any(detail.key == key and detail.loaded_instances for detail in details.models):
            return
        context = UNSET if stay.context is None else stay.context
        answer = await http.post(f"{target.url}{_LOAD}", LoadRequest(key, context))
        check(answer, f"{target.url}{_LOAD}")
        _done(answer.maybe(_Loaded), answer.complaint(), f"{target.url}{_LOAD}")

    async def unload(self, http: Http, target: Target) -> None:
        """Unload the instance, which is named as it is in the listing."""
        url = f"{target.url}{_UNLOAD}"
        answer = await http.post(url, UnloadRequest(target.model))
        check(answer, url)
        _done(answer.maybe(_Unloaded), answer.complaint(), url)


class _Loaded(Struct):
    load_time_seconds: float


class _Unloaded(Struct):
    instance_id: str


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


def _done(answer: Struct | None, complaint: str, url: str) -> None:
    """Raise `EngineError` if a status of 200 hid an error, as it does on paths it lacks."""
    if answer is None:
        raise EngineError(f"{url} has not done it: {complaint}")


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
