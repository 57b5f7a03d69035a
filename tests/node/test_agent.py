"""A whole agent, its door included, against the router's end of the link."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from herd.core.events import Event, NodeGone, NodeLeaving, NodeReported
from herd.core.fleet import Hardware, NodeReport
from herd.engines.http import Http
from herd.fleet import links as links_module
from herd.fleet.discovery import Finder
from herd.fleet.links import Links
from herd.node import agent as agent_module
from herd.node.agent import Agent, Node
from herd.node.door import Door
from herd.node.engines import Engines
from herd.node.link import Pace
from herd.node.whereabouts import RouterSearch
from herd.ops.settings import NodeSettings
from herd.wire.link import DOOR_HEADER, PATH

NODE = "0123456789abcdef0123456789abcdef"


class Router:
    """A router that consists of its links; may be stopped and started on the same port."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.port = 0
        self.links = self._new_links()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _new_links(self) -> Links:
        pace = links_module.Pace(silence=1.0, challenge=0.3, grace=0.3)
        return Links(self.events.append, router="r" * 32, version="9", pace=pace)

    async def start(self) -> None:
        self.links = self._new_links()
        app = web.Application()
        app.router.add_get(PATH, self.links.serve)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        await self.links.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def reports(self) -> list[NodeReport]:
        return [event.report for event in self.events if isinstance(event, NodeReported)]

    def engine_url(self) -> str:
        return self.reports()[-1].engines[0].url


@pytest.fixture
async def router() -> AsyncIterator[Router]:
    router = Router()
    await router.start()
    yield router
    await router.stop()


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "LONGEST_PAUSE", 0.3)


class Running:
    """An agent that runs, and what it said."""

    def __init__(self, agent: Agent, door: Door, said: list[str]) -> None:
        self.agent = agent
        self.door = door
        self.said = said

    def heard(self, words: str) -> bool:
        return any(words in line for line in self.said)


@asynccontextmanager
async def running(
    data_dir: Path, router: str, port: int, **settings: Any
) -> AsyncIterator[Running]:
    said: list[str] = []
    node = Node(node=NODE, name="mac", version="1", hardware=Hardware(cores=4))
    async with Http(timeout=0.5) as http:
        engines = Engines(http, ports=(port,), slots={}, interval=0.05)
        door = Door(engines.local)
        await door.open("127.0.0.1", 0)
        search = RouterSearch(url=router, fleet="", data_dir=data_dir, finder=Finder())
        agent = Agent(
            node,
            NodeSettings(data_dir=data_dir, **settings),
            engines=engines,
            door=door,
            search=search,
            say=said.append,
            pace=Pace(heartbeat=0.1, silence=1.0),
        )
        task = asyncio.get_running_loop().create_task(agent.run())
        try:
            yield Running(agent, door, said)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await door.close()


async def test_agent_reports_its_machine_and_engines(
    tmp_path: Path, router: Router, ollama: Any, until: Any
) -> None:
    async with running(tmp_path, router.url, ollama.port) as node:
        await until(lambda: router.reports() and router.reports()[-1].engines)
        report = router.reports()[-1]

        assert (report.node, report.name, report.agent) == (NODE, "mac", "1")
        assert report.hardware.cores == 4
        assert report.engines[0].replicas[0].model == "tiny:latest"
        assert node.heard("Joined the router")
        assert node.heard("Found Ollama 0.33.0")


async def test_change_of_an_engine_is_reported_without_delay(
    tmp_path: Path, router: Router, ollama: Any, until: Any
) -> None:
    async with running(tmp_path, router.url, ollama.port):
        await until(lambda: router.reports() and router.reports()[-1].engines)
        ollama.models.append("second:1b")

        await until(lambda: len(router.reports()[-1].engines[0].replicas) == 2, within=1.0)


async def test_router_gets_through_the_door_with_the_link_s_token(
    tmp_path: Path, router: Router, ollama: Any, until: Any
) -> None:
    async with running(tmp_path, router.url, ollama.port, door="always"):
        await until(lambda: router.reports() and router.reports()[-1].engines)
        token = router.links.door_token(NODE)
        assert token
        async with (
            aiohttp.ClientSession() as session,
            session.get(
                f"{router.engine_url()}/api/version", headers={DOOR_HEADER: token}
            ) as answer,
        ):
            assert (await answer.json())["version"] == "0.33.0"


async def test_every_link_has_a_token_of_its_own(
    tmp_path: Path, router: Router, ollama: Any, until: Any
) -> None:
    async with running(tmp_path, router.url, ollama.port):
        await until(router.reports)
        first = router.links.door_token(NODE)
        await router.stop()
        await router.start()
        await until(lambda: router.links.door_token(NODE))

        assert router.links.door_token(NODE) != first


async def test_agent_comes_back_to_a_restarted_router(
    tmp_path: Path, router: Router, ollama: Any, until: Any
) -> None:
    async with running(tmp_path, router.url, ollama.port) as node:
        await until(router.reports)
        await router.stop()
        await until(lambda: node.heard("Lost the router"))
        router.events.clear()
        await router.start()

        await until(lambda: router.reports() and router.reports()[-1].engines)


async def test_agent_waits_for_a_router_that_is_not_there_yet(
    tmp_path: Path, router: Router, ollama: Any, until: Any
) -> None:
    await router.stop()
    async with running(tmp_path, router.url, ollama.port) as node:
        await until(lambda: node.heard("No link to the router"))
        await router.start()

        await until(router.reports)
        assert sum("No link" in line for line in node.said) == 1


async def test_agent_without_an_engine_says_how_to_get_one(
    tmp_path: Path, router: Router, dead_port: int, until: Any
) -> None:
    async with running(tmp_path, router.url, dead_port) as node:
        await until(router.reports)

        assert router.reports()[-1].engines == ()
        await until(lambda: node.heard("ollama serve"))


async def test_refused_agent_says_why(
    tmp_path: Path, router: Router, ollama: Any, until: Any
) -> None:
    async with running(tmp_path, router.url, ollama.port, fleet="cellar") as node:
        await until(lambda: node.heard("not 'cellar'"))


async def test_leaving_waits_for_the_router_s_release(
    tmp_path: Path, router: Router, ollama: Any, until: Any
) -> None:
    async with running(tmp_path, router.url, ollama.port) as node:
        await until(router.reports)
        leaving = asyncio.get_running_loop().create_task(node.agent.leave("test"))
        await until(lambda: NodeLeaving(NODE) in router.events)
        await asyncio.sleep(0.3)  # it would be gone by now if it did not wait
        assert not leaving.done()
        router.links.release(NODE)

        await asyncio.wait_for(leaving, 2.0)
    await until(lambda: NodeGone(NODE, "left") in router.events)


async def test_leaving_waits_for_what_runs_through_the_door(
    tmp_path: Path, router: Router, ollama: Any, until: Any
) -> None:
    async with running(tmp_path, router.url, ollama.port, door="always") as node:
        await until(lambda: router.reports() and router.reports()[-1].engines)
        token = router.links.door_token(NODE) or ""
        async with aiohttp.ClientSession() as session:
            await ollama.lines.put(b"half")
            async with session.post(
                f"{router.engine_url()}/api/chat", data=b"{}", headers={DOOR_HEADER: token}
            ) as answer:
                leaving = asyncio.get_running_loop().create_task(node.agent.leave("test"))
                await until(lambda: NodeLeaving(NODE) in router.events)
                router.links.release(NODE)
                await asyncio.sleep(0.3)  # it would be gone by now if it did not wait
                assert not leaving.done()
                await ollama.lines.put(b" and half")
                await ollama.lines.put(b"")

                assert await answer.read() == b"half and half"
                await asyncio.wait_for(leaving, 2.0)


async def test_leaving_gives_up_after_its_time(
    tmp_path: Path, router: Router, ollama: Any, until: Any
) -> None:
    async with running(tmp_path, router.url, ollama.port, drain_timeout=0.3) as node:
        await until(router.reports)

        await asyncio.wait_for(node.agent.leave("test"), 2.0)
        assert node.heard("still run after 0.3 s")


async def test_leaving_does_not_wait_for_a_lost_router(
    tmp_path: Path, router: Router, ollama: Any, until: Any
) -> None:
    async with running(tmp_path, router.url, ollama.port) as node:
        await until(router.reports)
        leaving = asyncio.get_running_loop().create_task(node.agent.leave("test"))
        await until(lambda: NodeLeaving(NODE) in router.events)
        await router.stop()

        await asyncio.wait_for(leaving, 3.0)
