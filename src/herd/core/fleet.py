"""What a node says of itself: the report, and the words it is made of.

All sizes are bytes, all rates per second, all times seconds. A field that nobody could measure is
None (or 0 where zero cannot be a true value, which the field then says): unknown is never guessed
in a report, only in an estimate.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Capability = Literal[
    "completion",
    "tools",
    "vision",
    "thinking",
    "embedding",
    "rerank",
    "image",
    "transcription",
    "speech",
    "insert",
]
Residency = Literal["absent", "disk", "loading", "resident"]
EngineKind = Literal["ollama", "llamacpp", "vllm", "lmstudio", "mlx"]


class Hardware(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A device. Zero or an empty string means unknown."""

    system: str = ""
    chip: str = ""
    cores: int = 0
    memory_bytes: int = 0
    gpu: str = ""
    #: Memory of its own that the GPU has; 0 where it shares the system's.
    vram_bytes: int = 0
    #: Bytes/s at which weights stream from the memory that models live in.
    bandwidth: float = 0.0
    power_watts: float = 0.0


class Load(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How busy a device is now; None where unknown."""

    #: Share of all cores, 0 to 1.
    cpu: float | None = None
    memory_available: int | None = None


class Replica(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model on one engine."""

    #: Canonical name, the key by which requests find it.
    model: str
    #: The name by which the engine itself knows it.
    name: str
    residency: Residency = "resident"
    digest: str = ""
    #: Bytes of weights; 0 unknown.
    size: int = 0
    parameters: int = 0
    #: The longest context the model can have; 0 unknown.
    context_length: int = 0
    #: Context per slot as loaded now; 0 if not resident or unknown.
    loaded_context: int = 0
    #: Bytes it holds in memory now; 0 if not resident or unknown.
    memory_bytes: int = 0
    capabilities: tuple[Capability, ...] = ("completion",)
    #: Requests that the engine runs at once on this replica.
    slots: int = 1
    #: The engine's own row for it in its listing, JSON as it came; empty if it has none.
    listing: bytes = b""
    #: The same in its listing of what is resident.
    resident_listing: bytes = b""


class EngineReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An inference server on a node, as last surveyed."""

    #: Unique on its node and stable over restarts, such as `ollama-11434`.
    id: str
    kind: EngineKind
    #: Where the router reaches it, without a trailing slash.
    url: str
    version: str = ""
    up: bool = True
    #: Why it is not up.
    error: str = ""
    replicas: tuple[Replica, ...] = ()
    #: Requests it runs and holds back by its own count, ours and others'; None if it does not say.
    running: int | None = None
    waiting: int | None = None


class NodeReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything the router knows of a node, from its agent or from probing its URL."""

    #: Identity; stable over restarts and renames.
    node: str
    #: What people call it.
    name: str
    hardware: Hardware = Hardware()
    load: Load = Load()
    engines: tuple[EngineReport, ...] = ()
    #: Version of the agent; empty for a node without one.
    agent: str = ""


class ReplicaKey(Struct, frozen=True, order=True):
    """Names one replica in the fleet."""

    node: str
    engine: str
    model: str
