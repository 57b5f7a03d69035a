"""Orders to load and unload: one at a time for a replica, each with its end, none after the close."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec import structs

from devtools.testbed import CHAT, EMBEDDER, MB, Tap, engine_spec, until
from herd.core.actions import Preload, Stay, Target, Unload
from herd.core.events import PreloadEnded
from herd.core.fleet import Capability, EngineKind, ReplicaKey
from herd.engines.ollama import Ollama
from herd.fleet.loading import Loading
from herd.sim.server import EmulatedServer


class Desk:
    """Orders to one emulated engine, and what came of them."""

    def __init__(self, server: EmulatedServer, **options: Any) -> None:
        self.server = server
        self.events: list[PreloadEnded] = []
        settings = {"credentials": lambda _: {"X-Key": "k"}, "timeout": 5.0, **options}
        self.loading = Loading(self.events.append, **settings)

    def target(self, model: str = CHAT, kind: EngineKind = "ollama") -> Target:
        does: Capability = "embedding" if model == EMBEDDER else "completion"
        return Target(
            replica=ReplicaKey("n", "e", model),
            node_name="one",
            kind=kind,
            url=self.server.url,
            model=model,
            capabilities=(does,),
        )

    def load(self, model: str = CHAT, **about: Any) -> None:
        self.loading.order(Preload(self.target(model, **about), Stay(context=2048), "demand"))

    def unload(self, model: str = CHAT) -> None:
        self.loading.order(Unload(self.target(model), "room"))

    async def ended(self, count: int = 1) -> list[str]:
        """Wait for so many ends, and return their errors."""
        await until(lambda: len(self.events) >= count, f"{count} ends")
        return [event.error for event in self.events]

    @property
    def resident(self) -> list[str]:
        return [each.model for each in self.server.engine.residents() if not each.loading]


@pytest.fixture
async def server() -> AsyncIterator[EmulatedServer]:
    """An engine that loads the chat model in 0.2 s."""
    async with EmulatedServer(engine_spec(load_rate=50.0 * MB)) as server:
        yield server


@pytest.fixture
async def desk(server: EmulatedServer) -> AsyncIterator[Desk]:
    desk = Desk(server)
    yield desk
    await desk.loading.close()


async def test_a_model_is_loaded_and_its_end_told(desk: Desk) -> None:
    desk.load()
    assert desk.events == []
    assert await desk.ended() == [""]
    assert desk.events[0].replica == ReplicaKey("n", "e", CHAT)
    assert desk.resident == [CHAT]


async def test_a_model_is_unloaded(desk: Desk) -> None:
    desk.load()
    await desk.ended()
    desk.unload()
    await until(lambda: not desk.resident, "the unload")
    assert len(desk.events) == 1


async def test_what_an_engine_refuses_is_told(desk: Desk) -> None:
    desk.load("nope:1b")
    [error] = await desk.ended()
    assert "model 'nope:1b' not found" in error


async def test_an_engine_that_is_away_is_told(desk: Desk) -> None:
    await desk.server.stop()
    desk.load()
    [error] = await desk.ended()
    assert "Connection refused" in error


async def test_a_load_that_takes_too_long_is_given_up(server: EmulatedServer) -> None:
    desk = Desk(server, timeout=0.05)
    desk.load()
    [error] = await desk.ended()
    assert "within 0.05 s" in error
    await desk.loading.close()


async def test_an_engine_that_cannot_be_told_is_told(desk: Desk) -> None:
    desk.load(kind="vllm")
    assert desk.events == []
    assert await desk.ended() == ["vllm cannot be told what to load"]


async def test_a_fault_of_our_own_has_its_end_too(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise ValueError("oh")

    monkeypatch.setattr(Ollama, "load", fail)
    desk.load()
    assert await desk.ended() == ["internal error: ValueError('oh')"]


async def test_two_orders_to_load_are_one(desk: Desk) -> None:
    desk.load()
    desk.load()
    await desk.ended()
    await asyncio.sleep(0.05)
    assert [event.error for event in desk.events] == [""]


async def test_models_load_side_by_side(desk: Desk) -> None:
    desk.load()
    desk.load(EMBEDDER)
    assert await desk.ended(2) == ["", ""]
    assert sorted(desk.resident) == sorted([CHAT, EMBEDDER])


@pytest.mark.parametrize("pause", [0.0, 0.05])
async def test_an_unload_goes_before_a_load_under_way(desk: Desk, pause: float) -> None:
    desk.load()
    await asyncio.sleep(pause)
    desk.unload()
    assert await desk.ended() == ["the model is to be unloaded"]
    await until(lambda: not desk.server.engine.residents(), "the unload")


async def test_a_load_waits_for_an_unload_under_way(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    may = asyncio.Event()

    async def load(*_: object) -> None:
        steps.append("load")

    async def unload(*_: object) -> None:
        steps.append("unload")
        await may.wait()
        steps.append("unloaded")

    monkeypatch.setattr(Ollama, "load", load)
    monkeypatch.setattr(Ollama, "unload", unload)
    desk.unload()
    await until(lambda: steps, "the unload")
    desk.load()
    await asyncio.sleep(0.01)
    may.set()
    await desk.ended()
    assert steps == ["unload", "unloaded", "load"]


async def test_no_more_than_the_limit_go_at_once(
    server: EmulatedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, most = 0, 0

    async def load(*_: object) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1

    monkeypatch.setattr(Ollama, "load", load)
    desk = Desk(server, at_once=2)
    for number in range(5):
        desk.load(f"m{number}")
    assert await desk.ended(5) == [""] * 5
    assert most == 2
    await desk.loading.close()


async def test_nothing_is_told_after_the_close(desk: Desk) -> None:
    desk.load()
    desk.load(EMBEDDER)
    await asyncio.sleep(0.02)
    await desk.loading.close()
    await asyncio.sleep(0.02)
    assert desk.events == []
    await until(lambda: not desk.server.running and not desk.server.waiting, "the engine's rest")


async def test_the_credentials_go_along(desk: Desk) -> None:
    tap = Tap(desk.server.port)
    await tap.start()
    target = structs.replace(desk.target(), url=tap.url)
    desk.loading.order(Preload(target, Stay(), "demand"))
    await desk.ended()
    [traffic] = tap.on("/api/generate")
    assert traffic.request.headers["X-Key"] == "k"
    await tap.stop()
