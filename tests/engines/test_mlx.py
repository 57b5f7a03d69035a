"""MLX's adapter, held to answers recorded from a real one."""

from __future__ import annotations

import pytest

from devtools.replay import Replay, json_reply
from herd.core.fleet import Replica
from herd.engines.http import EngineError, Http
from herd.engines.mlx import Mlx


async def test_a_survey_tells_what_the_recorded_engine_has(http: Http) -> None:
    async with Replay.of("mlx") as engine:
        found = await Mlx().survey(http, engine.url)

    assert found.replicas == (
        Replica(
            model="smollm2-135m-hf:latest",
            name="/models/smollm2-135m-hf",
            capabilities=("completion", "tools"),
            listing=b'{"id": "/models/smollm2-135m-hf", "object": "model", "created": 1795428378}',
        ),
    )
    assert (found.version, found.running, found.waiting) == ("", None, None)


async def test_of_several_models_the_one_of_the_command_line_is_resident(http: Http) -> None:
    names = ["mlx-community/Qwen3-8B-4bit", "/models/smollm2", "mlx-community/gemma"]
    rows = [{"id": name, "object": "model", "created": 1} for name in names]
    async with Replay.of("mlx") as engine:
        engine.replies["GET /v1/models"] = json_reply({"object": "list", "data": rows})
        found = await Mlx().survey(http, engine.url)

    assert [r.residency for r in found.replicas] == ["disk", "resident", "disk"]


async def test_a_row_without_a_name_is_an_error(http: Http) -> None:
    async with Replay.of("mlx") as engine:
        engine.replies["GET /v1/models"] = json_reply({"object": "list", "data": [{"id": 1}]})
        with pytest.raises(EngineError, match="row of another shape"):
            await Mlx().survey(http, engine.url)


async def test_pythons_plain_server_alone_is_not_mlx(http: Http) -> None:
    owned = [{"id": "m", "object": "model", "created": 1, "owned_by": "me"}]
    async with Replay.of("mlx") as engine:
        engine.replies["GET /v1/models"] = json_reply({"object": "list", "data": owned})
        assert not await Mlx().detect(http, engine.url)
