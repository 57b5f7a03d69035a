"""Ollama: everything by its own `/api`, held to answers recorded from 0.33."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Final, cast, get_args

import msgspec
from msgspec import Raw, Struct

from herd.core.actions import Stay, Target
from herd.core.fleet import Capability, EngineKind, Replica
from herd.core.names import canonical
from herd.engines import quantities
from herd.engines.adapter import Count, Survey, SurveyCache, check, read_rows
from herd.engines.http import Http

_CAPABILITIES: Final = frozenset(get_args(Capability))
#: What Ollama calls otherwise: a model that hears is what serves `/v1/audio/transcriptions`.
_OTHERWISE: Final = {"audio": "transcription"}


class Ollama:
    """An Ollama server.

    Its API does not tell OLLAMA_NUM_PARALLEL: a replica has one slot until somebody who knows
    better says so.
    """

    kind: ClassVar[EngineKind] = "ollama"
    ports: ClassVar[tuple[int, ...]] = (11434,)
    paths: ClassVar[frozenset[str]] = frozenset(
        {
            "/api/chat",
            "/api/generate",
            "/api/embed",
            "/api/embeddings",
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/embeddings",
            "/v1/responses",
            "/v1/messages",
            "/v1/audio/transcriptions",
        }
    )
    #: It is told on inference paths.
    controls: ClassVar[Mapping[str, type[Struct]]] = MappingProxyType({})

    async def detect(self, http: Http, url: str) -> bool:
        """Whether it has Ollama's version answer and greeting; others imitate one of the two."""
        version = await http.peek(f"{url}/api/version")
        if version is None or version.maybe(_Version) is None:
            return False
        greeting = await http.peek(f"{url}/")
        return greeting is not None and greeting.body.strip() == b"Ollama is running"

    async def survey(self, http: Http, url: str, cache: SurveyCache | None = None) -> Survey:
        """List its models, and match by digest which are in memory.

        After a copy two names share one digest, and `/api/ps` names only the one that was asked
        for when it was loaded; both are resident all the same.
        """
        cache = cache if cache is not None else SurveyCache()
        version = await http.fetch(f"{url}/api/version", _Version)
        listing = await http.fetch(f"{url}/api/tags", _Tags)
        loaded = await http.fetch(f"{url}/api/ps", _Processes)
        resident: dict[str, _Process] = {}
        rows: dict[str, bytes] = {}
        for process, raw in read_rows(loaded.models or (), _Process, f"{url}/api/ps"):
            resident[process.digest] = process
            rows[process.name] = raw
        replicas = []
        digests = set()
        for row, raw in read_rows(listing.models or (), _Row, f"{url}/api/tags"):
            digests.add(row.digest)
            known = await _known(http, url, row, cache)
            found = _replica(row, raw, known, resident.get(row.digest))
            replicas.append(
                msgspec.structs.replace(found, resident_listing=rows.get(row.name, b""))
            )
        cache.keep(digests)
        return Survey(version=version.version, replicas=tuple(replicas))

    async def load(self, http: Http, target: Target, stay: Stay) -> None:
        """Send it a request without a prompt, which it answers once the model is loaded.

        A model that only embeds is refused on `/api/generate`, and loads by an empty input.
        """
        writes = "completion" in target.capabilities or "embedding" not in target.capabilities
        url = f"{target.url}/api/{'generate' if writes else 'embed'}"
        body: dict[str, object] = {"model": target.model, "stream": False}
        if not writes:
            body["input"] = []
        if stay.keep_alive is not None:
            body["keep_alive"] = stay.keep_alive
        if stay.context is not None:
            body["options"] = {"num_ctx": stay.context}
        check(await http.post(url, body), url)

    async def unload(self, http: Http, target: Target) -> None:
        """Send it a request without a prompt that keeps the model for no time.

        It looks for that before it looks at what the model can do, so models that only embed take
        it too; on `/api/embed` it would load the model first.
        """
        url = f"{target.url}/api/generate"
        body = {"model": target.model, "keep_alive": 0, "stream": False}
        check(await http.post(url, body), url)


class _Version(Struct):
    version: str


class _Details(Struct):
    families: list[str] | None = None
    parameter_size: str = ""
    context_length: Count = 0


class _Row(Struct):
    name: str
    digest: str
    size: Count = 0
    details: _Details = msgspec.field(default_factory=_Details)
    capabilities: list[str] | None = None
    #: Where a model runs that Ollama only forwards to.
    remote_host: str = ""


class _Tags(Struct):
    models: list[Raw] | None


class _Process(Struct):
    name: str
    digest: str
    size: Count = 0
    context_length: Count = 0


class _Processes(Struct):
    models: list[Raw] | None


class _Show(Struct):
    details: _Details = msgspec.field(default_factory=_Details)
    template: str = ""
    model_info: dict[str, Any] | None = None
    projector_info: dict[str, Any] | None = None
    capabilities: list[str] | None = None


async def _known(http: Http, url: str, row: _Row, cache: SurveyCache) -> Replica:
    """Return what does not change about a model, from its row or else asked for once.

    Rows have had `capabilities` and `context_length` since 2026; before, `/api/show` has them.
    """
    told = Replica(
        model=canonical(row.name),
        name=row.name,
        parameters=quantities.parameters(row.details.parameter_size),
        context_length=row.details.context_length,
        capabilities=_capabilities(row.capabilities or ()),
    )
    if row.capabilities is not None and row.details.context_length:
        return told
    if known := cache.get(row.digest):
        return known
    show = (await http.post(f"{url}/api/show", {"model": row.name})).maybe(_Show)
    if show is None:  # deleted since it was listed
        return told
    return cache.put(row.digest, _shown(told, row, show))


def _shown(told: Replica, row: _Row, show: _Show) -> Replica:
    """Add what `/api/show` says to what the row told."""
    info = show.model_info or {}
    context = next((info[key] for key in info if key.endswith(".context_length")), 0)
    parameters = info.get("general.parameter_count", 0)
    listed = row.capabilities if row.capabilities is not None else show.capabilities
    return msgspec.structs.replace(
        told,
        context_length=context if isinstance(context, int) and context > 0 else told.context_length,
        parameters=parameters
        if isinstance(parameters, int) and parameters > 0
        else told.parameters,
        capabilities=_capabilities(listed if listed is not None else _guessed_by_template(show)),
    )


def _guessed_by_template(show: _Show) -> list[str]:
    """Return capabilities as releases before 0.6.4 leave them to be seen: they list none."""
    families = show.details.families or []
    if any("bert" in family for family in families):
        return ["embedding"]
    found = ["completion"]
    if ".Tools" in show.template:
        found.append("tools")
    if show.projector_info or "clip" in families:
        found.append("vision")
    return found


def _capabilities(names: list[str] | tuple[str, ...]) -> tuple[Capability, ...]:
    known = [_OTHERWISE.get(name, name) for name in names]
    return tuple(cast("Capability", name) for name in known if name in _CAPABILITIES)


def _replica(row: _Row, listing: bytes, known: Replica, process: _Process | None) -> Replica:
    return Replica(
        model=canonical(row.name),
        name=row.name,
        # A model that runs elsewhere never has to be loaded here.
        residency="resident" if process or row.remote_host else "disk",
        digest=row.digest,
        size=row.size,
        parameters=known.parameters,
        context_length=known.context_length,
        loaded_context=process.context_length if process else 0,
        memory_bytes=process.size if process else 0,
        capabilities=known.capabilities,
        listing=listing,
    )
