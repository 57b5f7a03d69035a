"""One look at an engine, as a report."""

from __future__ import annotations

from devtools.replay import Replay, json_reply
from herd.core.fleet import EngineReport, Replica
from herd.engines.adapter import SurveyCache
from herd.engines.http import Http
from herd.engines.ollama import Ollama
from herd.engines.survey import survey_engine
from herd.engines.vllm import Vllm


async def report(
    http: Http, engine: Replay, slots: int | None = None, cache: SurveyCache | None = None
) -> EngineReport:
    return await survey_engine(
        http,
        Ollama(),
        engine.url,
        engine_id="ollama-11434",
        public_url="https://door:1/e",
        slots=slots,
        cache=cache,
    )


async def test_a_living_engine_is_reported_as_it_is(http: Http) -> None:
    async with Replay.of("ollama") as engine:
        found = await report(http, engine)

    assert (found.id, found.kind, found.url) == ("ollama-11434", "ollama", "https://door:1/e")
    assert (found.up, found.error, found.version) == (True, "", "0.33.0-rc2")
    assert [replica.name for replica in found.replicas] == [
        "smolvl:135m",
        "smollm2:135m",
        "all-minilm:latest",
    ]


async def test_the_queue_is_reported(http: Http) -> None:
    async with Replay.of("vllm") as engine:
        found = await survey_engine(
            http, Vllm(), engine.url, engine_id="vllm-8000", public_url=engine.url
        )

    assert (found.running, found.waiting) == (0, 0)


async def test_slots_can_be_overruled(http: Http) -> None:
    async with Replay.of("ollama") as engine:
        found = await report(http, engine, slots=4)

    assert {replica.slots for replica in found.replicas} == {4}


async def test_a_dead_engine_is_down_for_a_reason_and_keeps_nothing(http: Http) -> None:
    cache = SurveyCache()
    cache.put("d", Replica(model="m:latest", name="m"))
    async with Replay() as engine:
        found = await report(http, engine, cache=cache)

    assert (found.up, found.replicas, found.version) == (False, (), "")
    assert engine.url in found.error
    assert cache.get("d") is None


async def test_an_engine_that_answers_nonsense_is_down(http: Http) -> None:
    async with Replay.of("ollama") as engine:
        engine.replies["GET /api/ps"] = json_reply({"models": 7})
        found = await report(http, engine)

    assert not found.up
    assert "/api/ps" in found.error
