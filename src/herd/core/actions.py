"""What to do: the scheduler's only output. Actions are carried out in their order."""

from __future__ import annotations

from msgspec import Struct

from herd.core.decision import Decision
from herd.core.fleet import Capability, EngineKind, ReplicaKey
from herd.core.request import Failure, Outcome, Refusal


class Target(Struct, frozen=True, kw_only=True):
    """Where an attempt goes, in the terms of the one who connects."""

    replica: ReplicaKey
    node_name: str
    kind: EngineKind
    url: str
    #: The model's name on that engine, and what it can do there.
    model: str
    capabilities: tuple[Capability, ...] = ()


class Stay(Struct, frozen=True, kw_only=True):
    """How an engine that loads on demand is to keep a model; None leaves it to client or engine."""

    #: Tokens of context to load it with.
    context: int | None = None
    #: Seconds that it stays in memory after its last request; negative for ever.
    keep_alive: float | None = None


class Dispatch(Struct, frozen=True):
    """Send the request to the target now. A number above 1 is a retry, or a hedge: see `beside`."""

    request: str
    attempt: int
    target: Target
    decision: Decision
    #: What the request is to say of the model's stay in memory, as the context plan has it.
    stay: Stay = Stay()
    #: An attempt of the same request is under way and goes on: whichever answers first wins.
    beside: bool = False


class Preload(Struct, frozen=True):
    """Load the model there though no request asks for it yet; `PreloadEnded` follows."""

    target: Target
    stay: Stay
    #: Why, in words for the owner.
    reason: str


class Unload(Struct, frozen=True):
    """Let the model leave memory there; its absence from the next report is the answer."""

    target: Target
    reason: str


class Hold(Struct, frozen=True):
    """The request waits; the present plan is this replica, in so many seconds."""

    request: str
    replica: ReplicaKey
    expected_wait: float


class Refuse(Struct, frozen=True):
    """Tell the client that there will be no (further) attempt, and why."""

    request: str
    refusal: Refusal


class Abort(Struct, frozen=True):
    """Break off a running attempt; `Failed` follows from whoever runs it."""

    request: str
    attempt: int
    failure: Failure


class Cancel(Struct, frozen=True):
    """Stop a running attempt, as another has answered its request. No event follows."""

    request: str
    attempt: int


class Record(Struct, frozen=True):
    """Keep this outcome. Comes exactly once for each request."""

    outcome: Outcome


class Release(Struct, frozen=True):
    """The leaving node has nothing of ours running any more."""

    node: str


class SetTimer(Struct, frozen=True):
    """Send `TimerDue` at this time; replaces any timer set before."""

    at: float


Action = Dispatch | Preload | Unload | Hold | Refuse | Abort | Cancel | Record | Release | SetTimer
