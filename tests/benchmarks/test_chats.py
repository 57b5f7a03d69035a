"""Sessions are the same for the same seed, and ask as much of the devices as they should."""

from __future__ import annotations

import pytest

from benchmarks import chats
from benchmarks.chats import Rates

FAST = {"whole": Rates(100.0, 50.0), "half": Rates(200.0, 100.0)}
SLOW = {"whole": Rates(10.0, 5.0), "half": Rates(20.0, 10.0)}
SPEEDS = {"fast": FAST, "slow": SLOW}
SHARES = {"whole": 0.5, "half": 0.5}


def test_a_seed_gives_the_same_sessions_again() -> None:
    first, again, other = (
        chats.sessions(SPEEDS, SHARES, seconds=60.0, load=0.7, seed=seed) for seed in (1, 1, 2)
    )

    assert first == again
    assert first != other


def test_work_is_the_load_asked_for() -> None:
    asked = chats.sessions(SPEEDS, SHARES, seconds=600.0, load=0.7, seed=1)

    assert 0.7 <= chats.span(SPEEDS, asked) / 600.0 < 0.75
    assert all(0.0 <= session.start <= 600.0 for session in asked)


def test_two_devices_need_less_time_than_the_faster_one() -> None:
    asked = chats.sessions(SPEEDS, SHARES, seconds=60.0, load=0.7, seed=1)

    both, fast, slow = (
        chats.span(speeds, asked) for speeds in (SPEEDS, {"fast": FAST}, {"slow": SLOW})
    )

    assert slow == pytest.approx(10.0 * fast)
    assert both == pytest.approx(1.0 / (1.0 / fast + 1.0 / slow))


def test_conversations_fit_and_use_both_models() -> None:
    asked = chats.sessions(SPEEDS, SHARES, seconds=600.0, load=0.7, seed=1)

    assert {session.model for session in asked} == {"whole", "half"}
    for session in asked:
        tokens = len(session.system.split()) + sum(t.fresh + t.output for t in session.turns)
        assert tokens <= chats.LONGEST
        assert all(len(turn.text.split()) == turn.fresh for turn in session.turns)
