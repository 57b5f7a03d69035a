"""What clients ask, hour by hour: sessions of turns, generated from a seed.

A workload is a set of sessions. A session's first turn comes at its start, each further one when
the turn before has been answered and its client has thought (closed loop within a session, open
loop between them). So a slow fleet is asked no less, only later, and what the clients of two
policies do is the same, request by request.

Sessions start at random moments of a span that is as long as the fleet, at the utilisation asked
for, needs for all of their work. Work is counted as in `capacity`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from herd.core.fleet import Capability
from herd.core.request import Operation, Prefix, Request
from herd.sim.capacity import span
from herd.sim.fleets import Fleet

#: Tokens of a hashed block of a prompt.
BLOCK = 128
#: The longest prompt; it leaves room for the answer in the context of `devices.CONTEXT`.
LONGEST = 28_000
#: Spread of the router's estimate of a prompt's tokens from its text, the same for a whole
#: session, which has one language and one kind of text.
ESTIMATE_SPREAD = 0.12

WorkName = Literal["chat", "agents", "rag", "batch", "mix"]
WORKS: tuple[WorkName, ...] = ("chat", "agents", "rag", "batch", "mix")


class Turn(Struct, frozen=True, kw_only=True):
    """One request of a session, with what only the engine will know."""

    request: Request
    prefix: Prefix
    #: Seconds from the end of the turn before.
    think: float
    #: True lengths. The prompt's is what the engine counts.
    prompt_tokens: int
    output_tokens: int
    #: Blocks that the answer adds to the conversation.
    produced: tuple[int, ...] = ()
    #: Tokens of the prompt that the session's turn before has left in a cache.
    shared: int = 0
    #: What engines know the prompt by in their caches, where that is not what the router has of it;
    #: `produced` goes with it.
    cached_as: Prefix | None = None


class Session(Struct, frozen=True):
    """Turns, one after the other."""

    start: float
    turns: tuple[Turn, ...]


class Workload(Struct, frozen=True):
    """Sessions in the order of their start."""

    name: str
    sessions: tuple[Session, ...]

    @property
    def requests(self) -> int:
        """Requests of all sessions."""
        return sum(len(session.turns) for session in self.sessions)


class Arrival(Struct, frozen=True):
    """A turn whose time has come. Policies see its request and prefix; the rest is the engine's."""

    at: float
    session: int
    number: int
    turn: Turn

    @property
    def request(self) -> Request:
        """What the client asks."""
        return self.turn.request


def generate(name: WorkName, fleet: Fleet, *, requests: int, load: float, seed: int) -> Workload:
    """Return about so many requests that use `load` (0 to 1) of the fleet's capacity."""
    draw = random.Random(f"{name}/{fleet.name}/{seed}")  # noqa: S311 - an experiment, no secret
    writer = _Writer(draw, fleet.models)
    bursts: list[list[list[Turn]]] = []
    count = 0
    while count < requests:
        burst = _SOURCES[name](writer, min(requests - count, requests // 8 + 1))
        count += sum(len(turns) for turns in burst)
        bursts.append(burst)
    turns = [turn for burst in bursts for turns in burst for turn in turns]
    length = span(fleet, turns) / load
    sessions = []
    for burst in bursts:
        start = draw.uniform(0.0, length)
        for number, turns in enumerate(burst):
            # The jobs of a burst are sent by a loop, not at one instant.
            sessions.append(Session(start + 0.02 * number, tuple(turns)))
    sessions.sort(key=lambda session: session.start)
    return Workload(name, tuple(sessions))


class _Client(Struct):
    """Somebody with habits: a system prompt, a verbosity, a favourite model."""

    name: str
    model: str
    system: int
    tokens: int
    verbosity: float


class _Writer:
    """Writes turns; keeps track of a conversation's blocks."""

    def __init__(self, draw: random.Random, models: tuple[str, ...]) -> None:
        self.draw = draw
        self.models = models
        self.clients: dict[str, list[_Client]] = {}
        self._requests = 0

    def lognormal(self, median: float, spread: float, least: float, most: float) -> int:
        """Draw an integer around a median."""
        value = self.draw.lognormvariate(math.log(median), spread)
        return round(min(most, max(least, value)))

    def client(self, kind: str, count: int, models: dict[str, float], system: float) -> _Client:
        """Return one of `count` clients of a kind; they are made at the first call.

        Models are given to them by their shares, not by lot: one more or less of the few who want
        the largest model would change the whole workload.
        """
        known = self.clients.setdefault(kind, [])
        if not known:
            for number in range(count):
                known.append(
                    _Client(
                        f"{kind}-{number + 1}",
                        self._by_share(models, (number + 0.5) / count),
                        self.draw.getrandbits(60),
                        self.lognormal(system, 0.4, 16, LONGEST / 2),
                        self.draw.lognormvariate(0.0, 0.4),
                    )
                )
        return self.draw.choice(known)

    def _by_share(self, models: dict[str, float], place: float) -> str:
        """Return the model at a place (0 to 1) among those that the fleet has."""
        here = {name: share for name, share in models.items() if name in self.models}
        if not here:
            raise ValueError(f"the fleet has none of the models asked for: {', '.join(models)}")
        left = place * sum(here.values())
        for name, share in here.items():
            left -= share
            if left <= 0.0:
                return name
        return next(reversed(here))

    def turn(
        self,
        talk: _Talk,
        *,
        operation: Operation = "chat",
        model: str = "",
        fresh: int,
        output: int,
        think: float,
        stream: bool = True,
        dialect: Literal["ollama", "openai"] = "ollama",
        patience: float | None = None,
    ) -> Turn:
        """Say `fresh` more tokens in a conversation and get `output` back."""
        self._requests += 1
        shared = talk.tokens
        talk.extend(fresh, self.draw.getrandbits(60))
        prompt, blocks = talk.tokens, tuple(talk.blocks)
        talk.extend(output, self.draw.getrandbits(60))
        needs: frozenset[Capability] = frozenset(
            {"embedding" if operation == "embedding" else "completion"}
        )
        asked = model or talk.client.model
        request = Request(
            id=f"r{self._requests}",
            dialect=dialect,
            operation=operation,
            endpoint=_ENDPOINTS[dialect, operation],
            asked=asked,
            model=asked,
            stream=stream,
            needs=needs,
            kinds=frozenset({"ollama", "vllm"}),
            prompt_tokens=max(1, round(prompt * talk.estimate)),
            client=talk.client.name,
            patience=patience,
        )
        return Turn(
            request=request,
            prefix=Prefix(blocks, BLOCK),
            think=think,
            prompt_tokens=prompt,
            output_tokens=output,
            produced=tuple(talk.blocks[len(blocks) :]),
            shared=shared,
        )


class _Talk:
    """A conversation as chained hashes of its blocks."""

    def __init__(self, draw: random.Random, client: _Client, *, system: bool = True) -> None:
        self.client = client
        self.tokens = 0
        self.blocks: list[int] = []
        self.estimate = draw.lognormvariate(0.0, ESTIMATE_SPREAD)
        if system:
            self.extend(client.tokens, client.system)

    def extend(self, tokens: int, text: int) -> None:
        """Append so many tokens of a text; a block is complete, and hashed, once it is full."""
        self.tokens += tokens
        last = self.blocks[-1] if self.blocks else 0
        while len(self.blocks) < self.tokens // BLOCK:
            # A hash of numbers alone is the same in every process.
            last = hash((last, text))
            self.blocks.append(last)


_ENDPOINTS: dict[tuple[str, str], str] = {
    ("ollama", "chat"): "/api/chat",
    ("ollama", "embedding"): "/api/embed",
    ("openai", "chat"): "/v1/chat/completions",
    ("openai", "embedding"): "/v1/embeddings",
}

_CHAT_MODELS = {
    "llama3.2:3b": 0.2,
    "llama3.1:8b": 0.3,
    "gemma3:12b": 0.2,
    "qwen3:30b-a3b": 0.15,
    "qwen2.5:32b": 0.1,
    "llama3.3:70b": 0.05,
}
_AGENT_MODELS = {"qwen2.5-coder:7b": 0.4, "qwen3:30b-a3b": 0.4, "qwen2.5:32b": 0.2}
_RAG_MODELS = {"llama3.1:8b": 0.5, "gemma3:12b": 0.3, "qwen2.5:32b": 0.2}
_BATCH_MODELS = {"llama3.2:3b": 0.4, "llama3.1:8b": 0.4, "qwen2.5:32b": 0.2}
_EMBEDDER = "nomic-embed-text:latest"


def _chat(writer: _Writer, room: int) -> list[list[Turn]]:
    """A person talks: some turns with a minute's reading and typing between them."""
    client = writer.client("person", 24, _CHAT_MODELS, 300)
    talk = _Talk(writer.draw, client)
    turns: list[Turn] = []
    for number in range(min(room, writer.lognormal(4, 0.6, 1, 20))):
        fresh = writer.lognormal(60, 1.0, 4, 3000)
        output = writer.lognormal(220 * client.verbosity, 0.8, 8, 2000)
        if talk.tokens + fresh > LONGEST:
            break
        think = writer.lognormal(25, 0.8, 2, 300) if number else 0.0
        turns.append(writer.turn(talk, fresh=fresh, output=output, think=think))
    return [turns]


def _agents(writer: _Writer, room: int) -> list[list[Turn]]:
    """A coding agent works: a long prompt that grows by what its tools say, answers that are calls.

    Now and then it writes a file, and its answer is long.
    """
    client = writer.client("agent", 8, _AGENT_MODELS, 5000)
    talk = _Talk(writer.draw, client)
    turns: list[Turn] = []
    for number in range(min(room, writer.lognormal(10, 0.6, 3, 40))):
        fresh = writer.lognormal(500, 1.0, 30, 6000)
        long = writer.draw.random() < 0.15  # noqa: PLR2004 - a share, given here alone
        output = writer.lognormal(700 if long else 80, 0.6, 10, 3000)
        if talk.tokens + fresh > LONGEST:
            break
        think = writer.lognormal(2.0, 0.8, 0.2, 30) if number else 0.0
        turns.append(writer.turn(talk, fresh=fresh, output=output, think=think, dialect="openai"))
    return [turns]


def _rag(writer: _Writer, room: int) -> list[list[Turn]]:
    """A question is embedded, then asked again with what was found, which is new each time."""
    client = writer.client("search", 12, _RAG_MODELS, 700)
    turns: list[Turn] = []
    estimate = _Talk(writer.draw, client).estimate
    while len(turns) + 2 <= max(2, room) and len(turns) < 2 * writer.lognormal(2, 0.6, 1, 6):
        query = _Talk(writer.draw, client, system=False)
        query.estimate = estimate
        think = writer.lognormal(30, 0.8, 2, 300) if turns else 0.0
        turns.append(
            writer.turn(
                query,
                operation="embedding",
                model=_EMBEDDER,
                fresh=writer.lognormal(30, 0.6, 4, 200),
                output=0,
                think=think,
                stream=False,
                dialect="openai",
            )
        )
        talk = _Talk(writer.draw, client)
        talk.estimate = estimate
        turns.append(
            writer.turn(
                talk,
                fresh=writer.lognormal(2500, 0.5, 300, 8000),
                output=writer.lognormal(180 * client.verbosity, 0.6, 10, 1200),
                think=0.1,
                dialect="openai",
            )
        )
    return [turns]


def _batch(writer: _Writer, room: int) -> list[list[Turn]]:
    """A script sends its jobs all at once and waits for as long as it takes."""
    client = writer.client("batch", 4, _BATCH_MODELS, 400)
    jobs = []
    for _ in range(min(room, writer.lognormal(40, 0.5, 10, 120))):
        talk = _Talk(writer.draw, client)
        fresh = writer.lognormal(700, 0.8, 50, 6000)
        output = writer.lognormal(200 * client.verbosity, 0.6, 10, 1500)
        job = writer.turn(
            talk, fresh=fresh, output=output, think=0.0, stream=False, patience=12 * 3600.0
        )
        jobs.append([job])
    return jobs


def _mix(writer: _Writer, room: int) -> list[list[Turn]]:
    """All of them on one fleet; a share of sessions, so agents and batches weigh more."""
    kinds: list[_Source] = [_chat, _agents, _rag, _batch]
    (kind,) = writer.draw.choices(kinds, [0.62, 0.12, 0.23, 0.03])
    return kind(writer, room)


_Source = Callable[[_Writer, int], list[list[Turn]]]
_SOURCES: dict[str, _Source] = {
    "chat": _chat,
    "agents": _agents,
    "rag": _rag,
    "batch": _batch,
    "mix": _mix,
}
