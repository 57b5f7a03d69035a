"""Prompts as chained hashes: equal as far as the text is, and no further."""

from __future__ import annotations

import os

import msgspec

from herd.core.affinity import PROMPT_BLOCKS
from herd.wire.peek import peek
from herd.wire.prefix import BLOCK_BYTES, prefix_of


def hashes(*parts: bytes) -> tuple[int, ...]:
    return prefix_of(parts, bytes_per_token=4.0).hashes


def test_short_prompts_have_no_whole_block() -> None:
    assert hashes(b"x" * (BLOCK_BYTES - 1)) == ()


def test_a_longer_conversation_begins_with_the_hashes_of_the_shorter() -> None:
    text = os.urandom(10 * BLOCK_BYTES)

    assert hashes(text)[:6] == hashes(text[: 6 * BLOCK_BYTES])


def test_a_change_changes_its_block_and_all_behind_it() -> None:
    text = bytearray(os.urandom(8 * BLOCK_BYTES))
    before = hashes(bytes(text))
    text[3 * BLOCK_BYTES] ^= 1
    after = hashes(bytes(text))

    assert before[:3] == after[:3]
    assert all(old != new for old, new in zip(before[3:], after[3:], strict=True))


def test_equal_blocks_at_other_places_differ() -> None:
    found = hashes(b"a" * 4 * BLOCK_BYTES)

    assert len(set(found)) == 4


def test_a_block_is_as_many_tokens_as_its_bytes_make() -> None:
    assert prefix_of([b""], bytes_per_token=4.0).block == BLOCK_BYTES // 4


def test_endless_prompts_are_hashed_as_far_as_they_are_remembered() -> None:
    assert len(hashes(b"x" * (PROMPT_BLOCKS + 50) * BLOCK_BYTES)) == PROMPT_BLOCKS


def test_the_next_turn_of_a_chat_begins_as_the_last_one_did() -> None:
    """With tools and a system prompt, in the way that official clients send it."""
    turn = {
        "model": "m",
        "tools": [{"type": "function", "function": {"name": "f", "description": "d" * 600}}],
        "messages": [
            {"role": "system", "content": "s" * 900},
            {"role": "user", "content": "q" * 700},
        ],
    }
    longer = turn | {
        "messages": [
            *turn["messages"],
            {"role": "assistant", "content": "a" * 300},
            {"role": "user", "content": "and?"},
        ]
    }
    first = peek(msgspec.json.encode(turn)).prefix.hashes
    second = peek(msgspec.json.encode(longer)).prefix.hashes

    assert len(first) == 4
    assert second[:4] == first
    assert len(second) == 5


def test_pictures_are_not_text() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x", "images": ["A" * 4000]}]}

    assert peek(msgspec.json.encode(body)).prefix.hashes == ()
