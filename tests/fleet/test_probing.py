"""Nodes without an agent, probed over real sockets that go away and come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import pairwise

import pytest

from devtools.replay import Replay, Reply, recorded, recording
from herd.core.fleet import EngineReport, Hardware, NodeReport
from herd.engines.declared import DeclaredEngine, parse_engine_url
from herd.fleet.probing import UrlNodes

INTERVAL = 0.02
MAX_BACKOFF = 0.05
DEADLINE = 10.0


class Heard:
    """The reports that came, and a way to wait for one."""

    def __init__(self) -> None:
        self.reports: list[NodeReport] = []
        self.times: list[float] = []
        self._news = asyncio.Event()

    def __call__(self, report: NodeReport) -> None:
        self.reports.append(report)
        self.times.append(asyncio.get_running_loop().time())
        self._news.set()

    async def until(self, fits: Callable[[NodeReport], bool]) -> NodeReport:
        """Return the next report that fits; what came before does not count."""
        seen = len(self.reports)
        async with asyncio.timeout(DEADLINE):
            while True:
                for report in self.reports[seen:]:
                    if fits(report):
                        return report
                seen = len(self.reports)
                self._news.clear()
                await self._news.wait()


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
async def nodes(heard: Heard) -> AsyncIterator[UrlNodes]:
    probing = UrlNodes(heard, interval=INTERVAL, max_backoff=MAX_BACKOFF, look_timeout=1.0)
    yield probing
    await probing.close()


def up(report: NodeReport) -> bool:
    return report.engines[0].up


def down(report: NodeReport) -> bool:
    return not up(report)


def declared(engine: Replay, query: str = "") -> DeclaredEngine:
    return parse_engine_url(f"{engine.url}{query}")


def engine_of(report: NodeReport) -> EngineReport:
    (engine,) = report.engines
    return engine


async def test_a_node_is_reported_with_what_was_declared_and_what_it_says(
    nodes: UrlNodes, heard: Heard
) -> None:
    async with Replay.of("ollama") as engine:
        node = nodes.add(declared(engine, "?name=box&memory=80GB&slots=3"))
        report = await heard.until(up)

    assert report.node == node == f"url:127.0.0.1:{engine.port}"
    assert (report.name, report.hardware) == ("box", Hardware(memory_bytes=80 * 10**9))
    found = engine_of(report)
    assert (found.id, found.kind, found.url) == (f"ollama-{engine.port}", "ollama", engine.url)
    assert {replica.slots for replica in found.replicas} == {3}


async def test_every_probe_is_a_heartbeat_changed_or_not(nodes: UrlNodes, heard: Heard) -> None:
    async with Replay.of("ollama") as engine:
        nodes.add(declared(engine))
        first = await heard.until(up)
        second = await heard.until(up)

    assert first == second


async def test_an_engine_that_never_answered_is_down_for_a_reason(
    nodes: UrlNodes, heard: Heard
) -> None:
    async with Replay() as engine:
        pass
    nodes.add(declared(engine))
    found = engine_of(await heard.until(down))

    assert engine.url in found.error
    assert found.replicas == ()


async def test_an_engine_that_goes_away_is_down_and_keeps_nothing(
    nodes: UrlNodes, heard: Heard
) -> None:
    async with Replay.of("ollama") as engine:
        nodes.add(declared(engine))
        await heard.until(up)
    found = engine_of(await heard.until(down))

    assert (found.id, found.kind, found.replicas) == (f"ollama-{engine.port}", "ollama", ())
    assert engine.url in found.error


async def test_an_engine_that_comes_back_is_up_again(nodes: UrlNodes, heard: Heard) -> None:
    engine = Replay.of("ollama")
    async with engine:
        nodes.add(declared(engine))
        before = await heard.until(up)
    await heard.until(down)
    async with engine:
        after = await heard.until(up)

    assert after == before


async def test_another_engine_at_the_same_address_is_detected_anew(
    nodes: UrlNodes, heard: Heard
) -> None:
    async with Replay.of("ollama") as engine:
        nodes.add(declared(engine))
        await heard.until(up)
        other = Replay.of("mlx")
        engine.replies, engine.default = other.replies, other.default
        report = await heard.until(lambda report: engine_of(report).kind == "mlx")

    assert engine_of(report).up


async def test_a_server_that_is_no_engine_is_down(nodes: UrlNodes, heard: Heard) -> None:
    async with Replay(default=Reply(200, b"hello")) as engine:
        nodes.add(declared(engine))
        report = await heard.until(down)

    assert "not like any engine" in engine_of(report).error


async def test_a_server_that_loads_its_model_is_not_up_yet(nodes: UrlNodes, heard: Heard) -> None:
    loading = Reply(503, b'{"error":{"message":"Loading model"}}', (("Server", "llama.cpp"),))
    ready = Replay.of("llamacpp")
    async with Replay(default=loading) as engine:
        nodes.add(declared(engine))
        found = engine_of(await heard.until(down))
        assert (found.kind, "Loading model" in found.error) == ("llamacpp", True)

        engine.replies, engine.default = ready.replies, ready.default
        assert engine_of(await heard.until(up)).kind == "llamacpp"


async def test_an_engine_that_hangs_is_down_in_time(heard: Heard) -> None:
    nodes = UrlNodes(heard, interval=INTERVAL, max_backoff=MAX_BACKOFF, look_timeout=0.1)
    async with Replay(default=Reply(delay=60)) as engine:
        nodes.add(declared(engine))
        report = await heard.until(down)
        await nodes.close()

    assert "did not answer within 0.1 s" in engine_of(report).error


async def test_the_key_goes_with_every_question(nodes: UrlNodes, heard: Heard) -> None:
    async with Replay.of("ollama") as engine:
        node = nodes.add(declared(engine, "?api_key=sekret"))
        await heard.until(up)

        assert {headers["authorization"] for _, headers in engine.asked} == {"Bearer sekret"}
    known = nodes.declared(node)
    assert known is not None
    assert known.api_key == "sekret"


async def test_an_engine_that_is_down_is_asked_less_and_less_often(heard: Heard) -> None:
    nodes = UrlNodes(heard, interval=0.01, max_backoff=60.0)
    async with Replay() as engine:
        pass
    nodes.add(declared(engine))
    async with asyncio.timeout(DEADLINE):
        while len(heard.times) <= 4:
            await heard.until(down)
    await nodes.close()

    pauses = [later - earlier for earlier, later in pairwise(heard.times)]
    assert pauses[3] > 0.14  # 0.16 s but for the jitter; the first is 0.02 s


async def test_one_node_that_hangs_does_not_hold_up_another(nodes: UrlNodes, heard: Heard) -> None:
    async with Replay(default=Reply(delay=60)) as hung, Replay.of("ollama") as engine:
        nodes.add(declared(hung))
        node = nodes.add(declared(engine))
        report = await heard.until(up)

    assert report.node == node


async def test_a_node_cannot_be_added_twice(nodes: UrlNodes) -> None:
    async with Replay.of("ollama") as engine:
        node = nodes.add(declared(engine))
        with pytest.raises(ValueError, match=f"in the fleet already, as {node}"):
            nodes.add(declared(engine, "?slots=3"))


async def test_a_removed_node_is_not_reported_any_more(nodes: UrlNodes, heard: Heard) -> None:
    async with Replay.of("ollama") as engine, Replay.of("ollama") as other:
        node = nodes.add(declared(engine))
        nodes.add(declared(other))
        await heard.until(lambda report: report.node == node)
        await nodes.remove(node)
        seen = len(heard.reports)
        for _ in range(3):
            await heard.until(up)

        assert node not in {report.node for report in heard.reports[seen:]}
        assert nodes.declared(node) is None
        assert nodes.add(declared(engine)) == node


async def test_removing_what_is_not_there_is_an_error(nodes: UrlNodes) -> None:
    with pytest.raises(KeyError):
        await nodes.remove("url:nowhere:1")


async def test_closing_leaves_no_task_behind(heard: Heard) -> None:
    before = asyncio.all_tasks()
    nodes = UrlNodes(heard, interval=INTERVAL)
    async with Replay(recorded_ollama()) as engine, Replay(default=Reply(delay=60)) as hung:
        nodes.add(declared(engine))
        nodes.add(declared(hung))
        await heard.until(up)
        await nodes.close()
        probes = {task for task in asyncio.all_tasks() - before if "probe" in task.get_name()}

    assert probes == set()


def recorded_ollama() -> dict[str, Reply]:
    paths = {"/", "/api/version", "/api/tags", "/api/ps"}
    return {
        f"GET {exchange['request']['path']}": recorded(exchange)
        for exchange in reversed(recording("ollama"))
        if exchange["request"]["method"] == "GET" and exchange["request"]["path"] in paths
    }
