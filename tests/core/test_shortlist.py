"""Of many replicas those that promise most are looked at, and nobody able is overlooked."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from herd.core.placement import Choice, choose
from herd.core.shortlist import ALL, BUSY, COLD, WARM
from herd.core.state import ReplicaState
from tests.core.playbook import GB, Play, cold, model

MANY = ALL + 16


def looked_at(play: Play, request: str) -> list[str]:
    """Nodes whose replicas would be looked at for a request that is open."""
    board = play.scheduler.board
    found: list[ReplicaState] = board.candidates(board.tasks[request], play.now)[0]
    return [replica.key.node for replica in found]


def fleet(play: Play, count: int = MANY) -> None:
    """Nodes n00, n01 and so on; the later, the faster."""
    for number in range(count):
        play.node(f"n{number:02}", model(), speed=100.0 * 1.005**number)


def test_of_few_all_are_looked_at(play: Play) -> None:
    fleet(play, ALL)
    play.ask("r")

    assert len(looked_at(play, "r")) == ALL
    assert play.dispatch("r").decision.more == 0


def test_of_many_the_fastest_that_are_free_are(play: Play) -> None:
    fleet(play)
    play.ask("r")

    found = looked_at(play, "r")
    assert f"n{MANY - 2}" in found
    assert "n00" not in found
    assert len(found) <= WARM + COLD + BUSY + 1
    decision = play.dispatch("r").decision
    assert len(decision.estimates) + decision.more == MANY


def test_a_fast_one_that_is_cold_stands_behind_a_slower_one_that_is_not(play: Play) -> None:
    fleet(play)
    play.node("cold", cold(size=60_000_000_000), speed=10_000.0, memory=100.0)
    play.ask("r", answer=10)

    assert play.where("r") != "cold"


def test_those_that_are_busy_are_looked_at_too(play: Play) -> None:
    fleet(play)
    for number in range(MANY):
        play.ask(f"r{number}")
    play.ask("next")
    found = looked_at(play, "next")

    assert play.where("next") is None
    assert 1 <= len(found) <= BUSY + 1


def test_one_that_comes_free_is_looked_at_as_such(play: Play) -> None:
    fleet(play)
    for number in range(MANY + 3):
        play.ask(f"r{number}")
    slowest = next(name for name in play.scheduler.tasks if play.where(name) == "n00")
    play.finish(slowest, tokens=100)

    assert "n00" in {play.where(name) for name in play.scheduler.tasks}


def test_where_a_conversation_was_is_looked_at(play: Play) -> None:
    fleet(play, ALL + 1)
    blocks = tuple(range(100, 130))
    play.ask("first", prompt=3000, prefix=blocks, answer=10)
    home = play.where("first")
    assert home is not None
    play.finish("first", tokens=10)
    # Many that are faster come, and none of them has read it.
    for number in range(40):
        play.node(f"fast{number}", model(), speed=1000.0)
    play.ask("second", prompt=3100, prefix=(*blocks, 200), answer=10)
    play.finish("second", tokens=10)
    play.ask("other", prompt=3100, prefix=(300, 301), answer=10)

    estimated = {each.replica.node for each in play.dispatch("second").decision.estimates}
    assert home in estimated
    estimated = {each.replica.node for each in play.dispatch("other").decision.estimates}
    assert home not in estimated


def test_one_that_is_gone_is_not_looked_at(play: Play) -> None:
    fleet(play)
    best = f"n{MANY - 1}"
    play.gone(best)
    play.ask("r")

    assert best not in looked_at(play, "r")


def test_if_the_most_promising_cannot_serve_it_one_of_the_others_does(play: Play) -> None:
    fleet(play)
    play.node("sees", model(capabilities=("completion", "vision")), speed=1.0)
    play.ask("r", needs=("completion", "vision"))

    assert play.where("r") == "sees"


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.tuples(st.floats(20.0, 500.0), st.booleans(), st.integers(0, 2)),
        min_size=ALL + 1,
        max_size=ALL + 20,
    ),
    st.integers(200, 300),
)
def test_the_best_of_the_shortlist_is_about_the_best_of_all(
    nodes: list[tuple[float, bool, int]], answer: int
) -> None:
    """For a request like the one by which the lists are ordered."""
    play = Play()
    for number, (speed, resident, _) in enumerate(nodes):
        play.node(f"n{number:02}", model() if resident else cold(), speed=speed)
    for number in range(sum(busy for _, _, busy in nodes)):
        play.ask(f"r{number}", answer=200)
    play.ask("asked", prompt=500, answer=answer)
    scheduler = play.scheduler
    task = scheduler.tasks["asked"]
    near = choose(task, scheduler.board.candidates(task, play.now)[0], play.now)
    best = choose(task, scheduler.replicas("m:latest"), play.now)

    assert isinstance(near, Choice)
    assert isinstance(best, Choice)
    assert near.best.total <= 1.5 * best.best.total


def test_those_that_can_serve_nobody_take_no_place_of_those_that_can(play: Play) -> None:
    fleet(play)
    for number in range(10):
        play.node(f"down{number}", model(), speed=1000.0, down="no connection")
        play.node(f"leaving{number}", model(), speed=1000.0)
        play.leaving(f"leaving{number}")
    for number in range(3 * MANY):
        play.ask(f"r{number}")
    found = looked_at(play, f"r{3 * MANY - 1}")

    assert play.where(f"r{3 * MANY - 1}") is None
    assert [name for name in found if not name.startswith("n")] == []
    assert len(found) >= BUSY


def test_where_all_are_down_that_is_said(play: Play) -> None:
    for number in range(MANY):
        play.node(f"n{number}", model(), down="no connection")
    play.ask("r")

    assert play.refusal("r").kind == "unreachable"


def test_what_is_in_memory_is_looked_at_however_slow_it_is_beside_what_has_to_be_loaded() -> None:
    """A short request is done on it before the others have loaded the model."""
    play = Play()
    for number in range(40):
        play.node(f"cold{number:02}", cold(size=2 * GB), speed=400)
    play.node("warm", model(size=2 * GB), speed=5)
    play.ask("short", answer=2)

    assert play.where("short") == "warm"
