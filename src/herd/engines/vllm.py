"""vLLM: its OpenAI listing, its metrics, and three cheap questions it has no listing for.

Held to answers recorded from 0.32. What a model can do is nowhere told, so it is tried out once in
each run of the server: whether the embeddings route exists (it does for embedding models only),
and whether one token comes back for a request with a tool and for one with a picture.
"""

from __future__ import annotations

import base64
import struct
import zlib
from typing import ClassVar, Final

import msgspec
from msgspec import Raw, Struct

from herd.core.fleet import Capability, EngineKind, Replica
from herd.core.names import canonical
from herd.engines import gauges
from herd.engines.adapter import Count, Survey, SurveyCache, accepts, read_rows
from herd.engines.http import EngineError, Http

#: Slots of a replica unless declared. vLLM batches as its memory allows and tells no limit: its
#: own default for `--max-num-seqs` is 128 to 1024, by version and GPU. This is below all of them,
#: so that requests wait where they can still be sent elsewhere.
ELASTIC_SLOTS: Final = 64

_OK: Final = 200
_NOT_FOUND: Final = 404
_SERVER_ERROR: Final = 500
_TOOL: Final = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
#: Width and height of the picture that is shown: more than the patches of any vision encoder.
_PICTURE_SIDE: Final = 64


class Vllm:
    """A vLLM server: one model, its aliases and its LoRA adapters, always in memory."""

    kind: ClassVar[EngineKind] = "vllm"
    ports: ClassVar[tuple[int, ...]] = (8000,)
    paths: ClassVar[frozenset[str]] = frozenset(
        {
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/embeddings",
            "/v1/responses",
            "/v1/messages",
            "/v1/messages/count_tokens",
            "/v1/rerank",
            "/v1/audio/transcriptions",
            "/v1/audio/translations",
        }
    )

    async def detect(self, http: Http, url: str) -> bool:
        """Whether its models are owned by vLLM or, where a key guards those, its metrics are."""
        version = await http.peek(f"{url}/version")
        if version is None or version.maybe(_Version) is None:
            return False
        models = await http.peek(f"{url}/v1/models")
        if models is not None and (listing := models.maybe(_Owners)):
            return any(row.owned_by == "vllm" for row in listing.data)
        metrics = await http.peek(f"{url}/metrics")
        return metrics is not None and b"vllm:num_requests_running" in metrics.body

    async def survey(self, http: Http, url: str, cache: SurveyCache | None = None) -> Survey:
        """Read its models and queue; raises `EngineError` too if its engine died or sleeps."""
        cache = cache if cache is not None else SurveyCache()
        await _check_health(http, url)
        version = await http.fetch(f"{url}/version", _Version)
        listing = await http.fetch(f"{url}/v1/models", _Listing)
        answer = await http.get(f"{url}/metrics")
        metrics = answer.body if answer.status == _OK else b""
        if gauges.total(metrics, "vllm:engine_sleep_state", sleep_state="awake") == 0:
            raise EngineError(f"{url} sleeps, and does not wake up for a request")
        rows = read_rows(listing.data, _Row, f"{url}/v1/models")
        replicas = [_replica(row, raw) for row, raw in rows]
        if replicas:
            started = gauges.total(metrics, "process_start_time_seconds")
            known = await _tried(http, url, replicas[0], cache, f"{replicas[0].name}@{started}")
            replicas = [
                msgspec.structs.replace(replica, capabilities=known.capabilities)
                for replica in replicas
            ]
        return Survey(
            version=version.version,
            replicas=tuple(replicas),
            running=gauges.count(metrics, "vllm:num_requests_running"),
            waiting=gauges.count(metrics, "vllm:num_requests_waiting"),
        )


class _Version(Struct):
    version: str


class _Owner(Struct):
    owned_by: str = ""


class _Owners(Struct):
    data: list[_Owner]


class _Row(Struct):
    id: str
    max_model_len: Count | None = None


class _Listing(Struct):
    data: list[Raw]


async def _check_health(http: Http, url: str) -> None:
    health = await http.get(f"{url}/health")
    if health.status >= _SERVER_ERROR:
        raise EngineError(f"{url} says that its engine is dead ({health.status})")


def _replica(row: _Row, listing: bytes) -> Replica:
    return Replica(
        model=canonical(row.id),
        name=row.id,
        context_length=row.max_model_len or 0,
        loaded_context=row.max_model_len or 0,
        slots=ELASTIC_SLOTS,
        listing=listing,
    )


async def _tried(http: Http, url: str, replica: Replica, cache: SurveyCache, key: str) -> Replica:
    """Return the replica with what it can do, tried out once in a run of the server."""
    if known := cache.get(key):
        return known
    cache.clear()
    route = await http.get(f"{url}/v1/embeddings")
    if route.status != _NOT_FOUND:  # 405: it is there, and wants a POST
        return cache.put(key, msgspec.structs.replace(replica, capabilities=("embedding",)))
    found: list[Capability] = ["completion"]
    if await _takes(http, url, replica.name, "a", tools=[_TOOL]):
        found.append("tools")
    if await _takes(http, url, replica.name, [_picture()]):
        found.append("vision")
    return cache.put(key, msgspec.structs.replace(replica, capabilities=tuple(found)))


async def _takes(http: Http, url: str, model: str, content: object, **more: object) -> bool:
    """Whether it takes such a message, to be answered with one token."""
    messages = [{"role": "user", "content": content}]
    body = {"model": model, "messages": messages, "max_tokens": 1} | more
    return await accepts(http, f"{url}/v1/chat/completions", body)


def _picture() -> dict[str, object]:
    """Return a message part with a black square, as PNG (RFC 2083) in a data URL."""
    side = _PICTURE_SIDE
    rows = zlib.compress((b"\0" + b"\0\0\0" * side) * side)
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    )
    link = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return {"type": "image_url", "image_url": {"url": link}}
