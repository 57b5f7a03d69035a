"""Named timers: what is due, and what the driver is told."""

from __future__ import annotations

import sys

from herd.core.timers import Timers


def test_what_is_due_comes_in_the_order_of_its_time() -> None:
    timers = Timers()
    timers.set(("patience", "b"), 2.0)
    timers.set(("silence", "a"), 1.0)
    timers.set(("look", "c"), 3.0)
    assert timers.due(2.0) == [("silence", "a"), ("patience", "b")]
    assert timers.due(2.0) == []
    assert timers.due(9.0) == [("look", "c")]


def test_setting_a_name_again_moves_it() -> None:
    timers = Timers()
    timers.set(("look", "m"), 1.0)
    timers.set(("look", "m"), 5.0)
    assert timers.due(4.0) == []
    assert timers.due(5.0) == [("look", "m")]


def test_setting_a_name_to_its_own_time_changes_nothing() -> None:
    timers = Timers()
    timers.set(("look", "m"), 1.0)
    timers.set(("look", "m"), 1.0)
    assert timers.due(1.0) == [("look", "m")]


def test_bringing_forward_never_puts_off() -> None:
    timers = Timers()
    timers.bring_forward(("look", "m"), 5.0)
    timers.bring_forward(("look", "m"), 9.0)
    timers.bring_forward(("look", "m"), 3.0)
    assert timers.due(2.9) == []
    assert timers.due(3.0) == [("look", "m")]
    assert timers.due(99.0) == []


def test_what_was_dropped_never_comes() -> None:
    timers = Timers()
    timers.set(("patience", "a"), 1.0)
    timers.drop(("patience", "a"))
    timers.drop(("patience", "never set"))
    assert timers.moved() is None
    assert timers.due(2.0) == []


def test_only_a_new_earliest_time_is_told() -> None:
    timers = Timers()
    assert timers.moved() is None
    timers.set(("look", "a"), 5.0)
    assert timers.moved() == 5.0
    assert timers.moved() is None
    timers.set(("look", "b"), 7.0)
    assert timers.moved() is None
    timers.set(("look", "c"), 2.0)
    assert timers.moved() == 2.0
    timers.drop(("look", "c"))
    assert timers.moved() == 5.0


def test_a_time_is_told_again_when_the_driver_was_too_early() -> None:
    timers = Timers()
    timers.set(("look", "a"), 5.0)
    assert timers.moved() == 5.0
    assert timers.due(4.999) == []
    assert timers.moved() == 5.0


def test_dropped_timers_do_not_pile_up() -> None:
    """Each request that waits sets one for ten minutes, and most drop it within a second."""
    timers = Timers()
    for number in range(20_000):
        timers.set(("patience", str(number)), 600.0 + number)
        timers.drop(("patience", str(number)))
    timers.set(("look", "m"), 1.0)
    assert sys.getsizeof(timers._heap) < 10_000
    assert timers.due(1e9) == [("look", "m")]
