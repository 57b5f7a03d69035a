"""llama.cpp's llama-server, with one model or as a router over several; held to build 10434.

Three of its habits shape what is asked and what is not. In router mode a question about a model
that is not loaded loads it, and evicts another: only loaded ones are asked about. And asking for
`/slots` counts as use: a server started with `--sleep-idle-seconds` does not fall asleep while it
is watched, but it is not woken once it sleeps. And `/slots` and `/metrics` are answered between two
batches of the model, so that a busy server may take seconds; everything else is answered at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any, ClassVar, Final
from urllib.parse import urlencode

import msgspec
from msgspec import Raw, Struct

from herd.core.actions import Stay, Target
from herd.core.fleet import Capability, EngineKind, Replica, Residency
from herd.core.names import canonical
from herd.engines import gauges
from herd.engines.adapter import Count, Name, Survey, SurveyCache, accepts, check, read_rows
from herd.engines.http import Answer, EngineError, Http

#: How router mode calls a model's state. A sleeping one has given its memory back.
_STATES: Final[dict[str, Residency]] = {"loaded": "resident", "loading": "loading"}
#: Vocabulary type of BERT's word pieces (`LLAMA_VOCAB_TYPE_WPM`): an encoder, it cannot write.
_WORD_PIECES: Final = 3
#: Marks in a chat template of a model that thinks before it answers.
_THINKS: Final = ("<think>", "enable_thinking", "reasoning_content")
_OK: Final = 200
#: Seconds between two looks at a load that goes on: a fraction of the shortest.
_GLANCE: Final = 0.25
_LOAD: Final = "/models/load"
_UNLOAD: Final = "/models/unload"


class ModelRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Load this model, or let it go; builds take command line arguments here too, Herd does not."""

    model: Name


class LlamaCpp:
    """A llama-server."""

    kind: ClassVar[EngineKind] = "llamacpp"
    ports: ClassVar[tuple[int, ...]] = (8080,)
    paths: ClassVar[frozenset[str]] = frozenset(
        {
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/embeddings",
            "/v1/responses",
            "/v1/messages",
            "/v1/messages/count_tokens",
            "/v1/rerank",
        }
    )
    controls: ClassVar[Mapping[str, type[Struct]]] = MappingProxyType(
        {_LOAD: ModelRequest, _UNLOAD: ModelRequest}
    )

    async def detect(self, http: Http, url: str) -> bool:
        """Whether it signs as llama.cpp, or its models do where a proxy signs in its place."""
        health = await http.peek(f"{url}/health")
        if health is None:
            return False
        if health.headers.get("server") == "llama.cpp":
            return True
        models = await http.peek(f"{url}/v1/models")
        listing = models.maybe(_Owners) if models else None
        return listing is not None and any(row.owned_by == "llamacpp" for row in listing.data)

    async def survey(self, http: Http, url: str, cache: SurveyCache | None = None) -> Survey:
        """Read its models, slots and queue.

        A server that still loads its only model answers 503 to everything, which raises
        `EngineError` with that text: it cannot take a request yet.
        """
        look = _Look(http, url, cache if cache is not None else SurveyCache())
        listing = await http.fetch(f"{url}/v1/models", _Listing)
        props = await http.fetch(f"{url}/props", _Props)
        replicas = [
            await (look.routed(row) if row.status else look.single(row, raw, props))
            for row, raw in read_rows(listing.data, _Row, f"{url}/v1/models")
        ]
        look.close()
        return Survey(
            version=props.build_info,
            replicas=tuple(replicas),
            running=look.running,
            waiting=look.waiting,
        )

    async def load(self, http: Http, target: Target, stay: Stay) -> None:  # noqa: ARG002 - a router's models have the context and the time that they were configured with
        """Have a router load it; a server that sleeps is woken by a request for one token."""
        status = await _status(http, target)
        if status is None:
            await _wake(http, target)
            return
        if status.value not in _STATES:
            url = f"{target.url}{_LOAD}"
            check(await http.post(url, ModelRequest(target.model)), url)
        # It answers when it has begun.
        while (status := await _status(http, target)) is not None and status.value == "loading":  # noqa: ASYNC110 - whoever asks has a deadline
            await asyncio.sleep(_GLANCE)
        if status is None or status.value != "loaded":
            raise EngineError(f"{target.url} failed to load {target.model}")

    async def unload(self, http: Http, target: Target) -> None:
        """Have a router let it go; a server keeps its only model."""
        status = await _status(http, target)
        if status is None:
            raise EngineError(f"{target.url} has one model and keeps it")
        if status.value in _STATES:
            url = f"{target.url}{_UNLOAD}"
            check(await http.post(url, ModelRequest(target.model)), url)


class _Owner(Struct):
    owned_by: str = ""


class _Owners(Struct):
    data: list[_Owner]


class _Meta(Struct):
    n_ctx_train: Count = 0
    n_params: Count = 0
    size: Count = 0
    vocab_type: int = 0


class _Status(Struct):
    value: str = ""
    args: list[str] = msgspec.field(default_factory=list)


class _Architecture(Struct):
    input_modalities: list[str] = msgspec.field(default_factory=list)


class _Row(Struct):
    id: str
    meta: _Meta | None = None
    #: Router mode only.
    status: _Status | None = None
    architecture: _Architecture = msgspec.field(default_factory=_Architecture)


class _Listing(Struct):
    data: list[Raw]


class _Settings(Struct):
    n_ctx: Count = 0


class _Props(Struct):
    total_slots: Count = 1
    default_generation_settings: _Settings = msgspec.field(default_factory=_Settings)
    modalities: dict[str, bool] = msgspec.field(default_factory=dict)
    chat_template: str = ""
    chat_template_caps: dict[str, Any] | None = None
    build_info: str = ""
    is_sleeping: bool = False
    #: Made anew by every process, and so tells one run of a server from the next.
    media_marker: str = ""


class _Slot(Struct):
    is_processing: bool = False


class _Look:
    """One look at a server: asks about its models one by one and adds up what runs."""

    def __init__(self, http: Http, url: str, cache: SurveyCache) -> None:
        self._http = http
        self._url = url
        self._cache = cache
        self._keys: set[str] = set()
        self.running: int | None = None
        self.waiting: int | None = None

    async def single(self, row: _Row, listing: bytes, props: _Props) -> Replica:
        """Return the replica of a server that has this one model."""
        replica = await self._asked(row, props, "")
        return msgspec.structs.replace(replica, listing=listing)

    async def routed(self, row: _Row) -> Replica:
        """Return one of the replicas of a router.

        Its row stays out of the report: it holds the command line that starts the model.
        """
        status = row.status or _Status()
        residency = _STATES.get(status.value, "disk")
        if residency != "resident":
            return self._unloaded(row, status, residency)
        query = "?" + urlencode({"model": row.id, "autoload": "false"})
        answer = await self._http.get(f"{self._url}/props{query}")
        props = answer.maybe(_Props)
        if props is None:  # evicted since it was listed
            return self._unloaded(row, status, "disk")
        replica = await self._asked(row, props, query)
        self._keys.add(row.id)
        return self._cache.put(row.id, replica)

    def close(self) -> None:
        """Forget models that are gone."""
        self._cache.keep(self._keys)

    def _unloaded(self, row: _Row, status: _Status, residency: Residency) -> Replica:
        """Return what the command line and an earlier look tell of a model not in memory."""
        self._keys.add(row.id)
        self.running, self.waiting = self.running or 0, self.waiting or 0
        if known := self._cache.get(row.id):
            return msgspec.structs.replace(known, residency=residency, loaded_context=0)
        capabilities: list[Capability] = ["completion"]
        if "image" in row.architecture.input_modalities:
            capabilities.append("vision")
        if {"--embedding", "--embeddings"} & set(status.args):
            capabilities.append("embedding")
        return Replica(
            model=canonical(row.id),
            name=row.id,
            residency=residency,
            capabilities=tuple(capabilities),
            slots=_slots(status.args),
        )

    async def _asked(self, row: _Row, props: _Props, query: str) -> Replica:
        meta = row.meta or _Meta()
        replica = Replica(
            model=canonical(row.id),
            name=row.id,
            residency="disk" if props.is_sleeping else "resident",
            size=meta.size,
            parameters=meta.n_params,
            context_length=meta.n_ctx_train,
            loaded_context=0 if props.is_sleeping else props.default_generation_settings.n_ctx,
            slots=max(props.total_slots, 1),
        )
        await self._count(query, asleep=props.is_sleeping)
        embeds = await self._embeds(replica, props, query)
        capabilities = _capabilities(props, meta, embeds=embeds)
        return msgspec.structs.replace(replica, capabilities=capabilities)

    async def _count(self, query: str, *, asleep: bool) -> None:
        """Add what runs and waits; a server may have been told not to say either."""
        if asleep:
            self.running, self.waiting = self.running or 0, self.waiting or 0
            return
        answer = await self._gauge(f"/slots{query}")
        metrics = await self._gauge(f"/metrics{query}") if answer is not None else None
        slots = answer.maybe(list[_Slot]) if answer is not None else None
        text = metrics.body if metrics is not None and metrics.status == _OK else b""
        processing = gauges.count(text, "llamacpp:requests_processing")
        if slots is not None:
            processing = sum(slot.is_processing for slot in slots)
        deferred = gauges.count(text, "llamacpp:requests_deferred")
        self.running = _sum(self.running, processing)
        self.waiting = _sum(self.waiting, deferred)

    async def _gauge(self, path: str) -> Answer | None:
        """Ask what the server answers between two batches; None if that takes too long.

        Reading a long prompt on a slow device takes longer than any patience of ours. The server
        is well and busy: it has just answered what it answers at any time.
        """
        try:
            return await self._http.get(f"{self._url}{path}")
        except EngineError:
            return None

    async def _embeds(self, replica: Replica, props: _Props, query: str) -> bool:
        """Whether it makes embeddings. It does not tell, so one word is embedded once a run.

        A server without `--embeddings` refuses at once, before the word is queued.
        """
        key = f"{replica.name}@{props.media_marker}/{replica.slots}"
        self._keys.add(key)
        if known := self._cache.get(key):
            return "embedding" in known.capabilities
        if props.is_sleeping:
            return False
        able = await accepts(
            self._http, f"{self._url}/v1/embeddings{query}", {"model": replica.name, "input": "a"}
        )
        capabilities: tuple[Capability, ...] = ("embedding",) if able else ()
        self._cache.put(key, msgspec.structs.replace(replica, capabilities=capabilities))
        return able


async def _status(http: Http, target: Target) -> _Status | None:
    """Return a router's word on its model; None if the server is no router."""
    listing = await http.fetch(f"{target.url}/v1/models", _Listing)
    for row, _ in read_rows(listing.data, _Row, f"{target.url}/v1/models"):
        if row.id == target.model:
            return row.status
    raise EngineError(f"{target.url} no longer has {target.model}")


async def _wake(http: Http, target: Target) -> None:
    props = await http.fetch(f"{target.url}/props", _Props)
    if not props.is_sleeping:
        return
    body: dict[str, object] = {"model": target.model}
    writes = "completion" in target.capabilities
    body |= {"prompt": "a", "max_tokens": 1} if writes else {"input": "a"}
    url = f"{target.url}/v1/{'completions' if writes else 'embeddings'}"
    check(await http.post(url, body), url)


def _capabilities(props: _Props, meta: _Meta, *, embeds: bool) -> tuple[Capability, ...]:
    if embeds and meta.vocab_type == _WORD_PIECES:
        return ("embedding",)
    found: list[Capability] = ["completion"]
    # A build that reads templates well enough to describe them takes tools with any of them: it
    # has a format of its own for those that know none.
    if props.chat_template_caps is not None:
        found.append("tools")
    if props.modalities.get("vision"):
        found.append("vision")
    if any(mark in props.chat_template for mark in _THINKS):
        found.append("thinking")
    if embeds:
        found.append("embedding")
    return tuple(found)


def _slots(args: list[str]) -> int:
    for flag, value in pairwise(args):
        if flag in {"--parallel", "-np"} and value.isdecimal():
            return max(int(value), 1)
    return 1


def _sum(one: int | None, other: int | None) -> int | None:
    return other if one is None else one + (other or 0)
