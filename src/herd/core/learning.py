"""What outcomes teach: corrections of the priors, exponentially weighted, constant in size."""

from __future__ import annotations

import math
from typing import Literal

from herd.core import priors
from herd.core.fleet import EngineKind
from herd.core.priors import Rates
from herd.core.request import Attempt, Request, Result

#: What is learned of a replica.
Quantity = Literal["prefill", "decode", "load"]
#: Weight of the newest outcome once several are in; the first ones count as in a plain mean.
WEIGHT = 0.2
#: One outcome may move a correction by no more than this factor either way, so that a single
#: stalled request does not spoil what hundreds have taught.
CLAMP = math.log(16.0)
#: Fewer prompt tokens say more of the overhead than of the prefill rate.
PREFILL_LEAST = 32
DECODE_LEAST = 4


class Mean:
    """An exponentially weighted mean whose first values weigh as in an ordinary mean."""

    __slots__ = ("count", "value")

    def __init__(self) -> None:
        self.count = 0
        self.value = 0.0

    def add(self, value: float) -> None:
        """Take one more value in."""
        self.count += 1
        self.value += (value - self.value) * max(WEIGHT, 1.0 / self.count)


class Shared:
    """How far priors are off for one model on all devices, or on one device for all models.

    Logarithms of actual over predicted, by quantity. A replica that was never measured borrows
    from both: they add up, as in a model without interaction between device and model.
    """

    __slots__ = ("_counts", "_values", "version")

    def __init__(self) -> None:
        self._values: dict[Quantity, float] = {}
        self._counts: dict[Quantity, int] = {}
        #: Changes with every outcome.
        self.version = 0

    def value(self, quantity: Quantity) -> float:
        """The believed logarithm; 0 until something was learned."""
        return self._values.get(quantity, 0.0)

    def add(self, quantity: Quantity, error: float) -> None:
        """Take over part of what was left unexplained: half of the first, less later on."""
        count = self._counts.get(quantity, 0)
        self._counts[quantity] = count + 1
        self._values[quantity] = self.value(quantity) + error * max(0.05, 0.5 / (count + 1))
        self.version += 1


class SharedTable:
    """What is shared by model; what is shared by device lives with the device."""

    def __init__(self) -> None:
        self._models: dict[str, Shared] = {}

    def model(self, name: str) -> Shared:
        """Return what all replicas of a model share."""
        return self._models.setdefault(name, Shared())


class Correction:
    """A factor on a predicted duration: the mean of log(actual / predicted)."""

    __slots__ = ("_device", "_log", "_model", "_quantity")

    def __init__(
        self, quantity: Quantity, device: Shared | None = None, model: Shared | None = None
    ) -> None:
        self._log = Mean()
        self._quantity: Quantity = quantity
        self._device = device or Shared()
        self._model = model or Shared()

    @property
    def factor(self) -> float:
        """2 where things take twice as long as the prior said. Borrowed until measured."""
        return math.exp(self._believed)

    @property
    def count(self) -> int:
        """Outcomes behind it."""
        return self._log.count

    def add(self, actual: float, predicted: float) -> None:
        """Learn from one duration; both in seconds. Nothing is learned from zero."""
        if actual <= 0.0 or predicted <= 0.0:
            return
        ratio = math.log(actual) - math.log(predicted)
        believed = self._believed
        ratio = min(believed + CLAMP, max(believed - CLAMP, ratio))
        error = ratio - self._borrowed
        self._log.add(ratio)
        self._device.add(self._quantity, error)
        self._model.add(self._quantity, error)

    @property
    def _believed(self) -> float:
        return self._log.value if self._log.count else self._borrowed

    @property
    def _borrowed(self) -> float:
        return self._device.value(self._quantity) + self._model.value(self._quantity)


class ReplicaLearning:
    """Corrections of one replica's prior, borrowed from others until it was measured itself."""

    __slots__ = (
        "_decode",
        "_device",
        "_load",
        "_model",
        "_overhead",
        "_prefill",
        "_prior",
        "_rates",
        "_seen",
    )

    def __init__(
        self, prior: Rates, device: Shared | None = None, model: Shared | None = None
    ) -> None:
        self._prior = prior
        self._device = device or Shared()
        self._model = model or Shared()
        self._prefill = Correction("prefill", self._device, self._model)
        self._decode = Correction("decode", self._device, self._model)
        self._load = Correction("load", self._device, self._model)
        self._overhead = Mean()
        self._seen = -1
        self._rates = prior
        self._refresh()

    @property
    def rates(self) -> Rates:
        """The prior, corrected by what came."""
        if self._seen != self._device.version + self._model.version:
            self._refresh()
        return self._rates

    @property
    def outcomes(self) -> int:
        """How many outcomes have taught it something."""
        return max(self._decode.count, self._prefill.count, self._overhead.count)

    def reprime(self, prior: Rates) -> None:
        """The hardware or the model became better known; corrections stay."""
        self._prior = prior
        self._refresh()

    def learn(
        self,
        *,
        request: Request,
        attempt: Attempt,
        result: Result,
        kind: EngineKind,
        running: int,
        cold: bool = False,
        cached: float = 0.0,
    ) -> None:
        """Learn from a completed attempt that had `running` requests on its device, itself one.

        The engine's own durations are used where it tells them; else the relay's, in which
        prefill and load cannot be told apart, so a `cold` start teaches no prefill rate. `cached`
        tokens of the prompt took no time; Ollama does not tell of them, so they may be our guess.
        """
        if attempt.ended is None:
            return
        timings, usage = result.timings, result.usage
        streamed = attempt.first_frame is not None
        first = attempt.first_frame if attempt.first_frame is not None else attempt.ended
        waited = first - attempt.started - (timings.load or 0.0)
        share = priors.slowdown(kind, running)
        known = usage.cached_tokens if usage.cached_tokens is not None else round(cached)
        fresh = (usage.prompt_tokens or request.prompt_tokens) - known
        # A stream that does not tell its usage has about one frame for each token.
        tokens = result.frames if usage.completion_tokens is None else usage.completion_tokens
        loaded = timings.load is not None and timings.load >= priors.LOAD_LEAST
        if timings.load is not None and loaded:
            self._load.add(timings.load, self._prior.load)
        if timings.prefill is None and not streamed:
            if not (cold or loaded):
                self._learn_whole(waited, fresh, tokens, share)
        elif fresh >= PREFILL_LEAST and not (loaded or (cold and timings.prefill is None)):
            prefill = waited if timings.prefill is None else timings.prefill
            self._prefill.add(prefill, share * fresh / self._prior.prefill)
        if timings.prefill is not None and streamed:
            self._overhead.add(max(0.0, waited - timings.prefill))
        if tokens >= DECODE_LEAST:
            predicted = share * tokens / self._prior.decode
            if timings.decode is not None:
                self._decode.add(timings.decode, predicted)
            elif streamed:
                # The first token came with the prefill.
                self._decode.add(attempt.ended - first, predicted * (tokens - 1) / tokens)
        self._refresh()

    def _learn_whole(self, seconds: float, fresh: int, tokens: int, share: float) -> None:
        """Learn from an answer that came in one piece: what was wrong, was so in both rates."""
        rates, prior = self.rates, self._prior
        believed = share * (max(0, fresh) / rates.prefill + tokens / rates.decode)
        if believed <= 0.0:
            return
        ratio = (seconds - rates.overhead) / believed
        if fresh >= PREFILL_LEAST:
            self._prefill.add(ratio / rates.prefill, 1.0 / prior.prefill)
        if tokens >= DECODE_LEAST:
            self._decode.add(ratio / rates.decode, 1.0 / prior.decode)

    def _refresh(self) -> None:
        prior = self._prior
        self._seen = self._device.version + self._model.version
        self._rates = Rates(
            prefill=prior.prefill / self._prefill.factor,
            decode=prior.decode / self._decode.factor,
            load=prior.load * self._load.factor,
            overhead=self._overhead.value if self._overhead.count else prior.overhead,
        )


class AnswerLengths:
    """How long answers are, per model and operation. Bounded by the models of the fleet."""

    __slots__ = ("_means",)

    def __init__(self) -> None:
        self._means: dict[tuple[str, str], Mean] = {}

    def expect(self, request: Request) -> float:
        """Tokens that the answer will have; 0 for an embedding."""
        if request.operation == "embedding":
            return 0.0
        mean = self._means.get((request.model, request.operation))
        expected = mean.value if mean is not None else float(priors.ANSWER_TOKENS)
        if request.max_tokens is not None:
            expected = min(expected, request.max_tokens)
        return max(1.0, float(expected))

    def add(self, request: Request, tokens: int) -> None:
        """Learn from an answer that ended by itself or by the client's limit."""
        key = (request.model, request.operation)
        self._means.setdefault(key, Mean()).add(float(tokens))
