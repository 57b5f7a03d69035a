"""llama.cpp's adapter, held to answers recorded from a real llama-server."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from devtools.replay import Replay, Reply, json_reply, recorded, recording
from herd.core.fleet import Replica
from herd.engines.adapter import SurveyCache
from herd.engines.http import EngineError, Http
from herd.engines.llamacpp import LlamaCpp

PROPS, SLOTS, METRICS, MODELS = 1, 2, 3, 4
EMBED = "POST /v1/embeddings"
LOADING = json_reply(
    {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}},
    503,
    Server="llama.cpp",
)
QUERY = "?model=smol&autoload=false"


def props(**changes: Any) -> Reply:
    """The recorded properties, with changes."""
    return json_reply(json.loads(recorded(recording("llamacpp")[PROPS]).body) | changes)


def routed(state: str, *arguments: str, name: str = "smol") -> dict[str, Any]:
    """A row as a router lists it, seen from build 10434."""
    row: dict[str, Any] = {
        "id": name,
        "owned_by": "llamacpp",
        "status": {"value": state, "args": ["llama-server", *arguments, "--api-key", "sekret"]},
        "architecture": {"input_modalities": ["text"]},
    }
    if state == "loaded":
        row["meta"] = {"n_ctx_train": 8192, "n_params": 134515008, "size": 96576768}
    return row


def router(*rows: dict[str, Any]) -> dict[str, Reply]:
    """What a router answers, with the recorded model behind the name `smol`."""
    exchanges = recording("llamacpp")
    missing = json_reply({"error": {"message": "model name is missing from the request"}}, 400)
    return {
        "GET /v1/models": json_reply({"data": list(rows), "object": "list"}),
        "GET /props": json_reply({"role": "router", "build_info": "b1-7e4c0a9"}),
        "GET /slots": missing,
        "GET /metrics": missing,
        f"GET /props{QUERY}": recorded(exchanges[PROPS]),
        f"GET /slots{QUERY}": recorded(exchanges[SLOTS]),
        f"{EMBED}{QUERY}": json_reply({}, 501),
    }


async def test_a_survey_tells_what_the_recorded_engine_has(http: Http) -> None:
    async with Replay.of("llamacpp") as engine:
        found = await LlamaCpp().survey(http, engine.url)

    assert (found.version, found.running, found.waiting) == ("b1-7e4c0a9", 0, 0)
    (replica,) = found.replicas
    assert msgspec.structs.replace(replica, listing=b"") == Replica(
        model="smollm2:135m",
        name="smollm2:135m",
        residency="resident",
        size=96576768,
        parameters=134515008,
        context_length=8192,
        loaded_context=2048,
        capabilities=("completion", "tools"),
        slots=2,
    )
    assert replica.listing in recorded(recording("llamacpp")[MODELS]).body


async def test_busy_slots_run_and_deferred_requests_wait(http: Http) -> None:
    slots = [{"id": 0, "is_processing": True}, {"id": 1, "is_processing": True}]
    metrics = b"# TYPE x gauge\nllamacpp:requests_processing 9\nllamacpp:requests_deferred 3\n"
    async with Replay.of("llamacpp") as engine:
        engine.replies["GET /slots"] = json_reply(slots)
        engine.replies["GET /metrics"] = Reply(body=metrics)
        found = await LlamaCpp().survey(http, engine.url)

    assert (found.running, found.waiting) == (2, 3)


async def test_a_server_too_busy_to_count_is_well() -> None:
    """It reads a long prompt: what it answers between two batches takes too long."""
    async with Http(timeout=0.3) as hasty, Replay.of("llamacpp") as engine:
        engine.replies["GET /slots"] = Reply(delay=1.0)
        found = await LlamaCpp().survey(hasty, engine.url)

    assert [replica.residency for replica in found.replicas] == ["resident"]
    assert (found.running, found.waiting) == (None, None)


async def test_without_slots_the_metrics_tell_what_runs(http: Http) -> None:
    metrics = b"llamacpp:requests_processing 1\nllamacpp:requests_deferred 0\n"
    async with Replay.of("llamacpp") as engine:
        engine.replies["GET /slots"] = json_reply({"error": {"code": 501}}, 501)
        engine.replies["GET /metrics"] = Reply(body=metrics)
        found = await LlamaCpp().survey(http, engine.url)

    assert (found.running, found.waiting) == (1, 0)


async def test_a_server_told_to_be_silent_leaves_its_queue_unknown(http: Http) -> None:
    async with Replay.of("llamacpp") as engine:
        engine.replies["GET /slots"] = json_reply({"error": {"code": 501}}, 501)
        engine.replies["GET /metrics"] = json_reply({"error": {"code": 501}}, 501)
        found = await LlamaCpp().survey(http, engine.url)

    assert (found.running, found.waiting) == (None, None)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"modalities": {"vision": True, "audio": False}}, ("completion", "tools", "vision")),
        ({"chat_template": "{{ '<think>' }}"}, ("completion", "tools", "thinking")),
        ({"chat_template_caps": None}, ("completion",)),
    ],
)
async def test_properties_tell_what_the_model_can_do(
    http: Http, changes: dict[str, Any], expected: tuple[str, ...]
) -> None:
    async with Replay.of("llamacpp") as engine:
        engine.replies["GET /props"] = props(**changes)
        found = await LlamaCpp().survey(http, engine.url)

    assert found.replicas[0].capabilities == expected


async def test_a_server_that_embeds_a_word_embeds(http: Http) -> None:
    async with Replay.of("llamacpp") as engine:
        engine.replies[EMBED] = json_reply({"data": []})
        found = await LlamaCpp().survey(http, engine.url)

    assert found.replicas[0].capabilities == ("completion", "tools", "embedding")


async def test_an_encoder_only_embeds(http: Http) -> None:
    listing = json.loads(recorded(recording("llamacpp")[MODELS]).body)
    listing["data"][0]["meta"]["vocab_type"] = 3
    async with Replay.of("llamacpp") as engine:
        engine.replies["GET /v1/models"] = json_reply(listing)
        engine.replies[EMBED] = json_reply({"data": []})
        found = await LlamaCpp().survey(http, engine.url)

    assert found.replicas[0].capabilities == ("embedding",)


@pytest.mark.parametrize(("marker", "tries"), [("<1>", 1), ("<2>", 2)])
async def test_a_word_is_embedded_once_in_a_run_of_the_server(
    http: Http, marker: str, tries: int
) -> None:
    cache = SurveyCache()
    async with Replay.of("llamacpp") as engine:
        engine.replies["GET /props"] = props(media_marker="<1>")
        first = await LlamaCpp().survey(http, engine.url, cache)
        engine.replies["GET /props"] = props(media_marker=marker)
        second = await LlamaCpp().survey(http, engine.url, cache)

        assert engine.lines().count(EMBED) == tries
    assert first.replicas == second.replicas


async def test_a_sleeping_server_is_not_woken(http: Http) -> None:
    async with Replay.of("llamacpp") as engine:
        engine.replies["GET /props"] = props(is_sleeping=True)
        found = await LlamaCpp().survey(http, engine.url)

        assert set(engine.lines()) == {"GET /v1/models", "GET /props"}
    (replica,) = found.replicas
    assert (replica.residency, replica.loaded_context, replica.slots) == ("disk", 0, 2)
    assert (found.running, found.waiting) == (0, 0)


async def test_a_server_that_loads_is_llamacpp_and_not_ready(http: Http) -> None:
    async with Replay({}, LOADING) as engine:
        assert await LlamaCpp().detect(http, engine.url)
        with pytest.raises(EngineError, match=r"\(503\): Loading model"):
            await LlamaCpp().survey(http, engine.url)


async def test_a_server_behind_a_proxy_is_known_by_its_models(http: Http) -> None:
    async with Replay.of("llamacpp") as engine:
        engine.replies["GET /health"] = json_reply({"status": "ok"}, Server="nginx")
        assert await LlamaCpp().detect(http, engine.url)


async def test_without_its_key_it_is_down(http: Http) -> None:
    """Its model list is open even so, but nothing else is."""
    refused = json_reply({"error": {"message": "Invalid API Key"}}, 401, Server="llama.cpp")
    async with Replay.of("llamacpp") as engine:
        engine.replies["GET /props"] = refused

        assert await LlamaCpp().detect(http, engine.url)
        with pytest.raises(EngineError, match=r"asks for an API key \(401\): Invalid API Key"):
            await LlamaCpp().survey(http, engine.url)


async def test_a_router_tells_the_state_of_each_model(http: Http) -> None:
    rows = [
        routed("loaded"),
        routed("loading", name="b"),
        routed("unloaded", "--parallel", "3", name="c"),
        routed("sleeping", name="d"),
    ]
    async with Replay(router(*rows), LOADING) as engine:
        found = await LlamaCpp().survey(http, engine.url)

    assert [(r.name, r.residency, r.slots) for r in found.replicas] == [
        ("smol", "resident", 2),
        ("b", "loading", 1),
        ("c", "disk", 3),
        ("d", "disk", 1),
    ]
    assert found.replicas[0].loaded_context == 2048
    assert (found.version, found.running) == ("b1-7e4c0a9", 0)


async def test_a_router_is_asked_about_loaded_models_only(http: Http) -> None:
    """Asking about another would load it, and evict one that is in use."""
    async with Replay(router(routed("loaded"), routed("unloaded", name="b")), LOADING) as engine:
        await LlamaCpp().survey(http, engine.url)

        about = [line for line in engine.lines() if "model=" in line]
    assert len(about) == 4
    assert all(line.endswith(QUERY) for line in about)


async def test_a_routers_command_lines_stay_out_of_the_report(http: Http) -> None:
    async with Replay(router(routed("loaded"), routed("unloaded", name="b")), LOADING) as engine:
        found = await LlamaCpp().survey(http, engine.url)

    assert b"sekret" not in msgspec.json.encode(found)


async def test_what_a_model_told_while_it_was_loaded_is_kept(http: Http) -> None:
    cache = SurveyCache()
    async with Replay(router(routed("loaded")), LOADING) as engine:
        await LlamaCpp().survey(http, engine.url, cache)
        engine.replies |= router(routed("unloaded"))
        (replica,) = (await LlamaCpp().survey(http, engine.url, cache)).replicas

    assert (replica.residency, replica.loaded_context) == ("disk", 0)
    assert (replica.size, replica.context_length, replica.slots) == (96576768, 8192, 2)


async def test_a_model_evicted_since_it_was_listed_is_on_disk(http: Http) -> None:
    async with Replay(router(routed("loaded")), LOADING) as engine:
        gone = json_reply({"error": {"code": 400, "message": "model is not loaded"}}, 400)
        engine.replies[f"GET /props{QUERY}"] = gone
        (replica,) = (await LlamaCpp().survey(http, engine.url)).replicas

    assert replica.residency == "disk"


async def test_a_command_line_tells_of_embeddings_and_pictures(http: Http) -> None:
    row = routed("unloaded", "--embeddings")
    row["architecture"]["input_modalities"].append("image")
    async with Replay(router(row), LOADING) as engine:
        (replica,) = (await LlamaCpp().survey(http, engine.url)).replicas

    assert replica.capabilities == ("completion", "vision", "embedding")


async def test_a_router_with_nothing_loaded_runs_nothing(http: Http) -> None:
    async with Replay(router(routed("unloaded")), LOADING) as engine:
        found = await LlamaCpp().survey(http, engine.url)

    assert (found.running, found.waiting) == (0, 0)
