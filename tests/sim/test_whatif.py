"""What one more device would change: the same requests, seed by seed."""

from __future__ import annotations

import pytest
from msgspec import structs

from herd.sim.compare import Setting, compare, scenario
from herd.sim.results import Interval
from herd.sim.whatif import Change, changes, sentence, without

MORE = Setting(fleet="two", work="chat", requests=40, add=("pc-rtx-4090",))


def test_the_requests_are_the_same() -> None:
    small, work = scenario(without(MORE), 1)
    large, same = scenario(MORE, 1)

    assert work == same
    assert large.devices[:2] == small.devices
    assert len(large.devices) == 3


def test_figures_are_paired_by_seed() -> None:
    before = compare([without(MORE)], ("herd",), (1, 2))
    after = compare([MORE], ("herd",), (1, 2))
    found = {each.figure: each for each in changes(before, after)}

    assert set(found) == {"mean", "p95", "first p50", "first p95"}
    ratios = [new.mean / old.mean for old, new in zip(before[0].runs, after[0].runs, strict=True)]
    mean = found["mean"].ratio
    assert mean.low == pytest.approx(min(ratios))
    assert mean.high == pytest.approx(max(ratios))


def test_a_difference_within_its_interval_is_none() -> None:
    one = Interval(2.0, 1.0, 3.0)
    change = Change(
        setting=MORE,
        policy="herd",
        figure="p95",
        before=one,
        after=one,
        ratio=Interval(0.9, 0.7, 1.1),
    )

    assert "makes no difference that these seeds could show" in sentence(change)
    worse = structs.replace(change, ratio=Interval(1.5, 1.2, 1.9))
    assert "is 50% more (20% to 90%)" in sentence(worse)
