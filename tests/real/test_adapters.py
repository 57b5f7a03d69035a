"""Adapters against a real llama-server with a real small model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from devtools.engines import EngineUnavailable, LlamaServer, llama_files
from herd.core.fleet import NodeReport, Replica
from herd.engines import registry
from herd.engines.adapter import SurveyCache
from herd.engines.declared import parse_engine_url
from herd.engines.http import EngineError, Http
from herd.engines.llamacpp import LlamaCpp
from herd.fleet.probing import UrlNodes

pytestmark = pytest.mark.real

DEADLINE = 30.0
STORY = {
    "model": "smollm2:135m",
    "prompt": "Once upon a time",
    "n_predict": 900,
    "ignore_eos": True,
}


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        llama_files()
    except EngineUnavailable as error:
        pytest.skip(str(error))
    return tmp_path_factory.mktemp("llama")


@pytest.fixture(scope="module")
def chat(logs: Path) -> Iterator[LlamaServer]:
    """A server with two slots of 1,024 tokens."""
    with LlamaServer(logs / "chat.log", slots=2, context=1024) as server:
        yield server


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with Http() as client:
        yield client


async def survey_one(http: Http, url: str) -> Replica:
    (replica,) = (await LlamaCpp().survey(http, url)).replicas
    return replica


async def test_it_is_detected_as_itself_alone(http: Http, chat: LlamaServer) -> None:
    fits = [each.kind for each in registry.ADAPTERS if await each.detect(http, chat.url)]

    assert fits == ["llamacpp"]


async def test_it_tells_slots_context_and_size(http: Http, chat: LlamaServer) -> None:
    replica = await survey_one(http, chat.url)

    assert (replica.model, replica.name, replica.residency) == (
        "smollm2:135m",
        "smollm2:135m",
        "resident",
    )
    assert (replica.slots, replica.loaded_context, replica.context_length) == (2, 1024, 8192)
    assert (replica.size, replica.parameters) == (96576768, 134515008)
    assert replica.capabilities == ("completion", "tools")


async def test_it_tells_what_runs_and_what_waits(chat: LlamaServer) -> None:
    """Three requests on two slots: two run, one waits, and then there are none."""
    adapter, cache = LlamaCpp(), SurveyCache()
    async with Http() as http, Http(timeout=DEADLINE) as client:
        await adapter.survey(http, chat.url, cache)
        requests = [
            asyncio.create_task(client.post(f"{chat.url}/completion", STORY)) for _ in range(3)
        ]
        try:
            async with asyncio.timeout(DEADLINE):
                found = await adapter.survey(http, chat.url, cache)
                while (found.running, found.waiting) != (2, 1):
                    await asyncio.sleep(0.02)
                    found = await adapter.survey(http, chat.url, cache)
        finally:
            for request in requests:
                request.cancel()
            await asyncio.gather(*requests, return_exceptions=True)
        async with asyncio.timeout(DEADLINE):
            while (found.running, found.waiting) != (0, 0):
                # llama-server looks for clients that left after a second without any result, and
                # an answer about its slots is one: asked more often, it works on for nobody.
                await asyncio.sleep(1.2)
                found = await adapter.survey(http, chat.url, cache)


async def test_it_tells_whether_it_embeds(http: Http, logs: Path) -> None:
    with LlamaServer(logs / "embed.log", slots=1, context=512, embeddings=True) as server:
        replica = await survey_one(http, server.url)

    assert replica.capabilities == ("completion", "tools", "embedding")


async def test_it_is_not_ready_while_it_loads(http: Http, logs: Path) -> None:
    server = LlamaServer(logs / "loading.log", slots=1, context=512)
    said = set()
    server.start(wait=False)
    try:
        async with asyncio.timeout(DEADLINE):
            while True:
                try:
                    await survey_one(http, server.url)
                    break
                except EngineError as error:
                    said.add(str(error).removeprefix(f"{server.url}/v1/models "))
                await asyncio.sleep(0.005)
    finally:
        server.stop()

    assert "answered (503): Loading model" in said


async def test_a_key_is_asked_for_and_taken(logs: Path) -> None:
    with LlamaServer(logs / "key.log", slots=1, context=512, api_key="sekret") as server:
        async with Http() as without:
            assert await LlamaCpp().detect(without, server.url)
            with pytest.raises(EngineError, match=r"asks for an API key \(401\): Invalid API Key"):
                await survey_one(without, server.url)
        async with Http(headers={"Authorization": "Bearer sekret"}) as http:
            assert (await survey_one(http, server.url)).slots == 1


async def test_a_router_is_surveyed_without_loading_anything(
    http: Http, logs: Path, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.gguf").symlink_to(llama_files().model)
    adapter, cache = LlamaCpp(), SurveyCache()
    with LlamaServer(
        logs / "router.log", slots=1, context=512, models_dir=tmp_path, extra=["--models-max", "1"]
    ) as server:
        found = await adapter.survey(http, server.url, cache)
        assert [(r.name, r.residency) for r in found.replicas] == [("one", "disk"), ("two", "disk")]

        await http.post(f"{server.url}/models/load", {"model": "one"})
        async with asyncio.timeout(DEADLINE):
            one, two = (await adapter.survey(http, server.url, cache)).replicas
            while one.residency != "resident":
                await asyncio.sleep(0.05)
                found = await adapter.survey(http, server.url, cache)
                one, two = found.replicas

        assert two.residency == "disk"
        assert (one.slots, one.loaded_context, one.size) == (1, 512, 96576768)
        assert found.running == 0


async def test_a_server_that_crashes_and_comes_back_is_noticed(logs: Path) -> None:
    heard: asyncio.Queue[NodeReport] = asyncio.Queue()
    nodes = UrlNodes(heard.put_nowait, interval=0.05, max_backoff=0.1)
    server = LlamaServer(logs / "crash.log", slots=1, context=512)

    async def until(*, up: bool) -> NodeReport:
        async with asyncio.timeout(DEADLINE):
            while (report := await heard.get()).engines[0].up is not up:
                pass
        return report

    server.start()
    try:
        nodes.add(parse_engine_url(server.url))
        before = await until(up=True)
        server.kill()
        await until(up=False)
        server.start()
        after = await until(up=True)
    finally:
        await nodes.close()
        server.stop()

    assert after.node == before.node
    assert after.engines[0].replicas[0].name == before.engines[0].replicas[0].name
