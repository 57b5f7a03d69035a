"""Kinds of device with sourced figures, and what is true of one that the router has to find out.

A device's true rates come from measurements of one model on that kind of device, carried over to
other models by their bytes and parameters, and then from chance: two machines of one kind differ,
so do models of one size, and so does every pair. None of this is computed as `core.priors` does,
which knows bandwidths and sizes alone: what a router believes at first is wrong by a third and
more, and it has to learn.
"""

from __future__ import annotations

import math
import random
from typing import Literal

from msgspec import Struct

from herd.core.fleet import Capability, EngineKind, Hardware
from herd.sim.spec import OLLAMA_KEEP_ALIVE, OLLAMA_QUEUE, Batching, EngineSpec, ModelSpec

GIB = 2**30
GB = 10**9

#: Spread of the true rates around a kind's figures, as the standard deviation of their logarithm:
#: of a device (heat, age, other programs), of a model (its kernels) and of the two together.
#: Their squares add up to 0.35 squared.
SPREAD_DEVICE = 0.22
SPREAD_MODEL = 0.16
SPREAD_PAIR = 0.22

#: Tokens of context for each slot; with an 8-bit cache. Long enough for every workload here.
CONTEXT = 32768
#: A mixture of experts reaches so much of the rates that its active parameters promise: the tokens
#: of a prompt spread over all experts, and small experts fill a GPU badly. Orders of magnitude.
MOE_PREFILL = 0.5
MOE_DECODE = 0.6
#: Seconds of a decoded token that do not shrink with the model: launching its kernels.
TOKEN_OVERHEAD = 0.0008
#: Sequences that vLLM runs at once. Its own default on such a GPU is 1,024, which no pool of ours
#: holds; routers send fewer, as it tells no limit (`engines.vllm.ELASTIC_SLOTS`).
VLLM_SEQUENCES = 64
#: It refuses nothing for the length of its line.
VLLM_QUEUE = 10**9
#: Share of the GPU's memory that it takes, as `/metrics` of vLLM 0.32 tells of a server without
#: options; and of that the bytes of activations and CUDA graphs; an order of magnitude.
VLLM_SHARE = 0.92
VLLM_OVERHEAD = 2 * GIB
#: Share of a Mac's memory that its GPU may wire, by macOS's default on large configurations.
APPLE_SHARE = 0.75


class Model(Struct, frozen=True, kw_only=True):
    """A model at four bits: its size as Ollama's library lists it, the rest by its own card."""

    name: str
    weight_bytes: int
    parameters: int
    #: Read and computed for each token; smaller than `parameters` in a mixture of experts.
    active: int
    #: Bytes of an 8-bit cache for one token: 2 x layers x key-value heads x head size.
    kv_bytes: int
    capabilities: tuple[Capability, ...] = ("completion", "tools")
    context_length: int = 131072


MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        Model(
            name="nomic-embed-text:latest",
            weight_bytes=274_000_000,
            parameters=137_000_000,
            active=137_000_000,
            kv_bytes=0,
            capabilities=("embedding",),
            context_length=8192,
        ),
        Model(
            name="llama3.2:3b",
            weight_bytes=2_020_000_000,
            parameters=3_210_000_000,
            active=3_210_000_000,
            kv_bytes=57_344,
        ),
        Model(
            name="qwen2.5-coder:7b",
            weight_bytes=4_680_000_000,
            parameters=7_620_000_000,
            active=7_620_000_000,
            kv_bytes=28_672,
        ),
        Model(
            name="llama3.1:8b",
            weight_bytes=4_920_000_000,
            parameters=8_030_000_000,
            active=8_030_000_000,
            kv_bytes=65_536,
        ),
        Model(
            name="gemma3:12b",
            weight_bytes=8_150_000_000,
            parameters=12_200_000_000,
            active=12_200_000_000,
            kv_bytes=49_152,
        ),
        Model(
            name="qwen3:30b-a3b",
            weight_bytes=18_600_000_000,
            parameters=30_500_000_000,
            active=3_300_000_000,
            kv_bytes=49_152,
        ),
        Model(
            name="qwen2.5:32b",
            weight_bytes=19_850_000_000,
            parameters=32_800_000_000,
            active=32_800_000_000,
            kv_bytes=131_072,
        ),
        Model(
            name="llama3.3:70b",
            weight_bytes=42_500_000_000,
            parameters=70_600_000_000,
            active=70_600_000_000,
            kv_bytes=163_840,
        ),
    )
}


class DeviceKind(Struct, frozen=True, kw_only=True):
    """A kind of device, and what one model was measured to do on it."""

    name: str
    system: Literal["Darwin", "Linux", "Windows"]
    chip: str
    cores: int
    memory_bytes: int
    bandwidth: float
    gpu: str = ""
    vram_bytes: int = 0
    engine: EngineKind = "ollama"
    #: The model of the measurement: bytes of its weights and its parameters.
    measured_bytes: float = 3.83 * GB
    measured_parameters: float = 6.74e9
    #: Tokens/s that it was measured to prefill and decode.
    prefill: float
    decode: float
    #: Bytes/s from disk into memory, the engine's own work included.
    load_rate: float
    #: Requests of one model at once (Ollama's default is 1), and what that costs each: n run at
    #: n ** -alpha of the rate. Models that run beside one another on one device are no batch: they
    #: take turns, and little is gained.
    slots: int = 1
    alpha: float = 0.95
    #: Instead of `alpha`, where the engine batches; its cache has what memory the weights leave.
    batching: Batching | None = None
    #: Bytes that models may fill.
    usable: int
    #: Where the figures are from.
    source: str


_TABLE = (
    "the order of llama.cpp's published table for Apple Silicon: Llama 2 7B Q4_0 (3.56 GiB), pp512 "
    "and tg128; recalled, not checked against it"
)
_LOADS = "loads at half of the drive's sequential read by Apple's specification or reviews"

KINDS: dict[str, DeviceKind] = {
    kind.name: kind
    for kind in (
        DeviceKind(
            name="mac-studio-m2-ultra",
            system="Darwin",
            chip="Apple M2 Ultra",
            cores=24,
            memory_bytes=192 * GIB,
            bandwidth=800e9,
            prefill=1238.5,
            decode=94.3,
            load_rate=3.0e9,
            usable=int(192 * GIB * APPLE_SHARE),
            source=f"{_TABLE}, 76 GPU cores; {_LOADS}",
        ),
        DeviceKind(
            name="macbook-pro-m3-max",
            system="Darwin",
            chip="Apple M3 Max",
            cores=16,
            memory_bytes=64 * GIB,
            bandwidth=400e9,
            prefill=759.7,
            decode=66.3,
            load_rate=3.0e9,
            usable=int(64 * GIB * APPLE_SHARE),
            source=f"{_TABLE}, 40 GPU cores; {_LOADS}",
        ),
        DeviceKind(
            name="mac-mini-m2-pro",
            system="Darwin",
            chip="Apple M2 Pro",
            cores=12,
            memory_bytes=32 * GIB,
            bandwidth=200e9,
            prefill=341.2,
            decode=37.9,
            load_rate=2.5e9,
            usable=int(32 * GIB * APPLE_SHARE),
            source=f"{_TABLE}, 19 GPU cores; {_LOADS}",
        ),
        DeviceKind(
            name="mac-mini-m2",
            system="Darwin",
            chip="Apple M2",
            cores=8,
            memory_bytes=16 * GIB,
            bandwidth=100e9,
            prefill=179.6,
            decode=21.9,
            load_rate=0.8e9,
            usable=int(16 * GIB * APPLE_SHARE),
            source=f"{_TABLE}, 10 GPU cores; {_LOADS} (256 GB model: one flash chip)",
        ),
        DeviceKind(
            name="macbook-air-m1",
            system="Darwin",
            chip="Apple M1",
            cores=8,
            memory_bytes=16 * GIB,
            bandwidth=68e9,
            prefill=118.0,
            decode=14.2,
            load_rate=1.4e9,
            usable=int(16 * GIB * APPLE_SHARE),
            source=f"{_TABLE}, 8 GPU cores; {_LOADS}",
        ),
        DeviceKind(
            name="pc-rtx-4090",
            system="Linux",
            chip="AMD Ryzen 9",
            cores=16,
            memory_bytes=64 * GIB,
            bandwidth=1008e9,
            gpu="NVIDIA GeForce RTX 4090",
            vram_bytes=24 * GIB,
            prefill=6700.0,
            decode=155.0,
            load_rate=2.0e9,
            usable=24 * GIB,
            source="llama.cpp pull request 7716 (8B pp2048: 5,700/s); mlc-ai/llm-perf-bench pull "
            "request 1 (7B at 4 bits: 153 to 191/s)",
        ),
        DeviceKind(
            name="vllm-h100",
            system="Linux",
            chip="Intel Xeon",
            cores=26,
            memory_bytes=200 * GIB,
            bandwidth=3350e9,
            gpu="NVIDIA H100 80GB HBM3",
            vram_bytes=80 * GIB,
            engine="vllm",
            measured_bytes=16.06 * GB,
            measured_parameters=8.03e9,
            prefill=27_000.0,
            decode=160.0,
            load_rate=2.0e9,
            slots=VLLM_SEQUENCES,
            batching=Batching(chunk=8192),
            usable=int(VLLM_SHARE * 80 * GIB),
            source="a vLLM sweep of Llama 3.1 8B in bfloat16 on an A100 40GB (75/s alone; see "
            "`spec.VLLM_MARGINAL`), by the ratio of bandwidths (3,350 to 1,555 GB/s); prefill "
            "at 45 % of 989 TFLOP/s as specified, two operations for a parameter and token; "
            "vLLM's defaults for its steps and for its share of memory",
        ),
        DeviceKind(
            name="cpu-box",
            system="Linux",
            chip="Intel Core i7",
            cores=8,
            memory_bytes=32 * GIB,
            bandwidth=42e9,
            prefill=33.7,
            decode=7.5,
            load_rate=1.0e9,
            usable=24 * GIB,
            source="A user's report of llama.cpp: 7B on 8 threads of a Core i9-13900K (33.7/s and "
            "18.3/s with DDR5-6400), decoding by the ratio of bandwidths (42 to 102 GB/s)",
        ),
    )
}


def hardware(kind: DeviceKind) -> Hardware:
    """Return what an agent on such a device would report."""
    return Hardware(
        system=kind.system,
        chip=kind.chip,
        cores=kind.cores,
        memory_bytes=kind.memory_bytes,
        gpu=kind.gpu,
        vram_bytes=kind.vram_bytes,
        bandwidth=kind.bandwidth,
    )


def fits(kind: DeviceKind, model: Model) -> bool:
    """Whether the model can be loaded there with the context that all of them get."""
    # An engine that batches starts if its pool holds one sequence.
    slots = kind.slots if kind.batching is None else 1
    need = model_spec(kind, model, device="", seed=0).memory(
        min(CONTEXT, model.context_length), slots
    )
    return need <= kind.usable


def engine_spec(
    kind: DeviceKind, models: tuple[Model, ...], *, device: str, seed: int
) -> EngineSpec:
    """Describe the engine of one device of the kind, with the rates that are true of it.

    Raises ValueError for more than one model where the engine serves one.
    """
    if kind.batching is not None and len(models) > 1:
        raise ValueError(f"{kind.name} serves one model")
    return EngineSpec(
        models=tuple(model_spec(kind, model, device=device, seed=seed) for model in models),
        memory_bytes=kind.usable,
        load_rate=kind.load_rate * _chance(seed, math.hypot(SPREAD_DEVICE, SPREAD_PAIR), device),
        prefill_rate=kind.prefill,
        decode_rate=kind.decode,
        alpha=kind.alpha,
        slots=kind.slots,
        queue_limit=OLLAMA_QUEUE if kind.batching is None else VLLM_QUEUE,
        keep_alive=OLLAMA_KEEP_ALIVE if kind.batching is None else -1.0,
        batching=kind.batching,
        default_context=CONTEXT,
    )


def model_spec(kind: DeviceKind, model: Model, *, device: str, seed: int) -> ModelSpec:
    """Describe a model on one device; without the seed's chance where `device` is empty."""
    # vLLM serves the weights as they are published, two bytes for each parameter, and its cache
    # has by default as many bytes for a number as they have.
    weights, kv_bytes, overhead = model.weight_bytes, model.kv_bytes, 0
    if kind.engine == "vllm":
        weights, kv_bytes, overhead = 2 * model.parameters, 2 * model.kv_bytes, VLLM_OVERHEAD
    share = model.active / model.parameters
    decode, prefill = _rates(kind, weights * share, model.active)
    if share < 1.0:
        prefill *= MOE_PREFILL
        decode *= MOE_DECODE
    if device:
        decode *= _deviation(seed, device, model.name, "decode")
        prefill *= _deviation(seed, device, model.name, "prefill")
    return ModelSpec(
        name=model.name,
        weight_bytes=weights,
        context_length=model.context_length,
        capabilities=model.capabilities,
        parameters=model.parameters,
        kv_bytes_per_token=kv_bytes,
        overhead_bytes=overhead,
        prefill_rate=prefill,
        decode_rate=decode,
    )


def _rates(kind: DeviceKind, bytes_read: float, active: float) -> tuple[float, float]:
    """Carry the measurement over: decoding by bytes read, prefill by parameters computed."""
    measured = 1.0 / kind.decode - TOKEN_OVERHEAD
    decode = 1.0 / (TOKEN_OVERHEAD + measured * bytes_read / kind.measured_bytes)
    return decode, kind.prefill * kind.measured_parameters / active


def _deviation(seed: int, device: str, model: str, rate: str) -> float:
    return (
        _chance(seed, SPREAD_DEVICE, device, rate)
        * _chance(seed, SPREAD_MODEL, model, rate)
        * _chance(seed, SPREAD_PAIR, device, model, rate)
    )


def _chance(seed: int, spread: float, *what: str) -> float:
    """A factor with median 1 that depends on nothing but its arguments."""
    draw = random.Random("/".join((str(seed), *what)))  # noqa: S311 - an experiment, no secret
    return math.exp(draw.gauss(0.0, spread))
