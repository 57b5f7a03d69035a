"""The book-keeping that all parts of the scheduler share."""

from __future__ import annotations

from msgspec import structs

from herd.core.actions import Action
from herd.core.board import Board, Policy
from herd.core.refusals import stopping
from herd.core.task import Task
from tests.core.playbook import Play, cold, model


def task(play: Play, name: str) -> Task:
    return play.scheduler.tasks[name]


def test_an_empty_board_knows_nobody() -> None:
    board = Board(Policy())

    assert (board.nodes, board.tasks, len(board.line)) == ({}, {}, 0)
    assert list(board.replicas("m")) == []
    assert board.running("r", 1) is None


def test_replicas_are_listed_by_model_over_all_nodes(play: Play) -> None:
    play.node("a", model("m"), model("n"))
    play.node("b", model("m"))
    board = play.scheduler.board

    assert [replica.key.node for replica in board.replicas("m:latest")] == ["a", "b"]
    assert [replica.key.node for replica in board.replicas("n:latest")] == ["a"]
    play.gone("a")
    assert [replica.key.node for replica in board.replicas("m:latest")] == ["b"]
    assert list(board.replicas("n:latest")) == []


def test_an_attempt_is_found_by_its_number_while_it_runs(play: Play) -> None:
    play.node("a", model())
    play.ask("r")
    board = play.scheduler.board

    running = board.running("r", 1)
    assert running is not None
    assert running.replica.key.node == "a"
    assert board.running("r", 2) is None
    assert board.running("other", 1) is None
    play.finish("r")
    assert board.running("r", 1) is None


def test_who_waits_is_planned_on_one_node_at_a_time(play: Play) -> None:
    play.node("a", model())
    play.node("b", model())
    for name in ("r1", "r2", "r3"):
        play.ask(name)
    waiting, board = task(play, "r3"), play.scheduler.board
    assert waiting.booking is not None
    first = waiting.booking.replica.node
    (other,) = [node for node in board.nodes.values() if node is not first]
    assert set(first.planned) == {"r3"}

    moved = board.replicas("m:latest")
    (there,) = [replica for replica in moved if replica.node is other]
    plan = structs.replace(waiting.booking, replica=there)
    board.plan(waiting, plan)
    assert (set(first.planned), set(other.planned)) == (set(), {"r3"})

    board.unplan(waiting)
    board.unplan(waiting)
    assert not other.planned
    assert task(play, "r3").booking is None


def test_one_who_leaves_the_line_leaves_nothing_behind(play: Play) -> None:
    play.node("a", model("busy", size=40_000_000_000), cold("cold", size=40_000_000_000))
    play.ask("r1", "busy")
    play.ask("r2", "cold")
    board, node = play.scheduler.board, play.scheduler.nodes["a"]
    waiting = task(play, "r2")
    assert node.reserved is not None
    assert node.reserved.task is waiting
    assert waiting.reserved == {"a"}

    board.leave_line(waiting, play.now)

    assert len(board.line) == 0
    assert not waiting.reserved
    assert not node.planned
    assert play.scheduler.nodes["a"].reserved is None
    assert task(play, "r2").booking is None


def test_the_end_is_told_once_and_drops_its_timers(play: Play) -> None:
    play.node("a", model())
    play.ask("r1")
    play.ask("r2", patience=5.0)
    board = play.scheduler.board
    actions: list[Action] = []
    board.refuse(task(play, "r2"), stopping(), play.now, actions)

    assert [type(action).__name__ for action in actions] == ["Refuse", "Record"]
    assert set(board.tasks) == {"r1"}
    assert ("patience", "r2") not in board.timers.due(play.now + 1000.0)


def test_who_was_tried_has_failed_and_who_was_not_was_rejected(play: Play) -> None:
    play.ask("r1")
    play.node("a", model())
    play.ask("r2")
    play.fail("r2", retryable=False)

    assert play.outcomes["r1"].ending == "rejected"
    assert play.outcomes["r2"].ending == "failed"


def test_what_was_planned_for_a_replica_that_went_is_forgotten() -> None:
    """Else a node that names ever new models would make the plans grow without bound."""
    play = Play(context_plan=True)
    play.node("a", model("m"))
    board = play.scheduler.board
    (there,) = board.replicas("m:latest")
    board.keeper.contexts.dispatched(there, 8192)
    assert board.keeper.contexts.changing

    play.gone("a")

    assert not board.keeper.contexts.changing
