"""The peer chooses as it should, and figures are those of the answers."""

from __future__ import annotations

import random

from benchmarks import unequal
from benchmarks.unequal import Answer


def answer(device: str, took: float, *, asked: float = 0.0) -> Answer:
    return Answer(session=0, turn=0, device=device, asked=asked, first=took / 2, took=took)


def test_the_device_with_the_fewest_open_requests_is_asked() -> None:
    choose = unequal.least_connections(random.Random(1))

    assert choose({"desk": 2, "laptop": 1, "attic": 3}) == "laptop"


def test_equals_are_asked_by_lot() -> None:
    choose = unequal.least_connections(random.Random(1))

    chosen = [choose({"desk": 1, "laptop": 1, "attic": 2}) for _ in range(100)]

    assert set(chosen) == {"desk", "laptop"}


def test_figures_are_those_of_the_answers() -> None:
    answers = [answer("desk", 1.0), answer("desk", 2.0), answer("attic", 6.0, asked=2.0)]

    result = unequal.sum_up("herd", 1, answers, [], work=4.0)

    assert (result.requests, result.mean, result.p50, result.first_mean) == (3, 3.0, 2.0, 1.5)
    assert result.utilisation == 0.5
    assert result.shares == {"desk": 2 / 3, "attic": 1 / 3}
