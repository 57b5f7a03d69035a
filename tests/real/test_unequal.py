"""Chats on three real devices of unequal speed: all are answered, and it is not slow for it.

How much better than least connections Herd is, is measured by `benchmarks.unequal` in half an
hour; what fits in a minute leaves much to chance, and only a gross fault shows.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import unequal
from benchmarks.chats import Rates
from benchmarks.household import HALF, WHOLE
from benchmarks.unequal import Plan
from devtools.quota import QuotaUnavailable

pytestmark = pytest.mark.real

#: About what the devices have; measuring them takes longer than the test should.
SPEEDS = {
    "desk": {WHOLE: Rates(150.0, 65.0), HALF: Rates(300.0, 125.0)},
    "laptop": {WHOLE: Rates(75.0, 24.0), HALF: Rates(150.0, 50.0)},
    "attic": {WHOLE: Rates(19.0, 8.0), HALF: Rates(39.0, 15.0)},
}
#: Herd's mean may be this much longer before it counts as a fault.
MARGIN = 1.5


def test_chats_on_unequal_devices(llama: None, tmp_path: Path) -> None:
    plan = Plan(repeats=1, seconds=6.0, load=0.6, turns=2, speeds=SPEEDS)
    try:
        found = unequal.measure(plan, tmp_path, lambda _line: None)
    except QuotaUnavailable as error:
        pytest.skip(str(error))

    peer, herd = found.results
    assert (peer.failed, herd.failed) == ([], [])
    assert herd.requests == peer.requests > 0
    assert herd.mean < MARGIN * peer.mean, (herd, peer)
