"""One of two llama-servers is killed in the middle of fifty running streams of all dialects.

What had not begun to answer is answered completely by the other engine. What had begun ends in an
error that its client understands, and is never taken for complete. Each of them has one outcome.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal

import anthropic
import ollama
import openai
import pytest
from msgspec import Struct

from devtools.engines import MODEL, LlamaServer
from devtools.processes import RouterProcess
from tests.real.support import (
    ENDLESS,
    SHORT_TEMPLATE,
    SMALL_BITES,
    Asking,
    asking,
    node_of,
    router_over,
    until,
)

pytestmark = pytest.mark.real

STREAMS = 50
SLOTS = 6
TOKENS = 12
#: About 300 tokens: seconds of work before the first one of the answer.
LONG = " ".join(f"word{number}" for number in range(80))
#: Streams that must be in the engine and silent, and that must wait, when the engine is killed.
SILENT = 2
WAITING = 10
DEADLINE = 90.0

Dialect = Literal["openai", "ollama", "anthropic"]
DIALECTS: tuple[Dialect, ...] = ("openai", "ollama", "anthropic")
EXTRA = (*ENDLESS, *SMALL_BITES, *SHORT_TEMPLATE)


class Stream(Struct, frozen=True):
    """A streamed request."""

    dialect: Dialect
    path: str
    fields: dict[str, Any]


class Seen(Struct, frozen=True):
    """What the client of a stream got."""

    stream: Stream
    request: str
    status: int
    body: bytes


class Crash(Struct, frozen=True):
    """What clients saw, and what the router recorded, by request."""

    seen: dict[str, Seen]
    #: What the store has, by request, and its rows.
    outcomes: dict[str, dict[str, Any]]
    rows: list[dict[str, Any]]
    victim: str
    survivor: str
    #: Requests by their state in the last look before the kill; the first two on the victim.
    streaming: set[str]
    running: set[str]
    waiting: set[str]


def said(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def stream(number: int) -> Stream:
    """The number decides the dialect; of the first, which fill the slots, half begin late."""
    dialect = DIALECTS[number % 3]
    prompt = LONG if number < 2 * SLOTS and number // 2 % 2 else f"Tell me about {number}."
    limits = {"temperature": 0, "max_tokens": TOKENS}
    if dialect == "ollama":
        options = {"temperature": 0, "num_predict": TOKENS}
        return Stream(dialect, "/api/chat", {"messages": said(prompt), "options": options})
    path = "/v1/messages" if dialect == "anthropic" else "/v1/chat/completions"
    return Stream(dialect, path, {"messages": said(prompt), "stream": True} | limits)


@pytest.fixture(scope="module")
def crash(llama: None, tmp_path_factory: pytest.TempPathFactory) -> Crash:
    """Let it happen once; the tests look at what came of it."""
    folder = tmp_path_factory.mktemp("killed")
    engines = [
        LlamaServer(folder / f"{name}.log", slots=SLOTS, context=512, extra=EXTRA)
        for name in ("one", "two")
    ]
    with engines[0], engines[1], router_over(folder, engines) as router:
        return asyncio.run(let_it_happen(router, engines))


async def let_it_happen(router: RouterProcess, engines: list[LlamaServer]) -> Crash:
    async with asyncio.timeout(DEADLINE), asking(router) as asked, asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(asked, stream(number))) for number in range(STREAMS)]
        moment = await moment_of_mixture(asked, engines)
        moment.victim.kill()
        seen = [await task for task in tasks]
        rows = await asked.kept(STREAMS)
        outcomes = {one.request: await asked.outcome(one.request) for one in seen}
    survivor = next(engine for engine in engines if engine is not moment.victim)
    return Crash(
        seen={one.request: one for one in seen},
        outcomes={request: outcome for request, outcome in outcomes.items() if outcome},
        rows=rows,
        victim=node_of(moment.victim),
        survivor=node_of(survivor),
        streaming=moment.streaming,
        running=moment.running,
        waiting=moment.waiting,
    )


class Moment(Struct, frozen=True):
    """An engine with streams in all states."""

    victim: LlamaServer
    streaming: set[str]
    running: set[str]
    waiting: set[str]


async def moment_of_mixture(asked: Asking, engines: list[LlamaServer]) -> Moment:
    """Wait until an engine streams in all dialects, prefills, and enough others wait."""
    found: list[Moment] = []

    async def there() -> bool:
        fleet = await asked.open_requests()
        waiting = {entry["id"] for entry in fleet if entry["state"] == "waiting"}
        for engine in engines:
            here = [e for e in fleet if e["replica"] and e["replica"]["node"] == node_of(engine)]
            begun = [entry for entry in here if entry["state"] == "streaming"]
            silent = {entry["id"] for entry in here if entry["state"] == "running"}
            paths = {entry["endpoint"] for entry in begun}
            mixed = len(paths) == len(DIALECTS) and len(silent) >= SILENT
            if mixed and len(waiting) >= WAITING:
                found.append(Moment(engine, {e["id"] for e in begun}, silent, waiting))
                return True
        return False

    await until(there, "a moment at which one engine has streams in all states", within=60)
    return found[0]


async def run(asked: Asking, stream: Stream) -> Seen:
    """Read a stream to its end, whatever that is; a connection that breaks raises."""
    url = asked.router.url + stream.path
    async with asked.session.post(url, json={"model": MODEL} | stream.fields) as answer:
        body = await answer.read()
        return Seen(stream, answer.headers["Herd-Request-Id"], answer.status, body)


# How a stream ended for its client


def ending(seen: Seen) -> Literal["complete", "error"]:
    """Read it as strictly as a client could; what is neither whole nor an error fails the test."""
    return {"openai": openai_ending, "ollama": ollama_ending, "anthropic": anthropic_ending}[
        seen.stream.dialect
    ](seen.body)


def openai_ending(body: bytes) -> Literal["complete", "error"]:
    assert body.endswith(b"\n\n")
    frames = [frame.removeprefix(b"data: ") for frame in body[:-2].split(b"\n\n")]
    errors = [frame for frame in frames if frame != b"[DONE]" and "error" in json.loads(frame)]
    roles = [frame for frame in frames if b'"role":"assistant"' in frame]
    assert len(roles) == 1, "the answer must begin once"
    if frames[-1] == b"[DONE]":
        assert not errors
        assert json.loads(frames[-2])["timings"]["predicted_n"] == TOKENS
        return "complete"
    assert b"[DONE]" not in frames
    assert errors == frames[-1:]
    error = json.loads(errors[0])["error"]
    assert (error["type"], bool(error["message"])) == ("api_error", True)
    return "error"


def ollama_ending(body: bytes) -> Literal["complete", "error"]:
    assert body.endswith(b"\n")
    *lines, last = [json.loads(line) for line in body.splitlines()]
    assert all(line["done"] is False for line in lines)
    if "error" in last:
        assert list(last) == ["error"]
        assert last["error"]
        return "error"
    assert last["done"] is True
    assert last["eval_count"] == TOKENS
    return "complete"


def anthropic_ending(body: bytes) -> Literal["complete", "error"]:
    assert body.endswith(b"\n\n")
    frames = [frame.split(b"\n") for frame in body[:-2].split(b"\n\n")]
    events = [name.removeprefix(b"event: ").decode() for name, _ in frames]
    data = [json.loads(text.removeprefix(b"data: ")) for _, text in frames]
    assert [each["type"] for each in data] == events
    assert events.count("message_start") == 1, "the answer must begin once"
    if events[-1] == "message_stop":
        assert "error" not in events
        assert data[-2]["usage"]["output_tokens"] == TOKENS
        return "complete"
    assert "message_stop" not in events
    assert events.index("error") == len(events) - 1
    assert (data[-1]["error"]["type"], bool(data[-1]["error"]["message"])) == ("api_error", True)
    return "error"


def test_all_streams_end_in_an_answer_or_an_error(crash: Crash) -> None:
    assert len(crash.seen) == STREAMS
    assert {seen.status for seen in crash.seen.values()} == {200}
    assert {ending(seen) for seen in crash.seen.values()} == {"complete", "error"}


def test_each_stream_has_one_outcome_that_says_what_its_client_saw(crash: Crash) -> None:
    recorded = {"complete": "completed", "error": "failed"}
    expected = {request: recorded[ending(seen)] for request, seen in crash.seen.items()}

    assert {row["id"]: row["ending"] for row in crash.rows} == expected
    assert len(crash.rows) == STREAMS


def test_what_had_begun_on_the_victim_failed(crash: Crash) -> None:
    """In each dialect; and one that ended in the moment before the kill has completed there."""
    for request in crash.streaming:
        outcome = crash.outcomes[request]
        assert [attempt["replica"]["node"] for attempt in outcome["attempts"]] == [crash.victim]
    failed = [crash.outcomes[row["id"]] for row in crash.rows if row["ending"] == "failed"]
    assert {outcome["request"]["dialect"] for outcome in failed} == set(DIALECTS)
    for outcome in failed:
        (attempt,) = outcome["attempts"]
        assert attempt["replica"]["node"] == crash.victim
        assert attempt["first_frame"] is not None
        assert (attempt["ending"], attempt["failure"]["kind"]) == ("failed", "broken")


def test_what_was_dispatched_and_had_not_begun_was_answered_by_the_other(crash: Crash) -> None:
    retried = [request for request, o in crash.outcomes.items() if len(o["attempts"]) > 1]

    assert crash.running.intersection(retried)
    for request in retried:
        first, second = crash.outcomes[request]["attempts"]
        assert (first["replica"]["node"], first["ending"]) == (crash.victim, "failed")
        assert "first_frame" not in first
        assert (second["replica"]["node"], second["ending"]) == (crash.survivor, "completed")
        assert ending(crash.seen[request]) == "complete"


def test_what_waited_was_answered_by_the_other(crash: Crash) -> None:
    for request in crash.waiting:
        assert crash.outcomes[request]["ending"] == "completed"
        assert crash.outcomes[request]["attempts"][-1]["replica"]["node"] == crash.survivor


def test_only_what_the_victim_had_begun_was_lost(crash: Crash) -> None:
    endings = Counter(row["ending"] for row in crash.rows)

    assert endings["failed"] <= SLOTS
    assert endings["completed"] == STREAMS - endings["failed"]


# What the official clients make of it

Pieces = AsyncIterator[object]
PROMPT = said("Tell me everything.")


async def openai_pieces(url: str, stack: AsyncExitStack) -> Pieces:
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
    await stack.enter_async_context(client)
    messages: Any = PROMPT
    return await client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=400, stream=True
    )


async def ollama_pieces(url: str, stack: AsyncExitStack) -> Pieces:
    client = ollama.AsyncClient(url)
    stack.push_async_callback(client.close)
    return await client.chat(MODEL, PROMPT, options={"num_predict": 400}, stream=True)


async def anthropic_pieces(url: str, stack: AsyncExitStack) -> Pieces:
    client = anthropic.AsyncAnthropic(base_url=url, api_key="any", max_retries=0)
    await stack.enter_async_context(client)
    messages: Any = PROMPT
    return await client.messages.create(model=MODEL, messages=messages, max_tokens=400, stream=True)


CLIENTS: dict[type[Exception], Callable[[str, AsyncExitStack], Awaitable[Pieces]]] = {
    openai.APIError: openai_pieces,
    ollama.ResponseError: ollama_pieces,
    anthropic.APIStatusError: anthropic_pieces,
}


async def test_the_official_clients_raise_when_a_stream_dies(llama: None, tmp_path: Path) -> None:
    server = LlamaServer(tmp_path / "engine.log", slots=len(CLIENTS), context=512, extra=ENDLESS)
    begun: set[type[Exception]] = set()

    async def read(pieces: Pieces, error: type[Exception]) -> None:
        async for _ in pieces:
            begun.add(error)

    async def fail(url: str, error: type[Exception]) -> None:
        async with AsyncExitStack() as stack:
            pieces = await CLIENTS[error](url, stack)
            with pytest.raises(error, match="the engine closed the connection"):
                await read(pieces, error)

    async def all_have_begun() -> bool:
        return len(begun) == len(CLIENTS)

    with server, router_over(tmp_path, [server]) as router:
        async with asyncio.timeout(DEADLINE), asking(router) as asked:
            async with asyncio.TaskGroup() as group:
                for error in CLIENTS:
                    group.create_task(fail(router.url, error))
                await until(all_have_begun, "a piece for each client")
                server.kill()
            rows = await asked.kept(len(CLIENTS))

    assert [row["ending"] for row in rows] == ["failed"] * len(CLIENTS)
