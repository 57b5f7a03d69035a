"""Two hundred mixed requests through the router are answered as the engines answer directly.

All dialects, streamed and whole, eight at a time on two llama-servers with two slots each.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import anthropic
import ollama
import openai
import pytest
from msgspec import Struct

from devtools.engines import LlamaServer
from devtools.processes import RouterProcess
from herd.core.budget import HEDGE_FLOOR, HEDGE_SHARE, WINDOW
from tests.real.support import REPEATABLE, SHORT_TEMPLATE, Asking, asking, node_of, router_over
from tests.real.ways import DIRECT, KINDS, PROMPTS, Clients, Kind, Reference, fetch

pytestmark = pytest.mark.real

WORKERS = 8
REQUESTS = len(KINDS) * len(PROMPTS)


class Run(Struct):
    """What came of it all."""

    #: By kind: each prompt, what came, and what should have come.
    answers: dict[str, list[tuple[str, Any, Any]]]
    #: The store's rows afterwards, and all that is known of those with more than one attempt.
    outcomes: list[dict[str, Any]]
    twice: list[dict[str, Any] | None]
    #: Nodes that can chat alone, and that can embed too.
    chats: str
    embeds: str
    #: By prompt and direct request: what the engine itself says, for counts of tokens.
    references: dict[tuple[str, str], Reference]


@pytest.fixture(scope="module")
def run(llama: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Ask the engines directly, then everything through the router."""
    folder = tmp_path_factory.mktemp("fidelity")
    extra = [*REPEATABLE, *SHORT_TEMPLATE]
    embeds = LlamaServer(folder / "embeds.log", slots=2, context=512, embeddings=True, extra=extra)
    chats = LlamaServer(folder / "chats.log", slots=2, context=512, extra=extra)
    with embeds, chats:
        references = asyncio.run(ask_directly(embeds, chats))
        with router_over(folder, [embeds, chats]) as router:
            answers, outcomes, twice = asyncio.run(ask_the_router(router, references))
    return Run(answers, outcomes, twice, node_of(chats), node_of(embeds), references)


async def ask_directly(embeds: LlamaServer, chats: LlamaServer) -> dict[tuple[str, str], Reference]:
    """Ask each engine its half, one request at a time."""
    found: dict[tuple[str, str], Reference] = {}

    async def half(engine: LlamaServer, names: list[str]) -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as own:
            for name in names:
                for prompt in PROMPTS:
                    request = DIRECT[name]
                    answer = await fetch(own, engine.url + request.path, request.body(prompt))
                    assert answer.status == 200, answer.body
                    found[name, prompt] = answer

    names = [name for name in DIRECT if name != "embedding"]
    await asyncio.gather(half(embeds, ["embedding", *names[::2]]), half(chats, names[1::2]))
    return found


async def ask_the_router(
    router: RouterProcess, references: dict[tuple[str, str], Reference]
) -> tuple[
    dict[str, list[tuple[str, Any, Any]]], list[dict[str, Any]], list[dict[str, Any] | None]
]:
    """Let the workers put all requests, in an order without a pattern."""
    answers: dict[str, list[tuple[str, Any, Any]]] = {name: [] for name in KINDS}
    todo = [(name, prompt) for name in KINDS for prompt in PROMPTS]
    random.Random(1).shuffle(todo)
    async with AsyncExitStack() as stack:
        asked = await stack.enter_async_context(asking(router))
        clients = await clients_of(asked, stack)

        # llama-server gives a text another vector where it embeds a second one beside it.
        alone = asyncio.Lock()

        async def work() -> None:
            while todo:
                name, prompt = todo.pop()
                kind = KINDS[name]
                expected = kind.expected(references[kind.direct, prompt])
                async with alone if kind.embeds else contextlib.nullcontext():
                    came = await kind.ask(clients, prompt)
                answers[name].append((prompt, came, expected))

        await asyncio.gather(*(work() for _ in range(WORKERS)))
        outcomes = await asked.kept(REQUESTS)
        twice = [await asked.outcome(row["id"]) for row in outcomes if row["attempts"] > 1]
    return answers, outcomes, twice


async def clients_of(asked: Asking, stack: AsyncExitStack) -> Clients:
    url = asked.router.url
    clients = Clients(
        session=asked.session,
        url=url,
        openai=openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0),
        anthropic=anthropic.AsyncAnthropic(base_url=url, api_key="any", max_retries=0),
        ollama=ollama.AsyncClient(url),
    )
    stack.push_async_callback(clients.openai.close)
    stack.push_async_callback(clients.anthropic.close)
    stack.push_async_callback(clients.ollama.close)
    return clients


def test_there_are_200_requests() -> None:
    assert REQUESTS == 200


@pytest.mark.parametrize("name", KINDS)
def test_the_answer_is_the_engines_own(run: Run, name: str) -> None:
    """For each prompt, apart from ids and times."""
    assert len(run.answers[name]) == len(PROMPTS)
    for prompt, came, expected in run.answers[name]:
        assert came == expected, prompt


def test_each_request_completed_once(run: Run) -> None:
    assert Counter(row["ending"] for row in run.outcomes) == {"completed": REQUESTS}
    assert len({row["id"] for row in run.outcomes}) == REQUESTS


def test_nothing_failed_and_only_what_was_late_was_asked_twice(run: Run) -> None:
    """On a machine that stalls, a short answer in one piece is late at times; one attempt wins."""
    for outcome in run.twice:
        assert outcome is not None
        assert not outcome["request"].get("stream")
        endings = sorted(attempt["ending"] for attempt in outcome["attempts"])
        assert endings == ["cancelled", "completed"]
    arrivals = [row["arrived"] for row in run.outcomes]
    seconds = WINDOW + max(arrivals) - min(arrivals)
    assert len(run.twice) <= HEDGE_FLOOR * seconds + HEDGE_SHARE * REQUESTS


def test_each_is_recorded_in_the_dialect_it_was_asked_in(run: Run) -> None:
    asked = Counter(kind.dialect for kind in KINDS.values() for _ in PROMPTS)

    assert Counter(row["dialect"] for row in run.outcomes) == asked


def test_both_engines_had_a_share(run: Run) -> None:
    """A quarter at least of what both can do; and only one of them can embed."""
    by_node = Counter(row["node"] for row in run.outcomes if row["operation"] != "embedding")
    assert set(by_node) == {run.chats, run.embeds}
    assert min(by_node.values()) >= sum(by_node.values()) / 4
    assert {row["node"] for row in run.outcomes if row["operation"] == "embedding"} == {run.embeds}


def test_the_engines_counts_of_tokens_are_recorded(run: Run) -> None:
    """Whether or not the client asked for them."""
    told: Counter[tuple[int, int | None]] = Counter()
    for kind in KINDS.values():
        for prompt in PROMPTS:
            told[counts(run, kind, prompt)] += 1

    recorded = Counter((row["prompt_tokens"], row["completion_tokens"]) for row in run.outcomes)

    assert recorded == told


def counts(run: Run, kind: Kind, prompt: str) -> tuple[int, int | None]:
    """Prompt and completion tokens, as the engine itself counts them in a whole answer."""
    if kind.embeds:
        usage = run.references["embedding", prompt].whole()["usage"]
        return usage["prompt_tokens"], None
    name = {"chat-logprobs": "chat", "messages": "chat", "messages-stream": "chat"}.get(
        kind.direct, kind.direct.removesuffix("-stream")
    )
    usage = run.references[name, prompt].whole()["usage"]
    return usage["prompt_tokens"], usage["completion_tokens"]
