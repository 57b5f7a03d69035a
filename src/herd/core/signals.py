"""The seven signals of one candidate: why it would take how long, in seconds that add up."""

from __future__ import annotations

from collections.abc import Iterable

from herd.core import inventory, priors
from herd.core.contexts import carries
from herd.core.decision import Exclusion
from herd.core.fleet import ReplicaKey
from herd.core.request import Request
from herd.core.state import Busy, NodeState, ReplicaState
from herd.core.task import Candidate, Task

#: A prompt's tokens are estimated from its bytes and may be this much too many.
PROMPT_UNCERTAINTY = 1.25
#: Engines read the end of a prompt anew even where they have all of it.
CACHED_MOST = 0.98
#: How many times what those who stand behind a request would lose by it counts against a device.
#: By the theory of sharing it is once; twice was better in simulations of whole fleets, as those
#: who wait now stand for others who come while they wait.
BEHIND = 2.0
#: And of how many of them: those far behind will be planned anew before it is their turn.
BEHIND_MOST = 6
#: Share of the time to reload an evicted model that is expected to be spent: about every third is
#: asked for again before it would have left by itself. An order of magnitude, to be learned.
RELOADED = 0.3


def meets(task: Task, replica: ReplicaState, *, lenient: bool = False) -> Exclusion | float:
    """Why the replica cannot serve the request; or, if it can, seconds of reloading its context.

    `lenient` leaves what a model can do to engines that check it themselves and refuse.
    """
    spec = replica.spec
    if replica.node.draining or not replica.engine.up or spec.residency == "absent":
        return Exclusion("unreachable", unreachable(replica))
    why = _serves(task.request, replica)
    if why is not None and not (lenient and _checks(task.request, replica)):
        return why
    reload = _context(task, replica)
    if isinstance(reload, float) and not replica.occupied:
        return _too_big(replica) or reload
    return reload


def _checks(request: Request, replica: ReplicaState) -> bool:
    """Whether the engine serves what is asked, and refuses by itself what the model cannot do."""
    kind = replica.engine.kind
    return kind in request.kinds and kind in priors.CHECKS_CAPABILITIES


def _serves(request: Request, replica: ReplicaState) -> Exclusion | None:
    """Whether engine and model can do what is asked; the same for all requests of a kind."""
    asked = (request.endpoint, request.needs)
    if asked in replica.serves:
        return replica.serves[asked]
    engine = replica.engine
    missing = request.needs.difference(replica.spec.capabilities)
    why: Exclusion | None = None
    if engine.kind not in request.kinds:
        why = Exclusion("incapable", f"{engine.kind} does not serve {request.endpoint}")
    elif missing:
        why = Exclusion("incapable", f"model lacks {', '.join(sorted(missing))}")
    replica.serves[asked] = why
    return why


def _context(task: Task, replica: ReplicaState) -> Exclusion | float:
    """Seconds of the reload that Ollama makes for another context; or that none suffices."""
    request, spec, contexts = task.request, replica.spec, replica.node.contexts
    ollama = replica.engine.kind == "ollama"
    if contexts is None:
        limit = context_limit(replica)
        if limit and request.prompt_tokens > limit * PROMPT_UNCERTAINTY:
            tokens = request.prompt_tokens
            why = f"prompt of about {tokens} tokens exceeds the context of {limit}"
            return Exclusion("context", why)
        wanted, loaded = request.context, spec.loaded_context
        reloads = ollama and replica.resident and loaded and wanted not in {None, loaded}
        return replica.learning.rates.load if reloads else 0.0
    if ollama and 0 < task.need <= spec.loaded_context and carries(request):
        if replica.resident and not contexts.changing:
            return 0.0
    elif not ollama and task.least < (spec.loaded_context or spec.context_length or task.least + 1):
        return 0.0
    fit = contexts.fit(request, replica, replica.node.heard, carries=carries(request))
    if fit.verdict == "short":
        return Exclusion("context", f"prompt exceeds the context of {fit.limit}")
    return replica.learning.rates.load if fit.verdict == "reloads" else 0.0


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


def score(task: Task, replica: ReplicaState, now: float, reload: float = 0.0) -> Candidate:
    """Predict the completion of a waiting request on a replica that can serve it.

    `reload` is what `meets` returned for the two.
    """
    rates, node = replica.learning.rates, replica.node
    saved = 0.0
    if task.prefix.hashes or task.session is not None:
        cached = min(replica.cache.cached(task.prefix, task.session), CACHED_MOST * task.prompt)
        saved = cached / rates.prefill
    prefill = task.prompt / rates.prefill
    decode = task.answer / rates.decode
    residency = memory = hold = 0.0
    guard = replica.guard
    calm = guard.calm
    if not calm:
        hold = guard.hold(now)
    if replica.spec.residency != "resident":
        residency = _load(replica, now)
        if not replica.occupied:
            memory, memory_wait = _memory(replica, now)
            hold = max(hold, memory_wait)
    if node.reserved is not None:
        hold = max(hold, _stand_back(task, replica, now))
    loss = harm = bypass = availability = 0.0
    if node.running or node.planned:
        hold, loss, harm = _sharing(task, replica, (prefill - saved, decode), hold, now)
    if residency > 0.0 and replica.loading_until > 0.0:
        # The load goes on while the request is held back.
        residency = max(0.0, residency - hold)
    speed = rates.overhead + prefill + decode + loss
    if replica.engine.running is not None:
        bypass = _bypass(replica) * speed
    lead = residency + reload + rates.overhead + prefill - saved
    if not calm:
        availability = guard.loss(residency + speed - saved, now)
    used = node.use.loss(residency + speed - saved) if node.use.used else 0.0
    availability += used
    return Candidate(
        replica,
        residency + memory + hold + bypass + speed + harm - saved + reload + availability,
        hold,
        lead + decode,
        lead,
        residency,
        memory,
        speed,
        saved,
        harm,
        reload,
        bypass,
        availability,
        used,
    )


def _sharing(
    task: Task, replica: ReplicaState, work: tuple[float, float], hold: float, now: float
) -> tuple[float, float, float]:
    """Seconds of waiting for a slot, of what others cost the request, and of what it costs them.

    Those that run on the device, and those that are planned to and stand before it in the line,
    delay it and are delayed by it, as far as both have work left while they share the device. Those
    that stand behind it are delayed by all of its `work` (prefill and decode, in seconds alone).
    """
    node, own = replica.node, work[0] + work[1]
    ahead = _ahead(task, node, now)
    hold = max(hold, _slot_wait(replica, ahead))
    count, shared = 0, 0.0
    for end, theirs, _ in ahead:
        if end > hold:
            count += 1
            shared += min(own, theirs, end - hold)
    loss = replica.drag(count, work) * shared if count else 0.0
    harm = loss
    if node.planned:
        order = task.order
        behind = sum([other.order > order for other in node.planned.values() if other is not task])
        if behind:
            harm += BEHIND * min(behind, BEHIND_MOST) * replica.drag(1, work) * own
    return hold, loss, harm


def cost(task: Task, replicas: Iterable[ReplicaState]) -> float:
    """Seconds that a request takes alone on the best device for it, with the model in memory."""
    prompt, answer = task.prompt, task.answer
    return min(
        (
            rates.overhead + prompt / rates.prefill + answer / rates.decode
            for rates in [replica.learning.rates for replica in replicas]
        ),
        default=0.0,
    )


def _ahead(task: Task, node: NodeState, now: float) -> list[Busy]:
    """What stands before the task on a device: what runs, and what is planned to before it."""
    busy = node.busy(now)
    if not node.planned:
        return busy
    order = task.order
    planned = [
        (max(0.0, booking.at + booking.hold - now) + booking.work, booking.work, booking.replica)
        for other in node.planned.values()
        if other.order < order and (booking := other.booking) is not None and other is not task
    ]
    return busy + planned if planned else busy


def _slot_wait(replica: ReplicaState, ahead: list[Busy]) -> float:
    """Seconds until a slot of the replica is free."""
    ends = [end for end, _, where in ahead if where is replica]
    over = len(ends) - max(1, replica.spec.slots)
    if over < 0:
        return 0.0
    ends.sort()
    return ends[over]


def _load(replica: ReplicaState, now: float) -> float:
    """Seconds of a load that is needed, or left of one that is under way."""
    if replica.loading_until > 0.0:
        # One that takes longer than predicted is expected to be done any moment now.
        return max(0.1, replica.loading_until - now)
    return replica.learning.rates.load


def _stand_back(task: Task, replica: ReplicaState, now: float) -> float:
    """Seconds to leave the device to somebody before this task who waits for its memory.

    Without this a busy model would never become idle, and the cold one would starve.
    """
    reserved = replica.node.reserved
    if reserved is None or reserved.task is task or reserved.replica == replica.key:
        return 0.0
    if reserved.task.order > task.order:
        return 0.0
    return max(0.05, reserved.until - now)


def evicted_by(replica: ReplicaState) -> list[ReplicaState]:
    """Models that loading this one puts out of memory: idle ones, longest unused first, then busy.

    None if it is there already, if there is room, or if the device's memory is unknown.
    """
    node = replica.node
    if node.residents is not None and node.contexts is not None:
        found = inventory.victims(replica, node.residents, node.contexts, node.heard)
        return found[0] if found is not None else []
    budget = node.budget
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


def _memory(replica: ReplicaState, now: float) -> tuple[float, float]:
    """Seconds lost to evicting others, and seconds until evicting is possible."""
    out = evicted_by(replica)
    cost = RELOADED * sum(other.learning.rates.load for other in out)
    if replica.node.residents is not None:
        cost = replica.node.residents.cost(other.key for other in out)
    busy = [end for end, _, where in replica.node.busy(now) if where in out] if out else ()
    return cost, max(busy, default=0.0)


def _held(replicas: Iterable[ReplicaState]) -> float:
    """Bytes that they have in use. Names that share a digest share the weights, and count once."""
    needs: dict[str | ReplicaKey, float] = {}
    for other in replicas:
        needs[other.spec.digest or other.key] = priors.memory_need(other.spec)
    return sum(needs.values())


def _too_big(replica: ReplicaState) -> Exclusion | None:
    if replica.engine.kind not in priors.LOADS_ON_DEMAND:
        return None
    budget = replica.node.budget
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
