"""Who may join the fleet: the one place where an agent that dials in is judged."""

from __future__ import annotations

import re

from aiohttp import web
from msgspec import Struct

from herd.wire.link import PROTOCOL, Hello, Rejected

_NODE_ID = re.compile(r"[0-9a-f]{32}")
_MAX_NAME = 64
_TOKEN_LENGTH = range(16, 257)


class Peer(Struct, frozen=True, kw_only=True):
    """An agent that was let in."""

    node: str
    name: str
    #: IP address that it dials from.
    address: str
    #: It runs on the router's own machine.
    local: bool


def authenticate_link(request: web.Request, hello: Hello) -> Peer | Rejected:
    """Decide whether the agent behind `request` is who its hello says and may join.

    Today every well-formed hello is taken in: whoever reaches the port is trusted. Pairing (a key
    of the node that is pinned at first sight, a join window, join tokens) belongs here and nowhere
    else; its proof comes with the request's TLS certificate and the hello.
    """
    if hello.protocol != PROTOCOL:
        return protocol_mismatch(hello.protocol, hello.version)
    if not _NODE_ID.fullmatch(hello.node):
        return Rejected("the node's id is not 32 hexadecimal digits")
    if not hello.name or len(hello.name) > _MAX_NAME or not hello.name.isprintable():
        return Rejected(f"the node's name is not 1 to {_MAX_NAME} printable characters")
    if len(hello.door_token) not in _TOKEN_LENGTH or not hello.door_token.isascii():
        return Rejected("the door token is too short, too long or not ASCII")
    there, here = _hosts(request)
    if not there:
        return Rejected("the address that the link comes from is unknown")
    return Peer(node=hello.node, name=hello.name, address=there, local=there == here)


def protocol_mismatch(protocol: int, version: str) -> Rejected:
    """Explain to an agent of another protocol version what to do."""
    older = "herd-node" if protocol < PROTOCOL else "herd"
    return Rejected(
        f"the agent (version {version or 'unknown'}) speaks link protocol {protocol}, the router "
        f"speaks {PROTOCOL}: update {older}"
    )


def _hosts(request: web.Request) -> tuple[str, str]:
    transport = request.transport
    if transport is None:
        return "", ""
    there = transport.get_extra_info("peername")
    here = transport.get_extra_info("sockname")
    return _plain(there), _plain(here)


def _plain(name: object) -> str:
    host = str(name[0]) if isinstance(name, tuple) and name else ""
    return host.removeprefix("::ffff:")
