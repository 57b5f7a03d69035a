"""What the scheduler says of a model's stay in memory reaches the engine, and the client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from devtools.testbed import CHAT, EMBEDDER, Testbed
from herd.core.actions import Action, Dispatch, Stay
from herd.core.events import Event
from tests.gateway.bodies import EMBEDDING, ENDPOINTS, body

BOTH = Stay(context=2048, keep_alive=3600.0)
OLLAMAS = [path for path in ENDPOINTS if path.startswith("/api/")]
OTHERS = [path for path in ENDPOINTS if path.startswith("/v1/")]


def say(bed: Testbed, stay: Stay) -> None:
    """Let the scheduler say this with every dispatch, whatever it would have said."""
    scheduler = bed.router.driver.scheduler
    handle: Callable[[Event, float], list[Action]] = scheduler.handle

    def told(event: Event, now: float) -> list[Action]:
        actions = handle(event, now)
        return [structs.replace(a, stay=stay) if isinstance(a, Dispatch) else a for a in actions]

    scheduler.handle = told  # type: ignore[method-assign]


async def post(bed: Testbed, path: str, sent: bytes) -> dict[str, str]:
    async with bed.http.post(path, data=sent) as response:
        await response.read()
        assert response.status == 200
        return dict(response.headers)


@pytest.mark.parametrize("path", OLLAMAS)
async def test_the_request_says_it_and_the_client_is_told(bed: Testbed, path: str) -> None:
    engine = await bed.add()
    say(bed, BOTH)
    sent = json.dumps(body(path, stream=False, x=1.50), indent=1).encode()
    headers = await post(bed, path, sent)
    assert (headers["Herd-Context"], headers["Herd-Keep-Alive"]) == ("2048", "3600")
    [traffic] = engine.tap.on(path)
    more = b',"keep_alive":3600,"options":{"num_ctx":2048}\n}'
    assert traffic.request.body == sent.removesuffix(b"\n}") + more
    [resident] = engine.server.engine.residents()
    assert resident.model == (EMBEDDER if path in EMBEDDING else CHAT)
    assert resident.context == 2048


@pytest.mark.parametrize("path", OTHERS)
async def test_a_request_without_words_for_it_stays_as_it_came(bed: Testbed, path: str) -> None:
    engine = await bed.add()
    say(bed, BOTH)
    sent = json.dumps(body(path, stream=False)).encode()
    headers = await post(bed, path, sent)
    assert [name for name in headers if name in {"Herd-Context", "Herd-Keep-Alive"}] == []
    assert engine.tap.on(path)[0].request.body == sent


async def test_nothing_said_leaves_the_request_and_the_headers_alone(bed: Testbed) -> None:
    engine = await bed.add()
    sent = b'{"model" : "%s", "prompt":"hi", "stream":false}' % CHAT.encode()
    headers = await post(bed, "/api/generate", sent)
    assert "Herd-Context" not in headers
    assert engine.tap.on("/api/generate")[0].request.body == sent


async def test_the_clients_own_keep_alive_is_not_touched(bed: Testbed) -> None:
    engine = await bed.add()
    say(bed, BOTH)
    headers = await post(bed, "/api/chat", ask(keep_alive="10m"))
    assert (headers["Herd-Context"], "Herd-Keep-Alive" in headers) == ("2048", False)
    received = json.loads(engine.tap.on("/api/chat")[0].request.body)
    assert (received["keep_alive"], received["options"]) == ("10m", {"num_ctx": 2048})


async def test_a_request_to_unload_a_model_stays_one(ruling: Testbed) -> None:
    engine = await ruling.add()
    say(ruling, BOTH)
    sent = b'{"model":"%s","keep_alive":0}' % CHAT.encode()
    headers = await post(ruling, "/api/generate", sent)
    assert "Herd-Keep-Alive" not in headers
    assert engine.tap.on("/api/generate")[0].request.body == sent


async def test_the_owner_may_let_placement_overrule_the_client(ruling: Testbed) -> None:
    engine = await ruling.add()
    say(ruling, BOTH)
    headers = await post(ruling, "/api/chat", ask(keep_alive=0))
    assert headers["Herd-Keep-Alive"] == "3600"
    assert json.loads(engine.tap.on("/api/chat")[0].request.body)["keep_alive"] == 3600


def ask(**changes: Any) -> bytes:
    return json.dumps(body("/api/chat", stream=False, **changes)).encode()


@pytest.fixture
async def ruling(tmp_path: Path) -> AsyncIterator[Testbed]:
    """A router whose owner lets it decide how long models stay."""
    async with Testbed(tmp_path, keep_alive="herd") as bed:
        yield bed
