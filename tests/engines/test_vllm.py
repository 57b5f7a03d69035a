"""vLLM's adapter, held to answers recorded from a real one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from devtools.replay import Replay, Reply, json_reply, recorded, recording
from herd.core.fleet import Capability, Replica
from herd.engines.adapter import SurveyCache
from herd.engines.http import EngineError, Http
from herd.engines.vllm import ELASTIC_SLOTS, Vllm

#: The recorded refusal of a request with a tool.
NO_TOOLS = 10
CHAT = "POST /v1/chat/completions"
LOADED = b"""process_start_time_seconds 17.0
vllm:num_requests_running{engine="0",model_name="m"} 4.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting{engine="1",model_name="m"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 2.0
vllm:engine_sleep_state{engine="0",sleep_state="awake"} 1.0
"""


def without_tools() -> Replay:
    return Replay.of("vllm", refused=NO_TOOLS)


async def test_a_survey_tells_what_the_recorded_engine_has(http: Http) -> None:
    async with without_tools() as engine:
        found = await Vllm().survey(http, engine.url)

    assert (found.version, found.running, found.waiting) == ("0.32.0", 0, 0)
    (replica,) = found.replicas
    assert msgspec.structs.replace(replica, listing=b"") == Replica(
        model="smollm2:135m",
        name="smollm2:135m",
        residency="resident",
        context_length=2048,
        loaded_context=2048,
        capabilities=("completion",),
        slots=ELASTIC_SLOTS,
    )
    assert msgspec.json.decode(replica.listing)["owned_by"] == "vllm"


async def test_gauges_of_several_engines_add_up(http: Http) -> None:
    async with without_tools() as engine:
        engine.replies["GET /metrics"] = Reply(body=LOADED)
        found = await Vllm().survey(http, engine.url)

    assert (found.running, found.waiting) == (5, 2)


async def test_without_metrics_the_queue_is_unknown(http: Http) -> None:
    async with without_tools() as engine:
        del engine.replies["GET /metrics"]
        found = await Vllm().survey(http, engine.url)

    assert (found.running, found.waiting) == (None, None)


async def test_every_alias_and_lora_is_a_replica(http: Http) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "Qwen/Qwen3-8B", "owned_by": "vllm", "parent": None, "max_model_len": 4096},
        {"id": "sql-lora", "owned_by": "vllm", "parent": "Qwen/Qwen3-8B", "max_model_len": None},
    ]
    async with without_tools() as engine:
        engine.replies["GET /v1/models"] = json_reply({"object": "list", "data": rows})
        found = await Vllm().survey(http, engine.url)

    assert [(r.model, r.name, r.context_length) for r in found.replicas] == [
        ("qwen/qwen3-8b:latest", "Qwen/Qwen3-8B", 4096),
        ("sql-lora:latest", "sql-lora", 0),
    ]
    assert {r.capabilities for r in found.replicas} == {("completion",)}


async def test_what_is_answered_is_a_capability(http: Http) -> None:
    async with Replay.of("vllm") as engine:
        found = await Vllm().survey(http, engine.url)

    assert found.replicas[0].capabilities == ("completion", "tools", "vision")


async def test_a_model_with_the_embeddings_route_embeds_and_does_not_chat(http: Http) -> None:
    wrong_method = json_reply({"detail": "Method Not Allowed"}, 405)
    async with Replay.of("vllm") as engine:
        engine.replies["GET /v1/embeddings"] = wrong_method
        found = await Vllm().survey(http, engine.url)

        assert CHAT not in engine.lines()
    assert found.replicas[0].capabilities == ("embedding",)


@pytest.mark.parametrize(("started", "tries"), [(b"17.0", 2), (b"18.0", 4)])
async def test_it_is_tried_out_once_in_a_run_of_the_server(
    http: Http, started: bytes, tries: int
) -> None:
    cache = SurveyCache()
    async with without_tools() as engine:
        engine.replies["GET /metrics"] = Reply(body=LOADED)
        first = await Vllm().survey(http, engine.url, cache)
        engine.replies["GET /metrics"] = Reply(body=LOADED.replace(b"17.0", started))
        second = await Vllm().survey(http, engine.url, cache)

        assert engine.lines().count(CHAT) == tries
    assert first.replicas == second.replicas


async def test_an_engine_too_busy_to_try_is_not_judged(http: Http) -> None:
    cache = SurveyCache()
    async with without_tools() as engine:
        refusal = engine.replies[CHAT]
        engine.replies[CHAT] = json_reply({"error": {"message": "overloaded"}}, 503)
        with pytest.raises(EngineError, match="503: overloaded"):
            await Vllm().survey(http, engine.url, cache)
        engine.replies[CHAT] = refusal
        found = await Vllm().survey(http, engine.url, cache)

    capabilities: tuple[Capability, ...] = ("completion",)
    assert found.replicas[0].capabilities == capabilities


async def test_a_dead_engine_behind_a_living_server_is_down(http: Http) -> None:
    async with without_tools() as engine:
        engine.replies["GET /health"] = Reply(503)
        with pytest.raises(EngineError, match=r"its engine is dead \(503\)"):
            await Vllm().survey(http, engine.url)


async def test_a_sleeping_engine_is_down(http: Http) -> None:
    async with without_tools() as engine:
        engine.replies["GET /metrics"] = Reply(body=LOADED.replace(b'"awake"} 1', b'"awake"} 0'))
        with pytest.raises(EngineError, match="sleeps"):
            await Vllm().survey(http, engine.url)


async def test_a_server_that_asks_for_a_key_is_vllm_all_the_same(http: Http) -> None:
    async with without_tools() as engine:
        engine.replies["GET /v1/models"] = json_reply({"error": "Unauthorized"}, 401)

        assert await Vllm().detect(http, engine.url)
        with pytest.raises(EngineError, match=r"asks for an API key \(401\): Unauthorized"):
            await Vllm().survey(http, engine.url)


async def test_another_server_with_a_version_is_not_vllm(http: Http) -> None:
    replies = {
        "GET /version": json_reply({"version": "1"}),
        "GET /v1/models": json_reply({"data": [{"id": "m", "owned_by": "somebody"}]}),
    }
    async with Replay(replies, recorded(recording("vllm")[25])) as engine:
        assert not await Vllm().detect(http, engine.url)
