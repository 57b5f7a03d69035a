"""Which models the fleet has, in the words of Ollama's and OpenAI's listings.

Rows that an engine wrote are handed on as they came; for engines without such a listing they are
made from what is known, and what is not known is left empty rather than invented.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from herd.core import signals
from herd.core.names import canonical
from herd.core.scheduler import Scheduler
from herd.core.state import ReplicaState

#: What Ollama says of a model that stays for ever, as those of fixed engines do.
FOR_EVER: Final = "2319-01-01T00:00:00Z"
#: The API that Herd offers, where no Ollama in the fleet has a version of its own: the one that
#: its answers were compared with.
API_VERSION: Final = "0.33.0"


def reachable(scheduler: Scheduler) -> Iterator[ReplicaState]:
    """All replicas that could serve somebody now."""
    for node in scheduler.nodes.values():
        for replica in node.replicas.values():
            if not signals.unreachable(replica):
                yield replica


def tags(scheduler: Scheduler, *, since: str) -> dict[str, Any]:
    """`/api/tags`: one row per model and digest. `since` stands in for an unknown date."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for replica in reachable(scheduler):
        key = (replica.spec.model, replica.spec.digest)
        if key not in rows:
            rows[key] = _row(replica) | {"modified_at": _modified(replica, since)}
            rows[key]["herd"] = {"nodes": []}
        nodes = rows[key]["herd"]["nodes"]
        if replica.node.report.name not in nodes:
            nodes.append(replica.node.report.name)
    newest = sorted(rows.values(), key=lambda row: str(row["modified_at"]), reverse=True)
    return {"models": newest}


def resident(scheduler: Scheduler) -> dict[str, Any]:
    """`/api/ps`: everything in memory, with the node that holds it."""
    rows = []
    for replica in reachable(scheduler):
        spec = replica.spec
        if not replica.resident:
            continue
        if spec.resident_listing:
            row = msgspec.json.decode(spec.resident_listing)
        elif replica.engine.kind == "ollama":
            continue  # another name of a model that is listed under the one that loaded it
        else:
            row = _row(replica)
            row.pop("capabilities", None)
            row["size"] = spec.memory_bytes or spec.size
            row["expires_at"] = FOR_EVER
            row["size_vram"] = spec.memory_bytes if replica.node.report.hardware.gpu else 0
            row["context_length"] = spec.loaded_context or spec.context_length
        row["herd"] = {"node": replica.node.report.name, "engine": replica.key.engine}
        rows.append(row)
    return {"models": rows}


def openai_models(scheduler: Scheduler, *, since: int) -> dict[str, Any]:
    """`/v1/models`: one entry per model."""
    entries: dict[str, dict[str, Any]] = {}
    for replica in reachable(scheduler):
        name = shown_name(replica)
        entry = entries.setdefault(
            name, {"id": name, "object": "model", "created": since, "owned_by": "library"}
        )
        if replica.engine.kind != "ollama":
            entry["owned_by"] = replica.engine.kind
        limit = signals.context_limit(replica)
        if limit:
            entry["max_model_len"] = max(limit, entry.get("max_model_len", 0))
    return {"object": "list", "data": [entries[name] for name in sorted(entries)]}


def openai_model(scheduler: Scheduler, name: str, *, since: int) -> dict[str, Any] | None:
    """`/v1/models/{name}`; None if no node has it."""
    listing: list[dict[str, Any]] = openai_models(scheduler, since=since)["data"]
    wanted = canonical(name)
    return next((entry for entry in listing if canonical(entry["id"]) == wanted), None)


def version(scheduler: Scheduler) -> str:
    """The lowest version of the fleet's Ollamas, since clients ask it for a minimum."""
    versions = [
        replica.engine.version
        for replica in reachable(scheduler)
        if replica.engine.kind == "ollama" and replica.engine.version
    ]
    return min(versions, key=_version_key, default=API_VERSION)


def synthetic_show(replica: ReplicaState) -> dict[str, Any]:
    """`/api/show` for a model of an engine that has no such thing."""
    spec, row = replica.spec, _row(replica)
    info: dict[str, Any] = {"general.basename": spec.name}
    if spec.parameters:
        info["general.parameter_count"] = spec.parameters
    if spec.context_length:
        info["general.context_length"] = spec.context_length
    return {
        "modelfile": "",
        "parameters": "",
        "template": "",
        "details": row["details"],
        "model_info": info,
        "capabilities": list(spec.capabilities),
    }


def shown_name(replica: ReplicaState) -> str:
    """The name by which clients should ask: the engine's own, unless it is a path."""
    name = replica.spec.name
    return replica.spec.model if canonical(name) != name.lower() and "/" in name[:2] else name


def _row(replica: ReplicaState) -> dict[str, Any]:
    spec = replica.spec
    if spec.listing and replica.engine.kind == "ollama":
        row: dict[str, Any] = msgspec.json.decode(spec.listing)
        return row
    name = shown_name(replica)
    return {
        "name": name,
        "model": name,
        "modified_at": "",
        "size": spec.size,
        "digest": spec.digest,
        "details": {
            "parent_model": "",
            "format": "",
            "family": "",
            "families": [],
            "parameter_size": f"{spec.parameters / 1e6:.2f}M" if spec.parameters else "",
            "quantization_level": "",
        },
        "capabilities": list(spec.capabilities),
    }


def _modified(replica: ReplicaState, since: str) -> str:
    return str(_row(replica)["modified_at"] or since)


def _version_key(text: str) -> tuple[int, ...]:
    """Order versions by their numbers; what is no number counts as the lowest."""
    head = text.split("-", 1)[0].split("+", 1)[0]
    return tuple(int(part) if part.isdigit() else -1 for part in head.split("."))
