"""A real llama-server in router mode is told what to load and unload."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from devtools.engines import EngineUnavailable, LlamaServer, llama_files
from herd.core.actions import Stay, Target
from herd.core.fleet import Replica, ReplicaKey
from herd.engines.http import EngineError, Http
from herd.engines.llamacpp import LlamaCpp

pytestmark = pytest.mark.real

DEADLINE = 30.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    """A router with room for two models, of which one is none."""
    folder = tmp_path_factory.mktemp("models")
    try:
        (folder / "small.gguf").symlink_to(llama_files().model)
    except EngineUnavailable as error:
        pytest.skip(str(error))
    (folder / "junk.gguf").write_bytes(b"GGUF and then nothing")
    log = tmp_path_factory.mktemp("llama") / "router.log"
    with LlamaServer(log, slots=1, context=512, models_dir=folder) as server:
        yield server


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with Http(timeout=DEADLINE) as client:
        yield client


def target(server: LlamaServer, model: str) -> Target:
    return Target(
        replica=ReplicaKey("n", "llamacpp-1", model),
        node_name="n",
        kind="llamacpp",
        url=server.url,
        model=model,
        capabilities=("completion",),
    )


async def replica(http: Http, server: LlamaServer, model: str) -> Replica:
    found = await LlamaCpp().survey(http, server.url)
    return next(each for each in found.replicas if each.name == model)


async def test_a_model_is_loaded_and_let_go(http: Http, server: LlamaServer) -> None:
    there = target(server, "small")
    async with asyncio.timeout(DEADLINE):
        await LlamaCpp().load(http, there, Stay(context=2048))
        assert (await replica(http, server, "small")).residency == "resident"
        await LlamaCpp().load(http, there, Stay())
        await LlamaCpp().unload(http, there)
        while (await replica(http, server, "small")).residency != "disk":  # noqa: ASYNC110 - has a deadline
            await asyncio.sleep(0.05)
        await LlamaCpp().unload(http, there)


async def test_a_model_that_does_not_load_is_told(http: Http, server: LlamaServer) -> None:
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(EngineError, match="failed to load junk"):
            await LlamaCpp().load(http, target(server, "junk"), Stay())


async def test_a_model_that_there_is_not_is_told(http: Http, server: LlamaServer) -> None:
    with pytest.raises(EngineError, match="no longer has nope"):
        await LlamaCpp().load(http, target(server, "nope"), Stay())
