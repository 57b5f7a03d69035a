"""An owner's own fleet, described in a TOML or JSON file, and devices that could be added to it.

    name = "home"
    [[devices]]
    kind = "mac-studio-m2-ultra"
    models = ["llama3.3:70b", "llama3.1:8b"]
    [[devices]]
    kind = "mac-mini-m2-pro"
    count = 2

Kinds and models are those of `devices`, whose figures have sources. Without `models` a device has
the usual ones of its kind, as far as they fit.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from herd.core.names import canonical
from herd.sim.devices import KINDS, MODELS, fits
from herd.sim.fleets import FLEETS, USUAL, Fleet, fleet, make_device

#: Devices of a fleet; beyond, a run takes hours.
_MOST = 1000


class OwnDevices(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """So many devices of one kind with the same models; without a name they have their kind's."""

    kind: str
    count: int = 1
    models: tuple[str, ...] = ()
    name: str = ""


class OwnFleet(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands in the file."""

    devices: tuple[OwnDevices, ...]
    name: str = ""


def load(text: str, seed: int = 0) -> Fleet:
    """Return one of the six fleets by its name, or the one that a file describes.

    Raises ValueError or OSError with what is wrong, in a line.
    """
    if text in FLEETS:
        return fleet(text, seed)
    path = Path(text)
    if path.suffix not in {".toml", ".json"}:
        raise ValueError(f"no such fleet: {text} (known: {', '.join(FLEETS)}, or a TOML/JSON file)")
    decode = msgspec.toml.decode if path.suffix == ".toml" else msgspec.json.decode
    try:
        own = decode(path.read_bytes(), type=OwnFleet)
        return _make(own, own.name or path.stem, seed)
    except ValueError as error:
        raise ValueError(f"fleet {path}: {error}") from error


def extended(before: Fleet, additions: tuple[str, ...], seed: int = 0) -> Fleet:
    """Return the fleet with devices more, each given as `KIND` or `KIND=model,model`."""
    after = before
    for text in additions:
        kind, _, listed = text.partition("=")
        models = _models(kind, tuple(name for name in listed.split(",") if name))
        after = after.with_device(kind, models, seed=seed)
    return after


def _make(own: OwnFleet, name: str, seed: int) -> Fleet:
    devices = []
    names: set[str] = set()
    if sum(max(0, each.count) for each in own.devices) > _MOST:
        raise ValueError(f"more than {_MOST} devices")
    for each in own.devices:
        models = _models(each.kind, each.models)
        if each.count < 1:
            raise ValueError(f"{each.kind}: count must be at least 1")
        for number in range(1, each.count + 1):
            device = each.name or each.kind
            if each.count > 1 or device in names:
                device = f"{device}-{number}"
            if device in names:
                raise ValueError(f"two devices are called {device}: give them names")
            names.add(device)
            devices.append(make_device(device, each.kind, models, seed))
    if not devices:
        raise ValueError("no devices")
    return Fleet(name, tuple(devices))


def _models(kind: str, asked: tuple[str, ...]) -> tuple[str, ...]:
    """Return canonical names; those of the kind if none are asked for."""
    if kind not in KINDS:
        raise ValueError(f"no such kind of device: {kind} (known: {', '.join(KINDS)})")
    names = tuple(canonical(name) for name in asked) or USUAL[kind]
    for name in names:
        if name not in MODELS:
            raise ValueError(f"no such model: {name} (known: {', '.join(MODELS)})")
        if asked and not fits(KINDS[kind], MODELS[name]):
            raise ValueError(f"{name} does not fit into the memory of {kind}")
    return names
