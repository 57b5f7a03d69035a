"""What the scheduler orders ahead of requests is carried out by a whole router."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from devtools.testbed import CHAT, Testbed, engine_spec, until
from herd.core import events as ev
from herd.core.actions import Action, Preload, Stay, Target, Unload
from herd.core.scheduler import Policy
from herd.sim.server import EmulatedServer


class Orders:
    """Puts actions into the scheduler's mouth, and hears what it is told."""

    def __init__(self, bed: Testbed) -> None:
        self.heard: list[ev.Event] = []
        self._driver = bed.router.driver
        self._handle: Callable[[ev.Event, float], list[Action]] = self._driver.scheduler.handle
        self._actions: list[Action] = []
        self._driver.scheduler.handle = self._told  # type: ignore[method-assign]

    def give(self, action: Action) -> None:
        self._actions.append(action)
        self._driver.feed(ev.TimerDue())

    @property
    def ends(self) -> list[ev.PreloadEnded]:
        return [event for event in self.heard if isinstance(event, ev.PreloadEnded)]

    def _told(self, event: ev.Event, now: float) -> list[Action]:
        self.heard.append(event)
        ordered, self._actions = self._actions, []
        return [*self._handle(event, now), *ordered]


def target(bed: Testbed) -> Target:
    [replica] = bed.router.driver.scheduler.replicas(CHAT)
    return replica.target()


async def test_a_model_is_loaded_and_let_go(tmp_path: Path) -> None:
    async with Testbed(tmp_path) as bed:
        engine = await bed.add()
        orders, there = Orders(bed), target(bed)
        orders.give(Preload(there, Stay(context=2048), "demand"))
        await until(lambda: orders.ends, "the end of the load")
        assert orders.ends == [ev.PreloadEnded(there.replica)]
        [resident] = engine.server.engine.residents()
        assert (resident.model, resident.context) == (CHAT, 2048)
        orders.give(Unload(there, "room"))
        await until(lambda: not engine.server.engine.residents(), "the unload")


async def test_an_engine_without_an_agent_is_shown_its_key(tmp_path: Path) -> None:
    async with Testbed(tmp_path) as bed:
        engine = await bed.add(facts="&api_key=hush")
        orders = Orders(bed)
        orders.give(Preload(target(bed), Stay(), "demand"))
        await until(lambda: orders.ends, "the end of the load")
        [traffic] = engine.tap.on("/api/generate")
        assert traffic.request.headers["Authorization"] == "Bearer hush"


async def test_a_router_stops_in_the_middle_of_a_load(tmp_path: Path) -> None:
    async with EmulatedServer(engine_spec(load_rate=1.0)) as server:
        async with Testbed(tmp_path) as bed:
            await bed.declare(server.url)
            orders = Orders(bed)
            orders.give(Preload(target(bed), Stay(), "demand"))
            await until(lambda: server.waiting, "the load")
        assert orders.ends == []
        await until(lambda: not server.waiting, "the end of the wait at the engine")


async def test_the_settings_reach_the_scheduler(tmp_path: Path) -> None:
    pins = {"Qwen3:8B": ("studio",), "embedder": ("mini", "air")}
    async with Testbed(tmp_path, placement=False, context_plan=False, pins=pins) as bed:
        policy = bed.router.driver.scheduler.policy
    assert (policy.placement, policy.context_plan) == (False, False)
    assert policy.pins == {"qwen3:8b": ("studio",), "embedder:latest": ("mini", "air")}
    assert (Policy().placement, Policy().context_plan, Policy().pins) == (True, True, {})
