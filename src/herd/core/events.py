"""What happened: the scheduler's only input."""

from __future__ import annotations

from msgspec import Struct

from herd.core.fleet import Load, NodeReport, ReplicaKey
from herd.core.request import Failure, Prefix, Request, Result


class RequestArrived(Struct, frozen=True):
    """A client asks. The prefix is for finding it in caches; it is not kept in the record."""

    request: Request
    prefix: Prefix = Prefix()


class FirstFrame(Struct, frozen=True):
    """The first frame of a streamed answer came and goes to the client."""

    request: str
    attempt: int


class Answered(Struct, frozen=True):
    """A whole answer came and goes to the client: no other attempt's can any more."""

    request: str
    attempt: int


class Finished(Struct, frozen=True):
    """The attempt's answer is complete, with its terminator, and went to the client."""

    request: str
    attempt: int
    result: Result


class Failed(Struct, frozen=True):
    """The attempt failed. `began`: the client has seen bytes of it, so it cannot be retried."""

    request: str
    attempt: int
    failure: Failure
    began: bool
    result: Result = Result()


class ClientLeft(Struct, frozen=True):
    """The client hung up; whatever was done for it is over."""

    request: str


class NodeReported(Struct, frozen=True):
    """A node joined, or something about it changed."""

    report: NodeReport


class NodeHeard(Struct, frozen=True):
    """A heartbeat: the node is there, and this busy."""

    node: str
    load: Load = Load()


class NodeLeaving(Struct, frozen=True):
    """The node wants to go: no new work, and tell it when the last of its own has ended."""

    node: str


class NodeGone(Struct, frozen=True):
    """The node's link ended or the owner removed it."""

    node: str
    reason: str


class PreloadEnded(Struct, frozen=True):
    """A load that a `Preload` ordered is over; `error` is empty if the model is in memory now."""

    replica: ReplicaKey
    error: str = ""


class TimerDue(Struct, frozen=True):
    """The time of the earliest `SetTimer` has come."""


class Stopping(Struct, frozen=True):
    """The router is about to stop: refuse what waits and what comes."""


Event = (
    RequestArrived
    | FirstFrame
    | Answered
    | Finished
    | Failed
    | ClientLeft
    | NodeReported
    | NodeHeard
    | NodeLeaving
    | NodeGone
    | PreloadEnded
    | TimerDue
    | Stopping
)
