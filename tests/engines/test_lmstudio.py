"""LM Studio's adapter, against answers made after its documentation; there is no recording."""

from __future__ import annotations

from typing import Any

from devtools.replay import Replay, Reply, json_reply
from herd.core.fleet import Replica
from herd.engines.http import Http
from herd.engines.lmstudio import LmStudio

UNKNOWN = json_reply({"error": "Unexpected endpoint or method. (GET /). Returning 200 anyway"})


def row(name: str, kind: str, state: str, **more: int) -> dict[str, Any]:
    about = {"object": "model", "publisher": "p", "arch": "a", "quantization": "4bit"}
    return about | {"id": name, "type": kind, "state": state, "max_context_length": 32768} | more


ROWS = [
    row("qwen2-vl-7b-instruct", "vlm", "not-loaded"),
    row("meta-llama-3.1-8b-instruct", "llm", "loaded", loaded_context_length=4096),
    row("meta-llama-3.1-8b-instruct:2", "llm", "loading"),
    row("text-embedding-nomic", "embeddings", "not-loaded"),
    row("from-the-future", "robot", "not-loaded"),
]
V0: dict[str, Reply] = {"GET /api/v0/models": json_reply({"object": "list", "data": ROWS})}
V1 = json_reply(
    {
        "models": [
            {
                "key": "meta-llama-3.1-8b-instruct",
                "size_bytes": 4_900_000_000,
                "params_string": "8B",
                "loaded_instances": [
                    {"id": "meta-llama-3.1-8b-instruct", "config": {"parallel": 4}},
                ],
            },
            {"key": "qwen2-vl-7b-instruct", "params_string": None},
        ]
    }
)


async def survey(http: Http, engine: Replay) -> dict[str, Replica]:
    found = await LmStudio().survey(http, engine.url)
    return {replica.name: replica for replica in found.replicas}


async def test_states_and_contexts_are_told(http: Http) -> None:
    async with Replay(V0, UNKNOWN) as engine:
        replicas = await survey(http, engine)

    assert [r.residency for r in replicas.values()] == [
        "disk",
        "resident",
        "loading",
        "disk",
        "disk",
    ]
    llama = replicas["meta-llama-3.1-8b-instruct"]
    assert (llama.model, llama.context_length, llama.loaded_context, llama.slots) == (
        "meta-llama-3.1-8b-instruct:latest",
        32768,
        4096,
        1,
    )


async def test_the_type_tells_what_a_model_can_do(http: Http) -> None:
    async with Replay(V0, UNKNOWN) as engine:
        replicas = await survey(http, engine)

    assert [r.capabilities for r in replicas.values()] == [
        ("completion", "tools", "vision"),
        ("completion", "tools"),
        ("completion", "tools"),
        ("embedding",),
        (),
    ]


async def test_newer_releases_tell_size_parameters_and_slots(http: Http) -> None:
    async with Replay(V0 | {"GET /api/v1/models": V1}, UNKNOWN) as engine:
        replicas = await survey(http, engine)

    llama = replicas["meta-llama-3.1-8b-instruct"]
    assert (llama.size, llama.parameters, llama.slots) == (4_900_000_000, 8 * 10**9, 4)
    second = replicas["meta-llama-3.1-8b-instruct:2"]
    assert (second.size, second.slots) == (4_900_000_000, 1)
    assert replicas["qwen2-vl-7b-instruct"].parameters == 0


async def test_an_error_with_status_200_is_not_a_listing(http: Http) -> None:
    async with Replay({}, UNKNOWN) as engine:
        assert not await LmStudio().detect(http, engine.url)
