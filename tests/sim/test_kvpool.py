"""The pool of cache blocks: what is counted, what is found again, what has to go first."""

from __future__ import annotations

import pytest

from herd.sim.kvpool import KvPool, paginate


def cached(pool: KvPool, *keys: int) -> None:
    """Let a sequence of one block a page come and go."""
    pool.take(len(keys))
    for key in keys:
        pool.keep(key, 1)
    pool.release(keys)


def test_a_page_has_whole_blocks_of_the_pool_and_of_the_hashes() -> None:
    assert paginate(range(10), 128, 16).tokens == 128
    assert len(paginate(range(10), 128, 16).keys) == 10
    assert len(paginate(range(100), 1, 16).keys) == 6


def test_equal_beginnings_have_equal_pages_and_others_do_not() -> None:
    one = paginate((*range(32), *range(100, 116)), 1, 16).keys
    other = paginate((*range(32), *range(200, 216)), 1, 16).keys
    behind = paginate((9, *range(1, 48)), 1, 16).keys

    assert one[:2] == other[:2]
    assert one[2] != other[2]
    assert not set(one) & set(behind)


def test_pages_within_a_number_of_tokens_are_the_whole_ones() -> None:
    pages = paginate(range(48), 1, 16)

    assert pages.within(47) == pages.keys[:2]
    assert pages.within(-1) == ()


def test_what_a_sequence_leaves_is_found_until_it_is_needed() -> None:
    pool = KvPool(4)
    cached(pool, 1, 2, 3)

    assert (pool.found((1, 2, 3, 4)), pool.used, pool.cached) == (3, 0, 3)

    pool.take(3)

    # The last page of a sequence goes first: the beginning is worth more.
    assert (pool.found((1, 2, 3)), pool.used, pool.cached) == (1, 3, 1)


def test_the_longest_unused_pages_go_first() -> None:
    pool = KvPool(4)
    cached(pool, 1, 2)
    cached(pool, 7, 8)
    pool.refer((1, 2))
    pool.release((1, 2))
    pool.take(2)

    assert (pool.found((1, 2)), pool.found((7, 8))) == (2, 0)


def test_pages_in_use_stay() -> None:
    pool = KvPool(4)
    cached(pool, 1, 2)
    pool.refer((1,))

    assert pool.room == 3
    assert pool.fits((1,), 3)
    assert not pool.fits((1, 2), 3)

    pool.take(3)

    assert pool.found((1, 2)) == 1
    with pytest.raises(ValueError, match="not free"):
        pool.take(1)


def test_a_page_that_two_sequences_make_is_kept_once() -> None:
    pool = KvPool(4)
    pool.take(2)
    pool.keep(1, 1)
    pool.keep(1, 1)

    assert (pool.used, pool.room) == (1, 3)

    pool.release((1,))
    pool.release((1,))

    assert (pool.used, pool.cached) == (0, 1)
