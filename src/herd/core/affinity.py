"""Where a conversation's prefix is cached: a model of the engines' caches, in bounded memory.

Engines keep the key-value state of what they read last. Ollama keeps one prompt for each slot and
gives a request the free slot that shares the longest prefix with it, else the one that has rested
longest. vLLM keeps blocks of all prompts and drops the least recently used. llama-server has slots
too, but what leaves one goes to main memory and comes back when it is asked for again, so that
for us it is a pool as well. Every
prompt of ours passes here, so we can tell what is cached where, until the model is unloaded or
somebody else uses the engine. What an engine reports of cached tokens corrects the model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Protocol

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


class Cache(Protocol):
    """What one engine keeps for one model."""

    def depth(self, hashes: tuple[int, ...]) -> int:
        """Blocks at the start of a prompt that it would find if it started now."""

    def begin(self, request: str, hashes: tuple[int, ...], slots: int) -> int:
        """A request starts to be read; returns the blocks that it finds."""

    def end(self, request: str) -> None:
        """It no longer runs; what was read of it stays."""

    def clear(self) -> None:
        """The model left memory."""


class PrefixCache:
    """The cache of one replica, with how far its model can be trusted."""

    __slots__ = ("_cache", "_expected", "_trust")

    def __init__(self, kind: EngineKind) -> None:
        self._cache = _cache_of(kind)
        #: Tokens that were expected to be found, of requests that run.
        self._expected: dict[str, int] = {}
        #: Share of what was expected that engines then reported.
        self._trust = Mean()

    def cached(self, prefix: Prefix) -> float:
        """Tokens of the prompt that need no prefill if it starts now."""
        if not prefix.hashes:
            return 0.0
        found = self._cache.depth(prefix.hashes[:PROMPT_BLOCKS]) * prefix.block
        return found * (self._trust.value if self._trust.count else 1.0)

    def begin(self, request: str, prefix: Prefix, slots: int) -> None:
        """A request was dispatched here."""
        hashes = prefix.hashes[:PROMPT_BLOCKS]
        self._expected[request] = self._cache.begin(request, hashes, slots) * prefix.block

    def end(self, request: str, reported: int | None) -> float:
        """It ended; `reported` are the tokens that the engine found, None if it does not say.

        Returns what it found, as far as is known.
        """
        expected = self._expected.pop(request, 0)
        self._cache.end(request)
        if reported is None:
            return expected * (self._trust.value if self._trust.count else 1.0)
        if expected > 0:
            self._trust.add(min(1.0, reported / expected))
        return float(reported)

    def clear(self) -> None:
        """The model left memory, and its cache with it."""
        self._cache.clear()


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

    def depth(self, hashes: tuple[int, ...]) -> int:
        """Blocks that the best free slot shares."""
        return self._best(hashes)[0]

    def begin(self, request: str, hashes: tuple[int, ...], slots: int) -> int:
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

    def end(self, request: str) -> None:
        """Its slot is free, with its prompt in it."""
        slot = self._taken.pop(request, None)
        if slot is not None:
            self._prompts[slot] = self._read.pop(slot)

    def clear(self) -> None:
        """Nothing is kept; whoever runs goes on with a slot of which nothing is known."""
        self._prompts.clear()
        self._read = dict.fromkeys(self._read, frozenset())

    def _best(self, hashes: tuple[int, ...]) -> tuple[int, int | None]:
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

    def depth(self, hashes: tuple[int, ...]) -> int:
        """Blocks at the start that are all there."""
        return _shared(hashes, self._blocks.keys())

    def begin(self, request: str, hashes: tuple[int, ...], slots: int) -> int:  # noqa: ARG002
        """Its blocks are used, the first ones last, so that they are the last to be dropped."""
        found = self.depth(hashes)
        for block in reversed(hashes):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._size:
            self._blocks.popitem(last=False)
        return found

    def end(self, request: str) -> None:
        """Blocks stay."""

    def clear(self) -> None:
        """Nothing is kept."""
        self._blocks.clear()


def _cache_of(kind: EngineKind) -> Cache:
    if kind == "vllm":
        return PoolCache()
    return PoolCache(SAVED_BLOCKS) if kind == "llamacpp" else SlotCache()


def _shared(hashes: tuple[int, ...], kept: Collection[int]) -> int:
    """How many leading hashes are kept. As they are chained, a kept one vouches for all before."""
    low, high = 0, len(hashes)
    while low < high:
        middle = (low + high + 1) // 2
        if hashes[middle - 1] in kept:
            low = middle
        else:
            high = middle - 1
    return low
