"""Who else uses a device: what its agent's readings tell before any request of ours was slower.

The share of the processors that is busy counts everybody's programs. While nothing of ours runs it
is all others', and two high readings in a row are its owner at work, or a backup, and no hiccup. On
Apple's chips, where engines compute on the GPU, it is nearly all others' at any time.

What such use will cost is a prior that outcomes soon replace: where the engine computes on the
processors, those that are busy are missing, and that is what the device's weather (`shared`) then
begins with and returns to. Elsewhere little is known, so a used device only costs some seconds of
expected loss, by which an idle one is preferred that is otherwise as good. One low reading ends it.
"""

from __future__ import annotations

from herd.core.fleet import Load
from herd.core.priors import Processor
from herd.core.shared import WEATHER_SECONDS, Device

#: Share of the processors from which a device is in use by others: a choice, above what a film or a
#: few pages in a browser are expected to need, and below what a build does.
OWNED = 0.5
#: Readings in a row that tell it, and the least seconds between two that are not one and the same:
#: an agent measures over a second at least.
READINGS = 2
APART = 1.0
#: The most by which busy processors are taken to slow an engine on them. The system shares them, so
#: at least half would be left to as many threads; but those of an engine wait for the slowest of
#: them at each step. Four is between that and the nothing that 1 - cpu would leave: a choice.
SLOWEST = 4.0
#: Share of a request's work that is expected to be lost where an engine computes on a GPU of a
#: device in use. A choice, not measured: that one in four of those programs needs the GPU, or the
#: memory's bandwidth, as much as the engine does, which then has half. So a used device is still
#: asked when it would be done a fifth sooner than an idle one.
LOSS = 0.25


class Use:
    """Others' use of one device, of which its weather is told."""

    __slots__ = ("_at", "_device", "_high", "_ours", "_seen", "processor", "slower", "used")

    def __init__(self, device: Device) -> None:
        self._device = device
        #: Where its engines compute.
        self.processor: Processor = "cpu"
        #: Whether others use it, as far as is known.
        self.used = False
        #: How many times longer work is expected to take, before any outcome has told.
        self.slower = 1.0
        #: High readings in a row, when the last reading was, and when the last high one.
        self._high = 0
        self._at = float("-inf")
        self._seen = float("-inf")
        #: What `ours` was then.
        self._ours = 0.0

    def seen(self, load: Load, ours: float, now: float) -> None:
        """Take a reading in.

        `ours` grows while something of ours runs there, and else does not (`Crowd.reading`).
        """
        if load.cpu is None or now - self._at < APART:
            return
        alone = ours == self._ours
        self._at, self._ours = now, ours
        if load.cpu < OWNED:
            self._high = 0
            self._turn(used=False, cpu=load.cpu)
        elif alone or self.processor == "apple":
            self._high += 1
            self._seen = now
            if self._high >= READINGS:
                self._turn(used=True, cpu=load.cpu)
        else:
            # It may be ours: neither news of the others nor of their having gone.
            self._high = 0
            if now - self._seen > WEATHER_SECONDS:
                self._turn(used=False, cpu=load.cpu)

    def loss(self, work: float) -> float:
        """Seconds that a request is expected to lose by it, of so many that it would take."""
        return LOSS * max(0.0, work) if self.used and self.processor != "cpu" else 0.0

    def _turn(self, *, used: bool, cpu: float) -> None:
        if used == self.used:
            return
        self.used = used
        slower = 1.0 / max(1.0 / SLOWEST, 1.0 - cpu) if used and self.processor == "cpu" else 1.0
        if slower != self.slower:
            self.slower = slower
            self._device.changed(slower, self._at, used=used)
