"""What to believe of a replica before it was ever measured: rates from hardware and model size.

Decoding a token reads every weight that it uses once, so a device cannot decode faster than its
memory's bandwidth over those bytes; prefill computes two operations for each parameter and token
(the roofline argument; Williams, Waterman and Patterson, 2009). How much of either is reached is
an order of magnitude with its source beside it, that the first outcomes replace.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from herd.core import chips, sizes
from herd.core.chips import Chip
from herd.core.fleet import EngineKind, Hardware, Replica

#: Share of the bandwidth that decoding reaches where nothing is known of the chip; real engines
#: report 0.5 to 0.8 of the roofline.
EFFICIENCY = 0.6
#: Of Apple's chips: llama.cpp on an M4 decodes 4.92 GB 20.9 times a second, 0.86 of 120 GB/s
#: (brand-o/normiebench issue 3); on an M2 Pro the time grows by a GB for every 6.2 ms, 0.81 of
#: 200 GB/s (XiongjieDai/GPU-Benchmarks-on-LLM-Inference issue 1).
EFFICIENCY_APPLE = 0.8
#: Of cards with memory of their own: between the 0.7 and 0.8 that copying reaches on them.
EFFICIENCY_CARD = 0.75
#: Seconds of a token that no bandwidth shortens: launching its kernels. TinyLlama (0.67 GB, 1 ms
#: to read) takes an M1 Ultra 4.1 ms (geerlingguy/ai-benchmarks issue 48). CUDA graphs launch
#: about ten kernels for each of some dozens of layers at 1 to 3 microseconds.
TOKEN_APPLE = 0.0025
TOKEN_CARD = 0.0008
#: Share of the specified operations that prefill reaches. Apple: an M4 prefills 8 billion
#: parameters at 225/s (normiebench issue 3), 0.89 of 4 TFLOP/s; an M2 Pro 7 billion at 170/s and
#: newer versions at twice that, 0.33 to 0.7 of 6.8. Cards: 0.4 to 0.5 is usual of large models.
COMPUTE_APPLE = 0.65
COMPUTE_CARD = 0.45
#: Operations/s of a core: two AVX2 units of 8 lanes at 3.5 GHz make 112e9, of which a half.
COMPUTE_CORE = 56e9
#: A mixture of experts reaches so much of what its active parameters promise: a prompt's tokens
#: spread over all experts, and small matrices fill a GPU badly. An order of magnitude.
EXPERTS_SHARE = 0.5
#: Bytes/s where a device does not tell: two channels of DDR4-2666 carry 2 x 21.3 GB/s.
CPU_BANDWIDTH = 42e9
#: Apple's slowest M-series chip (M1) is specified with 68 GB/s.
APPLE_BANDWIDTH = 68e9
#: A mid-range card with memory of its own, such as an RTX 4060 (272 GB/s by specification).
GPU_BANDWIDTH = 272e9
#: Tokens prefilled in the time of one decoded, where compute is unknown; orders of magnitude.
PREFILL_RATIO_CPU = 4.0
PREFILL_RATIO_SHARED = 15.0
PREFILL_RATIO_GPU = 30.0
#: Bytes/s from disk into memory: an ordinary NVMe drive, the engine's own work included.
LOAD_RATE = 1e9
#: Apple's drives read 1.5 to 3 GB/s in base models and 5 to 7 beside Pro, Max and Ultra chips, and
#: machines with a card of the table have an NVMe drive of 3.5 and more; about half arrives.
LOAD_RATE_APPLE = 1.2e9
LOAD_RATE_LARGE = 3e9
LOAD_RATE_CARD = 1.8e9
LOAD_LEAST = 0.5
#: Bytes of a model that nobody knows the size of: 7 billion parameters at four bits.
UNKNOWN_SIZE = 4e9
#: Bytes of a parameter where neither size nor name tells: Q4_K_M, which Ollama's library and most
#: files for llama.cpp use, has 4.9 bits; MLX's 4 bits have 4.5; vLLM serves what was published.
BYTES_PER_PARAMETER = 0.6
_BYTES_BY_KIND: dict[EngineKind, float] = {"vllm": 2.0, "mlx": 0.5625}
#: From dispatch to the engine's first work on it.
OVERHEAD = 0.02
#: Tokens of an answer whose length nothing is known of.
ANSWER_TOKENS = 256
#: Memory of a loaded model over its weights: context and buffers.
MEMORY_RATIO = 1.2
#: Share of that which does not grow with the context.
BUFFERS_RATIO = 1.05
#: Bytes of a token's keys and values for a model of 8 billion parameters, and how they grow with
#: the parameters: Llama 3 at 3, 8 and 70 billion has 115, 131 and 328 kB in 16 bits.
CONTEXT_BYTES = 131e3
CONTEXT_GROWTH = 0.4
#: Share of a device's memory that models may fill; macOS lets the GPU wire three quarters.
MEMORY_SHARE = 0.75

#: Per-request decode rate falls with n running requests as n ** -exponent. Engines that batch
#: continuously on a GPU lose little; elsewhere n requests mostly share what one had.
_SHARING: dict[EngineKind, float] = {"vllm": 0.15}
_SHARING_ELSE = 0.9
#: Prefill is bound by compute on every engine, and shared nearly in full.
_SHARING_PREFILL = 0.9

#: Kinds that load a model when a request names it.
LOADS_ON_DEMAND: frozenset[EngineKind] = frozenset({"ollama", "lmstudio", "llamacpp"})

#: Kinds that refuse what a model cannot do, rather than answer without it.
CHECKS_CAPABILITIES: frozenset[EngineKind] = frozenset({"ollama"})


#: Where engines on a device compute: on its processors, on a card of its own memory, or on the GPU
#: that shares an Apple chip with them.
Processor = Literal["cpu", "card", "apple"]


class Rates(Struct, frozen=True, kw_only=True):
    """What a replica can do for one request that runs alone, and how it shares."""

    #: Tokens per second.
    prefill: float
    decode: float
    #: Seconds.
    load: float
    overhead: float
    #: n requests at once run at n ** -sharing of the rates, each; apart for prefill and decode.
    sharing: float = _SHARING_ELSE
    sharing_prefill: float = _SHARING_PREFILL


class _Device(Struct, frozen=True):
    """A device's figures, as far as they matter to one engine on it."""

    #: Bytes/s that decoding reaches, and seconds that each token takes besides.
    stream: float
    token: float
    #: Operations/s that prefill reaches; 0 unknown.
    compute: float
    #: Tokens prefilled in the time of one decoded where compute is unknown.
    ratio: float
    load: float
    #: Bytes that fit in a card's own memory; 0 where there is none to run out of.
    card: int = 0


def rates(hardware: Hardware, replica: Replica, kind: EngineKind = "ollama") -> Rates:
    """Return the prior for a replica on this hardware, run by an engine of that kind."""
    size = weight_bytes(replica, kind)
    device = _device(hardware, kind)
    share = active_share(replica)
    part = EXPERTS_SHARE if share < 1.0 else 1.0
    stream = device.stream
    if device.card and size > device.card:
        # What does not fit is read from the system's memory, in turns with the card's.
        inside = device.card / size
        stream = 1.0 / (inside / stream + (1.0 - inside) / (EFFICIENCY * CPU_BANDWIDTH))
    decode = part / (device.token + size * share / stream)
    prefill = decode * device.ratio
    if device.compute:
        active = share * parameters(replica, kind)
        prefill = part * device.compute / (2.0 * active)
    sharing = _SHARING.get(kind, _SHARING_ELSE)
    return Rates(
        prefill=prefill,
        decode=decode,
        load=max(LOAD_LEAST, size / device.load),
        overhead=OVERHEAD,
        sharing=sharing,
        sharing_prefill=_SHARING_PREFILL,
    )


def slowdown(kind: EngineKind, running: int) -> float:
    """How many times longer a token takes when `running` requests share the device."""
    return float(max(1, running) ** _SHARING.get(kind, _SHARING_ELSE))


def weight_bytes(replica: Replica, kind: EngineKind = "ollama") -> float:
    """Bytes of weights, the best that is known."""
    if replica.size:
        return float(replica.size)
    named = sizes.parameters(replica.model)
    count = float(replica.parameters) or (named[0] if named else 0.0)
    return count * _bytes_per_parameter(replica, kind) if count else UNKNOWN_SIZE


def parameters(replica: Replica, kind: EngineKind = "ollama") -> float:
    """Parameters of a model, the best that is known."""
    if replica.parameters:
        return float(replica.parameters)
    if named := sizes.parameters(replica.model):
        return named[0]
    return weight_bytes(replica, kind) / _bytes_per_parameter(replica, kind)


def active_share(replica: Replica) -> float:
    """Share of the parameters that a token uses; below 1 in a mixture of experts."""
    named = sizes.parameters(replica.model)
    return named[1] / named[0] if named else 1.0


def memory_need(replica: Replica) -> float:
    """Bytes that it takes in memory when loaded."""
    return float(replica.memory_bytes) or weight_bytes(replica) * MEMORY_RATIO


def context_bytes(replica: Replica, kind: EngineKind = "ollama") -> float:
    """Bytes that a token of context takes in memory; 0 for an embedder, which keeps none."""
    if "completion" not in replica.capabilities:
        return 0.0
    return float(CONTEXT_BYTES * (parameters(replica, kind) / 8e9) ** CONTEXT_GROWTH)


def memory_budget(hardware: Hardware) -> float | None:
    """Bytes that models may fill on this device; None where nothing is known."""
    if hardware.vram_bytes:
        return float(hardware.vram_bytes)
    chip = _chip(hardware)
    if chip is not None and chip.memory:
        return float(chip.memory * chips.count(hardware.gpu))
    if hardware.memory_bytes:
        return hardware.memory_bytes * MEMORY_SHARE
    return None


def _bytes_per_parameter(replica: Replica, kind: EngineKind) -> float:
    named = sizes.bytes_per_parameter(replica.name) or sizes.bytes_per_parameter(replica.model)
    return named or _BYTES_BY_KIND.get(kind, BYTES_PER_PARAMETER)


def _chip(hardware: Hardware) -> Chip | None:
    """The chip that models run on, if it is in the table."""
    if hardware.gpu and (found := chips.find(hardware.gpu)):
        return found
    found = chips.find(hardware.chip) if hardware.chip else None
    # A processor's name may look like that of a card; only those that share memory count.
    return found if found is not None and not found.memory else None


def processor(hardware: Hardware) -> Processor:
    """Tell where engines on the device compute."""
    return _processor(hardware, _chip(hardware))


def _processor(hardware: Hardware, chip: Chip | None) -> Processor:
    if chip.apple if chip is not None else hardware.chip.startswith("Apple"):
        return "apple"
    return "card" if chip is not None or hardware.gpu or hardware.vram_bytes else "cpu"


def _device(hardware: Hardware, kind: EngineKind) -> _Device:
    """What the device reaches: what it declares or measured, else by its chip, else a guess."""
    chip = _chip(hardware)
    where = _processor(hardware, chip)
    if where == "apple":
        return _apple(hardware, chip)
    if where == "cpu":
        return _Device(
            stream=EFFICIENCY * (hardware.bandwidth or CPU_BANDWIDTH),
            token=0.0,
            compute=hardware.cores * COMPUTE_CORE,
            ratio=PREFILL_RATIO_CPU,
            load=LOAD_RATE,
        )
    # vLLM lets all cards of a machine work on each token; the others let them take turns.
    cards = chips.count(hardware.gpu) if kind == "vllm" else 1
    bandwidth = hardware.bandwidth or (chip.bandwidth if chip else GPU_BANDWIDTH)
    return _Device(
        stream=(EFFICIENCY_CARD if chip else EFFICIENCY) * bandwidth * cards,
        token=TOKEN_CARD if chip else 0.0,
        compute=COMPUTE_CARD * chip.compute * cards if chip else 0.0,
        ratio=PREFILL_RATIO_GPU,
        load=LOAD_RATE_CARD if chip else LOAD_RATE,
        card=hardware.vram_bytes or (chip.memory if chip else 0),
    )


def _apple(hardware: Hardware, chip: Chip | None) -> _Device:
    if chip is None:
        return _Device(
            stream=EFFICIENCY * (hardware.bandwidth or APPLE_BANDWIDTH),
            token=0.0,
            compute=0.0,
            ratio=PREFILL_RATIO_SHARED,
            load=LOAD_RATE,
        )
    large = chip.name.endswith(("pro", "max", "ultra"))
    return _Device(
        stream=EFFICIENCY_APPLE * (hardware.bandwidth or chip.bandwidth),
        token=TOKEN_APPLE,
        compute=COMPUTE_APPLE * chip.compute,
        ratio=PREFILL_RATIO_SHARED,
        load=LOAD_RATE_LARGE if large else LOAD_RATE_APPLE,
    )
