"""The engine that a spec describes."""

from __future__ import annotations

from collections.abc import Iterable

from herd.sim.batching import BatchingEngine
from herd.sim.emulated import Engine
from herd.sim.engine import EmulatedEngine
from herd.sim.spec import EngineSpec


def emulate(spec: EngineSpec, *, now: float = 0.0, resident: Iterable[str] = ()) -> Engine:
    """Start an engine; `resident` models are in memory, one that batches has its model always."""
    if spec.batching is not None:
        return BatchingEngine(spec, now=now)
    return EmulatedEngine(spec, now=now, resident=resident)
