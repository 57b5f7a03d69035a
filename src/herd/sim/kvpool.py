"""A pool of cache blocks that all sequences share, as vLLM keeps it: counted, and reused by prefix.

A block belongs to a running sequence alone, or to a page: some blocks that hold a known prefix, by
its chained hash. Running sequences refer to pages; a page that none refers to stays until its
blocks are needed, the longest unreferenced first, and of one sequence the last page first.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from msgspec import Struct


class Pages(Struct, frozen=True):
    """A context cut into pages: the chained hash of each, and the tokens of one."""

    keys: tuple[int, ...]
    tokens: int

    def within(self, tokens: int) -> tuple[int, ...]:
        """Return the pages that lie wholly within the first tokens."""
        return self.keys[: max(0, tokens) // self.tokens]


def paginate(hashes: Sequence[int], block: int, pool_block: int) -> Pages:
    """Cut a context, given as hashes of `block` tokens each, into pages of whole pool blocks."""
    tokens = math.lcm(block, pool_block)
    step = tokens // block
    keys: list[int] = []
    last = tokens
    for begin in range(0, len(hashes) - step + 1, step):
        # A hash of numbers alone is the same in every process.
        last = hash((last, *hashes[begin : begin + step]))
        keys.append(last)
    return Pages(tuple(keys), tokens)


class KvPool:
    """So many blocks; `used` by running sequences, `cached` in pages that none refers to."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.used = 0
        self.cached = 0
        #: References and blocks of every page.
        self._references: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        #: Pages without references, the one to drop first at the front.
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def room(self) -> int:
        """Blocks that a sequence could get."""
        return self.blocks - self.used

    def found(self, keys: Sequence[int]) -> int:
        """Return how many leading pages are there."""
        count = 0
        for key in keys:
            if key not in self._references:
                break
            count += 1
        return count

    def fits(self, keys: Sequence[int], blocks: int) -> bool:
        """Whether a sequence could refer to these pages, which are there, and get the blocks."""
        idle = sum(self._sizes[key] for key in keys if not self._references[key])
        return idle + blocks <= self.room

    def refer(self, keys: Sequence[int]) -> None:
        """Let a sequence use pages that are there."""
        for key in keys:
            if not self._references[key]:
                del self._idle[key]
                self.cached -= self._sizes[key]
                self.used += self._sizes[key]
            self._references[key] += 1

    def take(self, blocks: int) -> None:
        """Give a sequence blocks of its own; raises ValueError if there are not so many."""
        if blocks > self.room:
            raise ValueError(f"{blocks} blocks are not free")
        self.used += blocks
        while self.used + self.cached > self.blocks:
            key, _ = self._idle.popitem(last=False)
            self.cached -= self._sizes.pop(key)
            del self._references[key]

    def give(self, blocks: int) -> None:
        """Take a sequence's own blocks back."""
        self.used -= blocks

    def keep(self, key: int, blocks: int) -> None:
        """Make so many of a sequence's own blocks a page that it refers to.

        If another has made the same page meanwhile, it refers to that, and its own are free.
        """
        if key in self._references:
            self.give(blocks)
            self.refer((key,))
        else:
            self._references[key] = 1
            self._sizes[key] = blocks

    def release(self, keys: Sequence[int]) -> None:
        """End a sequence's use of its pages, which were given in the order of its context."""
        for key in reversed(keys):
            self._references[key] -= 1
            if not self._references[key]:
                self._idle[key] = None
                self.used -= self._sizes[key]
                self.cached += self._sizes[key]
