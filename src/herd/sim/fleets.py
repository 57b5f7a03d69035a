"""Six fleets to experiment with, from one device to two hundred, and what is true of them."""

from __future__ import annotations

import random
from collections.abc import Mapping

from msgspec import Struct

from herd.sim.devices import KINDS, MODELS, DeviceKind, Model, engine_spec, fits, hardware
from herd.sim.spec import EngineSpec, ModelSpec

_SMALL = ("nomic-embed-text:latest", "llama3.2:3b", "qwen2.5-coder:7b", "llama3.1:8b")
_MIDDLE = (*_SMALL, "gemma3:12b", "qwen3:30b-a3b")
_LARGE = (*_MIDDLE, "qwen2.5:32b", "llama3.3:70b")
#: What lies on a device of each kind, as far as it fits.
USUAL: dict[str, tuple[str, ...]] = {
    "mac-studio-m2-ultra": _LARGE,
    "macbook-pro-m3-max": (*_MIDDLE, "qwen2.5:32b"),
    "mac-mini-m2-pro": _MIDDLE,
    "mac-mini-m2": _SMALL,
    "macbook-air-m1": ("nomic-embed-text:latest", "llama3.2:3b", "llama3.1:8b"),
    "pc-rtx-4090": _MIDDLE,
    "vllm-h100": ("qwen2.5:32b",),
    "cpu-box": ("nomic-embed-text:latest", "llama3.2:3b"),
}
#: Kinds and how many of each; a fleet of two hundred has ten times the devices of one of twenty.
_TWENTY = {
    "mac-studio-m2-ultra": 2,
    "macbook-pro-m3-max": 4,
    "mac-mini-m2-pro": 5,
    "mac-mini-m2": 4,
    "macbook-air-m1": 2,
    "pc-rtx-4090": 1,
    "vllm-h100": 1,
    "cpu-box": 1,
}
_FLEETS: dict[str, Mapping[str, int]] = {
    "one": {"macbook-pro-m3-max": 1},
    "two": {"mac-mini-m2-pro": 2},
    "five": {
        "mac-studio-m2-ultra": 1,
        "macbook-pro-m3-max": 1,
        "mac-mini-m2-pro": 1,
        "mac-mini-m2": 1,
        "macbook-air-m1": 1,
    },
    "vllm": {
        "mac-studio-m2-ultra": 1,
        "macbook-pro-m3-max": 1,
        "mac-mini-m2-pro": 2,
        "vllm-h100": 1,
    },
    "twenty": _TWENTY,
    "two-hundred": {kind: 10 * count for kind, count in _TWENTY.items()},
}
FLEETS = tuple(_FLEETS)
#: In the larger fleets nobody has pulled everything everywhere: a model is missing so often.
_MISSING = 0.3
_LARGE_FLEET = 20


class Device(Struct, frozen=True):
    """One device and its engine. Its name is its node's identity."""

    name: str
    kind: DeviceKind
    spec: EngineSpec

    @property
    def engine(self) -> str:
        """The engine's id on its node."""
        return "vllm-8000" if self.kind.engine == "vllm" else "ollama-11434"

    @property
    def resident(self) -> tuple[str, ...]:
        """Models in memory from the start: vLLM's only."""
        if self.kind.engine != "vllm":
            return ()
        return tuple(model.name for model in self.spec.models)

    def model(self, name: str) -> ModelSpec | None:
        """Return the model as it is here; None if it is not."""
        return next((model for model in self.spec.models if model.name == name), None)


class Fleet(Struct, frozen=True):
    """Devices, with all that is true of them."""

    name: str
    devices: tuple[Device, ...]

    @property
    def models(self) -> tuple[str, ...]:
        """All models, in the order of their size."""
        here = {model.name for device in self.devices for model in device.spec.models}
        return tuple(name for name in MODELS if name in here)

    def with_device(self, kind: str, models: tuple[str, ...] = (), *, seed: int = 0) -> Fleet:
        """Return the fleet with one more device of that kind: what if its owner bought it?"""
        number = sum(device.name.startswith(f"{kind}-new-") for device in self.devices) + 1
        device = make_device(f"{kind}-new-{number}", kind, models or USUAL[kind], seed)
        return Fleet(f"{self.name}+{kind}", (*self.devices, device))


def fleet(name: str, seed: int = 0) -> Fleet:
    """Return one of `FLEETS`; the seed moves the true rates and which models are missing where."""
    counts = _FLEETS[name]
    devices = []
    large = sum(counts.values()) >= _LARGE_FLEET
    for kind, count in counts.items():
        for number in range(1, count + 1):
            device = f"{kind}-{number}"
            # The first of its kind has everything, so that no model is missing everywhere.
            models = _some(USUAL[kind], f"{seed}/{device}") if large and number > 1 else ()
            devices.append(make_device(device, kind, models or USUAL[kind], seed))
    return Fleet(name, tuple(devices))


def alone(device: Device, model: ModelSpec, fresh: float, output: float) -> float:
    """Seconds of a request that has the device for itself: prefill of `fresh` tokens, decode."""
    prefill = model.prefill_rate or device.spec.prefill_rate
    decode = model.decode_rate or device.spec.decode_rate
    return fresh / prefill + max(0.0, output - 1.0) / decode


def describe(device: Device) -> str:
    """Introduce it in a line."""
    shown = hardware(device.kind)
    models = ", ".join(model.name for model in device.spec.models)
    return f"{device.name}: {shown.gpu or shown.chip}, {models}"


def make_device(name: str, kind: str, models: tuple[str, ...], seed: int) -> Device:
    """Make a device of a kind; of the models it gets those that fit."""
    known = KINDS[kind]
    chosen: tuple[Model, ...] = tuple(
        MODELS[model] for model in models if fits(known, MODELS[model])
    )
    return Device(name, known, engine_spec(known, chosen, device=name, seed=seed))


def _some(models: tuple[str, ...], seed: str) -> tuple[str, ...]:
    draw = random.Random(seed)  # noqa: S311 - an experiment, no secret
    return tuple(model for model in models if draw.random() >= _MISSING)
