"""The router's end of the links, spoken to over real sockets with messages made by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import msgspec
import pytest
from aiohttp import WSMsgType, web

from herd.core.events import Event, NodeGone, NodeHeard, NodeLeaving, NodeReported
from herd.core.fleet import EngineReport, Load, NodeReport
from herd.fleet.links import Links, Pace
from herd.wire.link import (
    MAX_FRAME,
    PATH,
    PROTOCOL,
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
    decode_from_router,
    encode,
)

NODE = "0123456789abcdef0123456789abcdef"
PACE = Pace(hello=0.5, silence=0.6, challenge=0.4, grace=0.3)


def hello(*, node: str = NODE, protocol: int = PROTOCOL, token: str = "t" * 32) -> Hello:
    return Hello(
        protocol=protocol, node=node, name="mac", version="1", door_port=1, door_token=token
    )


def report(*urls: str, node: str = NODE) -> Report:
    engines = tuple(
        EngineReport(id=f"ollama-{number}", kind="ollama", url=url)
        for number, url in enumerate(urls)
    )
    return Report(NodeReport(node=node, name="whatever", engines=engines))


async def until(condition: Callable[[], object], within: float = 5.0) -> None:
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - has a deadline
            await asyncio.sleep(0.01)


class Client:
    """An agent's end, a message at a time."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def send(self, message: FromAgent) -> None:
        await self.socket.send_bytes(encode(message))

    async def receive(self) -> FromRouter:
        message = await self.socket.receive(timeout=5.0)
        assert message.type is WSMsgType.BINARY, message
        return decode_from_router(message.data)

    async def closed(self) -> str:
        message = await self.socket.receive(timeout=5.0)
        assert message.type is WSMsgType.CLOSE, message
        return message.extra or ""


class Fleet:
    """A router that consists of its links, and the events that came of them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.links = Links(
            self.events.append, router="r" * 32, version="9", fleet="attic", pace=PACE
        )
        self.url = ""

    @asynccontextmanager
    async def client(self, address: str = "127.0.0.1") -> AsyncIterator[Client]:
        connector = aiohttp.TCPConnector(local_addr=(address, 0))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.ws_connect(self.url, timeout=aiohttp.ClientWSTimeout(ws_close=0.5)) as socket,
        ):
            yield Client(socket)

    @asynccontextmanager
    async def linked(self, said: Hello | None = None) -> AsyncIterator[Client]:
        async with self.client() as client:
            await client.send(said or hello())
            assert isinstance(await client.receive(), Welcome)
            yield client

    def gone(self) -> list[NodeGone]:
        return [event for event in self.events if isinstance(event, NodeGone)]


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    fleet = Fleet()
    app = web.Application()
    app.router.add_get(PATH, fleet.links.serve)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fleet.url = f"http://127.0.0.1:{runner.addresses[0][1]}{PATH}"
    yield fleet
    await fleet.links.close()
    await runner.cleanup()


async def test_hello_is_welcomed(fleet: Fleet) -> None:
    async with fleet.client() as client:
        await client.send(hello())

        assert await client.receive() == Welcome(
            protocol=PROTOCOL, router="r" * 32, version="9", fleet="attic"
        )


async def test_report_becomes_an_event_with_the_address_of_the_link(fleet: Fleet) -> None:
    async with fleet.linked() as client:
        await client.send(report("http://0.0.0.0:11436/engines/ollama-0"))

        assert await client.receive() == Ack()
        (event,) = fleet.events
        assert isinstance(event, NodeReported)
        assert event.report.name == "mac"
        assert event.report.engines[0].url == "http://127.0.0.1:11436/engines/ollama-0"


async def test_advertised_address_stands_in_place_of_the_link_s(fleet: Fleet) -> None:
    said = msgspec.structs.replace(hello(), advertise="nat.example")
    async with fleet.linked(said) as client:
        await client.send(report("http://0.0.0.0:11436/engines/ollama-0"))
        await client.receive()

        (event,) = fleet.events
        assert isinstance(event, NodeReported)
        assert event.report.engines[0].url == "http://nat.example:11436/engines/ollama-0"


async def test_beat_is_heard_and_acknowledged(fleet: Fleet) -> None:
    async with fleet.linked() as client:
        await client.send(report())
        await client.send(Beat(Load(cpu=0.5)))

        assert [await client.receive(), await client.receive()] == [Ack(), Ack()]
        assert fleet.events[-1] == NodeHeard(NODE, Load(cpu=0.5))


async def test_beat_of_a_node_that_never_reported_is_no_event(fleet: Fleet) -> None:
    async with fleet.linked() as client:
        await client.send(Beat(Load()))

        assert await client.receive() == Ack()
        assert fleet.events == []


async def test_leaving_node_is_released_and_gone_at_once(fleet: Fleet) -> None:
    async with fleet.linked() as client:
        await client.send(report())
        await client.receive()
        await client.send(Leaving("lid closed"))
        await until(lambda: NodeLeaving(NODE) in fleet.events)
        fleet.links.release(NODE)

        assert await client.receive() == Released()
    await until(fleet.gone)
    assert fleet.events[-1] == NodeGone(NODE, "left")


async def test_a_report_of_a_leaving_node_does_not_call_it_back(fleet: Fleet) -> None:
    async with fleet.linked() as client:
        await client.send(report())
        await client.receive()
        await client.send(Leaving("lid closed"))
        await client.send(report())

        assert await client.receive() == Ack()

    kinds = [type(event) for event in fleet.events]
    assert kinds.index(NodeLeaving) > kinds.index(NodeReported)
    assert kinds.count(NodeReported) == 1


async def test_lost_link_makes_the_node_gone_only_after_a_grace(fleet: Fleet) -> None:
    async with fleet.linked() as client:
        await client.send(report())
        await client.receive()
    lost = asyncio.get_running_loop().time()
    await until(fleet.gone)

    assert asyncio.get_running_loop().time() - lost >= PACE.grace * 0.9
    assert fleet.gone() == [NodeGone(NODE, "link lost")]


async def test_node_that_comes_back_within_the_grace_was_never_gone(fleet: Fleet) -> None:
    async with fleet.linked() as client:
        await client.send(report())
        await client.receive()
    async with fleet.linked() as client:
        deadline = asyncio.get_running_loop().time() + PACE.grace * 2
        while asyncio.get_running_loop().time() < deadline:
            await client.send(Beat(Load()))
            await client.receive()
            await asyncio.sleep(0.05)

        assert fleet.gone() == []
        assert isinstance(fleet.events[-1], NodeHeard)


async def test_silent_link_is_closed_and_its_node_gone(fleet: Fleet) -> None:
    async with fleet.linked() as client:
        await client.send(report())
        await client.receive()

        assert "silent" in await client.closed()
        await until(fleet.gone)


async def test_whoever_says_no_hello_is_hung_up_on(fleet: Fleet) -> None:
    async with fleet.client() as client:
        assert "silent" in await client.closed()


async def test_another_protocol_is_rejected_with_what_to_update(fleet: Fleet) -> None:
    async with fleet.client() as client:
        await client.send(hello(protocol=PROTOCOL + 1))

        answer = await client.receive()
        assert isinstance(answer, Rejected)
        assert "update herd" in answer.reason


async def test_hello_that_only_a_later_protocol_understands_is_rejected(fleet: Fleet) -> None:
    async with fleet.client() as client:
        later = {"type": "hello", "protocol": PROTOCOL + 1, "node": 5}
        await client.socket.send_bytes(msgspec.msgpack.encode(later))

        answer = await client.receive()
        assert isinstance(answer, Rejected)
        assert f"speaks link protocol {PROTOCOL + 1}" in answer.reason


@pytest.mark.parametrize(
    "said",
    [
        hello(node="short"),
        hello(node="../../../../../../etc/passwd-000"),
        hello(token="guess"),
        msgspec.structs.replace(hello(), name="a\x1b[2J"),
        msgspec.structs.replace(hello(), name="n" * 65),
        msgspec.structs.replace(hello(), name=""),
    ],
)
async def test_malformed_hello_is_rejected(fleet: Fleet, said: Hello) -> None:
    async with fleet.client() as client:
        await client.send(said)

        assert isinstance(await client.receive(), Rejected)
        assert await client.closed() == "rejected"
        assert fleet.links.door_token(said.node) is None


@pytest.mark.parametrize("data", [b"", b"\xc1", encode(Beat(Load())), b"GET / HTTP/1.1"])
async def test_anything_but_a_hello_at_first_is_hung_up_on(fleet: Fleet, data: bytes) -> None:
    async with fleet.client() as client:
        await client.socket.send_bytes(data)

        assert "hello" in await client.closed()


async def test_newer_link_from_the_same_address_replaces_the_older(fleet: Fleet) -> None:
    async with fleet.linked() as older:
        await older.send(report())
        await older.receive()
        async with fleet.linked(hello(token="n" * 32)) as newer:
            replaced = await older.receive()
            assert isinstance(replaced, Rejected)
            assert "newer link" in replaced.reason
            assert fleet.links.door_token(NODE) == "n" * 32
            await newer.send(Beat(Load()))
            await newer.receive()

            assert fleet.events[-1] == NodeHeard(NODE, Load())
            assert fleet.gone() == []


async def test_living_link_is_not_replaced_from_another_address(fleet: Fleet) -> None:
    async with fleet.linked() as older, fleet.client("127.0.0.2") as newer:
        await newer.send(hello(token="n" * 32))
        answer = asyncio.get_running_loop().create_task(newer.receive())
        while not answer.done():
            await older.send(Beat(Load()))
            assert await older.receive() == Ack()
            await asyncio.sleep(0.05)

        rejected = answer.result()
        assert isinstance(rejected, Rejected)
        assert "linked from 127.0.0.1" in rejected.reason
        assert fleet.links.door_token(NODE) == "t" * 32


async def test_silent_link_is_replaced_from_another_address(fleet: Fleet) -> None:
    async with fleet.linked(), fleet.client("127.0.0.2") as newer:
        await newer.send(hello(token="n" * 32))

        assert isinstance(await newer.receive(), Welcome)
        assert fleet.links.door_token(NODE) == "n" * 32
        assert fleet.gone() == []


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (report("http://192.0.2.7:11434"), "not the address of its own machine"),
        (report("file:///etc/passwd"), "no plain http URL"),
        (report(node="f" * 32), "another node"),
        (hello(), "hello twice"),
    ],
)
async def test_false_report_ends_the_link(fleet: Fleet, said: FromAgent, complaint: str) -> None:
    async with fleet.linked() as client:
        await client.send(said)

        assert complaint in await client.closed()
        assert not any(isinstance(event, NodeReported) for event in fleet.events)


async def test_oversized_message_ends_the_link(fleet: Fleet) -> None:
    async with fleet.linked() as client:
        with contextlib.suppress(ConnectionError):  # it may not want to read so far
            await client.socket.send_bytes(bytes(MAX_FRAME + 1))

        message = await client.socket.receive(timeout=5.0)
        assert message.type in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.ERROR)
    await until(fleet.gone)


async def test_flood_of_messages_ends_the_link(fleet: Fleet) -> None:
    async with fleet.linked() as client:
        for _ in range(150):
            await client.send(Beat(Load()))
        message = await client.socket.receive(timeout=5.0)
        while message.type is WSMsgType.BINARY:
            message = await client.socket.receive(timeout=5.0)

        assert "messages per second" in (message.extra or "")


async def test_plain_request_is_told_what_this_is(fleet: Fleet) -> None:
    async with aiohttp.ClientSession() as session, session.get(fleet.url) as answer:
        assert answer.status == 426
        assert "WebSocket" in (await answer.json())["error"]


async def test_close_ends_links_and_tells_nothing_more(fleet: Fleet) -> None:
    async with fleet.linked() as client:
        await client.send(report())
        await client.receive()
        await fleet.links.close()

        assert await client.closed() == "the router stops"
        await asyncio.sleep(PACE.grace * 1.5)  # a wrong NodeGone would come within the grace
        assert fleet.gone() == []
        assert fleet.links.door_token(NODE) is None


async def test_release_of_an_unknown_node_does_nothing(fleet: Fleet) -> None:
    fleet.links.release(NODE)

    assert fleet.links.door_token(NODE) is None
