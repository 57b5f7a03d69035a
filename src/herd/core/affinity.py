"""Where a conversation's prefix is cached: a model of the engines' caches, in bounded memory.

Engines keep the key-value state of what they read last. Ollama keeps one prompt for each slot and
gives a request the free slot that shares the longest prefix with it, else the one that has rested
longest. vLLM keeps blocks of all prompts and drops the least recently used. llama-server has slots
too, but what leaves one goes to main memory and comes back when it is asked for again, so that
for us it is a pool as well. Every
prompt of ours passes here, so we can tell what is cached where, until the model is unloaded or
somebody else uses the engine. What an engine reports of cached tokens corrects the model.

A prompt with images has no hashes. Where its client names the conversation, what that conversation
last had here, prompt and answer, is presumed to be its beginning, and is cached as long as blocks
of as many tokens would be.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Protocol

from msgspec import Struct

from herd.core.fleet import EngineKind
from herd.core.request import Prefix
from herd.core.statistics import Mean

#: Blocks that a shared pool is taken to hold. At 128 tokens a block this is half a million tokens,
#: what some tens of gigabytes hold for a model of 8 billion parameters; an order of magnitude.
POOL_BLOCKS = 4096
#: Blocks that llama-server keeps in main memory: 8 GiB unless told otherwise (`--cache-ram`), which
#: is some 65,000 tokens of a model of 8 billion parameters at 128 KiB each.
SAVED_BLOCKS = 512
#: Blocks of one prompt that are remembered; what lies beyond is read anew in any estimate.
PROMPT_BLOCKS = 2048
#: Tokens of a block that stands for part of a prompt of which nothing but its length is known.
BLOCK = 128
#: Conversations that are remembered for each replica; the longest unused go.
SESSIONS = 1000

#: Who asks, and what it calls its conversation.
Session = tuple[str, str]


class Cache(Protocol):
    """What one engine keeps for one model."""

    def depth(self, hashes: Sequence[int]) -> int:
        """Blocks at the start of a prompt that it would find if it started now."""

    def begin(self, request: str, hashes: Sequence[int], slots: int) -> int:
        """A request starts to be read; returns the blocks that it finds."""

    def end(self, request: str, hashes: Sequence[int] | None = None) -> None:
        """It no longer runs; what was read of it stays, `hashes` if that is known only now."""

    def clear(self) -> None:
        """The model left memory."""


class _Talk(Struct):
    """What a conversation last had here."""

    #: Of its own that no prompt has: the first of the numbers that stand for its blocks.
    base: int
    #: Those, or a hash that vouches for all of the prompt; and the tokens of each.
    hashes: Sequence[int] = ()
    block: float = BLOCK


class PrefixCache:
    """The cache of one replica, with how far its model can be trusted."""

    __slots__ = ("_cache", "_expected", "_numbered", "_presumed", "_talks", "_trust", "_turns")

    def __init__(self, kind: EngineKind) -> None:
        self._cache = _cache_of(kind)
        #: Tokens that were expected to be found, of requests that run.
        self._expected: dict[str, float] = {}
        #: Share of what was expected that engines then reported: by hashes, and as presumed.
        self._trust = Mean()
        self._presumed = Mean()
        self._talks: OrderedDict[Session, _Talk] = OrderedDict()
        self._numbered = 0
        #: Conversations of requests that run, and whether what they find is presumed.
        self._turns: dict[str, tuple[_Talk, bool]] = {}

    def cached(self, prefix: Prefix, session: Session | None = None) -> float:
        """Tokens of the prompt that need no prefill if it starts now.

        The session counts only where the prompt has no hashes.
        """
        if prefix.hashes:
            found = self._cache.depth(prefix.hashes[:PROMPT_BLOCKS]) * prefix.block
            return _trusted(found, self._trust)
        talk = self._talks.get(session) if session is not None else None
        if talk is None:
            return 0.0
        return _trusted(self._cache.depth(talk.hashes) * talk.block, self._presumed)

    def begin(
        self, request: str, prefix: Prefix, slots: int, session: Session | None = None
    ) -> None:
        """A request was dispatched here."""
        hashes: Sequence[int] = prefix.hashes[:PROMPT_BLOCKS]
        block: float = prefix.block
        if session is not None:
            talk = self._talk(session)
            self._turns[request] = talk, not hashes
            if hashes:
                talk.hashes, talk.block = hashes[-1:], len(hashes) * block
            else:
                hashes, block = talk.hashes, talk.block
        self._expected[request] = self._cache.begin(request, hashes, slots) * block

    def end(self, request: str, reported: int | None, tokens: int | None = None) -> float:
        """It ended; `reported` are the tokens that the engine found, None if it does not say.

        `tokens` are those of prompt and answer, None if the engine does not say or it was broken
        off. Returns what it found, as far as is known.
        """
        expected = self._expected.pop(request, 0)
        talk, presumed = self._turns.pop(request, (None, False))
        read: Sequence[int] | None = None
        if talk is not None and tokens is not None:
            if presumed:
                count = min(PROMPT_BLOCKS, tokens // BLOCK)
                read = talk.hashes = range(talk.base, talk.base + count)
                talk.block = BLOCK
            else:
                talk.block = tokens
        self._cache.end(request, read)
        trust = self._presumed if presumed else self._trust
        if reported is None:
            return _trusted(expected, trust)
        if expected > 0:
            trust.add(min(1.0, reported / expected))
        return float(reported)

    def clear(self) -> None:
        """The model left memory, and its cache with it."""
        self._cache.clear()
        # What runs goes on with a cache of which nothing is known.
        self._turns.clear()

    def _talk(self, session: Session) -> _Talk:
        talk = self._talks.get(session)
        if talk is None:
            self._numbered += 1
            talk = self._talks[session] = _Talk(-self._numbered * PROMPT_BLOCKS)
            if len(self._talks) > SESSIONS:
                self._talks.popitem(last=False)
        self._talks.move_to_end(session)
        return talk


class SlotCache:
    """The prompts that an engine's slots keep. Bounded by the engine's slots."""

    def __init__(self) -> None:
        #: What each free slot keeps, as the prompt's hashes; the one that rests longest first.
        self._prompts: OrderedDict[int, frozenset[int]] = OrderedDict()
        #: Which slot a running request is thought to have.
        self._taken: dict[str, int] = {}
        #: What each slot in use will keep.
        self._read: dict[int, frozenset[int]] = {}
        self._numbered = 0

    def depth(self, hashes: Sequence[int]) -> int:
        """Blocks that the best free slot shares."""
        return self._best(hashes)[0]

    def begin(self, request: str, hashes: Sequence[int], slots: int) -> int:
        """Give it the slot that the engine is thought to give it."""
        found, slot = self._best(hashes)
        if slot is None and self._prompts and len(self._prompts) + len(self._read) >= slots:
            slot = next(iter(self._prompts))
        if slot is None:
            self._numbered += 1
            slot = self._numbered
        self._prompts.pop(slot, None)
        self._taken[request] = slot
        self._read[slot] = frozenset(hashes)
        return found

    def end(self, request: str, hashes: Sequence[int] | None = None) -> None:
        """Its slot is free, with its prompt in it."""
        slot = self._taken.pop(request, None)
        if slot is not None:
            read = self._read.pop(slot)
            self._prompts[slot] = read if hashes is None else frozenset(hashes)

    def clear(self) -> None:
        """Nothing is kept; whoever runs goes on with a slot of which nothing is known."""
        self._prompts.clear()
        self._read = dict.fromkeys(self._read, frozenset())

    def _best(self, hashes: Sequence[int]) -> tuple[int, int | None]:
        """Blocks that the best free slot shares, and which it is; None if none shares any."""
        if not hashes:
            return 0, None
        first, most, best = hashes[0], 0, None
        for slot, kept in self._prompts.items():
            if first in kept and (found := _shared(hashes, kept)) > most:
                most, best = found, slot
        return most, best


class PoolCache:
    """A pool of blocks that all prompts share, the least recently used of which are dropped."""

    def __init__(self, blocks: int = POOL_BLOCKS) -> None:
        self._size = blocks
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def depth(self, hashes: Sequence[int]) -> int:
        """Blocks at the start that are all there."""
        return _shared(hashes, self._blocks.keys())

    def begin(self, request: str, hashes: Sequence[int], slots: int) -> int:  # noqa: ARG002
        """Its blocks are used, the first ones last, so that they are the last to be dropped."""
        found = self.depth(hashes)
        self._use(hashes)
        return found

    def end(self, request: str, hashes: Sequence[int] | None = None) -> None:  # noqa: ARG002
        """Blocks stay."""
        if hashes is not None:
            self._use(hashes)

    def clear(self) -> None:
        """Nothing is kept."""
        self._blocks.clear()

    def _use(self, hashes: Sequence[int]) -> None:
        for block in reversed(hashes):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._size:
            self._blocks.popitem(last=False)


def _cache_of(kind: EngineKind) -> Cache:
    if kind == "vllm":
        return PoolCache()
    return PoolCache(SAVED_BLOCKS) if kind == "llamacpp" else SlotCache()


def _trusted(tokens: float, trust: Mean) -> float:
    return tokens * (trust.value if trust.count else 1.0)


def _shared(hashes: Sequence[int], kept: Collection[int]) -> int:
    """How many leading hashes are kept. As they are chained, a kept one vouches for all before."""
    low, high = 0, len(hashes)
    while low < high:
        middle = (low + high + 1) // 2
        if hashes[middle - 1] in kept:
            low = middle
        else:
            high = middle - 1
    return low
