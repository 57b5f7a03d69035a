"""What to believe of a replica before it was ever measured: rates from hardware and model size.

Decoding one token reads every weight once, so a device cannot decode faster than its memory's
bandwidth over the model's bytes (the roofline argument; Williams, Waterman and Patterson, 2009).
Everything else here is an order of magnitude, named as such, that the first outcomes replace.
"""

from __future__ import annotations

from msgspec import Struct

from herd.core.fleet import EngineKind, Hardware, Replica

#: Share of the bandwidth that decoding reaches; real engines report 0.5 to 0.8 of the roofline.
EFFICIENCY = 0.6
#: Bytes/s where a device does not tell: two channels of DDR4-2666 carry 2 x 21.3 GB/s.
CPU_BANDWIDTH = 42e9
#: Apple's slowest M-series chip (M1) is specified with 68 GB/s.
APPLE_BANDWIDTH = 68e9
#: A mid-range card with memory of its own, such as an RTX 4060 (272 GB/s by specification).
GPU_BANDWIDTH = 272e9
#: Tokens prefilled in the time of one decoded; orders of magnitude.
PREFILL_RATIO_CPU = 4.0
PREFILL_RATIO_SHARED = 15.0
PREFILL_RATIO_GPU = 30.0
#: Bytes/s from disk into memory: an ordinary NVMe drive, the engine's own work included.
LOAD_RATE = 1e9
LOAD_LEAST = 0.5
#: Bytes of a model that nobody knows the size of: 7 billion parameters at four bits.
UNKNOWN_SIZE = 4e9
BYTES_PER_PARAMETER = 0.6
#: From dispatch to the engine's first work on it.
OVERHEAD = 0.02
#: Tokens of an answer whose length nothing is known of.
ANSWER_TOKENS = 256
#: Memory of a loaded model over its weights: context and buffers.
MEMORY_RATIO = 1.2
#: Share of a device's memory that models may fill; macOS lets the GPU wire three quarters.
MEMORY_SHARE = 0.75

#: Per-request decode rate falls with n running requests as n ** -exponent. Engines that batch
#: continuously on a GPU lose little; elsewhere n requests mostly share what one had.
_SHARING: dict[EngineKind, float] = {"vllm": 0.15}
_SHARING_ELSE = 0.9

#: Kinds that load a model when a request names it.
LOADS_ON_DEMAND: frozenset[EngineKind] = frozenset({"ollama", "lmstudio", "llamacpp"})

#: Kinds that refuse what a model cannot do, rather than answer without it.
CHECKS_CAPABILITIES: frozenset[EngineKind] = frozenset({"ollama"})


class Rates(Struct, frozen=True, kw_only=True):
    """What a replica can do for one request that runs alone."""

    #: Tokens per second.
    prefill: float
    decode: float
    #: Seconds.
    load: float
    overhead: float


def rates(hardware: Hardware, replica: Replica) -> Rates:
    """Return the prior for a replica on this hardware."""
    size = weight_bytes(replica)
    bandwidth, ratio = _memory(hardware)
    decode = EFFICIENCY * bandwidth / size
    return Rates(
        prefill=decode * ratio,
        decode=decode,
        load=max(LOAD_LEAST, size / LOAD_RATE),
        overhead=OVERHEAD,
    )


def slowdown(kind: EngineKind, running: int) -> float:
    """How many times longer a token takes when `running` requests share the device."""
    return float(max(1, running) ** _SHARING.get(kind, _SHARING_ELSE))


def weight_bytes(replica: Replica) -> float:
    """Bytes of weights, the best that is known."""
    if replica.size:
        return float(replica.size)
    if replica.parameters:
        return replica.parameters * BYTES_PER_PARAMETER
    return UNKNOWN_SIZE


def memory_need(replica: Replica) -> float:
    """Bytes that it takes in memory when loaded."""
    return float(replica.memory_bytes) or weight_bytes(replica) * MEMORY_RATIO


def memory_budget(hardware: Hardware) -> float | None:
    """Bytes that models may fill on this device; None where nothing is known."""
    if hardware.vram_bytes:
        return float(hardware.vram_bytes)
    if hardware.memory_bytes:
        return hardware.memory_bytes * MEMORY_SHARE
    return None


def _memory(hardware: Hardware) -> tuple[float, float]:
    """Bandwidth, declared or guessed, and how much faster prefill is than decode."""
    if hardware.vram_bytes or (hardware.gpu and not hardware.chip.startswith("Apple")):
        return hardware.bandwidth or GPU_BANDWIDTH, PREFILL_RATIO_GPU
    if hardware.chip.startswith("Apple"):
        return hardware.bandwidth or APPLE_BANDWIDTH, PREFILL_RATIO_SHARED
    return hardware.bandwidth or CPU_BANDWIDTH, PREFILL_RATIO_CPU
