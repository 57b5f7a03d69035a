"""Who goes first: classes, clients and deadlines."""

from __future__ import annotations

import pytest

from tests.core.playbook import Play, model


def busy(*, speed: float = 10.0) -> Play:
    """A device that is busy for ten seconds."""
    play = Play(silence=1e6)
    play.node("n", model(), speed=speed)
    play.ask("running", client="somebody")
    play.skip()
    return play


def order(play: Play, *requests: str) -> list[str]:
    """Let everything finish, one after the other; return in which order they ran."""
    ran: list[str] = []
    last = "running"
    for _ in requests:
        play.wait(1.0)
        play.finish(last)
        (last,) = [r for r in requests if r not in ran and play.where(r) is not None]
        ran.append(last)
    return ran


def test_a_higher_class_goes_first_whoever_came_before() -> None:
    play = busy()
    play.ask("low", client="a", priority="low")
    play.ask("normal", client="b")
    play.ask("high", client="c", priority="high")

    assert order(play, "low", "normal", "high") == ["high", "normal", "low"]


def test_a_client_with_one_request_goes_before_the_many_of_another() -> None:
    play = busy()
    for number in range(4):
        play.ask(f"agent{number}", client="agent")
    play.ask("person", client="person")

    ran = order(play, *(f"agent{number}" for number in range(4)), "person")

    # The first of the agent came before and is as long; the others wait.
    assert ran.index("person") <= 1


def test_the_shorter_of_one_client_goes_first() -> None:
    play = busy()
    play.ask("long", answer=250, client="a")
    play.ask("short", answer=5, client="a")

    assert order(play, "long", "short") == ["short", "long"]


def test_who_has_waited_long_goes_before_the_shorter() -> None:
    """A second of waiting is worth a fifth of a second of work."""
    play = busy()
    play.ask("long", answer=100, client="a")
    play.wait(200.0)
    play.beat("n")
    play.ask("short", answer=5, client="a")

    assert order(play, "long", "short") == ["long", "short"]


def test_a_request_that_runs_out_of_time_goes_before_all_others() -> None:
    play = busy()
    play.ask("first", answer=100, client="a", priority="high")
    play.ask("hasty", answer=100, client="b", priority="low", deadline=30.0)
    # Alone it takes 10 s, so from 10 s on it has no more time.
    play.wait(11.0)
    play.skip()
    play.finish("running")

    play.then("running completed", "hasty runs on n")


def test_a_request_whose_deadline_has_passed_is_refused() -> None:
    play = busy()
    play.ask("hasty", client="b", deadline=30.0)
    play.wait(31.0)
    play.beat("n")

    assert play.refusal("hasty").kind == "expired"


def test_a_deadline_that_cannot_be_met_is_told_at_once() -> None:
    play = busy()
    play.ask("hopeless", client="b", deadline=0.5)

    refusal = play.refusal("hopeless")
    assert refusal.kind == "expired"
    assert "0.5 s" in refusal.message
    assert refusal.retry_after == pytest.approx(play.hold_of("running"), rel=0.1)


def test_nobody_waits_beside_idle_devices_for_a_plan_that_is_overdue() -> None:
    play = Play(silence=1e6, patience=1e6)
    play.node("one", model())
    play.node("two", model())
    for number in range(40):
        play.ask(f"r{number}", client="script")
    for _ in range(200):
        play.wait(1.0)
        for request in [name for name in play.scheduler.tasks if play.runs(name)]:
            play.finish(request)
        play.beat("one")
        play.beat("two")

    assert not play.scheduler.tasks


def test_a_long_request_is_not_passed_for_ever_by_clients_that_come_once() -> None:
    play = busy()
    play.ask("long", answer=400, client="patient")
    last = "running"
    for number in range(60):
        # Somebody new asks something short each time, before the device is free.
        play.ask(f"short{number}", answer=100, client=f"guest{number}")
        play.wait(1.0)
        play.finish(last)
        (last,) = [name for name in play.scheduler.tasks if play.runs(name)]
        if last == "long":
            break

    assert last == "long"
