"""How many tokens prompts have: what engines counted over what was estimated from their bytes.

The estimate takes four bytes for a token. Tokenizers differ by tens of per cent, languages and code
by more: English prose has 4 to 5 letters a token, code and German about 3. So the logarithm of the
ratio is learned for each client of a model; where it has few prompts it leans on all of the model,
that on all prompts, and those on the estimate as it is (a hierarchical mean with a fixed
concentration, as `lengths` has). Prompts with images have ratios of their own, for an image is
estimated by a constant. Forgets by time.

`contexts` keeps quantiles of the same ratio, by which it refuses; here is the mean, to predict by.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from msgspec import Struct, structs

from herd.core.request import Prefix, Request
from herd.core.statistics import Belief, BeliefState

#: Seconds in which a prompt's weight halves: habits of people and versions of tools last weeks.
HALF_LIFE = 7 * 86400.0
#: Tokens at which a prompt counts half: a template adds 10 to 40 of its own, which in a short
#: prompt say nothing of the ratio, and a short prompt's seconds hardly matter.
TEMPLATE = 50.0
#: Prompts that the level above stands for. Prompts of one client scatter by about 0.15, clients of
#: one model (languages, prose or code) by about 0.2, as logarithms: 0.15^2 / 0.2^2.
LEANING = 0.5
#: A ratio further off counts as this, until the scatter is known; and none is believed beyond it.
#: A prompt that was cut to its context, or of which only the new part was counted, is far off.
MOST = math.log(2.0)
#: Beliefs that are kept; the longest unused go.
BELIEFS = 2000

#: Kind of prompt; with a model; with a client.
Key = tuple[str, ...]


class PromptsState(Struct, frozen=True, array_like=True):
    """One belief at rest."""

    key: tuple[str, ...]
    belief: BeliefState


class Prompts:
    """Ratios of true over estimated tokens. Bounded in memory."""

    def __init__(self) -> None:
        self._beliefs: OrderedDict[Key, Belief] = OrderedDict()
        #: Ratios that were asked for since the last prompt came.
        self._found: dict[Key, float] = {}

    def ratio(self, request: Request) -> float:
        """Return the expected ratio of the engine's count to the estimate; 1 if nothing is known.

        Whatever was estimated from bytes is to be multiplied by it, a prefix's blocks as well.
        """
        if not self._beliefs:
            return 1.0
        key = _key(request)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = math.exp(self._expected(key))
        return found

    def expect(self, request: Request) -> float:
        """Return the tokens that an engine is expected to count of the prompt."""
        return request.prompt_tokens * self.ratio(request)

    def scaled(self, request: Request, prefix: Prefix) -> Prefix:
        """Return the prefix with blocks of as many tokens as an engine is expected to count."""
        ratio = self.ratio(request)
        if ratio == 1.0 or not prefix.hashes:
            return prefix
        return structs.replace(prefix, block=max(1, round(prefix.block * ratio)))

    def add(self, request: Request, prompt_tokens: int | None, now: float) -> None:
        """Learn from a completed request; tokens by the engine's own count, cached ones too.

        None, or 0, if it does not say.
        """
        estimated = request.prompt_tokens
        if estimated <= 0 or not prompt_tokens:
            return
        value = math.log(prompt_tokens / estimated)
        weight = estimated / (estimated + TEMPLATE)
        own = _key(request)
        for depth in range(1, len(own) + 1):
            key = own[:depth]
            expected = self._expected(key)
            belief = self._beliefs.get(key)
            if belief is None:
                belief = self._beliefs[key] = Belief(HALF_LIFE, clamp=MOST)
            self._beliefs.move_to_end(key)
            belief.add(value, now, expected=expected, weight=weight)
        while len(self._beliefs) > BELIEFS:
            self._beliefs.popitem(last=False)
        self._found.clear()

    def state(self) -> tuple[PromptsState, ...]:
        """Return what is to be kept, the longest unused first."""
        return tuple(PromptsState(key, each.state()) for key, each in self._beliefs.items())

    def restore(self, states: tuple[PromptsState, ...]) -> None:
        """Go on from what was kept."""
        self._beliefs.clear()
        self._found.clear()
        for state in states[-BELIEFS:]:
            belief = self._beliefs[state.key] = Belief(HALF_LIFE, clamp=MOST)
            belief.restore(state.belief)

    def _expected(self, own: Key) -> float:
        """Return the logarithm of the ratio."""
        value = 0.0
        for depth in range(1, len(own) + 1):
            belief = self._beliefs.get(own[:depth])
            if belief is not None:
                value = (LEANING * value + belief.weight * belief.value) / (LEANING + belief.weight)
        return min(MOST, max(-MOST, value))


def _key(request: Request) -> Key:
    return ("images" if "vision" in request.needs else "text", request.model, request.client)
