"""The model of the engines' caches: what it finds, what it forgets, and how far it is trusted."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from herd.core.affinity import PROMPT_BLOCKS, PoolCache, PrefixCache, SlotCache
from herd.core.request import Prefix

BLOCK = 100


def prefix(*hashes: int) -> Prefix:
    return Prefix(hashes, BLOCK)


def test_nothing_is_cached_at_first() -> None:
    assert PrefixCache("ollama").cached(prefix(1, 2, 3)) == 0.0


def test_a_conversation_finds_its_last_turn() -> None:
    cache = PrefixCache("ollama")
    cache.begin("r1", prefix(1, 2, 3), 1)
    cache.end("r1", None)

    assert cache.cached(prefix(1, 2, 3, 4, 5)) == 3 * BLOCK


def test_a_prompt_that_parts_early_finds_only_what_it_shares() -> None:
    cache = PrefixCache("llamacpp")
    cache.begin("r1", prefix(1, 2, 3), 1)
    cache.end("r1", None)

    assert cache.cached(prefix(1, 9, 3)) == BLOCK


def test_a_slot_in_use_helps_nobody_else() -> None:
    cache = PrefixCache("ollama")
    cache.begin("r1", prefix(1, 2, 3), 2)

    assert cache.cached(prefix(1, 2, 3)) == 0.0


def test_one_slot_keeps_one_prompt() -> None:
    cache = PrefixCache("ollama")
    for name, hashes in (("r1", (1, 2)), ("r2", (7, 8))):
        cache.begin(name, prefix(*hashes), 1)
        cache.end(name, None)

    assert cache.cached(prefix(1, 2)) == 0.0
    assert cache.cached(prefix(7, 8)) == 2 * BLOCK


def test_llama_server_keeps_what_left_its_slot() -> None:
    """Build 10068: of three conversations on one slot in turn, each finds its own again."""
    cache = PrefixCache("llamacpp")
    for name, hashes in (("r1", (1, 2)), ("r2", (7, 8)), ("r3", (5, 6))):
        cache.begin(name, prefix(*hashes), 1)
        cache.end(name, None)

    assert cache.cached(prefix(1, 2, 3)) == 2 * BLOCK


def test_slots_keep_apart_what_does_not_share() -> None:
    cache = PrefixCache("ollama")
    for name, hashes in (("r1", (1, 2)), ("r2", (7, 8))):
        cache.begin(name, prefix(*hashes), 2)
        cache.end(name, None)

    assert cache.cached(prefix(1, 2)) == 2 * BLOCK
    assert cache.cached(prefix(7, 8)) == 2 * BLOCK


def test_the_slot_that_rested_longest_is_given_away() -> None:
    cache = PrefixCache("ollama")
    for name, hashes in (("r1", (1, 2)), ("r2", (7, 8)), ("r3", (5, 6))):
        cache.begin(name, prefix(*hashes), 2)
        cache.end(name, None)

    assert cache.cached(prefix(1, 2)) == 0.0
    assert cache.cached(prefix(7, 8)) == 2 * BLOCK


def test_unloading_empties_it() -> None:
    cache = PrefixCache("ollama")
    cache.begin("r1", prefix(1, 2), 1)
    cache.end("r1", None)
    cache.clear()

    assert cache.cached(prefix(1, 2)) == 0.0


def test_a_pool_serves_requests_that_run_at_the_same_time() -> None:
    cache = PrefixCache("vllm")
    cache.begin("r1", prefix(1, 2, 3), 64)

    assert cache.cached(prefix(1, 2, 3, 4)) == 3 * BLOCK


def test_a_full_pool_drops_the_ends_of_old_prompts_first() -> None:
    pool = PoolCache(4)
    pool.begin("r1", (1, 2, 3), 64)
    pool.begin("r2", (7, 8), 64)

    assert pool.depth((1, 2, 3)) == 2
    assert pool.depth((7, 8)) == 2


def test_what_engines_report_corrects_what_is_expected() -> None:
    cache = PrefixCache("llamacpp")
    for turn in range(3):
        cache.begin(f"r{turn}", prefix(1, 2, 3, 4), 1)
        cache.end(f"r{turn}", 0 if turn == 0 else 2 * BLOCK)

    assert cache.cached(prefix(1, 2, 3, 4)) == pytest.approx(2 * BLOCK)


def test_an_engine_that_does_not_tell_is_taken_to_have_found_what_was_expected() -> None:
    cache = PrefixCache("ollama")
    cache.begin("r1", prefix(1, 2), 1)
    assert cache.end("r1", None) == 0.0
    cache.begin("r2", prefix(1, 2, 3), 1)
    assert cache.end("r2", None) == 2 * BLOCK


def test_a_prompt_of_any_length_costs_bounded_memory() -> None:
    cache = PrefixCache("ollama")
    endless = Prefix(tuple(range(3 * PROMPT_BLOCKS)), BLOCK)
    cache.begin("r1", endless, 1)
    cache.end("r1", None)

    assert cache.cached(endless) == PROMPT_BLOCKS * BLOCK


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.lists(st.integers(0, 3), max_size=5), st.booleans()),
        max_size=40,
    ),
    st.integers(1, 4),
)
def test_slots_are_never_shared_by_running_requests(
    steps: list[tuple[int, list[int], bool]], slots: int
) -> None:
    cache = SlotCache()
    running: set[str] = set()
    for number, text, ends in steps:
        name = f"r{number}"
        chained = tuple(hash(tuple(text[: end + 1])) for end in range(len(text)))
        if name in running:
            if ends:
                cache.end(name)
                running.discard(name)
        elif len(running) < slots:
            cache.begin(name, chained, slots)
            running.add(name)
        taken = [cache._taken[name] for name in running]
        assert len(set(taken)) == len(taken)
        assert len(cache._prompts) <= slots
