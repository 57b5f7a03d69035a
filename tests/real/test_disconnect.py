"""A client that hangs up frees its slot on the engine: while it waits, in prefill and in decode.

llama-server looks for clients that left when it has a token for them, and otherwise once a second
has passed without any result for anyone; an answer about its slots is a result too. So how soon a
slot is free is measured directly first, and the router may add to it what it causes itself: one of
its own questions within that second.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from time import monotonic
from typing import Any, Literal

import pytest
from msgspec import Struct

from devtools.engines import MODEL, LlamaServer
from devtools.processes import RouterProcess
from herd.ops.clock import unix_clock
from tests.real.support import (
    ENDLESS,
    LONG_PROMPT,
    REPEATABLE,
    SMALL_BITES,
    Asking,
    asking,
    node_of,
    router_over,
    until,
)

pytestmark = pytest.mark.real

wall_clock = unix_clock()

#: One for each dialect.
SLOTS = 3
#: In seconds: what the owner is promised where the engine notices at once.
PROMISE = 1.0
#: llama-server's second without a result, which a question of the router's may begin anew.
SURVEY = 1.0
#: A bite of the prompt that is being worked on, and other processes on the machine.
SLACK = 1.0

Stage = Literal["prefill", "decode"]
PATHS = {
    "openai": "/v1/chat/completions",
    "ollama": "/api/chat",
    "anthropic": "/v1/messages",
}
#: As engines without Ollama's dialect are asked.
NATIVE = {**PATHS, "ollama": "/v1/chat/completions"}


class Site(Struct, frozen=True):
    """An engine and the router over it."""

    engine: LlamaServer
    router: RouterProcess


class Client:
    """A client on a bare socket, which can hang up at any moment."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def first_byte(self) -> None:
        assert await self._reader.readexactly(1)

    async def hang_up(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


async def ask(port: int, path: str, *, prompt: str, stream: bool) -> Client:
    """Ask for an answer that takes far longer than any test."""
    fields: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": prompt}],
        "stream": stream,
    }
    if path.startswith("/api/"):
        fields["options"] = {"num_predict": 1000}
    else:
        fields["max_tokens"] = 1000
    body = json.dumps(fields).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
    return Client(reader, writer)


async def ask_in_all_dialects(
    port: int, stage: Stage, *, stream: bool, paths: dict[str, str]
) -> list[Client]:
    prompt = LONG_PROMPT if stage == "prefill" else "Tell me everything."
    return [await ask(port, path, prompt=prompt, stream=stream) for path in paths.values()]


@pytest.fixture(scope="module")
def site(llama: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("disconnect")
    extra = (*ENDLESS, *SMALL_BITES, *REPEATABLE)
    engine = LlamaServer(folder / "engine.log", slots=SLOTS, context=2048, extra=extra)
    with engine, router_over(folder, [engine]) as router:
        yield Site(engine, router)


@pytest.fixture
async def asked(site: Site) -> AsyncIterator[Asking]:
    """A session, while nothing runs."""
    async with asking(site.router) as session:
        await idle(session, site)
        yield session
        await idle(session, site)


async def slots(asked: Asking, site: Site) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = await asked.get(f"{site.engine.url}/slots")
    return found


def freed(site: Site) -> int:
    """How many slots were freed so far, by the engine's log: reading it does not disturb."""
    return site.engine.log.read_text(errors="replace").count("stop processing")


async def idle(asked: Asking, site: Site) -> None:
    """Wait until neither the router nor the engine has anything left."""

    async def nothing_runs() -> bool:
        return not await asked.open_requests()

    await until(nothing_runs, "an idle router")
    await until(lambda: all_free(asked, site), "free slots")


async def all_free(asked: Asking, site: Site) -> bool:
    return not any(slot["is_processing"] for slot in await slots(asked, site))


async def decoded(asked: Asking, site: Site) -> list[int]:
    """How many tokens each slot of the engine says that it has decoded."""
    return [
        slot["next_token"][0]["n_decoded"] if "next_token" in slot else 0
        for slot in await slots(asked, site)
    ]


async def occupy(
    asked: Asking, site: Site, port: int, stage: Stage, *, stream: bool, paths: dict[str, str]
) -> list[Client]:
    """Ask in all dialects, and wait until every slot of the engine has work at this stage.

    A slot whose turn to read its prompt has not come yet still has the count of its last answer.
    """
    old = await decoded(asked, site)
    clients = await ask_in_all_dialects(port, stage, stream=stream, paths=paths)

    async def there() -> bool:
        busy = [slot["is_processing"] for slot in await slots(asked, site)]
        counts = zip(await decoded(asked, site), old, strict=True)
        begun = [count not in {0, before} for count, before in counts]
        return all(busy) and (all(begun) if stage == "decode" else not any(begun))

    await until(there, f"{SLOTS} requests in {stage}")
    return clients


class Leaving(Struct, frozen=True):
    """Clients that left, by the wall clock, and in how many seconds the engine was free."""

    at: float
    took: float


async def leave(asked: Asking, site: Site, clients: list[Client]) -> Leaving:
    """Let all clients hang up and wait until the engine says that it has freed their slots."""
    before, at, began = freed(site), wall_clock(), monotonic()
    for client in clients:
        await client.hang_up()

    async def all_freed() -> bool:
        return freed(site) >= before + len(clients)

    await until(all_freed, "free slots")
    took = monotonic() - began
    assert await all_free(asked, site)
    return Leaving(at, took)


async def requests_in(asked: Asking, state: str, count: int) -> list[str]:
    """Wait for so many requests in this state in the router; return their ids."""
    found: list[str] = []

    async def there() -> bool:
        fleet = await asked.open_requests()
        found[:] = [entry["id"] for entry in fleet if entry["state"] == state]
        return len(found) == count

    await until(there, f"{count} requests that are {state}")
    return found


async def outcomes_of(asked: Asking, requests: list[str]) -> list[dict[str, Any]]:
    """Wait until all of them have ended."""
    found: list[dict[str, Any]] = []

    async def there() -> bool:
        ended = [await asked.outcome(request) for request in requests]
        found[:] = [outcome for outcome in ended if outcome is not None]
        return len(found) == len(requests)

    await until(there, "outcomes")
    return found


async def test_one_who_leaves_the_queue_never_reaches_the_engine(site: Site, asked: Asking) -> None:
    port = site.router.port
    holders = await ask_in_all_dialects(port, "decode", stream=True, paths=PATHS)
    held = await requests_in(asked, "streaming", SLOTS)
    at_work = {slot["id_task"] for slot in await slots(asked, site)}
    clients = [
        *await ask_in_all_dialects(port, "decode", stream=True, paths=PATHS),
        *await ask_in_all_dialects(port, "decode", stream=False, paths=PATHS),
    ]
    waiting = await requests_in(asked, "waiting", len(clients))

    began = monotonic()
    for client in clients:
        await client.hang_up()
    outcomes = await outcomes_of(asked, waiting)
    took = monotonic() - began
    for holder in holders:
        await holder.hang_up()
    await idle(asked, site)

    assert took < PROMISE
    assert [outcome["ending"] for outcome in outcomes] == ["cancelled"] * len(clients)
    assert not any("attempts" in outcome for outcome in outcomes)
    assert {slot["id_task"] for slot in await slots(asked, site)} == at_work
    assert {o["ending"] for o in await outcomes_of(asked, held)} == {"cancelled"}


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_one_who_leaves_in_prefill_frees_the_slot(
    site: Site, asked: Asking, stream: bool
) -> None:
    """As soon as if it had left the engine itself; the router knows at once."""
    direct = await direct_control(site, asked, "prefill", stream=stream)

    clients = await occupy(asked, site, site.router.port, "prefill", stream=stream, paths=PATHS)
    requests = await requests_in(asked, "running", SLOTS)
    left = await leave(asked, site, clients)

    assert left.took < direct + SURVEY + SLACK
    await check_cancelled(asked, site, requests, left)


async def test_one_who_leaves_a_stream_frees_the_slot(site: Site, asked: Asking) -> None:
    clients = await ask_in_all_dialects(site.router.port, "decode", stream=True, paths=PATHS)
    for client in clients:
        await client.first_byte()
    requests = await requests_in(asked, "streaming", SLOTS)
    left = await leave(asked, site, clients)

    assert left.took < PROMISE
    await check_cancelled(asked, site, requests, left)


async def test_one_who_leaves_while_a_whole_answer_is_made_frees_the_slot(
    site: Site, asked: Asking
) -> None:
    """As soon as if it had left the engine itself."""
    direct = await direct_control(site, asked, "decode", stream=False)

    clients = await occupy(asked, site, site.router.port, "decode", stream=False, paths=PATHS)
    requests = await requests_in(asked, "running", SLOTS)
    left = await leave(asked, site, clients)

    assert left.took < direct + SURVEY + SLACK
    await check_cancelled(asked, site, requests, left)


async def direct_control(site: Site, asked: Asking, stage: Stage, *, stream: bool) -> float:
    """How soon the engine notices on its own connections that clients have left."""
    clients = await occupy(asked, site, site.engine.port, stage, stream=stream, paths=NATIVE)
    return (await leave(asked, site, clients)).took


async def check_cancelled(asked: Asking, site: Site, requests: list[str], left: Leaving) -> None:
    """The router has recorded, at once, that their clients left."""
    outcomes = await outcomes_of(asked, requests)
    assert {outcome["request"]["dialect"] for outcome in outcomes} == set(PATHS)
    assert [outcome["ending"] for outcome in outcomes] == ["cancelled"] * len(requests)
    for outcome in outcomes:
        (attempt,) = outcome["attempts"]
        assert attempt["replica"]["node"] == node_of(site.engine)
        assert attempt["ending"] == "cancelled"
        assert outcome["ended"] - left.at < PROMISE
