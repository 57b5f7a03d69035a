"""Circuit breakers: whom not to ask for a while, who may try first, and what a failure costs.

Theory of operation. A breaker is `closed` as long as all goes well. A fault opens it: nobody is
sent there for a rest that doubles with each fault in a row. After the rest it is `half_open`: the
next request that wants to go there is let through, exactly one, as the probe; the others wait for
what becomes of it, or go elsewhere. Its first frame closes the breaker, its fault opens it for
longer, and if its client leaves, the next one is the probe. No request is ever made up for it.
(Nygard, Release It!, 2007, "Circuit Breaker".)

Each replica has one, and so has each engine: if there is no connection for one of an engine's
models, there is none for the others. A `Guard` is the two of them, as a replica sees them.

Resting says nothing of a replica that fails every third request and works in between. For that,
each breaker counts what is lost, decayed by time, and gives the expected loss in seconds: one part
of the prediction among others, no threshold.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from herd.core.request import Failure

State = Literal["closed", "half_open", "open"]
#: An attempt: its request and its number.
Who = tuple[str, int]
#: Whose failure it was.
Blame = Literal[
    "engine",  # no connection: all its models are out of reach
    "replica",  # it was reached, and did not do its work
    "busy",  # it has too much work: no fault, but a reason to wait
    "lost",  # time was lost here, and a rest would not mend it
    "request",  # whoever is asked this would fail: says nothing of the replica
]
#: Statuses by which an engine says that it will take the request later: it is overloaded, or its
#: model is still loading (RFC 9110, 15.5.10 and 15.6.4; RFC 6585, 4; RFC 8470, 5.2).
BUSY = frozenset({409, 425, 429, 503})
#: Seconds after which an outcome weighs half: a choice, between a device that was mended and one
#: that is asked a few times an hour.
HALF_LIFE = 300.0
#: Successes that are believed to have been before the first outcome: one failure among no others
#: makes a third.
PRIOR_SUCCESSES = 2.0
#: A chance of losing an attempt that is not worth a thought: one in a thousand.
FORGOTTEN = 0.001
_BADNESS: tuple[State, ...] = ("closed", "half_open", "open")
#: Seconds until whoever waits for an overdue probe looks again, at least.
_SECOND_LOOK = 0.05


class Rests(Struct, frozen=True):
    """Seconds without attempts after a fault: the first time, and at most."""

    first: float = 1.0
    most: float = 30.0


def blame(failure: Failure, before: Failure | None = None) -> Blame:
    """Say whose failure it was; `before` is what the request failed with elsewhere, if it did.

    A second device that answers the same status has done nothing but agree with the first: what
    they have in common is the request. Without this, one bad request would open every breaker.
    """
    match failure.kind:
        case "connect":
            return "engine"
        case "node_lost" | "engine":
            return "lost"
        case "status" if failure.retryable:
            if failure.status in BUSY:
                return "busy"
            same = before is not None and before.kind == "status" and before.status
            return "request" if same and same == failure.status else "replica"
        case "timeout" | "broken" | "protocol" if failure.retryable:
            return "replica"
    return "request"


class Losses:
    """How many attempts are lost at one place, and how much time with each; decayed by time."""

    __slots__ = ("_at", "_ended", "_lost", "_seconds")

    def __init__(self) -> None:
        self._at = 0.0
        self._ended = 0.0
        self._lost = 0.0
        self._seconds = 0.0

    def kept(self, now: float) -> None:
        """An attempt did its work."""
        self._decay(now)
        self._ended += 1.0

    def lost(self, seconds: float, now: float) -> None:
        """An attempt came to nothing, so many seconds after its start."""
        self._decay(now)
        self._ended += 1.0
        self._lost += 1.0
        self._seconds += max(0.0, seconds)

    def probability(self, now: float) -> float:
        """How likely the next attempt is lost; 0 as long as none was, below 1 always."""
        if not self._lost:
            return 0.0
        kept = self._kept(now)
        return kept * self._lost / (kept * self._ended + PRIOR_SUCCESSES)

    def expected(self, again: float, now: float) -> float:
        """Seconds that an attempt is expected to lose if a lost one costs `again` to do over."""
        if not self._lost:
            return 0.0
        return self.probability(now) * (self._seconds / self._lost + again)

    def _kept(self, now: float) -> float:
        return float(0.5 ** (max(0.0, now - self._at) / HALF_LIFE))

    def _decay(self, now: float) -> None:
        kept = self._kept(now)
        self._ended *= kept
        self._lost *= kept
        self._seconds *= kept
        self._at = max(self._at, now)


class Breaker:
    """One place that can fail. `now` must not fall. Constant in size, no clock, no chance."""

    __slots__ = (
        "_expected",
        "_open",
        "_probe",
        "_rests",
        "_since",
        "_streak",
        "_until",
        "calm",
        "losses",
    )

    def __init__(self, rests: Rests) -> None:
        self.losses = Losses()
        #: Nothing has failed here for long, so there is nothing to wait for or to fear. Kept, as it
        #: is asked for every candidate of every decision.
        self.calm = True
        self._rests = rests
        self._open = False
        #: Nobody is let through before this time.
        self._until = 0.0
        #: Faults in a row, each of an attempt that began after the one before.
        self._streak = 0
        self._probe: Who | None = None
        #: When the probe began, and when it is expected to tell.
        self._since = 0.0
        self._expected = 0.0

    def state(self, now: float) -> State:
        """Say which of the three it is."""
        if not self._open:
            return "closed"
        return "open" if now < self._until else "half_open"

    @property
    def probing(self) -> bool:
        """A probe is out."""
        return self._probe is not None

    @property
    def rest_until(self) -> float:
        """When its last rest is over, or was."""
        return self._until

    def hold(self, now: float) -> float:
        """Seconds for which nobody may start here; 0 if one may now."""
        rest = self._until - now
        if self._probe is None:
            return max(0.0, rest)
        left = self._expected - now
        if left <= 0.0:
            # As for any attempt that is overdue: nothing is known of it but its age.
            left = max(_SECOND_LOOK, 0.25 * (now - self._since))
        return max(rest, left)

    def begin(self, who: Who, now: float, expected: float) -> None:
        """An attempt starts that is expected to show a sign of life after so many seconds.

        Raises `RuntimeError` if none may start.
        """
        if self.hold(now) > 0.0:
            raise RuntimeError("the breaker is open, or its probe is out")
        if self._open:
            self._probe, self._since, self._expected = who, now, now + expected

    def answered(self, who: Who, now: float) -> bool:
        """A sign of life. Returns whether somebody may start now who could not before.

        The probe's closes the breaker. That of an attempt from before the fault ends the rest and
        no more: an engine that is going down may well end what it has.
        """
        before = self.hold(now)
        if who == self._probe:
            self._probe = None
            self._open = False
            self._until = min(self._until, now)
        elif self._open:
            self._until = min(self._until, now)
        return before > 0.0 >= self.hold(now)

    def succeeded(self, who: Who, now: float) -> None:
        """An attempt did its work. Once closed, its next fault is the first in a row again."""
        self.answered(who, now)
        self.losses.kept(now)
        if not self._open:
            self._streak = 0
            if not self.calm and now >= self._until and self.losses.probability(now) < FORGOTTEN:
                self.losses = Losses()
                self.calm = True

    def failed(self, who: Who, seconds: float, now: float) -> None:
        """An attempt that took so many seconds was at fault, or a load was that nobody waited for.

        While it is open, faults of attempts from before say nothing new: they prolong no rest.
        """
        self.lost(seconds, now)
        if who == self._probe:
            self._probe = None
        elif self._open:
            return
        self._open = True
        # Beyond 60 the doubling is past any bound, and in the end past what a float holds.
        rest = min(self._rests.most, self._rests.first * 2.0 ** min(self._streak, 60))
        self._streak += 1
        self._until = max(self._until, now + rest)

    def busy(self, who: Who, rest: float | None, now: float) -> None:
        """It asked to be left alone, for so many seconds if it said so. No fault, and no proof."""
        self.left(who)
        self.calm = False
        wished = self._rests.first if rest is None else max(0.0, rest)
        self._until = max(self._until, now + min(self._rests.most, wished))

    def lost(self, seconds: float, now: float) -> None:
        """An attempt came to nothing here, so many seconds after its start."""
        self.losses.lost(seconds, now)
        self.calm = False

    def left(self, who: Who) -> None:
        """An attempt ended without showing anything: if it was the probe, the next one is."""
        if who == self._probe:
            self._probe = None


class Guard:
    """What stands before one replica: its own breaker, and the one of its engine."""

    __slots__ = ("_engine", "_own")

    def __init__(self, own: Breaker, engine: Breaker) -> None:
        self._own = own
        self._engine = engine

    @property
    def rest_until(self) -> float:
        """When the last rest of either is over, or was."""
        return max(self._own.rest_until, self._engine.rest_until)

    @property
    def calm(self) -> bool:
        """Whether `hold` and `loss` are 0 at any time."""
        return self._own.calm and self._engine.calm

    def state(self, now: float) -> State:
        """Say the worse of the two."""
        return max(self._own.state(now), self._engine.state(now), key=_BADNESS.index)

    def hold(self, now: float) -> float:
        """Seconds for which nobody may start here; 0 if one may now."""
        return max(self._own.hold(now), self._engine.hold(now))

    def loss(self, again: float, now: float) -> float:
        """Seconds that an attempt is expected to lose here; a lost one costs `again` to do over."""
        own, engine = self._own.losses, self._engine.losses
        return own.expected(again, now) + engine.expected(again, now)

    def begin(self, who: Who, now: float, expected: float) -> None:
        """An attempt starts that is expected to show a sign of life after so many seconds."""
        self._own.begin(who, now, expected)
        self._engine.begin(who, now, expected)

    def answered(self, who: Who, now: float) -> bool:
        """A sign of life. Returns whether somebody may start now who could not before."""
        # Both have to hear of it.
        own, engine = self._own.answered(who, now), self._engine.answered(who, now)
        return own or engine

    def succeeded(self, who: Who, now: float) -> None:
        """An attempt did its work."""
        self._own.succeeded(who, now)
        self._engine.succeeded(who, now)

    def failed(
        self, who: Who, failure: Failure, seconds: float, now: float, before: Failure | None = None
    ) -> None:
        """An attempt failed after so many seconds; `before` is what failed it elsewhere."""
        whose = blame(failure, before)
        if whose == "engine":
            self._own.left(who)
            self._engine.failed(who, seconds, now)
            return
        if failure.status is not None:
            self._engine.answered(who, now)
        else:
            self._engine.left(who)
        if whose == "replica":
            self._own.failed(who, seconds, now)
        elif whose == "busy":
            self._own.busy(who, failure.retry_after, now)
        elif whose == "lost":
            self.beaten(who, seconds, now)
        else:
            # It has answered, and was right to refuse.
            self._own.answered(who, now)

    def faulted(self, now: float) -> None:
        """A load that no request waited for failed."""
        self._own.failed(("", 0), 0.0, now)

    def beaten(self, who: Who, seconds: float, now: float) -> None:
        """Time was lost here by no fault that a rest would mend, such as to a faster device."""
        self._own.lost(seconds, now)
        self.left(who)

    def left(self, who: Who) -> None:
        """An attempt ended without showing anything."""
        self._own.left(who)
        self._engine.left(who)
