"""What memory a model takes by its context."""

from __future__ import annotations

import pytest

from herd.core import priors
from herd.core.fleet import Replica
from herd.core.memory_use import MemoryUse

SIZE = 5 * 10**9


def loaded(context: int, memory: int, *, slots: int = 1) -> Replica:
    return Replica(
        model="m:8b",
        name="m",
        size=SIZE,
        slots=slots,
        loaded_context=context,
        memory_bytes=memory,
    )


def test_nothing_is_known_before_the_first_report() -> None:
    assert MemoryUse().need(4096) is None


def test_the_prior_has_weights_buffers_and_a_cache_for_each_slot() -> None:
    use = MemoryUse()
    use.see(loaded(0, 0, slots=2))
    base = SIZE * priors.BUFFERS_RATIO
    assert use.need(0) == pytest.approx(base)
    assert use.need(1000) == pytest.approx(base + 2 * 131e6)


def test_one_load_gives_the_slope_and_two_give_both() -> None:
    use = MemoryUse()
    use.see(loaded(4096, 5_660_000_000))
    assert use.need(4096) == pytest.approx(5.66e9)
    assert use.need(8192) == pytest.approx(5.66e9 + (5.66e9 - 1.05 * SIZE))
    use.see(loaded(8192, 6_200_000_000))
    assert use.need(16384) == pytest.approx(6.2e9 + 2 * 0.54e9)
    assert use.need(4096) == pytest.approx(5.66e9)


def test_the_last_two_contexts_count_and_are_kept() -> None:
    use = MemoryUse()
    for context, memory in ((4096, 9), (8192, 6 * 10**9), (16384, 7 * 10**9)):
        use.see(loaded(context, memory))
    assert use.need(32768) == pytest.approx(9e9)
    again = MemoryUse()
    again.restore(use.state())
    again.see(loaded(0, 0))
    assert again.need(32768) == use.need(32768)


def test_more_context_never_takes_less() -> None:
    use = MemoryUse()
    use.see(loaded(4096, 7 * 10**9))
    use.see(loaded(8192, 6 * 10**9))
    assert use.need(32768) == use.need(1) == pytest.approx(7e9)
