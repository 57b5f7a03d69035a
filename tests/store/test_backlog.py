from __future__ import annotations

import threading
import time
from collections.abc import Callable

from herd.core.request import Outcome
from herd.store.backlog import Backlog

Make = Callable[..., Outcome]


def _ids(batch: list[Outcome] | None) -> list[str]:
    assert batch is not None
    return [outcome.request.id for outcome in batch]


def _backlog(capacity: int = 100, batch: int = 10, interval: float = 0.0) -> Backlog:
    return Backlog(capacity=capacity, batch=batch, interval=interval)


def test_outcomes_come_out_in_order_a_batch_at_a_time(make: Make) -> None:
    backlog = _backlog(batch=3)
    for n in range(5):
        backlog.put(make(n))

    assert _ids(backlog.take(0)) == ["r0", "r1", "r2"]
    assert _ids(backlog.take(0)) == ["r3", "r4"]
    assert backlog.take(0) == []


def test_the_oldest_gives_way_when_it_is_full(make: Make) -> None:
    backlog = _backlog(capacity=3)
    for n in range(5):
        backlog.put(make(n))

    assert backlog.dropped == 2
    assert _ids(backlog.take(0)) == ["r2", "r3", "r4"]


def test_a_full_batch_does_not_wait_for_the_interval(make: Make) -> None:
    backlog = _backlog(batch=2, interval=3600)
    backlog.put(make(1))
    backlog.put(make(2))

    assert _ids(backlog.take(3600)) == ["r1", "r2"]


def test_a_batch_that_fills_up_while_it_waits_goes_at_once(make: Make) -> None:
    backlog = _backlog(batch=2, interval=3600)
    taken: list[list[Outcome] | None] = []
    thread = threading.Thread(target=lambda: taken.append(backlog.take(3600)))
    thread.start()
    backlog.put(make(1))
    backlog.put(make(2))
    thread.join(10)

    assert _ids(taken[0]) == ["r1", "r2"]


def test_a_lonely_outcome_waits_for_the_interval_and_no_longer(make: Make) -> None:
    backlog = _backlog(interval=0.05)
    backlog.put(make(1))
    begun = time.monotonic()

    assert _ids(backlog.take(3600)) == ["r1"]
    assert time.monotonic() - begun >= 0.05


def test_flush_takes_every_batch_without_waiting_for_the_interval(make: Make) -> None:
    backlog = _backlog(batch=2, interval=3600)
    for n in range(5):
        backlog.put(make(n))
    assert backlog.flush(0) is False

    assert [len(backlog.take(0) or []) for _ in range(3)] == [2, 2, 1]


def test_flush_is_true_when_all_put_before_is_done(make: Make) -> None:
    backlog = _backlog()
    backlog.put(make(1))
    backlog.take(0)
    assert backlog.flush(0) is False

    backlog.done()

    assert backlog.flush(0) is True


def test_flush_does_not_take_dropped_outcomes_for_those_being_written(make: Make) -> None:
    backlog = _backlog(capacity=2, batch=2)
    for n in range(4):
        backlog.put(make(n))
    backlog.take(0)
    for n in range(4, 9):
        backlog.put(make(n))

    assert backlog.flush(0) is False
    backlog.done()
    assert backlog.flush(0) is False
    backlog.take(0)
    backlog.done()
    assert backlog.flush(0) is True


def test_a_nudge_ends_a_rest_and_an_idle_wait() -> None:
    backlog = _backlog()

    backlog.nudge()
    assert backlog.rest(3600) is True
    backlog.nudge()
    assert backlog.take(3600) == []


def test_a_nudge_wakes_only_once() -> None:
    backlog = _backlog()
    backlog.nudge()
    backlog.rest(3600)
    begun = time.monotonic()

    backlog.rest(0.05)

    assert time.monotonic() - begun >= 0.05


def test_after_closing_what_is_there_may_be_taken_and_then_it_is_over(make: Make) -> None:
    backlog = _backlog(batch=1, interval=3600)
    backlog.put(make(1))
    backlog.put(make(2))
    backlog.close(timeout=3600)

    assert _ids(backlog.take(3600)) == ["r1"]
    assert _ids(backlog.take(3600)) == ["r2"]
    assert backlog.take(3600) is None


def test_what_comes_after_closing_is_counted_as_dropped(make: Make) -> None:
    backlog = _backlog()
    backlog.close(timeout=1)
    backlog.put(make(1))

    assert backlog.dropped == 1
    assert len(backlog) == 0


def test_nothing_is_taken_after_the_time_for_closing(make: Make) -> None:
    backlog = _backlog()
    backlog.put(make(1))
    backlog.close(timeout=0)

    assert backlog.take(3600) is None
    assert backlog.rest(0) is False


def test_what_is_given_up_counts_as_dropped_and_ends_a_flush(make: Make) -> None:
    backlog = _backlog(batch=2)
    for n in range(5):
        backlog.put(make(n))
    backlog.take(0)

    backlog.abandon(held=2)

    assert backlog.dropped == 5
    assert backlog.flush(0) is True
