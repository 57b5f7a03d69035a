"""The seven signals are one sum."""

from __future__ import annotations

import msgspec

from herd.core.decision import Signals


def test_every_signal_is_in_the_total_exactly_once() -> None:
    names = [field.name for field in msgspec.structs.fields(Signals)]
    assert len(names) == 7
    values = {name: float(2**place) for place, name in enumerate(names)}
    assert Signals(**values).total == 2.0**7 - 1
