"""What memory a loaded model takes by its context, from what engines report."""

from __future__ import annotations

from msgspec import Struct

from herd.core import priors
from herd.core.fleet import Replica


class MemoryUseState(Struct, frozen=True, array_like=True):
    """A `MemoryUse` at rest: pairs of context and bytes, the newest last."""

    seen: tuple[tuple[int, int], ...] = ()


class MemoryUse:
    """A line through the last two contexts that the model was loaded with.

    With one, the line begins where weights and buffers are believed to end; with none, its slope
    is the prior's. Engines reserve a context whole at the load, so two points are exact.
    """

    __slots__ = ("_base", "_seen", "_slope")

    def __init__(self) -> None:
        self._base = 0.0
        self._slope = 0.0
        self._seen: dict[int, int] = {}

    def see(self, spec: Replica) -> None:
        """Take a report in."""
        self._base = priors.weight_bytes(spec) * priors.BUFFERS_RATIO
        self._slope = priors.context_bytes(spec) * max(1, spec.slots)
        if spec.memory_bytes > 0 and spec.loaded_context > 0:
            self._seen.pop(spec.loaded_context, None)
            self._seen[spec.loaded_context] = spec.memory_bytes
            if len(self._seen) > 2:  # noqa: PLR2004 - a line has two points
                del self._seen[next(iter(self._seen))]

    def need(self, context: float) -> float | None:
        """Bytes with so much context for each slot; None before the first report."""
        if not self._base:
            return None
        if not self._seen:
            return self._base + self._slope * context
        points = sorted(self._seen.items())
        first, low = points[0]
        last, high = points[-1]
        if last > first:
            slope = max(0.0, (high - low) / (last - first))
        else:
            slope = max(0.0, (low - self._base) / first)
        return max(0.0, low + slope * (context - first))

    def state(self) -> MemoryUseState:
        """Return what is to be kept."""
        return MemoryUseState(tuple(self._seen.items()))

    def restore(self, state: MemoryUseState) -> None:
        """Go on from what was kept."""
        self._seen = dict(state.seen)
