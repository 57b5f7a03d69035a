"""Loads ahead of requests in a world of devices, and what placement makes of them."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import pytest

from herd.core.fleet import NodeReport
from herd.core.residents import SPACING
from herd.core.scheduler import Policy
from herd.sim.disturbance import Disturbance
from herd.sim.fleets import Fleet, fleet
from herd.sim.herd_router import HerdRouter
from herd.sim.policies import Random
from herd.sim.records import Site
from herd.sim.workloads import Workload, WorkName, generate
from herd.sim.world import World

FIVE = fleet("five", 1)
ONE = fleet("one", 1)
CHAT = generate("chat", FIVE, requests=60, load=0.5, seed=1)


class Ordering(Random):
    """Orders what a test wants when the world begins, and notes what it hears."""

    heartbeat: float | None = 2.0

    def __init__(self, *loads: tuple[str, str], contexts: tuple[int | None, ...] = (None,)) -> None:
        super().__init__()
        self.loads = loads
        self.contexts = contexts
        self.heard_of: list[tuple[str, str, str]] = []
        self.seen: dict[str, list[tuple[float, dict[str, int]]]] = defaultdict(list)

    def attach(self, world: World) -> None:
        super().attach(world)
        for device, model in self.loads:
            for context in self.contexts:
                world.load(world.site(device), model, context=context, keep_alive=-1.0)

    def load_ended(self, site: Site, model: str, error: str) -> None:
        self.heard_of.append((site.name, model, error))

    def reported(self, site: Site, report: NodeReport) -> None:
        there = {
            replica.model: replica.loaded_context
            for engine in report.engines
            for replica in engine.replicas
            if replica.residency == "resident"
        }
        self.seen[site.name].append((self.world.now, there))


def test_a_load_that_was_ordered_ends_and_stays() -> None:
    router = Ordering(("mac-mini-m2-1", "llama3.2:3b"), contexts=(4096,))
    World(FIVE, CHAT, router).run()

    assert router.heard_of == [("mac-mini-m2-1", "llama3.2:3b", "")]
    first = next(there for _, there in router.seen["mac-mini-m2-1"] if there)
    assert first == {"llama3.2:3b": 4096}
    assert "llama3.2:3b" in router.seen["mac-mini-m2-1"][-1][1]


def test_a_load_that_cannot_be_says_so() -> None:
    router = Ordering(("mac-mini-m2-1", "nobody:knows"))
    World(FIVE, CHAT, router).run()

    assert router.heard_of == [("mac-mini-m2-1", "nobody:knows", "unknown_model")]


def test_a_device_that_leaves_ends_the_loads_that_were_ordered() -> None:
    router = Ordering(("mac-mini-m2-1", "llama3.1:8b"))
    leaves = Disturbance(kind="leaves", device="mac-mini-m2-1", at=0.5, until=60.0)
    World(FIVE, CHAT, router, disturbances=(leaves,)).run()

    assert router.heard_of == [("mac-mini-m2-1", "llama3.1:8b", "the connection broke")]


def test_an_unload_takes_a_model_out() -> None:
    class Unloading(Ordering):
        def load_ended(self, site: Site, model: str, error: str) -> None:
            super().load_ended(site, model, error)
            self.world.unload(site, model)

    router = Unloading(("macbook-air-m1-1", "nomic-embed-text:latest"))
    World(FIVE, CHAT, router).run()

    there = [models for _, models in router.seen["macbook-air-m1-1"]]
    assert not any("nomic-embed-text:latest" in models for models in there)
    assert router.heard_of


class Watched(HerdRouter):
    """Herd, which counts its orders."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self.preloads: dict[str, list[float]] = defaultdict(list)
        self.busy_unloads = 0

    def attach(self, world: World) -> None:
        super().attach(world)
        self._load, self._unload = world.load, world.unload
        world.load = self.noting_load  # type: ignore[method-assign]
        world.unload = self.noting_unload  # type: ignore[method-assign]

    def noting_load(
        self, site: Site, model: str, *, context: int | None = None, keep_alive: float | None = None
    ) -> None:
        self.preloads[site.name].append(self.world.now)
        self._load(site, model, context=context, keep_alive=keep_alive)

    def noting_unload(self, site: Site, model: str) -> None:
        self.busy_unloads += any(
            each.model == model and each.running for each in site.engine.residents()
        )
        self._unload(site, model)


def placed(devices: Fleet, work: Workload, **policy: object) -> Watched:
    router = Watched(Policy(placement=True, **policy))  # type: ignore[arg-type]
    done = World(devices, work, router).run()
    assert all(record.ending == "completed" for record in done.records)
    return router


@pytest.mark.parametrize("work", ["chat", "agents", "rag", "mix"])
def test_loads_ahead_are_bounded_and_nothing_that_runs_is_unloaded(work: WorkName) -> None:
    router = placed(FIVE, generate(work, FIVE, requests=150, load=0.6, seed=3))

    assert router.busy_unloads == 0
    assert router.preloads
    for times in router.preloads.values():
        assert all(later - sooner >= SPACING for sooner, later in pairwise(times))


def test_a_pinned_model_is_in_memory_all_along() -> None:
    """Nobody asks for it, and the others would have its memory."""
    pin = "qwen2.5:32b"
    work = generate("chat", ONE, requests=80, load=0.7, seed=1)
    turns = [each for each in work.sessions if each.turns[0].request.model != pin]
    router = Pinned(Policy(placement=True, pins={pin: ("macbook-pro-m3-max-1",)}))
    World(ONE, Workload("chat", tuple(turns)), router).run()

    since = [at for at, there in router.seen if there]
    assert since[0] < 60.0
    assert all(pin in there for at, there in router.seen if at >= since[0])


class Pinned(HerdRouter):
    """Herd, with a look at what is in memory at each report."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self.seen: list[tuple[float, set[str]]] = []

    def reported(self, site: Site, report: NodeReport) -> None:
        there = {
            replica.model
            for engine in report.engines
            for replica in engine.replicas
            if replica.residency == "resident"
        }
        self.seen.append((self.world.now, there))
        super().reported(site, report)
