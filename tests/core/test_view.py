"""The snapshot says what is, and stays what it was."""

from __future__ import annotations

import pytest

from herd.core.fleet import Load, ReplicaKey
from herd.core.view import LISTED, EngineView, FleetView, view
from tests.core.playbook import ENGINE, Play, cold, model


def look(play: Play) -> FleetView:
    return view(play.scheduler, play.now)


def engine(found: FleetView, node: str) -> EngineView:
    (one,) = next(n for n in found.nodes if n.node == node).engines
    return one


def test_an_empty_fleet(play: Play) -> None:
    assert look(play) == FleetView(at=1000.0, nodes=(), running=0, waiting=0, requests=())


def test_what_runs_and_what_is_planned_where(play: Play) -> None:
    play.node("n", model(), cold("k"))
    for name in "abc":
        play.ask(name)
    play.wait(0.25)
    found = look(play)
    assert (found.running, found.waiting) == (1, 2)
    (node,) = found.nodes
    assert (node.running, node.planned, node.silent) == (1, 2, 0.25)
    m, k = engine(found, "n").replicas
    assert (m.model, m.name, m.residency, m.running, m.planned) == (
        "m:latest",
        "m",
        "resident",
        1,
        2,
    )
    assert (k.residency, k.running, k.planned) == ("disk", 0, 0)
    key = ReplicaKey("n", ENGINE, "m:latest")
    assert [(r.id, r.state, r.age, r.replica) for r in found.requests] == [
        ("a", "running", 0.25, key),
        ("b", "waiting", 0.25, key),
        ("c", "waiting", 0.25, key),
    ]


def test_the_plan_spreads_what_waits_over_the_devices(play: Play) -> None:
    play.node("left", model())
    play.node("right", model())
    for name in "abcdef":
        play.ask(name)
    found = look(play)
    assert [node.planned for node in found.nodes] == [2, 2]


def test_what_is_believed_of_a_replica(play: Play) -> None:
    play.node("n", model(), speed=50)
    play.ask("a")
    play.wait(2.0)
    play.finish("a", tokens=100)
    (replica,) = engine(look(play), "n").replicas
    assert replica.outcomes == 1
    assert replica.rates.decode == pytest.approx(100 / 1.98, rel=0.05)


def test_a_replica_that_rests(play: Play) -> None:
    play.node("n", model())
    play.ask("a")
    play.fail("a")
    play.wait(0.25)
    assert engine(look(play), "n").replicas[0].resting == pytest.approx(0.75)
    play.wait(5.0)
    assert engine(look(play), "n").replicas[0].resting == 0.0


def test_a_node_that_leaves_and_an_engine_that_is_down(play: Play) -> None:
    play.node("n", model())
    play.leaving("n")
    assert look(play).nodes[0].leaving
    play.node("n", down="connection refused")
    found = engine(look(play), "n")
    assert (found.up, found.error) == (False, "connection refused")
    assert [replica.model for replica in found.replicas] == ["m:latest"]


def test_the_load_is_that_of_the_last_beat(play: Play) -> None:
    play.node("n", model())
    play.beat("n")
    assert look(play).nodes[0].load == Load(cpu=0.1)


def test_a_long_queue_is_counted_and_its_oldest_listed() -> None:
    play = Play(max_waiting=1000)
    play.node("n", model())
    for number in range(LISTED + 50):
        play.ask(f"r{number}")
    found = look(play)
    assert found.waiting == LISTED + 49
    assert len(found.requests) == LISTED
    assert found.requests[0].id == "r0"


def test_a_snapshot_does_not_change(play: Play) -> None:
    play.node("n", model())
    play.ask("a")
    before = look(play)
    text = repr(before)
    play.finish("a")
    play.gone("n")
    assert repr(before) == text
