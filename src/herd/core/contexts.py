"""The context plan: one context per model and device, so that nothing is reloaded by accident.

An engine that loads on demand (Ollama) reloads a model whenever a request names another `num_ctx`
than it is loaded with. Clients name all sorts: one its default, one nothing, one far too much. So
the router names it for them: the context that is loaded if the request fits, else what the plan
has for the model on that device. The plan follows what requests were seen to need, with head-room,
in steps of doubling; it grows at once, and shrinks only after a long time and never what is loaded.

An endpoint that cannot carry a context (OpenAI's dialect on Ollama) makes the engine load with a
default of its own, and reload what is loaded otherwise. Where such requests come for a model, the
default is therefore the plan, as long as it suffices.
"""

from __future__ import annotations

import math
from typing import Literal

from msgspec import Struct

from herd.core import priors
from herd.core.fleet import Replica, ReplicaKey
from herd.core.request import Request
from herd.core.state import ReplicaState

#: Contexts are powers of two from here, as engines' defaults are.
LEAST = 2048
#: What the plan leaves above the 99th percentile of what was needed: conversations grow.
HEADROOM = 1.5
QUANTILE = 0.99
MEDIAN = 0.5
#: A prompt is refused for its length only if by this quantile of what the estimate was off it is
#: still too long: whom that excludes, it excludes for good.
RARELY = 0.05
#: Requests of a model before which what all models' requests needed is taken for its own; and of
#: all models, before which nothing is planned.
ENOUGH = 20.0
#: What is named, while nothing is planned, to an engine whose default is not known to suffice.
#: Most conversations stay below it; for an 8B model it is a gigabyte.
UNPLANNED = 8192
#: Answers that are counted on for a request: nine of ten are shorter.
ANSWER_QUANTILE = 0.9
#: Time constant of what was needed, in seconds, and for how long less must have been enough before
#: a plan shrinks.
MEMORY = 3.0 * 86400.0
SHRINK_AFTER = 86400.0
#: Share of a model's requests that carry no context from which the plan is the engine's default,
#: even if it does not suffice for others; and the weight of one request in that share. With fewer
#: of them it is the default only if that suffices, as long as there are any.
UNCARRIED = 0.5
UNCARRIED_FEW = 0.01
UNCARRIED_WEIGHT = 0.02
#: How far a prompt's tokens, counted by the engine, may be from the estimate: a factor either way.
RATIO_MOST = 2.0
#: The estimate is taken to be this far off, either way, until the engines have shown how far it is.
RATIO_UNKNOWN = 1.2
#: Share of new values in a sketch from which its quantiles are looked up anew.
STALE = 0.03
#: Buckets of the sketch: each a fourth of a doubling, from one token to 2 ** 24.
STEPS = 4
BUCKETS = 24 * STEPS
#: Bytes that a token of context takes with a cache of 16 bits: Llama 3.1 8B has 2 x 32 layers x 8
#: heads x 128 values x 2 bytes, 3.3 70B 2 x 80 x 8 x 128 x 2; between them it grows with the
#: parameters to the power of 0.42.
TOKEN_BYTES = 131_072.0
TOKEN_PARAMETERS = 8.03e9
TOKEN_POWER = 0.42

#: Whether the plan's context fits what is loaded: `fits`, `loads` (it is not loaded), `reloads`
#: (another context is), or `short` (it can have no context that suffices).
Verdict = Literal["fits", "loads", "reloads", "short"]


class Fit(Struct, frozen=True):
    """What a request would meet on a replica, as to context."""

    verdict: Verdict
    #: Context to name to the engine; None where the endpoint cannot, or the engine takes none.
    context: int | None = None
    #: Tokens that the request needs, and the most that it could have here (0 unknown).
    need: int = 0
    limit: int = 0


class Sketch:
    """Quantiles of positive numbers, decayed with time: counts in buckets of equal ratio."""

    __slots__ = ("_at", "_counts", "_found", "_since", "_total")

    def __init__(self) -> None:
        self._counts = [0.0] * BUCKETS
        self._total = 0.0
        self._at = 0.0
        #: Weight that came since quantiles were last looked up, and those.
        self._since = 0.0
        self._found: dict[float, float] = {}

    @property
    def total(self) -> float:
        """How many values it has, as far as they have not decayed."""
        return self._total

    def add(self, value: float, now: float) -> None:
        """Count one value, exact to a fourth of a doubling."""
        # Old counts do not shrink, new ones weigh more: one exponential for each value.
        weight = math.exp(min(600.0, (now - self._at) / MEMORY)) if self._total else 1.0
        if not self._total:
            self._at = now
        if weight > 1e6:  # noqa: PLR2004 - long before a float is full
            self._counts = [count / weight for count in self._counts]
            self._total /= weight
            self._since /= weight
            self._at, weight = now, 1.0
        place = math.ceil(STEPS * math.log2(max(1.0, value)))
        self._counts[min(BUCKETS - 1, place)] += weight
        self._total += weight
        self._since += weight
        if self._since > STALE * self._total:
            self._since = 0.0
            self._found.clear()

    def quantile(self, share: float) -> float:
        """Return an upper bound of the value that `share` of them do not exceed; 0 if empty."""
        found = self._found.get(share)
        if found is None:
            found = self._found[share] = self._search(share)
        return found

    def _search(self, share: float) -> float:
        left = share * self._total
        for place, count in enumerate(self._counts):
            left -= count
            if count and left <= 1e-9 * self._total:
                return float(2.0 ** (place / STEPS))
        return 0.0


class _Planned(Struct):
    """A replica's plan."""

    context: int
    #: Since when less would have been enough; None while it would not.
    ample: float | None = None


class ContextPlan:
    """What contexts models were seen to need, and what they are therefore to be loaded with."""

    def __init__(self) -> None:
        self._needs: dict[str, Sketch] = {}
        self._answers: dict[str, Sketch] = {}
        self._all = Sketch()
        #: Thousandths of the estimate that prompts had by the engine's count.
        self._ratios: dict[str, Sketch] = {}
        self._planned: dict[ReplicaKey, _Planned] = {}
        #: Share of requests that could not carry a context, by model.
        self._uncarried: dict[str, float] = {}
        #: What the engine loads with if nobody says, by node and engine.
        self._defaults: dict[tuple[str, str], int] = {}
        #: Replicas whose last request named no context.
        self._unnamed: set[ReplicaKey] = set()
        #: What is being loaded, until a report shows it: reports are seconds old.
        self._coming: dict[ReplicaKey, int] = {}
        #: Bytes of a token of context, by model, as last seen where it is loaded.
        self._token_bytes: dict[str, float] = {}

    # What happens

    def arrived(self, request: Request, *, carries: bool) -> None:
        """Note a request; `carries` tells whether its endpoint can name a context."""
        share = self._uncarried.get(request.model, float(not carries))
        self._uncarried[request.model] = share + (float(not carries) - share) * UNCARRIED_WEIGHT

    def finished(self, request: Request, prompt: int, answer: int, now: float) -> None:
        """Learn from a completed request: tokens by the engine's own count."""
        model = request.model
        self._needs.setdefault(model, Sketch()).add(prompt + answer, now)
        self._all.add(prompt + answer, now)
        self._answers.setdefault(model, Sketch()).add(answer, now)
        if request.prompt_tokens:
            ratio = 1000.0 * prompt / request.prompt_tokens
            self._ratios.setdefault(model, Sketch()).add(ratio, now)

    def dispatched(self, replica: ReplicaState, context: int | None) -> None:
        """Note what an attempt, or a load that was ordered, names to the engine."""
        key = replica.key
        loaded = self.loaded(replica)
        if context is None:
            self._unnamed.add(key)
            context = self.default(key) or loaded
        else:
            self._unnamed.discard(key)
        if context and context != loaded:
            self._coming[key] = context

    def reported(self, replica: ReplicaState) -> None:
        """Look at what is loaded: a load for which nobody named a context shows the default."""
        spec = replica.spec
        told = told_token_bytes(spec)
        if told is not None:
            self._token_bytes[replica.key.model] = told
        if not replica.occupied or spec.loaded_context == self._coming.get(replica.key):
            self._coming.pop(replica.key, None)
        if not spec.loaded_context or not replica.resident or replica.key not in self._unnamed:
            return
        if spec.loaded_context < (spec.context_length or spec.loaded_context + 1):
            self._defaults[replica.key.node, replica.key.engine] = spec.loaded_context

    def forget(self, key: ReplicaKey) -> None:
        """Drop what is kept of a replica that is gone."""
        self._planned.pop(key, None)
        self._coming.pop(key, None)
        self._unnamed.discard(key)

    # What follows

    @property
    def changing(self) -> bool:
        """Whether a load is under way that no report shows yet."""
        return bool(self._coming)

    def least(self, request: Request) -> float:
        """Tokens that its prompt has at the least: for what is too short for that, it is lost."""
        return self._prompt(request, RARELY)

    def loaded(self, replica: ReplicaState) -> int:
        """Tokens of context that it is loaded with, or about to be; 0 if it is not, or unknown."""
        coming = self._coming.get(replica.key)
        if coming is not None and replica.occupied:
            return coming
        return replica.spec.loaded_context if replica.resident else 0

    def need(self, request: Request) -> int:
        """Tokens that a request is expected to need: its prompt and what is likely to follow."""
        answer = self._answers.get(request.model)
        expected = answer.quantile(ANSWER_QUANTILE) if answer is not None else 0.0
        expected = expected or float(priors.ANSWER_TOKENS)
        if request.max_tokens is not None:
            expected = min(expected, request.max_tokens)
        if request.operation == "embedding":
            expected = 0.0
        return math.ceil(self._prompt(request, ANSWER_QUANTILE) + expected)

    def default(self, key: ReplicaKey) -> int | None:
        """What the replica's engine loads with if nobody says; None unknown."""
        return self._defaults.get((key.node, key.engine))

    def planned(self, replica: ReplicaState, now: float) -> int:
        """Tokens of context to load the model with on this device; 0 for the engine's default."""
        wanted = self._wanted(replica)
        plan = self._planned.get(replica.key)
        if plan is None:
            if not wanted:
                return 0
            plan = self._planned[replica.key] = _Planned(wanted)
        elif wanted > plan.context:
            plan.context, plan.ample = wanted, None
        elif wanted == plan.context:
            plan.ample = None
        elif plan.ample is None:
            plan.ample = now
        elif now - plan.ample >= SHRINK_AFTER and not replica.occupied:
            plan.context, plan.ample = wanted, None
        return plan.context

    def fit(self, request: Request, replica: ReplicaState, now: float, *, carries: bool) -> Fit:
        """Say what a request meets here, and what is to be named to the engine."""
        if replica.engine.kind != "ollama":
            return self._fixed_fit(request, replica.spec)
        need = self.need(request)
        loaded = self.loaded(replica)
        if not carries:
            return self._uncarried_fit(request, replica, need, loaded)
        if loaded >= need > 0:
            return Fit("fits", loaded, need, loaded)
        limit = self.affordable(replica)
        if limit and self._prompt(request, RARELY) >= limit:
            return Fit("short", None, need, limit)
        context = self._named(request, replica, need, now)
        context = min(context, limit) if limit else context
        if loaded and loaded >= context:
            # What is loaded is all that can be had. The prompt fits; should the answer be longer
            # than there is room, it ends by its length, and says so.
            return Fit("fits", loaded, need, limit)
        return Fit("reloads" if loaded else "loads", context or None, need, limit)

    def context_for(
        self, request: Request, replica: ReplicaState, now: float, *, carries: bool = True
    ) -> int | None:
        """Return the context to name to the engine with this request; None to name none."""
        return self.fit(request, replica, now, carries=carries).context

    def affordable(self, replica: ReplicaState) -> int:
        """Return the most context that the model and the device's memory allow; 0 unknown."""
        spec = replica.spec
        budget = replica.node.budget
        most = spec.context_length
        if budget is None or not (spec.size or spec.parameters):
            return most
        room = budget - priors.weight_bytes(spec)
        tokens = int(room / (max(1, spec.slots) * self._token(replica)))
        # What is loaded has been shown to fit.
        tokens = max(tokens, spec.loaded_context, 1)
        return min(most, tokens) if most else tokens

    def need_loaded(self, replica: ReplicaState) -> float:
        """Bytes that it takes in memory as it is."""
        return priors.memory_need(replica.spec)

    def need_cold(self, replica: ReplicaState, now: float) -> float:
        """Bytes that it would take if it were loaded with the context that is planned for it."""
        spec = replica.spec
        context = self.planned(replica, now) or self.default(replica.key) or 0
        if not context:
            return priors.memory_need(spec)
        tokens = context * max(1, spec.slots)
        return priors.weight_bytes(spec) + self._token(replica) * tokens

    def _token(self, replica: ReplicaState) -> float:
        """Bytes of a token of context: as seen of this model anywhere, else the prior."""
        return self._token_bytes.get(replica.key.model) or prior_token_bytes(replica.spec)

    def _fixed_fit(self, request: Request, spec: Replica) -> Fit:
        """What meets a request where the context was fixed when the engine was started."""
        limit = spec.loaded_context or spec.context_length
        short = bool(limit) and self._prompt(request, RARELY) >= limit
        return Fit("short" if short else "fits", None, request.prompt_tokens, limit)

    def _uncarried_fit(
        self, request: Request, replica: ReplicaState, need: int, loaded: int
    ) -> Fit:
        """What meets a request that can name no context: the engine's default, whatever is loaded.

        A prompt that would be cut by it is not for this replica.
        """
        default, most = self.default(replica.key), replica.spec.context_length
        limit = min(default, most) if default and most else default or most
        if limit and self._prompt(request, RARELY) >= limit:
            return Fit("short", None, need, limit)
        if not loaded:
            return Fit("loads", None, need, limit)
        same = default is None or loaded == limit
        return Fit("fits" if same else "reloads", None, need, limit)

    def _named(self, request: Request, replica: ReplicaState, need: int, now: float) -> int:
        """Context of a load that this request causes; 0 leaves it to the engine."""
        planned = self.planned(replica, now)
        if planned >= need:
            return planned
        if not planned:
            default = self.default(replica.key) or 0
            if need <= default:
                return default
            if not default and request.context is None and need <= LEAST:
                return 0
        # It outgrew the plan, or there is none: conversations grow, so leave them room to.
        return max(bucket(HEADROOM * need), planned or UNPLANNED)

    def _wanted(self, replica: ReplicaState) -> int:
        """What the plan would be if it were made now; 0 while too little is known."""
        needs = self._needs.get(replica.key.model, self._all)
        if needs.total < ENOUGH:
            needs = self._all
        if needs.total < ENOUGH:
            return 0
        context = bucket(HEADROOM * needs.quantile(QUANTILE))
        uncarried = self._uncarried.get(replica.key.model, 0.0)
        default = self.default(replica.key) or 0
        if uncarried >= UNCARRIED or (uncarried >= UNCARRIED_FEW and context <= default):
            context = default
        limit = self.affordable(replica)
        return min(context, limit) if limit else context

    def _prompt(self, request: Request, share: float) -> float:
        """Tokens of the prompt by the engine's count, as far as this share of prompts shows."""
        ratios = self._ratios.get(request.model)
        if ratios is None:
            ratio = RATIO_UNKNOWN if share > MEDIAN else 1.0 / RATIO_UNKNOWN
        else:
            # A quantile is the upper end of its bucket.
            width = 1.0 if share > MEDIAN else 2.0 ** (1.0 / STEPS)
            ratio = ratios.quantile(share) / 1000.0 / width
        factor: float = min(RATIO_MOST, max(1.0 / RATIO_MOST, ratio))
        return request.prompt_tokens * factor


def carries(request: Request) -> bool:
    """Whether the request can name a context to Ollama: only its own dialect has a field for it."""
    return request.dialect == "ollama"


def bucket(tokens: float) -> int:
    """Return the least power of two, from `LEAST`, that holds so many tokens."""
    context = LEAST
    while context < tokens:
        context *= 2
    return context


def told_token_bytes(spec: Replica) -> float | None:
    """Bytes of a token of one slot's context where the model is loaded; None if it is not."""
    if not spec.loaded_context or not spec.size or spec.memory_bytes <= spec.size:
        return None
    return (spec.memory_bytes - spec.size) / (spec.loaded_context * max(1, spec.slots))


def prior_token_bytes(spec: Replica) -> float:
    """Bytes of a token of context, of a model of that size."""
    parameters = spec.parameters or priors.weight_bytes(spec) / priors.BYTES_PER_PARAMETER
    size: float = TOKEN_BYTES * (parameters / TOKEN_PARAMETERS) ** TOKEN_POWER
    return size
