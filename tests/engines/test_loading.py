"""Engines are told what to load and unload, each in its own way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, get_args

import pytest
from aiohttp import web

from devtools.testbed import CHAT, EMBEDDER, engine_spec
from herd.core.actions import Stay, Target
from herd.core.fleet import Capability, EngineKind, ReplicaKey
from herd.core.priors import LOADS_ON_DEMAND
from herd.engines import registry
from herd.engines.http import EngineError, Http
from herd.engines.llamacpp import LlamaCpp
from herd.engines.lmstudio import LmStudio
from herd.engines.ollama import Ollama
from herd.sim.server import EmulatedServer

TALKS: tuple[Capability, ...] = ("completion", "tools")
EMBEDS: tuple[Capability, ...] = ("embedding",)
BOTH = Stay(context=8192, keep_alive=-1.0)


def target(
    kind: EngineKind, url: str, model: str, capabilities: tuple[Capability, ...] = TALKS
) -> Target:
    return Target(
        replica=ReplicaKey("n", "e", model),
        node_name="one",
        kind=kind,
        url=url,
        model=model,
        capabilities=capabilities,
    )


class Engine:
    """Answers from a table, the last answer of a list for ever, and keeps what it was told."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Any]] = {}
        self.told: list[tuple[str, Any]] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            self.told.append((request.path, await request.json()))
        answers = self.answers.get(request.path, [({"error": "no such path"}, 404)])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        body, status = answer if isinstance(answer, tuple) else (answer, 200)
        return web.json_response(body, status=status)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = Engine()
    app = web.Application()
    app.router.add_route("*", "/{any:.*}", engine.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    engine.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield engine
    await runner.cleanup()


@pytest.fixture
async def emulated() -> AsyncIterator[EmulatedServer]:
    async with EmulatedServer(engine_spec()) as server:
        yield server


def test_the_kinds_that_load_on_demand_are_those_that_can_be_told() -> None:
    assert set(registry.LOADERS) == LOADS_ON_DEMAND
    for kind in get_args(EngineKind):
        assert bool(registry.controls(kind)) == (kind in {"llamacpp", "lmstudio"})
        assert registry.controls(kind).keys().isdisjoint(registry.adapter(kind).paths)


# Ollama


@pytest.mark.parametrize(("model", "capabilities"), [(CHAT, TALKS), (EMBEDDER, EMBEDS)])
async def test_ollama_loads_and_unloads(
    http: Http, emulated: EmulatedServer, model: str, capabilities: tuple[Capability, ...]
) -> None:
    there = target("ollama", emulated.url, model, capabilities)
    await Ollama().load(http, there, Stay(context=2048, keep_alive=-1.0))
    [resident] = emulated.engine.residents()
    assert (resident.model, resident.loading, resident.context) == (model, False, 2048)
    assert resident.keep_alive < 0
    await Ollama().unload(http, there)
    assert not emulated.engine.residents()


@pytest.mark.parametrize(
    ("capabilities", "path", "body"),
    [
        (TALKS, "/api/generate", {"model": "m", "stream": False}),
        (EMBEDS, "/api/embed", {"model": "m", "stream": False, "input": []}),
        ((), "/api/generate", {"model": "m", "stream": False}),
    ],
)
async def test_ollama_is_told_no_more_than_there_is_to_say(
    http: Http, engine: Engine, capabilities: tuple[Capability, ...], path: str, body: Any
) -> None:
    engine.answers[path] = [{}]
    there = target("ollama", engine.url, "m", capabilities)
    await Ollama().load(http, there, Stay())
    await Ollama().load(http, there, BOTH)
    more = {"keep_alive": -1.0, "options": {"num_ctx": 8192}}
    assert engine.told == [(path, body), (path, body | more)]


async def test_an_engines_refusal_is_told_in_its_words(
    http: Http, emulated: EmulatedServer
) -> None:
    with pytest.raises(EngineError, match="404: model 'nope:1b' not found"):
        await Ollama().load(http, target("ollama", emulated.url, "nope:1b"), Stay())


# llama.cpp


def rows(value: str) -> dict[str, Any]:
    return {"data": [{"id": "other", "status": {"value": "loaded"}}, row(value)]}


def row(value: str) -> dict[str, Any]:
    return {"id": "m", "status": {"value": value, "args": ["llama-server"]}}


@pytest.mark.parametrize(
    ("states", "told"),
    [
        (["unloaded", "loading", "loading", "loaded"], ["/models/load"]),
        (["loading", "loading", "loaded"], []),
        (["loaded"], []),
    ],
)
async def test_a_llamacpp_router_loads_in_the_background(
    http: Http, engine: Engine, states: list[str], told: list[str]
) -> None:
    engine.answers["/v1/models"] = [rows(state) for state in states]
    engine.answers["/models/load"] = [{"success": True}]
    await LlamaCpp().load(http, target("llamacpp", engine.url, "m"), BOTH)
    assert engine.told == [(path, {"model": "m"}) for path in told]
    assert len(engine.answers["/v1/models"]) == 1


async def test_a_load_that_fails_is_an_error(http: Http, engine: Engine) -> None:
    engine.answers["/v1/models"] = [rows(state) for state in ("unloaded", "loading", "unloaded")]
    engine.answers["/models/load"] = [{"success": True}]
    with pytest.raises(EngineError, match="failed to load m"):
        await LlamaCpp().load(http, target("llamacpp", engine.url, "m"), Stay())


async def test_a_llamacpp_router_that_is_full_says_so(http: Http, engine: Engine) -> None:
    engine.answers["/v1/models"] = [rows("unloaded")]
    engine.answers["/models/load"] = [({"error": {"message": "model limit reached"}}, 500)]
    with pytest.raises(EngineError, match="500: model limit reached"):
        await LlamaCpp().load(http, target("llamacpp", engine.url, "m"), Stay())


async def test_a_llamacpp_router_unloads_what_is_loaded(http: Http, engine: Engine) -> None:
    engine.answers["/models/unload"] = [{"success": True}]
    there = target("llamacpp", engine.url, "m")
    for state in ("loaded", "unloaded"):
        engine.answers["/v1/models"] = [rows(state)]
        await LlamaCpp().unload(http, there)
    assert engine.told == [("/models/unload", {"model": "m"})]


async def test_a_model_that_is_gone_is_an_error(http: Http, engine: Engine) -> None:
    engine.answers["/v1/models"] = [{"data": []}]
    with pytest.raises(EngineError, match="no longer has m"):
        await LlamaCpp().load(http, target("llamacpp", engine.url, "m"), Stay())


@pytest.mark.parametrize(
    ("capabilities", "told"),
    [
        (TALKS, [("/v1/completions", {"model": "m", "prompt": "a", "max_tokens": 1})]),
        (EMBEDS, [("/v1/embeddings", {"model": "m", "input": "a"})]),
    ],
)
async def test_a_llama_server_that_sleeps_is_woken(
    http: Http, engine: Engine, capabilities: tuple[Capability, ...], told: Any
) -> None:
    engine.answers["/v1/models"] = [{"data": [{"id": "m"}]}]
    engine.answers["/props"] = [{"is_sleeping": True}, {"is_sleeping": False}]
    engine.answers["/v1/completions"] = engine.answers["/v1/embeddings"] = [{}]
    there = target("llamacpp", engine.url, "m", capabilities)
    await LlamaCpp().load(http, there, Stay())
    await LlamaCpp().load(http, there, Stay())
    assert engine.told == told


async def test_a_llama_server_keeps_its_only_model(http: Http, engine: Engine) -> None:
    engine.answers["/v1/models"] = [{"data": [{"id": "m"}]}]
    with pytest.raises(EngineError, match="has one model and keeps it"):
        await LlamaCpp().unload(http, target("llamacpp", engine.url, "m"))


# LM Studio, by its documentation


def listed(*instances: str) -> dict[str, Any]:
    return {"models": [{"key": "m", "loaded_instances": [{"id": name} for name in instances]}]}


@pytest.mark.parametrize(
    ("stay", "body"),
    [(Stay(), {"model": "m"}), (BOTH, {"model": "m", "context_length": 8192})],
)
async def test_lm_studio_loads_and_unloads(
    http: Http, engine: Engine, stay: Stay, body: Any
) -> None:
    engine.answers["/api/v1/models"] = [listed()]
    loaded = {"type": "llm", "instance_id": "m", "load_time_seconds": 9.1, "status": "loaded"}
    engine.answers["/api/v1/models/load"] = [loaded]
    engine.answers["/api/v1/models/unload"] = [{"instance_id": "m"}]
    there = target("lmstudio", engine.url, "m")
    await LmStudio().load(http, there, stay)
    await LmStudio().unload(http, there)
    assert engine.told == [
        ("/api/v1/models/load", body),
        ("/api/v1/models/unload", {"instance_id": "m"}),
    ]


async def test_lm_studio_is_not_asked_for_a_second_instance(http: Http, engine: Engine) -> None:
    engine.answers["/api/v1/models"] = [listed("m")]
    await LmStudio().load(http, target("lmstudio", engine.url, "m"), Stay())
    assert engine.told == []


async def test_an_lm_studio_that_cannot_be_told_is_an_error(http: Http, engine: Engine) -> None:
    """Releases before 0.4 answer 200 with an error inside."""
    unknown = {"error": "Unexpected endpoint or method. Returning 200 anyway"}
    engine.answers["/api/v1/models"] = [unknown]
    engine.answers["/api/v1/models/unload"] = [unknown]
    there = target("lmstudio", engine.url, "m")
    with pytest.raises(EngineError, match=r"before 0\.4"):
        await LmStudio().load(http, there, Stay())
    with pytest.raises(EngineError, match="Unexpected endpoint"):
        await LmStudio().unload(http, there)
    engine.answers["/api/v1/models"] = [listed()]
    engine.answers["/api/v1/models/load"] = [unknown]
    with pytest.raises(EngineError, match="Unexpected endpoint"):
        await LmStudio().load(http, there, Stay())
