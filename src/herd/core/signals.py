"""The seven signals of one candidate: why it would take how long, in seconds that add up."""

from __future__ import annotations

from collections.abc import Iterable

from herd.core import inventory, priors
from herd.core.contexts import carries
from herd.core.decision import Estimate, Exclusion, Signals
from herd.core.fleet import ReplicaKey
from herd.core.request import Request
from herd.core.state import ReplicaState, Task

#: A prompt's tokens are estimated from its bytes and may be this much too many.
PROMPT_UNCERTAINTY = 1.25
#: Engines read the end of a prompt anew even where they have all of it.
CACHED_MOST = 0.98
#: Share of the time to reload an evicted model that is expected to be spent: about every third is
#: asked for again before it would have left by itself. An order of magnitude, to be learned.
RELOADED = 0.3


def exclusion(
    request: Request, replica: ReplicaState, *, lenient: bool = False
) -> Exclusion | None:
    """Why the replica cannot serve the request; None if it can.

    `lenient` leaves what a model can do to engines that check it themselves and refuse.
    """
    gone = unreachable(replica)
    if gone:
        return Exclusion("unreachable", gone)
    engine, spec = replica.engine, replica.spec
    contexts = replica.node.contexts
    if contexts is not None:
        fit = contexts.fit(request, replica, replica.node.heard, carries=carries(request))
        if fit.verdict == "short":
            return Exclusion("context", f"prompt exceeds the context of {fit.limit}")
    if engine.kind not in request.kinds:
        return Exclusion("incapable", f"{engine.kind} does not serve {request.endpoint}")
    missing = request.needs.difference(spec.capabilities)
    if missing and not (lenient and engine.kind in priors.CHECKS_CAPABILITIES):
        return Exclusion("incapable", f"model lacks {', '.join(sorted(missing))}")
    limit = context_limit(replica)
    if limit and request.prompt_tokens > limit * PROMPT_UNCERTAINTY:
        tokens = request.prompt_tokens
        return Exclusion(
            "context", f"prompt of about {tokens} tokens exceeds the context of {limit}"
        )
    return _too_big(replica)


def unreachable(replica: ReplicaState) -> str:
    """Why the replica can serve nobody now; empty if it can."""
    if replica.node.draining:
        return "node is leaving"
    if not replica.engine.up:
        return f"engine is down: {replica.engine.error or 'no reason given'}"
    if replica.spec.residency == "absent":
        return "model is no longer there"
    return ""


def context_limit(replica: ReplicaState) -> int:
    """Tokens that a prompt may have here; 0 unknown. A fixed load is a limit, Ollama's is not."""
    spec = replica.spec
    if replica.engine.kind == "ollama":
        return spec.context_length
    return spec.loaded_context or spec.context_length


def estimate(
    task: Task, replica: ReplicaState, *, answer: float, wait: float, now: float
) -> tuple[Estimate, float]:
    """Predict the completion of a request for which a slot here is free after `wait` seconds.

    `answer` is the expected number of tokens to generate. Also returns the seconds for which the
    request would have to be held back: for the slot, for memory, or while the replica rests.
    """
    request, rates = task.request, replica.learning.rates
    memory, memory_wait = _memory(replica, now)
    hold = max(wait, memory_wait, replica.down_until - now, 0.0)
    beside = _beside(replica, hold, now)
    share = priors.slowdown(replica.engine.kind, len(beside) + 1)
    speed = rates.overhead + share * (request.prompt_tokens / rates.prefill + answer / rates.decode)
    cached = min(replica.cache.cached(task.prefix), CACHED_MOST * request.prompt_tokens)
    saved = share * cached / rates.prefill
    harm = _harm(replica, speed - saved, beside)
    signals = Signals(
        residency=_residency(replica, now, hold),
        memory=memory,
        queue=hold + _bypass(replica) * speed,
        speed=speed,
        affinity=harm - saved,
        context=_context(request, replica),
    )
    return Estimate(replica=replica.key, signals=signals, total=signals.total, harm=harm), hold


def slot_waits(replica: ReplicaState, now: float) -> list[float]:
    """Predicted seconds until each slot that is taken is free again, soonest first."""
    return sorted(running.remaining(now) for running in replica.running.values())


def evicted_by(replica: ReplicaState) -> list[ReplicaState]:
    """Models that loading this one puts out of memory: idle ones, longest unused first, then busy.

    None if it is there already, if there is room, or if the device's memory is unknown.
    """
    node = replica.node
    if node.residents is not None and node.contexts is not None:
        found = inventory.victims(replica, node.residents, node.contexts, node.heard)
        return found[0] if found is not None else []
    budget = priors.memory_budget(replica.node.report.hardware)
    if replica.occupied or budget is None:
        return []
    others = [other for other in replica.node.siblings(replica) if other.occupied]
    short = priors.memory_need(replica.spec) + _held(others) - budget
    others.sort(key=lambda other: (bool(other.running), other.last_used))
    out = []
    for other in others:
        if short <= 0.0:
            break
        short -= priors.memory_need(other.spec)
        out.append(other)
    return out


def _beside(replica: ReplicaState, hold: float, now: float) -> list[float]:
    """Predicted seconds that each request on the device still runs beside one that starts then."""
    if not replica.node.running:
        return []
    ends = (
        running.remaining(now) - hold
        for other in replica.node.replicas.values()
        for running in other.running.values()
    )
    return [end for end in ends if end > 0.0]


def _harm(replica: ReplicaState, work: float, beside: list[float]) -> float:
    """Seconds that those who run on the device lose, together, to `work` seconds beside them."""
    if not beside:
        return 0.0
    kind = replica.engine.kind
    slower = priors.slowdown(kind, len(beside) + 1) / priors.slowdown(kind, len(beside)) - 1.0
    return slower * sum(min(work, end) for end in beside)


def _bypass(replica: ReplicaState) -> float:
    """Turns of others that come first on the engine, by its own count of what it runs.

    What was running beyond the most that we had there since the last report came past Herd. It
    adds to the prediction and blocks nothing: the count is seconds old, and the engine queues.
    """
    engine = replica.engine
    if engine.running is None:
        return 0.0
    ours = sum(r.peak for r in replica.node.replicas.values() if r.key.engine == engine.id)
    foreign = engine.running + (engine.waiting or 0) - ours
    over = foreign + len(replica.running) - replica.spec.slots + 1
    return max(0, min(foreign, over)) / max(1, replica.spec.slots)


def _residency(replica: ReplicaState, now: float, hold: float) -> float:
    if replica.resident:
        return 0.0
    if replica.loading_until > 0.0:
        # A load that takes longer than predicted is expected to be done any moment now. It goes on
        # while the request is held back.
        return max(0.0, max(0.1, replica.loading_until - now) - hold)
    return replica.learning.rates.load


def _memory(replica: ReplicaState, now: float) -> tuple[float, float]:
    """Seconds lost to evicting others, and seconds until evicting is possible."""
    out = evicted_by(replica)
    cost = RELOADED * sum(other.learning.rates.load for other in out)
    if replica.node.residents is not None:
        cost = replica.node.residents.cost(other.key for other in out)
    waits = [wait for other in out for wait in slot_waits(other, now)]
    return cost, max(waits, default=0.0)


def _held(replicas: Iterable[ReplicaState]) -> float:
    """Bytes that they have in use. Names that share a digest share the weights, and count once."""
    needs: dict[str | ReplicaKey, float] = {}
    for other in replicas:
        needs[other.spec.digest or other.key] = priors.memory_need(other.spec)
    return sum(needs.values())


def _too_big(replica: ReplicaState) -> Exclusion | None:
    if replica.occupied or replica.engine.kind not in priors.LOADS_ON_DEMAND:
        return None
    budget = priors.memory_budget(replica.node.report.hardware)
    need = priors.memory_need(replica.spec)
    if budget is None or need <= budget:
        node = replica.node
        if node.residents is not None and node.contexts is not None:
            out = inventory.victims(replica, node.residents, node.contexts, node.heard)
            if out is None:
                return Exclusion("too_big", "models that its owner has pinned leave too little")
        return None
    return Exclusion(
        "too_big", f"model needs {need / 1e9:.1f} GB, device can give {budget / 1e9:.1f} GB"
    )


def _context(request: Request, replica: ReplicaState) -> float:
    """Seconds of the reload that Ollama makes when a request wants another context."""
    contexts = replica.node.contexts
    if contexts is not None:
        fit = contexts.fit(request, replica, replica.node.heard, carries=carries(request))
        return replica.learning.rates.load if fit.verdict == "reloads" else 0.0
    loaded = replica.spec.loaded_context
    if replica.engine.kind != "ollama" or not replica.resident or not loaded:
        return 0.0
    wanted = request.context
    return replica.learning.rates.load if wanted is not None and wanted != loaded else 0.0
