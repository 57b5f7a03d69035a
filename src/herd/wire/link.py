"""Messages between agent and router: MessagePack, one tagged union per direction, versioned.

The agent dials `GET /herd/v1/link` as a WebSocket; every message is one binary frame. It opens
with `Hello`; the router answers `Welcome` or `Rejected`. Unknown fields are ignored on both sides,
so that either may be the newer one within a protocol version.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from msgspec import Struct

from herd.core.fleet import Load, NodeReport

#: Raised when a peer of the older version could misread the newer one.
PROTOCOL = 1
PATH = "/herd/v1/link"
#: Seconds between heartbeats, and after how many without a sign the other side counts as gone.
HEARTBEAT = 2.0
SILENCE = 6.0
#: Bytes that one message may have; a report of 1,000 models is under 1 MB.
MAX_FRAME = 4 * 1024 * 1024

#: The door serves an engine's paths below this and the engine's id.
DOOR_PREFIX = "/engines/"
#: Carries `Hello.door_token` with every request that goes through the door, and only there.
DOOR_HEADER = "Herd-Door-Token"
#: On an answer of the door itself, not of the engine: `refused`, `too_large` or `unreachable`.
DOOR_ERROR_HEADER = "Herd-Door-Error"


class Hello(Struct, frozen=True, kw_only=True, tag="hello"):
    """The agent's first message."""

    protocol: int
    node: str
    name: str
    version: str
    #: Port of the agent's door on the address that it dials from.
    door_port: int
    #: What the router must show at the door; made anew for every link.
    door_token: str
    #: Address at which the door is reached, where it is not the one dialled from.
    advertise: str = ""


class Report(Struct, frozen=True, tag="report"):
    """The whole report: at first, and at once when something changed."""

    report: NodeReport


class Beat(Struct, frozen=True, tag="beat"):
    """Every `HEARTBEAT` seconds; answered by `Ack`."""

    load: Load


class Leaving(Struct, frozen=True, tag="leaving"):
    """The agent stops: no new work, please; it goes when `Released` comes."""

    reason: str = ""


class Welcome(Struct, frozen=True, kw_only=True, tag="welcome"):
    """The router takes the node in."""

    protocol: int
    router: str
    version: str
    #: Name of the fleet; empty if it has none.
    fleet: str = ""


class Rejected(Struct, frozen=True, tag="rejected"):
    """The router does not take the node in, and why."""

    reason: str


class Ack(Struct, frozen=True, tag="ack"):
    """A sign of life for a beat or a report."""


class Released(Struct, frozen=True, tag="released"):
    """Nothing of this router runs on the leaving node any more."""


FromAgent = Hello | Report | Beat | Leaving
FromRouter = Welcome | Rejected | Ack | Released

T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()
_from_agent: msgspec.msgpack.Decoder[FromAgent] = msgspec.msgpack.Decoder(FromAgent)
_from_router: msgspec.msgpack.Decoder[FromRouter] = msgspec.msgpack.Decoder(FromRouter)


def encode(message: FromAgent | FromRouter) -> bytes:
    """Return the message as one frame's payload."""
    return _encoder.encode(message)


def decode_from_agent(data: bytes) -> FromAgent:
    """Read what an agent sent; raises `msgspec.DecodeError` on anything else."""
    return _decode(_from_agent, data)


def decode_from_router(data: bytes) -> FromRouter:
    """Read what a router sent; raises `msgspec.DecodeError` on anything else."""
    return _decode(_from_router, data)


def _decode(decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T:
    try:
        return decoder.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error
