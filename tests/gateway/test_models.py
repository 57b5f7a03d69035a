"""The owner's orders to load models and let them go."""

from __future__ import annotations

from typing import Any

import pytest

from devtools.testbed import CHAT, EMBEDDER, Testbed, until
from tests.gateway.test_openapi import check

LOAD, UNLOAD = "/herd/v1/models/{model}/load", "/herd/v1/models/{model}/unload"


def on(path: str, model: str = CHAT) -> str:
    return path.format(model=model)


@pytest.mark.parametrize("model", [CHAT, EMBEDDER, "LLAMA3.2:3B", "library/llama3.2:3b"])
async def test_a_model_is_loaded_and_let_go(bed: Testbed, model: str) -> None:
    engine = await bed.add("box")
    wanted = {"node": "box", "context": 2048, "keep_alive": -1}
    answer = await bed.ask(on(LOAD, model), wanted)
    assert answer.status == 202
    known = EMBEDDER if model == EMBEDDER else CHAT
    assert (answer.json()["node"], answer.json()["model"]) == (engine.node, known)
    check(answer.json(), LOAD, status=202, method="post")
    await until(lambda: [r for r in engine.server.engine.residents() if not r.loading], "the load")
    [resident] = engine.server.engine.residents()
    assert (resident.model, resident.context, resident.keep_alive) == (known, 2048, -1.0)
    answer = await bed.ask(on(UNLOAD, model), {"node": engine.node})
    assert answer.status == 202
    check(answer.json(), UNLOAD, status=202, method="post")
    await until(lambda: not engine.server.engine.residents(), "the unload")


async def test_no_more_than_a_node_is_needed(bed: Testbed) -> None:
    engine = await bed.add("box")
    await bed.ask(on(LOAD), {"node": "box"})
    await until(lambda: engine.tap.on("/api/generate"), "the load")
    [traffic] = engine.tap.on("/api/generate")
    assert traffic.request.body == b'{"model":"%s","stream":false}' % CHAT.encode()


async def test_the_node_that_is_named_is_told(bed: Testbed) -> None:
    first, second = await bed.add("first"), await bed.add("second")
    await bed.ask(on(LOAD), {"node": "second"})
    await until(lambda: len(second.server.engine.residents()), "the load")
    assert not first.server.engine.residents()


@pytest.mark.parametrize("path", [LOAD, UNLOAD])
@pytest.mark.parametrize(
    ("model", "sent", "status"),
    [
        ("nope:1b", {"node": "box"}, 404),
        (CHAT, {"node": "elsewhere"}, 404),
        (CHAT, {}, 400),
        (CHAT, {"node": "box", "gpu": 1}, 400),
        (CHAT, [], 400),
    ],
)
async def test_what_cannot_be_is_refused(
    bed: Testbed, path: str, model: str, sent: Any, status: int
) -> None:
    await bed.add("box")
    answer = await bed.ask(on(path, model), sent)
    assert answer.status == status
    check(answer.json(), path, status=status, method="post")


@pytest.mark.parametrize("context", [0, -1, 1.5, "8k"])
async def test_a_context_is_a_number_of_tokens(bed: Testbed, context: Any) -> None:
    await bed.add("box")
    answer = await bed.ask(on(LOAD), {"node": "box", "context": context})
    assert answer.status == 400


async def test_an_engine_that_cannot_be_told_is_no_place_for_it(bed: Testbed) -> None:
    await bed.add("box", dialect="openai")
    answer = await bed.ask(on(LOAD), {"node": "box"})
    assert (answer.status, "vllm cannot" in answer.json()["error"]["message"]) == (400, True)


@pytest.mark.parametrize("path", [LOAD, UNLOAD])
async def test_a_stranger_orders_nothing(bed: Testbed, path: str) -> None:
    engine = await bed.add("box")
    before = len(engine.tap.on("/api/generate"))
    answer = await bed.ask(on(path), {"node": "box"}, headers={"Host": "evil.example"})
    assert answer.status == 403
    check(answer.json(), path, status=403, method="post")
    assert len(engine.tap.on("/api/generate")) == before
