"""Ollama's adapter, held to answers recorded from a real one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from devtools.replay import Replay, json_reply, recorded, recording
from herd.core.fleet import Replica
from herd.engines.adapter import SurveyCache
from herd.engines.http import EngineError, Http
from herd.engines.ollama import Ollama

#: Numbers of recorded exchanges: with `smollm2:135m` loaded, and after a copy was made.
PS_SMOLLM2, TAGS_WITH_COPY, PS_MINILM = 10, 34, 41
SHOW_SMOLLM2 = 5
DIGEST = "0a2739ead7c1e5bab55027d969f7b0bbf0fdf72bb50cb18dbae7fb0ac9d9dc48"


async def survey(
    http: Http, engine: Replay, cache: SurveyCache | None = None
) -> dict[str, Replica]:
    found = await Ollama().survey(http, engine.url, cache)
    return {replica.name: replica for replica in found.replicas}


def row(**changes: Any) -> dict[str, Any]:
    """A row as releases of 2024 listed it: without capabilities and context length."""
    details = {"families": ["llama"], "parameter_size": "134.52M"}
    base = {"name": "old:1b", "model": "old:1b", "size": 7, "digest": "d1", "details": details}
    return base | changes


def tags(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"GET /api/tags": json_reply({"models": list(rows)})}


async def test_a_survey_tells_what_the_recorded_engine_has(http: Http) -> None:
    async with Replay.of("ollama", ps=PS_SMOLLM2) as engine:
        found = await Ollama().survey(http, engine.url)

    assert (found.version, found.running, found.waiting) == ("0.33.0-rc2", None, None)
    replica = found.replicas[1]
    in_memory = msgspec.json.decode(replica.resident_listing)
    assert in_memory["expires_at"] == "2026-11-23T10:10:42.83709775Z"
    bare = msgspec.structs.replace(replica, listing=b"", resident_listing=b"")
    assert bare == Replica(
        model="smollm2:135m",
        name="smollm2:135m",
        residency="resident",
        digest=DIGEST,
        size=98362776,
        parameters=134_520_000,
        context_length=8192,
        loaded_context=2048,
        memory_bytes=160222411,
        capabilities=("completion",),
        slots=1,
    )


async def test_models_that_are_not_loaded_are_on_disk(http: Http) -> None:
    async with Replay.of("ollama", ps=PS_SMOLLM2) as engine:
        replica = (await survey(http, engine))["all-minilm:latest"]

    assert (replica.residency, replica.loaded_context, replica.memory_bytes) == ("disk", 0, 0)
    assert replica.capabilities == ("embedding",)


async def test_the_listing_is_the_engines_own_row_byte_for_byte(http: Http) -> None:
    body = recorded(recording("ollama")[3]).body
    async with Replay.of("ollama") as engine:
        found = await Ollama().survey(http, engine.url)

    assert b'{"models":[' + b",".join(r.listing for r in found.replicas) + b"]}" == body


async def test_residency_goes_by_digest_so_a_copy_is_resident_too(http: Http) -> None:
    """`/api/ps` lists only the alias that was asked for when the weights were loaded."""
    async with Replay.of("ollama", tags=TAGS_WITH_COPY, ps=PS_MINILM) as engine:
        replicas = await survey(http, engine)

    states = {name: replica.residency for name, replica in replicas.items()}
    assert states["copied:latest"] == states["all-minilm:latest"] == "resident"
    assert states["smollm2:135m"] == "disk"


async def test_vision_is_told(http: Http) -> None:
    async with Replay.of("ollama") as engine:
        assert (await survey(http, engine))["smolvl:135m"].capabilities == ("completion", "vision")


async def test_capabilities_that_herd_has_no_word_for_are_left_out(http: Http) -> None:
    listed = row(capabilities=["completion", "audio", "telepathy"], details={"context_length": 9})
    async with Replay.of("ollama") as engine:
        engine.replies |= tags(listed)
        assert (await survey(http, engine))["old:1b"].capabilities == (
            "completion",
            "transcription",
        )


async def test_an_old_row_is_completed_by_show(http: Http) -> None:
    async with Replay.of("ollama") as engine:
        engine.replies |= tags(row())
        engine.replies["POST /api/show"] = recorded(recording("ollama")[SHOW_SMOLLM2])
        replica = (await survey(http, engine))["old:1b"]

    assert replica.context_length == 8192
    assert replica.parameters == 134515008
    assert replica.capabilities == ("completion",)


async def test_show_is_asked_once_for_a_digest(http: Http) -> None:
    cache = SurveyCache()
    async with Replay.of("ollama") as engine:
        engine.replies |= tags(row(), row(name="alias:1b"))
        engine.replies["POST /api/show"] = recorded(recording("ollama")[SHOW_SMOLLM2])
        first = await survey(http, engine, cache)
        second = await survey(http, engine, cache)

        assert engine.lines().count("POST /api/show") == 1
    assert first == second
    assert second["alias:1b"].context_length == 8192


async def test_show_is_asked_again_when_the_model_behind_a_name_changes(http: Http) -> None:
    cache = SurveyCache()
    async with Replay.of("ollama") as engine:
        engine.replies["POST /api/show"] = recorded(recording("ollama")[SHOW_SMOLLM2])
        for digest in ("d1", "d2", "d1"):
            engine.replies |= tags(row(digest=digest))
            await survey(http, engine, cache)

        assert engine.lines().count("POST /api/show") == 3


async def test_a_model_deleted_since_it_was_listed_keeps_what_its_row_told(http: Http) -> None:
    cache = SurveyCache()
    async with Replay.of("ollama") as engine:
        engine.replies |= tags(row())
        engine.replies["POST /api/show"] = json_reply({"error": "model 'old:1b' not found"}, 404)
        replica = (await survey(http, engine, cache))["old:1b"]

    assert (replica.size, replica.parameters, replica.context_length) == (7, 134_520_000, 0)
    assert cache.get("d1") is None


@pytest.mark.parametrize(
    ("show", "expected"),
    [
        ({"details": {"families": ["nomic-bert"]}}, ("embedding",)),
        ({"template": "{{ if .Tools }}x{{ end }}"}, ("completion", "tools")),
        ({"projector_info": {"a": 1}}, ("completion", "vision")),
        ({"details": {"families": ["llama", "clip"]}}, ("completion", "vision")),
        (
            {"model_info": {"x.context_length": "wide", "general.parameter_count": -1}},
            ("completion",),
        ),
        ({"model_info": None, "capabilities": ["tools", "thinking"]}, ("tools", "thinking")),
    ],
)
async def test_what_older_releases_show_is_enough(
    http: Http, show: dict[str, Any], expected: tuple[str, ...]
) -> None:
    async with Replay.of("ollama") as engine:
        engine.replies |= tags(row())
        engine.replies["POST /api/show"] = json_reply(show)
        replica = (await survey(http, engine))["old:1b"]

    assert replica.capabilities == expected
    assert (replica.context_length, replica.parameters) == (0, 134_520_000)


async def test_a_model_in_the_cloud_needs_no_loading(http: Http) -> None:
    async with Replay.of("ollama") as engine:
        engine.replies |= tags(row(remote_host="https://ollama.com:443", capabilities=["tools"]))
        assert (await survey(http, engine))["old:1b"].residency == "resident"


async def test_an_engine_without_models_is_fine(http: Http) -> None:
    async with Replay.of("ollama") as engine:
        engine.replies["GET /api/tags"] = json_reply({"models": None})
        engine.replies["GET /api/ps"] = json_reply({"models": None})
        assert await survey(http, engine) == {}


async def test_an_engine_that_dies_between_two_questions_is_down(http: Http) -> None:
    async with Replay.of("ollama") as engine:
        engine.replies = {"GET /api/version": engine.replies["GET /api/version"]}
        engine.default = None
        with pytest.raises(EngineError, match="/api/tags"):
            await Ollama().survey(http, engine.url)


async def test_a_negative_size_is_not_believed(http: Http) -> None:
    async with Replay.of("ollama") as engine:
        engine.replies |= tags(row(size=-1))
        with pytest.raises(EngineError, match="row of another shape"):
            await Ollama().survey(http, engine.url)


async def test_a_server_that_only_imitates_the_version_is_not_ollama(http: Http) -> None:
    async with Replay({"GET /api/version": json_reply({"version": "1"})}) as engine:
        engine.default = json_reply({"hello": 1})
        assert not await Ollama().detect(http, engine.url)
