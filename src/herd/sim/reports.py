"""What an agent would report of an emulated device: what its engine tells, and no more."""

from __future__ import annotations

from herd.core.fleet import EngineReport, Load, NodeReport, Replica
from herd.sim.devices import hardware
from herd.sim.emulated import Engine
from herd.sim.fleets import Device
from herd.sim.spec import ModelSpec, Resident


def node_report(device: Device, engine: Engine, load: Load) -> NodeReport:
    """Report the device as it is now."""
    resident = {each.model: each for each in engine.residents() if not each.loading}
    vllm = device.kind.engine == "vllm"
    return NodeReport(
        node=device.name,
        name=device.name,
        hardware=hardware(device.kind),
        load=load,
        engines=(
            EngineReport(
                id=device.engine,
                kind=device.kind.engine,
                url=f"http://{device.name}.invalid:{device.engine.rpartition('-')[2]}",
                replicas=tuple(
                    _vllm_replica(device, model)
                    if vllm
                    else _replica(device, model, resident.get(model.name))
                    for model in device.spec.models
                ),
                # Ollama does not say.
                running=engine.running if vllm else None,
                waiting=engine.waiting if vllm else None,
            ),
        ),
        agent="simulated",
    )


def _replica(device: Device, model: ModelSpec, loaded: Resident | None) -> Replica:
    """As Ollama lists it in `/api/tags` and `/api/ps`."""
    return Replica(
        model=model.name,
        name=model.name,
        residency="resident" if loaded else "disk",
        size=model.weight_bytes,
        parameters=model.parameters,
        context_length=model.context_length,
        loaded_context=loaded.context if loaded else 0,
        memory_bytes=loaded.memory_bytes if loaded else 0,
        capabilities=model.capabilities,
        slots=device.spec.slots,
    )


def _vllm_replica(device: Device, model: ModelSpec) -> Replica:
    """As vLLM lists it: always there, and of a size that it does not tell."""
    context = min(device.spec.default_context, model.context_length)
    return Replica(
        model=model.name,
        name=model.name,
        residency="resident",
        context_length=context,
        loaded_context=context,
        capabilities=model.capabilities,
        slots=device.spec.slots,
    )
