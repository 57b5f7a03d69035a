"""The model of the engines' caches: what it finds, what it forgets, and how far it is trusted."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from herd.core import affinity
from herd.core.affinity import BLOCK as BLOCK_TOKENS
from herd.core.affinity import PROMPT_BLOCKS, PoolCache, PrefixCache, Session, SlotCache
from herd.core.events import Finished
from herd.core.fleet import EngineKind
from herd.core.request import Prefix, Result, Usage
from tests.core.playbook import Play, model

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


# Conversations without hashes

ANN = ("ann", "talk")
BOB = ("bob", "talk")
UNKNOWN = Prefix()


def turn(
    cache: PrefixCache,
    session: Session | None,
    tokens: int | None,
    *,
    of: Prefix = UNKNOWN,
    slots: int = 1,
    reported: int | None = None,
) -> float:
    """One request runs; returns what it found."""
    cache.begin("turn", of, slots, session)
    return cache.end("turn", reported, tokens)


@pytest.mark.parametrize("kind", ["ollama", "llamacpp", "vllm"])
def test_a_conversation_without_hashes_is_presumed_where_it_ran(kind: EngineKind) -> None:
    cache = PrefixCache(kind)
    assert turn(cache, ANN, 30 * BLOCK_TOKENS) == 0.0

    assert cache.cached(UNKNOWN, ANN) == 30 * BLOCK_TOKENS
    assert turn(cache, ANN, 45 * BLOCK_TOKENS + 5) == 30 * BLOCK_TOKENS
    assert cache.cached(UNKNOWN, ANN) == 45 * BLOCK_TOKENS


def test_no_other_conversation_and_no_other_client_finds_it() -> None:
    cache = PrefixCache("vllm")
    turn(cache, ANN, 3000)

    assert cache.cached(UNKNOWN, BOB) == 0.0
    assert cache.cached(UNKNOWN, ("ann", "another")) == 0.0
    assert cache.cached(UNKNOWN) == 0.0
    turn(cache, BOB, 1280)
    assert cache.cached(UNKNOWN, BOB) == 1280
    assert cache.cached(UNKNOWN, ANN) == 3000 // BLOCK_TOKENS * BLOCK_TOKENS


@pytest.mark.parametrize("other", [prefix(7, 8), UNKNOWN])
def test_whoever_takes_its_slot_puts_it_out(other: Prefix) -> None:
    cache = PrefixCache("ollama")
    turn(cache, ANN, 3000)
    turn(cache, None, 100, of=other)

    assert cache.cached(UNKNOWN, ANN) == 0.0


def test_one_that_runs_keeps_its_slot_to_itself() -> None:
    cache = PrefixCache("ollama")
    turn(cache, ANN, 3000, slots=2)
    cache.begin("now", UNKNOWN, 2, ANN)

    assert cache.cached(UNKNOWN, ANN) == 0.0


def test_it_leaves_a_pool_as_blocks_of_its_length_do() -> None:
    cache = PrefixCache("llamacpp")
    turn(cache, ANN, 400 * BLOCK_TOKENS)
    turn(cache, BOB, 100 * BLOCK_TOKENS)
    assert cache.cached(UNKNOWN, ANN) == 400 * BLOCK_TOKENS
    turn(cache, BOB, 212 * BLOCK_TOKENS)
    assert cache.cached(UNKNOWN, ANN) == 300 * BLOCK_TOKENS
    turn(cache, BOB, 600 * BLOCK_TOKENS)
    assert cache.cached(UNKNOWN, ANN) == 0.0


def test_hashes_rule_where_there_are_any() -> None:
    cache = PrefixCache("ollama")
    turn(cache, ANN, 500, of=prefix(1, 2, 3))

    assert cache.cached(prefix(1, 2, 3, 4), ANN) == 3 * BLOCK
    assert cache.cached(prefix(7, 8), ANN) == 0.0


@pytest.mark.parametrize("kind", ["ollama", "vllm"])
def test_an_image_in_a_conversation_of_text_finds_the_text_and_the_answer(kind: EngineKind) -> None:
    cache = PrefixCache(kind)
    turn(cache, ANN, 450, of=prefix(1, 2, 3))

    assert cache.cached(UNKNOWN, ANN) == 450
    assert turn(cache, ANN, 1280) == 450
    assert cache.cached(UNKNOWN, ANN) == 1280


def test_of_an_attempt_that_was_broken_off_nothing_more_is_presumed() -> None:
    cache = PrefixCache("ollama")
    turn(cache, ANN, None)
    assert cache.cached(UNKNOWN, ANN) == 0.0
    turn(cache, ANN, 1280)
    turn(cache, ANN, None)
    assert cache.cached(UNKNOWN, ANN) == 1280


def test_a_model_that_leaves_memory_takes_conversations_with_it() -> None:
    cache = PrefixCache("ollama")
    turn(cache, ANN, 1280)
    cache.begin("now", UNKNOWN, 1, ANN)
    cache.clear()
    cache.end("now", None, 2560)

    assert cache.cached(UNKNOWN, ANN) == 0.0
    turn(cache, ANN, 2560)
    assert cache.cached(UNKNOWN, ANN) == 2560


def test_what_engines_report_corrects_what_is_presumed_and_not_what_hashes_say() -> None:
    cache = PrefixCache("llamacpp")
    turn(cache, ANN, 1280)
    assert turn(cache, ANN, 1280, reported=640) == 640.0
    turn(cache, None, None, of=prefix(1, 2))

    assert cache.cached(UNKNOWN, ANN) == 640.0
    assert cache.cached(prefix(1, 2)) == 2 * BLOCK


def test_conversations_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity, "SESSIONS", 2)
    cache = PrefixCache("vllm")
    for name in ("a", "b", "a", "c"):
        turn(cache, ("ann", name), 1280)

    assert [cache.cached(UNKNOWN, ("ann", name)) for name in "abc"] == [1280, 0, 1280]


def test_a_request_goes_back_to_where_its_conversation_ran() -> None:
    play = Play()
    for name in ("a", "b"):
        play.node(name, model(), kind="llamacpp")
    play.ask("first", prompt=5000, session="talk")
    where = play.where("first")
    attempt = play.dispatch("first").attempt
    play.wait(2.0)
    usage = Usage(prompt_tokens=5000, completion_tokens=100)
    play.feed(Finished("first", attempt, Result(usage=usage)))
    # Another one is next in turn.
    play.ask("second", prompt=5200, session="talk")

    assert play.where("second") == where
    assert play.signals("second", str(where)).affinity < -0.1
