"""Engines found, watched and forgotten on real ports."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from herd.core.fleet import EngineReport
from herd.engines.http import Http
from herd.engines.registry import ADAPTERS
from herd.fleet.discovery import interface_addresses
from herd.node import engines as engines_module
from herd.node.engines import Engines, Reach, candidate_ports, public_url

LAN = Reach(address="127.0.0.2", door_port=11436)


class Watched:
    """Engines that are being watched, and how often something changed."""

    def __init__(self, engines: Engines) -> None:
        self.engines = engines
        self.changes = 0

    def changed(self) -> None:
        self.changes += 1

    async def reports(self) -> tuple[EngineReport, ...]:
        return await self.engines.reports(LAN)

    async def until(self, condition: Callable[[tuple[EngineReport, ...]], object]) -> None:
        async with asyncio.timeout(5.0):
            while not condition(await self.reports()):  # noqa: ASYNC110 - has a deadline
                await asyncio.sleep(0.02)


@asynccontextmanager
async def watching(
    *ports: int, slots: Mapping[str, int] | None = None, forget: float = 30.0
) -> AsyncIterator[Watched]:
    async with Http(timeout=0.5) as http:
        engines = Engines(http, ports=ports, slots=slots or {}, interval=0.05, forget=forget)
        watched = Watched(engines)
        task = asyncio.get_running_loop().create_task(engines.run(watched.changed))
        try:
            async with asyncio.timeout(5.0):
                await engines.surveyed.wait()
            yield watched
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_engine_is_found_with_its_models(ollama: Any, dead_port: int) -> None:
    async with watching(dead_port, ollama.port) as watched:
        (report,) = await watched.reports()

    assert (report.id, report.kind, report.up) == (f"ollama-{ollama.port}", "ollama", True)
    assert [replica.model for replica in report.replicas] == ["tiny:latest"]
    assert watched.changes >= 1


async def test_changed_models_are_noticed(ollama: Any) -> None:
    async with watching(ollama.port) as watched:
        before = watched.changes
        ollama.models.append("second:1b")
        await watched.until(lambda reports: len(reports[0].replicas) == 2)

        assert watched.changes > before


async def test_nothing_changes_while_nothing_happens(ollama: Any) -> None:
    async with watching(ollama.port) as watched:
        await watched.until(lambda reports: reports)
        before = watched.changes
        await asyncio.sleep(0.3)  # several looks

        assert watched.changes == before


async def test_engine_that_vanishes_is_down_for_a_while_and_then_forgotten(ollama: Any) -> None:
    async with watching(ollama.port, forget=0.4) as watched:
        await ollama.stop()
        await watched.until(lambda reports: reports and not reports[0].up)
        (report,) = await watched.reports()
        assert report.error
        await watched.until(lambda reports: not reports)


async def test_engine_that_comes_back_is_up_again(ollama: Any) -> None:
    port = ollama.port
    async with watching(port, forget=30.0) as watched:
        await ollama.stop()
        await watched.until(lambda reports: not reports[0].up)
        await ollama.start(port=port)
        await watched.until(lambda reports: reports[0].up)


async def test_engine_that_starts_later_is_found(ollama: Any) -> None:
    port = ollama.port
    await ollama.stop()
    async with watching(port) as watched:
        assert await watched.reports() == ()
        await ollama.start(port=port)
        await watched.until(lambda reports: reports)


async def test_hanging_server_delays_no_other(ollama: Any) -> None:
    # The kernel accepts connections to it; nobody ever reads them.
    with socket.create_server(("127.0.0.1", 0)) as mute:
        async with watching(ollama.port, mute.getsockname()[1]) as watched:
            await watched.until(lambda reports: len(reports) == 1)
            ollama.models.append("second:1b")
            await watched.until(lambda reports: len(reports[0].replicas) == 2)


async def test_web_server_that_is_no_engine_is_asked_ever_less(
    until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_route("*", "/{any:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setattr(engines_module, "INTERVAL", 60.0)
    monkeypatch.setattr(engines_module, "MAX_PAUSE", 60.0)
    try:
        async with watching(runner.addresses[0][1]) as watched:
            first = len(asked)
            await asyncio.sleep(0.3)  # several looks

            assert first > 0
            assert len(asked) == first
            assert await watched.reports() == ()
    finally:
        await runner.cleanup()


async def test_declared_slots_go_by_id_before_kind(ollama: Any) -> None:
    async with watching(ollama.port, slots={"ollama": 2, f"ollama-{ollama.port}": 7}) as watched:
        (report,) = await watched.reports()
    async with watching(ollama.port, slots={"ollama": 2}) as watched:
        (by_kind,) = await watched.reports()

    assert report.replicas[0].slots == 7
    assert by_kind.replicas[0].slots == 2


async def test_door_finds_an_engine_by_its_id(ollama: Any) -> None:
    async with watching(ollama.port) as watched:
        engine = watched.engines.local(f"ollama-{ollama.port}")

        assert engine is not None
        assert engine.url == ollama.url
        assert "/api/chat" in engine.paths
        assert watched.engines.local("ollama-1") is None


async def test_loopback_engine_is_reached_through_the_door(ollama: Any) -> None:
    # 127.0.0.2 stands for the LAN address: an engine on 127.0.0.1 does not listen there.
    url = await public_url(ollama.port, "ollama-1", LAN)

    assert url == "http://0.0.0.0:11436/engines/ollama-1"


async def test_engine_on_all_interfaces_is_reached_directly(ollama: Any) -> None:
    await ollama.stop()
    await ollama.start(host="0.0.0.0")

    assert await public_url(ollama.port, "x", LAN) == f"http://0.0.0.0:{ollama.port}"


async def test_router_on_this_machine_connects_directly(ollama: Any) -> None:
    here = Reach(address="10.0.0.1", local=True, door_port=11436)

    assert await public_url(ollama.port, "x", here) == ollama.url


@pytest.mark.parametrize("local", [True, False])
async def test_door_may_be_the_only_way(ollama: Any, local: bool) -> None:
    await ollama.stop()
    await ollama.start(host="0.0.0.0")
    only = Reach(address="127.0.0.2", local=local, door_port=1, door="always")

    assert await public_url(ollama.port, "x", only) == "http://0.0.0.0:1/engines/x"


def test_default_ports_of_all_engines_are_candidates() -> None:
    ports = candidate_ports(("9000", "11434"))

    assert ports[0] == 9000
    assert len(set(ports)) == len(ports)
    assert all(port in ports for adapter in ADAPTERS for port in adapter.ports)


def test_without_a_scan_only_the_ports_that_are_given_are_candidates() -> None:
    assert candidate_ports(("9000",), scan=False) == (9000,)


def test_nothing_to_look_at_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one engine's port"):
        candidate_ports((), scan=False)


@pytest.mark.parametrize(
    "text", ["9000", "localhost:9000", "127.0.0.1:9000", "http://127.0.0.1:9000/"]
)
def test_port_or_local_url_names_an_engine(text: str) -> None:
    assert candidate_ports((text,))[0] == 9000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "70000",
        "ollama",
        "http://localhost",
        "192.168.1.5:8080",
        "http://192.168.1.5:8080",
        "https://127.0.0.1:8080",
        "http://127.0.0.1:8080/v1",
        "-1",
    ],
)
def test_anything_else_is_no_engine_of_this_machine(text: str) -> None:
    with pytest.raises(ValueError, match="engine"):
        candidate_ports((text,))


def test_lan_addresses_are_never_asked() -> None:
    assert engines_module.LOCAL not in interface_addresses()
