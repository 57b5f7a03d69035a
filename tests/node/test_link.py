"""The agent's end of the link, against the router's end and against routers that misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import WSMsgType, web

from herd.core.events import Event, NodeHeard, NodeLeaving, NodeReported
from herd.core.fleet import EngineReport, Load, NodeReport
from herd.fleet.links import Links
from herd.node.link import Link, LinkError, LinkRefusedError, Pace, dial, router_url
from herd.wire.link import PATH, PROTOCOL, FromRouter, Hello, Rejected, Welcome, encode

NODE = "0123456789abcdef0123456789abcdef"
HELLO = Hello(
    protocol=PROTOCOL, node=NODE, name="mac", version="1", door_port=1, door_token="t" * 32
)
FAST = Pace(heartbeat=0.05, silence=0.4)
CALM = Pace(heartbeat=30.0, silence=60.0)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def report(*engines: str, cpu: float = 0.0) -> NodeReport:
    return NodeReport(
        node=NODE,
        name="mac",
        load=Load(cpu=cpu),
        engines=tuple(
            EngineReport(id=name, kind="ollama", url="http://0.0.0.0:11434") for name in engines
        ),
    )


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get(PATH, handler)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def scripted(*messages: FromRouter | bytes) -> Handler:
    """A router that answers the hello with these and then falls silent."""

    async def handler(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        for message in messages:
            await socket.send_bytes(message if isinstance(message, bytes) else encode(message))
        async for received in socket:
            assert received.type is WSMsgType.BINARY
        return socket

    return handler


class Router:
    """The real router's end."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.links = Links(self.events.append, router="r" * 32, version="9", fleet="attic")
        self.url = ""

    def reports(self) -> list[NodeReport]:
        return [event.report for event in self.events if isinstance(event, NodeReported)]


@pytest.fixture
async def router() -> AsyncIterator[Router]:
    router = Router()
    async with serving(router.links.serve) as router.url:
        yield router
        await router.links.close()


@asynccontextmanager
async def running(link: Link) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.get_running_loop().create_task(link.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_welcome_tells_of_the_router_and_the_way_to_it(router: Router) -> None:
    async with dial(router.url, HELLO) as link:
        assert (link.router, link.router_version) == ("r" * 32, "9")
        assert (link.address, link.router_address) == ("127.0.0.1", "127.0.0.1")
        assert link.local


async def test_report_goes_out_at_once_and_then_only_upon_change(
    router: Router, until: Any
) -> None:
    async with dial(router.url, HELLO, pace=CALM) as link, running(link):
        link.update(report("ollama-1"))
        await until(lambda: len(router.reports()) == 1, within=1.0)
        link.update(report("ollama-1", cpu=0.9))
        link.update(report("ollama-1", "vllm-2"))
        await until(lambda: len(router.reports()) == 2, within=1.0)

    assert [len(seen.engines) for seen in router.reports()] == [1, 2]


async def test_beats_carry_the_present_load(router: Router, until: Any) -> None:
    async with dial(router.url, HELLO, pace=FAST) as link, running(link):
        link.update(report("ollama-1", cpu=0.1))
        link.update(report("ollama-1", cpu=0.7))
        await until(lambda: NodeHeard(NODE, Load(cpu=0.7)) in router.events)


async def test_link_lives_on_acknowledged_beats(router: Router) -> None:
    async with dial(router.url, HELLO, pace=FAST) as link, running(link) as task:
        await asyncio.sleep(FAST.silence * 2)

        assert not task.done()


async def test_leaving_is_told_and_released(router: Router, until: Any) -> None:
    async with dial(router.url, HELLO, pace=CALM) as link, running(link):
        link.update(report())
        link.leave("owner")
        await until(lambda: NodeLeaving(NODE) in router.events)
        assert not link.released.is_set()
        router.links.release(NODE)

        async with asyncio.timeout(1.0):
            await link.released.wait()


async def test_silent_router_ends_the_link_in_time() -> None:
    welcome = Welcome(protocol=PROTOCOL, router="r", version="9")
    async with serving(scripted(welcome)) as url, dial(url, HELLO, pace=FAST) as link:
        started = asyncio.get_running_loop().time()
        with pytest.raises(LinkError, match="silent"):
            await link.run()

    # Closing may not wait for the silent peer either.
    assert asyncio.get_running_loop().time() - started < FAST.silence + 1.0


async def test_router_that_stops_ends_the_link(router: Router) -> None:
    async with dial(router.url, HELLO, pace=CALM) as link, running(link) as task:
        link.update(report())
        await router.links.close()
        with pytest.raises(LinkError, match="the router stops"):
            await asyncio.wait_for(task, 2.0)


@pytest.mark.parametrize(
    ("said", "error", "text"),
    [
        (Rejected("no room"), LinkRefusedError, "no room"),
        (Welcome(protocol=PROTOCOL + 1, router="r", version="9"), LinkRefusedError, "update"),
        (b"\xc1", LinkError, "cannot be read"),
    ],
)
async def test_no_welcome_no_link(
    said: FromRouter | bytes, error: type[Exception], text: str
) -> None:
    async with serving(scripted(said)) as url:
        with pytest.raises(error, match=text):
            async with dial(url, HELLO, pace=FAST):
                pass


async def test_replaced_link_says_so() -> None:
    said = (Welcome(protocol=PROTOCOL, router="r", version="9"), Rejected("replaced"))
    async with serving(scripted(*said)) as url, dial(url, HELLO, pace=FAST) as link:
        with pytest.raises(LinkRefusedError, match="replaced"):
            await link.run()


async def test_router_without_a_welcome_is_given_up() -> None:
    async with serving(scripted()) as url:
        with pytest.raises(LinkError, match="silent"):
            async with dial(url, HELLO, pace=FAST):
                pass


async def test_other_fleet_is_refused(router: Router) -> None:
    with pytest.raises(LinkRefusedError, match="attic"):
        async with dial(router.url, HELLO, fleet="cellar"):
            pass


async def test_other_router_than_announced_is_refused(router: Router) -> None:
    with pytest.raises(LinkError, match="another router"):
        async with dial(router.url, HELLO, expected="s" * 32):
            pass


async def test_web_server_that_is_no_router_is_told(ollama: Any) -> None:
    with pytest.raises(LinkError, match="no Herd router"):
        async with dial(ollama.url, HELLO):
            pass


async def test_nobody_there_is_told(dead_port: int) -> None:
    with pytest.raises(LinkError, match="cannot be reached"):
        async with dial(f"http://127.0.0.1:{dead_port}", HELLO):
            pass


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("10.0.0.1", "http://10.0.0.1:11435"),
        ("mac.local:8000", "http://mac.local:8000"),
        ("http://10.0.0.1:11435/", "http://10.0.0.1:11435"),
        ("http://[fd00::1]:5", "http://[fd00::1]:5"),
        ("https://herd.example", "https://herd.example"),
    ],
)
def test_router_url_is_completed(text: str, url: str) -> None:
    assert router_url(text) == url


@pytest.mark.parametrize("text", ["ftp://x", "http://", "x:port", "http://x:99999"])
def test_what_is_no_router_url_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="router"):
        router_url(text)
