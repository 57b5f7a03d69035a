"""A prompt as chained hashes of its blocks, by which its prefix is found in engines' caches.

The bytes of the client's JSON stand in for the prompt: what a conversation had in its last turn
comes again in the next one, byte for byte, in front of what is new. Two clients that write the
same prompt with other white space do not find each other's caches, which costs an estimate its
precision and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32

from herd.core.affinity import PROMPT_BLOCKS
from herd.core.request import Prefix

BLOCK_BYTES = 512


def prefix_of(parts: Iterable[bytes], *, bytes_per_token: float) -> Prefix:
    """Hash the parts of a prompt, in the order in which an engine's template puts them.

    A hash stands for everything up to the end of its block. 32 bits do: a slot keeps some hundred
    hashes, so one prompt in tens of millions seems cached where it is not.
    """
    text = b"\n".join(parts)
    view = memoryview(text)
    whole = min(len(text) // BLOCK_BYTES, PROMPT_BLOCKS)
    hashes = []
    chained = 0
    for number in range(whole):
        chained = crc32(view[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES], chained)
        hashes.append(chained)
    return Prefix(tuple(hashes), round(BLOCK_BYTES / bytes_per_token))
