"""A recorded fleet and its requests, made anew for the simulator, with what cannot be known."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from herd.core import priors
from herd.core.request import Outcome, Prefix
from herd.sim.devices import DeviceKind
from herd.sim.fleets import Device, Fleet
from herd.sim.measured import (
    Measured,
    MeasuredSite,
    SiteKey,
    answer_tokens,
    fresh_tokens,
    last,
    measure,
)
from herd.sim.spec import OLLAMA_KEEP_ALIVE, EngineSpec, ModelSpec
from herd.sim.workloads import Session, Turn, Workload

#: No prompt is too long for a replay: what was answered fitted.
_CONTEXT = 2**24
#: Sizes of models are not recorded: a load's seconds stand for them, at so many bytes/s.
_LOAD_RATE = 1e9
#: Bytes of memory that a router believes in where nothing ever had to leave: with less its plan of
#: contexts would take a quickly loaded model for one with no room for a prompt.
_AMPLE = 2**50
#: Prefill over decode rate from which a device looks like one with a GPU of its own, or with
#: memory that it shares: between the ratios that priors have.
_LIKE_GPU = (priors.PREFILL_RATIO_GPU * priors.PREFILL_RATIO_SHARED) ** 0.5
_LIKE_SHARED = (priors.PREFILL_RATIO_SHARED * priors.PREFILL_RATIO_CPU) ** 0.5


class ReplayedDevice(Device, frozen=True):
    """A recorded engine on its node."""

    engine_id: str
    loaded: tuple[str, ...]

    @property
    def engine(self) -> str:
        """The engine's id on its node."""
        return self.engine_id

    @property
    def resident(self) -> tuple[str, ...]:
        """Models that were in memory when the record begins."""
        return self.loaded


class Recorded(Struct, frozen=True, kw_only=True):
    """What can be replayed, and what cannot."""

    fleet: Fleet
    workload: Workload
    #: By request: its outcome, of those that are replayed.
    outcomes: dict[str, Outcome]
    #: Devices and models that served nothing: their speeds are beliefs.
    untried: frozenset[tuple[str, str]]
    #: Why others are not, and how many.
    left_out: dict[str, int]
    #: What was assumed of this fleet, in sentences.
    notes: tuple[str, ...]


def rebuild(outcomes: Sequence[Outcome]) -> Recorded:
    """Make fleet and requests from outcomes; raises ValueError if there is nothing to replay."""
    sites = measure(outcomes)
    usable = {key: site for key, site in sites.items() if _usable(site)}
    fleet = Fleet("recorded", tuple(_device(key, site) for key, site in sorted(usable.items())))
    there = {model for site in usable.values() for model in site.replicas}
    replayed: dict[str, Outcome] = {}
    left_out: dict[str, int] = {}
    for outcome in sorted(outcomes, key=lambda each: each.arrived):
        why = _left_out(outcome, there)
        if why:
            left_out[why] = left_out.get(why, 0) + 1
        else:
            replayed[outcome.request.id] = outcome
    if not replayed:
        raise ValueError("no completed request is recorded whose work is known")
    begin = next(iter(replayed.values())).arrived
    sessions = tuple(
        Session(outcome.arrived - begin, (_turn(outcome),)) for outcome in replayed.values()
    )
    return Recorded(
        fleet=fleet,
        workload=Workload("recorded", sessions),
        outcomes=replayed,
        untried=frozenset(
            (_name(key), model)
            for key, site in usable.items()
            for model, each in site.replicas.items()
            if not each.served
        ),
        left_out=left_out,
        notes=tuple(_notes(usable)),
    )


def _usable(site: MeasuredSite) -> bool:
    """Keep what has rates, measured or borrowed; tell whether anything is left."""
    site.replicas = {name: each for name, each in site.replicas.items() if each.prefill}
    return bool(site.replicas)


def _device(key: SiteKey, site: MeasuredSite) -> ReplayedDevice:
    known = [each.load for each in site.replicas.values() if each.load]
    usual = statistics.median(known) if known else priors.LOAD_LEAST
    models = tuple(_model(name, each, usual) for name, each in sorted(site.replicas.items()))
    sizes = [model.weight_bytes for model in models]
    # Nobody records how much memory there is. If a model ever had to leave, not all fit at once.
    memory = sum(sizes) - min(sizes) if site.evicts and len(sizes) > 1 else sum(sizes)
    memory = max(memory, *sizes)
    first = models[0]
    spec = EngineSpec(
        models=models,
        memory_bytes=memory,
        load_rate=_LOAD_RATE,
        prefill_rate=first.prefill_rate,
        decode_rate=first.decode_rate,
        alpha=site.alpha,
        slots=site.slots,
        keep_alive=OLLAMA_KEEP_ALIVE if site.kind == "ollama" and site.loads else -1.0,
        default_context=_CONTEXT,
    )
    return ReplayedDevice(
        name=_name(key),
        kind=_kind(site, spec),
        spec=spec,
        engine_id=key[1],
        loaded=_loaded(site, models, memory),
    )


def _loaded(site: MeasuredSite, models: Iterable[ModelSpec], memory: int) -> tuple[str, ...]:
    """Return what was in memory at first, the most used first, as far as it fits."""
    found = []
    for model in sorted(models, key=lambda each: -site.replicas[each.name].served):
        if site.replicas[model.name].resident and model.weight_bytes <= memory:
            found.append(model.name)
            memory -= model.weight_bytes
    return tuple(found)


def _model(name: str, each: Measured, usual: float) -> ModelSpec:
    prefill = each.prefill or 1.0
    return ModelSpec(
        name=name,
        weight_bytes=max(1, round((each.load or usual) * _LOAD_RATE)),
        context_length=_CONTEXT,
        capabilities=tuple(sorted(each.capabilities)) or ("completion",),
        prefill_rate=prefill,
        decode_rate=each.decode or prefill,
    )


def _kind(site: MeasuredSite, spec: EngineSpec) -> DeviceKind:
    """Describe hardware whose priors are near the rates: a router that ran knows its devices."""
    model = max(spec.models, key=lambda each: site.replicas[each.name].served)
    bandwidth = model.decode_rate * model.weight_bytes / priors.EFFICIENCY
    ratio = model.prefill_rate / model.decode_rate
    # What a router believes that models fill is to fit exactly where they do.
    budget = round(spec.memory_bytes * priors.MEMORY_RATIO) + 1 if site.evicts else _AMPLE
    return DeviceKind(
        name="recorded",
        system="Linux",
        chip="Apple" if _LIKE_SHARED <= ratio < _LIKE_GPU else "",
        cores=0,
        memory_bytes=round(budget / priors.MEMORY_SHARE) + 1,
        bandwidth=bandwidth,
        gpu="recorded" if ratio >= _LIKE_GPU else "",
        vram_bytes=budget if ratio >= _LIKE_GPU else 0,
        engine=site.kind,
        prefill=spec.prefill_rate,
        decode=spec.decode_rate,
        load_rate=spec.load_rate,
        slots=spec.slots,
        alpha=spec.alpha,
        usable=spec.memory_bytes,
        source="outcomes",
    )


def _left_out(outcome: Outcome, models: set[str]) -> str:
    """Why an outcome cannot be replayed; empty if it can."""
    if outcome.ending != "completed":
        return f"{outcome.ending}: how much work it was is not known"
    if outcome.request.model not in models:
        return "nothing is known of the speed of any replica of its model"
    if outcome.request.operation != "embedding" and not answer_tokens(outcome):
        return "the engine did not tell how long its answer was"
    return ""


def _turn(outcome: Outcome) -> Turn:
    return Turn(
        request=outcome.request,
        # Prompts are not recorded, nor hashes of them.
        prefix=Prefix(),
        think=0.0,
        prompt_tokens=fresh_tokens(outcome),
        output_tokens=answer_tokens(outcome),
    )


def took(outcome: Outcome) -> float:
    """Seconds from its arrival to its end."""
    return outcome.ended - outcome.arrived


def first(outcome: Outcome) -> float | None:
    """Seconds from its arrival to its first frame; None if it was not streamed."""
    return outcome.first_frame - outcome.arrived if outcome.first_frame is not None else None


def site_of(outcome: Outcome) -> str:
    """Return the name of the replayed device that stands for where it was served."""
    attempt = last(outcome)
    return _name((attempt.replica.node, attempt.replica.engine)) if attempt is not None else ""


def _name(key: SiteKey) -> str:
    return f"{key[0]}/{key[1]}"


def _notes(sites: Mapping[SiteKey, MeasuredSite]) -> Iterable[str]:
    replicas = [each for site in sites.values() for each in site.replicas.values()]
    idle = sum(not each.served for each in replicas)
    if idle:
        yield (
            f"{idle} of {len(replicas)} replicas served nothing: their speeds are what Herd "
            "believed of them."
        )
    guessed = sum(not site.alpha_measured for site in sites.values())
    if guessed:
        yield (
            f"On {guessed} of {len(sites)} engines requests hardly ran side by side: how they slow "
            "one another down there is the usual for the engine's kind."
        )
    evicting = sum(site.evicts for site in sites.values())
    if evicting:
        yield (
            f"Memory is not recorded: {evicting} of {len(sites)} engines had to put models out, "
            "and are taken to hold all but the smallest at once."
        )
    yield (
        "Prompts are not recorded: each request reads as many tokens anew as it did, wherever it "
        "goes, so what a policy makes of caches is not seen."
    )
    yield (
        "Requests come when they came: clients that wait for an answer before they ask again would "
        "have asked sooner of a faster fleet."
    )
    yield "An engine has as many slots as were ever in use at once: it may have had more."
