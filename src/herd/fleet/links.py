"""The router's end of the links: agents dial in, and what they say becomes events.

A node keeps its place for a moment when its link breaks, so that a short loss of Wi-Fi does not
empty its queue: `NodeGone` comes only when nobody took the place again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web
from msgspec import Struct

from herd.core.events import Event, NodeGone, NodeHeard, NodeLeaving, NodeReported
from herd.fleet.reported import ReportError, as_seen_from_here
from herd.fleet.trust import Peer, authenticate_link, protocol_mismatch
from herd.ops.logs import logger
from herd.wire.link import (
    HEARTBEAT,
    MAX_FRAME,
    PROTOCOL,
    SILENCE,
    Ack,
    Beat,
    FromAgent,
    FromRouter,
    Hello,
    Leaving,
    Rejected,
    Released,
    Report,
    Welcome,
    decode_from_agent,
    encode,
)

#: Nodes that may be linked at once.
MAX_NODES = 1000
#: Messages per second that an agent may send for long, and at once. An honest one sends two.
MAX_RATE = 20.0
MAX_BURST = 100.0

_log = logger("links")


class Pace(Struct, frozen=True, kw_only=True):
    """How long the router waits for what; all in seconds."""

    #: For the hello, after the connection is made.
    hello: float = 5.0
    #: For any message, before the link counts as dead.
    silence: float = SILENCE
    #: For a sign of life of a live link when its node dials in from another address.
    challenge: float = HEARTBEAT * 1.5
    #: For a node to come back after its link broke, before it counts as gone.
    grace: float = 3.0


class _ProtocolError(Exception):
    """The agent sent what it must not; the text says what."""


class _Place:
    """A node's place in the fleet, kept over a short loss of its link."""

    def __init__(self, peer: Peer, hello: Hello, socket: web.WebSocketResponse) -> None:
        self.peer = peer
        self.token = hello.door_token
        self.advertise = hello.advertise
        self.socket = socket
        self.linked = True
        self.reported = False
        self.leaving = False
        #: Set by every message; cleared by whoever wants to know whether another comes.
        self.heard = asyncio.Event()
        self.gone: asyncio.TimerHandle | None = None


class Links:
    """All links of this router. `on_event` is called in the order in which things happen."""

    def __init__(
        self,
        on_event: Callable[[Event], None],
        *,
        router: str,
        version: str,
        fleet: str = "",
        pace: Pace | None = None,
    ) -> None:
        self._on_event = on_event
        self._welcome = Welcome(protocol=PROTOCOL, router=router, version=version, fleet=fleet)
        self._pace = pace or Pace()
        self._places: dict[str, _Place] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self._closed = False

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Handle one request for `herd.wire.link.PATH` from the first byte to the last."""
        socket = web.WebSocketResponse(max_msg_size=MAX_FRAME, timeout=1.0, compress=False)
        if not socket.can_prepare(request).ok:
            return web.json_response(
                {"error": "this is where agents link; it speaks WebSocket only"},
                status=426,
                headers={"Upgrade": "websocket"},
            )
        await socket.prepare(request)
        try:
            await self._converse(request, socket)
        except TimeoutError:
            await _hang_up(socket, WSCloseCode.POLICY_VIOLATION, "silent for too long")
        except _ProtocolError as error:
            _log.warning("closing a link", address=request.remote, cause=str(error))
            await _hang_up(socket, WSCloseCode.POLICY_VIOLATION, str(error))
        except ConnectionError as error:
            _log.debug("a link broke", address=request.remote, cause=str(error))
        return socket

    def release(self, node: str) -> None:
        """Tell a leaving node that nothing of ours runs on it any more."""
        place = self._places.get(node)
        if place is None or not place.linked:
            return
        self._spawn(_try_send(place.socket, Released()))

    def door_token(self, node: str) -> str | None:
        """Return what to show at the node's door in `DOOR_HEADER`; None if not linked."""
        place = self._places.get(node)
        return place.token if place else None

    async def close(self) -> None:
        """End all links; emits nothing more."""
        self._closed = True
        places, self._places = list(self._places.values()), {}
        for place in places:
            if place.gone is not None:
                place.gone.cancel()
        await asyncio.gather(
            *(_hang_up(p.socket, WSCloseCode.GOING_AWAY, "the router stops") for p in places),
            *self._sending,
        )

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _converse(self, request: web.Request, socket: web.WebSocketResponse) -> None:
        first = await self._hello(socket)
        verdict = first if isinstance(first, Rejected) else authenticate_link(request, first)
        if isinstance(verdict, Peer) and isinstance(first, Hello):
            verdict = await self._admit(verdict)
            if isinstance(verdict, Peer):
                place = self._seat(verdict, first, socket)
                try:
                    await _send(socket, self._welcome)
                    await self._listen(place)
                finally:
                    self._lost(place)
                return
        if isinstance(verdict, Rejected):
            _log.warning("refused a node", address=request.remote, cause=verdict.reason)
            await _send(socket, verdict)
            await _hang_up(socket, WSCloseCode.POLICY_VIOLATION, "rejected")

    async def _hello(self, socket: web.WebSocketResponse) -> Hello | Rejected:
        async with asyncio.timeout(self._pace.hello):
            data = await _receive(socket)
        if data is None:
            raise _ProtocolError("closed before it said hello")
        try:
            message = decode_from_agent(data)
        except msgspec.DecodeError as error:
            mismatch = _foreign_hello(data)
            if mismatch is None:
                raise _ProtocolError(f"its first message is not a hello: {error}") from error
            return mismatch
        if not isinstance(message, Hello):
            raise _ProtocolError("its first message is not a hello")
        return message

    async def _admit(self, peer: Peer) -> Peer | Rejected:
        """Let one link per node through: the newest, unless somebody else holds the place."""
        if self._closed:
            return Rejected("the router stops")
        place = self._places.get(peer.node)
        if place is None:
            full = len(self._places) >= MAX_NODES
            return Rejected(f"the router has {MAX_NODES} nodes already") if full else peer
        if place.linked and place.peer.address != peer.address and await self._lives(place):
            return Rejected(
                f"a node with the same identity is linked from {place.peer.address}; if this is a "
                "copy of that machine, delete the file node-id in this one's data directory"
            )
        return peer

    async def _lives(self, place: _Place) -> bool:
        """Wait for a sign of life: the old link of a node that moved stays silent."""
        place.heard.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._pace.challenge):
                await place.heard.wait()
        return place.linked and place.heard.is_set()

    def _seat(self, peer: Peer, hello: Hello, socket: web.WebSocketResponse) -> _Place:
        place = _Place(peer, hello, socket)
        old = self._places.get(peer.node)
        self._places[peer.node] = place
        if old is not None:
            place.reported = old.reported
            if old.gone is not None:
                old.gone.cancel()
            elif old.linked:
                old.linked = False
                self._spawn(_dismiss(old.socket))
        _log.info("node linked", node=peer.node, name=peer.name, address=peer.address)
        return place

    async def _listen(self, place: _Place) -> None:
        allowance = _Allowance()
        while True:
            async with asyncio.timeout(self._pace.silence):
                data = await _receive(place.socket)
            if data is None:
                return
            if not allowance.take():
                raise _ProtocolError(f"sends more than {MAX_RATE:g} messages per second")
            try:
                message = decode_from_agent(data)
            except msgspec.DecodeError as error:
                raise _ProtocolError(f"sent a message that cannot be read: {error}") from error
            if self._places.get(place.peer.node) is not place:
                return
            place.heard.set()
            self._take(place, message)
            if isinstance(message, Report | Beat):
                await _send(place.socket, Ack())

    def _take(self, place: _Place, message: FromAgent) -> None:
        node = place.peer.node
        if isinstance(message, Report):
            try:
                report = as_seen_from_here(message.report, place.peer, place.advertise)
            except ReportError as error:
                raise _ProtocolError(str(error)) from error
            place.reported = True
            if not place.leaving:
                # To the scheduler a report is a node that is there to stay.
                self._on_event(NodeReported(report))
        elif isinstance(message, Beat):
            if place.reported:
                self._on_event(NodeHeard(node, message.load))
        elif isinstance(message, Leaving):
            place.leaving = True
            _log.info("node leaves", node=node, name=place.peer.name, reason=message.reason)
            self._on_event(NodeLeaving(node))
        else:
            raise _ProtocolError("said hello twice")

    def _lost(self, place: _Place) -> None:
        """The link ended, however it did; the place may already be another link's."""
        place.linked = False
        if self._places.get(place.peer.node) is not place:
            return
        if place.leaving:
            self._forget(place, "left")
        else:
            _log.info("lost the link to a node", node=place.peer.node, name=place.peer.name)
            loop = asyncio.get_running_loop()
            place.gone = loop.call_later(self._pace.grace, self._forget, place, "link lost")

    def _forget(self, place: _Place, reason: str) -> None:
        if self._places.get(place.peer.node) is place:
            del self._places[place.peer.node]
            _log.info("node gone", node=place.peer.node, name=place.peer.name, reason=reason)
            self._on_event(NodeGone(place.peer.node, reason))


class _Allowance:
    """A token bucket: how much an agent may still say now."""

    def __init__(self) -> None:
        self._left = MAX_BURST
        self._at = asyncio.get_running_loop().time()

    def take(self) -> bool:
        now = asyncio.get_running_loop().time()
        self._left = min(MAX_BURST, self._left + (now - self._at) * MAX_RATE) - 1.0
        self._at = now
        return self._left >= 0.0


def _foreign_hello(data: bytes) -> Rejected | None:
    """Read as much of a hello in another protocol version as an answer needs."""
    with contextlib.suppress(msgspec.DecodeError):
        said = msgspec.msgpack.decode(data)
        protocol = said.get("protocol") if isinstance(said, dict) else None
        if isinstance(protocol, int) and protocol != PROTOCOL:
            return protocol_mismatch(protocol, str(said.get("version", ""))[:64])
    return None


async def _receive(socket: web.WebSocketResponse) -> bytes | None:
    """Return the next message's payload; None once the peer has closed."""
    message = await socket.receive()
    if message.type is WSMsgType.BINARY:
        return bytes(message.data)
    if message.type is WSMsgType.ERROR:
        raise _ProtocolError(f"broke the WebSocket protocol: {message.data}")
    if message.type is WSMsgType.TEXT:
        raise _ProtocolError("sent text instead of a binary message")
    return None


async def _send(socket: web.WebSocketResponse, message: FromRouter) -> None:
    # A peer that does not read must not hold its handler for ever.
    async with asyncio.timeout(SILENCE):
        await socket.send_bytes(encode(message))


async def _try_send(socket: web.WebSocketResponse, message: FromRouter) -> None:
    # A link that breaks while we write is noticed, and handled, by whoever reads it.
    with contextlib.suppress(ConnectionError, RuntimeError, TimeoutError):
        await _send(socket, message)


async def _dismiss(socket: web.WebSocketResponse) -> None:
    await _try_send(socket, Rejected("replaced by a newer link of this node"))
    await _hang_up(socket, WSCloseCode.GOING_AWAY, "replaced")


async def _hang_up(socket: web.WebSocketResponse, code: WSCloseCode, reason: str) -> None:
    # A close frame carries at most 125 bytes, two of them the code.
    with contextlib.suppress(ConnectionError, RuntimeError):
        await socket.close(code=code, message=reason.encode()[:120])
