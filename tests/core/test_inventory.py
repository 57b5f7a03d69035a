"""The fleet as placement sees it, and its orders as actions."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from herd.core.actions import Preload, Stay, Unload
from herd.core.breaker import Rests
from herd.core.contexts import ContextPlan
from herd.core.decision import Decision
from herd.core.demand import Demand
from herd.core.fleet import (
    EngineKind,
    EngineReport,
    Hardware,
    Load,
    NodeReport,
    Replica,
    ReplicaKey,
)
from herd.core.inventory import actions, survey, victims
from herd.core.learned import SharedTable
from herd.core.lengths import AnswerLengths
from herd.core.request import Prefix
from herd.core.residents import Device, Order, Residents
from herd.core.signals import score
from herd.core.state import NodeState, ReplicaState, Reservation
from herd.core.task import Running, Task
from tests.core.playbook import GB, cold, model
from tests.core.test_contexts import request

DECISION = Decision(at=0.0, chosen=ReplicaKey("n", "e", "m:latest"), estimates=(), reason="")
NOW = 1_700_000_000.0


def node(
    *models: Replica,
    memory: float = 64.0,
    kind: EngineKind = "ollama",
    load: Load | None = None,
    **hardware: Any,
) -> NodeState:
    """A node with these models on one engine; three quarters of its memory may be filled."""
    engine = EngineReport(id="e", kind=kind, url="http://n", replicas=models)
    report = NodeReport(
        node="n",
        name="N",
        hardware=Hardware(memory_bytes=int(memory * GB), **hardware),
        load=load or Load(),
        engines=(engine,),
    )
    state = NodeState(report, NOW, SharedTable(), Rests())
    state.update(report, NOW)
    return state


def look(state: NodeState, *waiting: str) -> Device:
    """Survey the one node."""
    (found,) = survey([state], Demand(), ContextPlan(), waiting, NOW)
    return found


def replica(state: NodeState, name: str) -> ReplicaState:
    return state.replicas[ReplicaKey("n", "e", f"{name}:latest")]


def run(there: ReplicaState) -> None:
    """Let a request run on it."""
    task = Task(request(), Prefix(), 1, NOW)
    best = score(task, there, NOW)
    there.node.begin(Running(task, there, NOW, best, DECISION, AnswerLengths()), NOW)


def test_a_replica_is_described_with_what_it_takes_and_costs() -> None:
    found = look(node(model("hot"), cold("m", size=10 * GB)))
    hot, there = found.items

    assert (found.node, found.name) == ("n", "N")
    assert found.budget == pytest.approx(48 * GB)
    assert (hot.resident, hot.held, there.resident, there.held) == (True, True, False, False)
    assert there.need == pytest.approx(12 * GB)
    assert there.load == pytest.approx(10.0)
    assert there.service > 0.0
    assert hot.orderable
    assert there.orderable


def test_what_a_cold_model_takes_follows_its_planned_context() -> None:
    state = node(cold("m", size=5 * GB))
    contexts = ContextPlan()
    for _ in range(100):
        contexts.finished(request(), 60_000, 100, NOW)
    (found,) = survey([state], Demand(), contexts, (), NOW)

    assert found.items[0].need > 20 * GB


def test_a_node_that_leaves_is_left_out() -> None:
    state = node(model())
    state.draining = True

    assert survey([state], Demand(), ContextPlan(), (), NOW) == []


def test_what_runs_loads_or_is_waited_for_makes_a_device_busy() -> None:
    state = node(model("hot", slots=2), cold("m"))
    assert look(state).idle
    assert not look(state, "m:latest").idle
    assert look(state, "elsewhere:latest").idle
    task = Task(request(), Prefix(), 1, NOW)
    state.reserved = Reservation(task, replica(state, "m").key, NOW)
    assert not look(state).idle
    state.reserved = None
    state.planned["r"] = task
    assert not look(state).idle
    state.planned.clear()
    replica(state, "m").loading_until = NOW + 5.0
    assert not look(state).idle
    replica(state, "m").loading_until = 0.0
    run(replica(state, "hot"))
    assert not look(state).idle
    assert look(state).taken == 0.5


def test_a_device_is_its_owners_while_it_works_and_nothing_of_ours_runs() -> None:
    state = node(model(), load=Load(cpu=0.9))
    assert look(state).owned
    run(replica(state, "m"))
    assert not look(state).owned
    assert not look(node(model(), load=Load(cpu=0.2))).owned
    assert not look(node(model())).owned


def test_memory_that_the_owners_programs_have_is_not_free() -> None:
    load = Load(memory_available=2 * GB)
    hot = model("hot", size=5 * GB)

    assert look(node(hot, load=load)).budget == pytest.approx(8 * GB)
    assert look(node(hot, load=load, vram_bytes=24 * GB)).budget == pytest.approx(24 * GB)


@pytest.mark.parametrize(
    ("state", "orderable"),
    [
        (node(cold()), True),
        (node(cold(), kind="lmstudio"), True),
        (node(model(), kind="vllm"), False),
        (node(model(), kind="llamacpp"), False),
        (node(cold(), cold("x"), kind="llamacpp"), True),
    ],
)
def test_only_engines_that_obey_get_orders(state: NodeState, *, orderable: bool) -> None:
    assert look(state).items[0].orderable == orderable


def test_a_replica_that_rests_gets_no_orders() -> None:
    state = node(cold())
    replica(state, "m").guard.faulted(NOW)

    assert not look(state).items[0].orderable


def test_orders_become_actions_with_context_and_stay() -> None:
    state = node(cold("m"), model("old"))
    demand, contexts = Demand(), ContextPlan()
    residents = Residents(demand, {"m:latest": ["n"]})
    for _ in range(100):
        contexts.finished(request(), 3000, 100, NOW)
    residents.plan(survey([state], demand, contexts, (), NOW), NOW)
    orders = [
        Order(kind="unload", key=replica(state, "old").key, reason="room"),
        Order(kind="load", key=replica(state, "m").key, reason="pinned"),
    ]

    unload, load = actions(orders, state.replicas, residents, contexts, NOW)
    assert unload == Unload(replica(state, "old").target(), "room")
    assert load == Preload(
        replica(state, "m").target(), Stay(context=8192, keep_alive=-1.0), "pinned"
    )


def test_victims_are_the_least_valuable_and_cost_their_expected_reload() -> None:
    state = node(model("hot"), model("rare"), cold("m"), memory=24)
    demand, contexts = Demand(), ContextPlan()
    residents = Residents(demand)
    for second in range(0, 3600, 30):
        demand.arrived("hot:latest", NOW - 3600.0 + second)
    replica(state, "rare").last_used = 9
    residents.plan(survey([state], demand, contexts, (), NOW), NOW)

    # 18 GB may be filled; the three would take 21.6.
    found = victims(replica(state, "m"), residents, contexts, NOW)
    assert found == ([replica(state, "rare")], 0.0)
    run(replica(state, "rare"))
    found = victims(replica(state, "m"), residents, contexts, NOW)
    assert found is not None
    assert found[0] == [replica(state, "hot")]
    assert found[1] == pytest.approx(6.0, rel=0.1)


def test_nothing_must_leave_where_there_is_room_or_nothing_is_known() -> None:
    residents, contexts = Residents(Demand()), ContextPlan()
    for state in (node(model("hot"), cold("m")), node(model("hot"), cold("m"), memory=0)):
        assert victims(replica(state, "m"), residents, contexts, NOW) == ([], 0.0)
    full = node(model("hot"), model("m"), memory=8)
    assert victims(replica(full, "m"), residents, contexts, NOW) == ([], 0.0)


def test_pins_are_no_victims() -> None:
    state = node(model("pin"), cold("m"), memory=16)
    residents, contexts = Residents(Demand(), {"pin:latest": ["n"]}), ContextPlan()
    residents.plan(survey([state], residents.demand, contexts, (), NOW), NOW)

    assert victims(replica(state, "m"), residents, contexts, NOW) is None


def test_names_that_share_their_weights_count_once() -> None:
    one = structs.replace(model("a"), digest="d")
    other = structs.replace(model("b"), digest="d")
    state = node(one, other, cold("m"), memory=24)

    assert victims(replica(state, "m"), Residents(Demand()), ContextPlan(), NOW) == ([], 0.0)


def test_a_guess_of_what_its_context_takes_keeps_no_model_from_the_whole_device() -> None:
    """Its weights fit; what a context takes is known once it was loaded."""
    state = node(cold("m", size=46 * GB), model("old", size=5 * GB), memory=64.0)
    contexts, demand = ContextPlan(), Demand()
    found = victims(replica(state, "m"), Residents(demand, {}), contexts, NOW)

    assert found is not None
    assert [each.key.model for each in found[0]] == ["old:latest"]
