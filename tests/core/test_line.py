"""Who goes first: classes, fair shares, short ones first within a flow, and nobody twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.core import line as module
from herd.core.line import AGING, URGENT, Line
from herd.core.request import Prefix, Priority, Request
from herd.core.task import Task


@dataclass
class Hall:
    """A line and everybody who was ever let into it, by name."""

    line: Line = field(default_factory=Line)
    sequence: int = 0

    def enter(
        self,
        name: str,
        client: str = "a",
        *,
        cost: float = 1.0,
        at: float = 0.0,
        model: str = "m",
        priority: Priority = "normal",
        urgent: bool = False,
    ) -> Task:
        self.sequence += 1
        request = Request(
            id=name,
            dialect="openai",
            operation="chat",
            endpoint="/v1/chat/completions",
            asked=model,
            model=model,
            client=client,
            priority=priority,
        )
        task = Task(request, Prefix(), self.sequence, at)
        task.cost, task.urgent = cost, urgent
        self.line.add(task)
        return task

    def serve(self, *models: str) -> Task:
        """Serve who is first, as the scheduler does."""
        task = next(self.line.ordered(models or ["m"]))
        assert self.line.remove(task)
        self.line.charge(task)
        return task

    def order(self, *models: str) -> str:
        return " ".join(task.request.id for task in self.line.ordered(models or ["m"]))


@pytest.fixture
def hall() -> Hall:
    return Hall()


# Who waits


def test_nobody_waits_at_first(hall: Hall) -> None:
    assert (len(hall.line), list(hall.line.models), hall.order()) == (0, [], "")


def test_who_waits_is_counted_by_model(hall: Hall) -> None:
    hall.enter("one")
    two = hall.enter("two", model="n")
    hall.enter("three", model="n")
    hall.line.remove(two)

    assert (len(hall.line), hall.line.count("m"), hall.line.count("n")) == (2, 1, 1)
    assert set(hall.line.models) == {"m", "n"}
    assert hall.line.count("other") == 0


def test_who_has_left_cannot_leave_again(hall: Hall) -> None:
    task = hall.enter("one")
    hall.enter("two")

    assert hall.line.remove(task)
    assert not hall.line.remove(task)
    assert hall.order() == "two"


def test_who_never_came_cannot_leave(hall: Hall) -> None:
    stranger, another = Hall().enter("stranger", cost=0.5), Hall().enter("another", "b")
    hall.enter("one")

    assert not hall.line.remove(stranger)
    assert not hall.line.remove(another)
    assert hall.order() == "one"


def test_only_those_who_wait_for_one_of_the_models_come_by(hall: Hall) -> None:
    for number, model in enumerate("mnomno"):
        hall.enter(str(number), f"c{number}", model=model)

    assert hall.order("m", "o") == "0 2 3 5"
    assert hall.order("n") == "1 4"
    assert hall.order("unknown") == ""


# Classes


def test_higher_classes_go_first_however_late_and_long(hall: Hall) -> None:
    hall.enter("low", priority="low", cost=0.1)
    hall.enter("normal", cost=1.0)
    hall.enter("high", priority="high", cost=50.0, at=9.0)

    assert hall.order() == "high normal low"


def test_what_can_wait_no_more_goes_before_all_classes(hall: Hall) -> None:
    hall.enter("high", priority="high")
    urgent = hall.enter("urgent", priority="low", cost=9.0, urgent=True)

    assert hall.order() == "urgent high"
    assert urgent.rank == URGENT


def test_what_a_client_had_in_one_class_is_not_held_against_it_in_another(hall: Hall) -> None:
    for number in range(5):
        hall.enter(f"low{number}", "a", priority="low", cost=10.0)
        hall.enter(f"other{number}", "b", priority="low", cost=10.0)
    for _ in range(4):
        hall.serve()
    hall.enter("b", "b")
    hall.enter("a", "a")

    assert hall.order().startswith("b a low")


# Shares


def test_equal_requests_of_different_clients_go_by_their_arrival(hall: Hall) -> None:
    for name in ("first", "second", "third"):
        hall.enter(name, client=name)

    assert hall.order() == "first second third"


def test_a_single_request_stands_before_the_second_of_five_hundred(hall: Hall) -> None:
    for number in range(500):
        hall.enter(f"script{number}", "script")
    hall.enter("person", "person")

    assert hall.order().split()[:3] == ["script0", "person", "script1"]


def test_a_short_request_passes_the_long_one_of_another_client(hall: Hall) -> None:
    hall.enter("long", "a", cost=10.0)
    hall.enter("short", "b", cost=1.0)

    assert hall.order() == "short long"


def test_a_long_request_is_not_passed_for_ever(hall: Hall) -> None:
    hall.enter("long", "a", cost=10.0)
    hall.enter("short", "b")
    served: list[str] = []
    while "long" not in served and len(served) < 20:
        hall.enter(f"short{len(served)}", "b")
        served.append(hall.serve().request.id)

    assert 10 <= len(served) <= 11


def test_who_was_served_stands_behind_those_who_were_not(hall: Hall) -> None:
    for number in range(3):
        hall.enter(f"a{number}", "a")
    hall.serve()
    hall.enter("b0", "b", cost=1.5)

    assert hall.order() == "b0 a1 a2"


def test_service_alone_costs_nothing(hall: Hall) -> None:
    for number in range(9):
        hall.enter(f"night{number}", "a", cost=100.0)
        hall.serve()
    hall.enter("a", "a")
    hall.enter("b", "b")

    assert hall.order() == "a b"


def test_once_nobody_waits_nobody_is_owed_anything(hall: Hall) -> None:
    for number in range(4):
        hall.enter(f"a{number}", "a", cost=10.0)
    while len(hall.line):
        hall.serve()
    hall.enter("a", "a")
    hall.enter("b", "b")

    assert hall.order() == "a b"


def test_a_pause_earns_no_credit(hall: Hall) -> None:
    for number in range(20):
        hall.enter(f"a{number}", "a")
    for _ in range(10):
        hall.serve()
    for number in range(5):
        hall.enter(f"b{number}", "b")
    served = [hall.serve().request.client for _ in range(6)]

    assert Counter(served) == {"a": 3, "b": 3}


def test_a_refund_gives_the_place_back(hall: Hall) -> None:
    first = hall.enter("a0", "a", cost=5.0)
    hall.enter("a1", "a", cost=5.0, at=1.0)
    hall.enter("b0", "b", cost=6.0)
    assert hall.serve() is first
    assert hall.order() == "b0 a1"

    hall.line.refund(first)
    hall.line.add(first)

    assert hall.order() == "a0 b0 a1"


def test_a_refund_to_a_flow_that_is_forgotten_is_nothing(hall: Hall) -> None:
    task = hall.enter("a", "a", cost=100.0)
    hall.serve()
    hall.line.refund(task)
    hall.enter("b", "b", cost=0.5)
    hall.enter("a1", "a")

    assert hall.order() == "b a1"


# Within one flow


def test_the_shorter_of_ones_own_goes_first(hall: Hall) -> None:
    hall.enter("long", cost=10.0)
    hall.enter("short", cost=1.0)
    hall.enter("middle", cost=5.0)

    assert hall.order() == "short middle long"


@pytest.mark.parametrize(("waited", "first"), [(0.9, "short"), (1.0, "long"), (1.1, "long")])
def test_the_longer_goes_first_once_it_has_waited_for_the_difference(
    hall: Hall, waited: float, first: str
) -> None:
    hall.enter("long", cost=2.0)
    hall.enter("short", cost=1.0, at=waited / AGING)

    assert hall.order().split()[0] == first


def test_the_order_of_ones_own_holds_over_models(hall: Hall) -> None:
    hall.enter("long", model="m", cost=3.0)
    hall.enter("short", model="n", cost=1.0)
    hall.enter("middle", model="m", cost=2.0)
    hall.enter("other", "b", model="o", cost=2.5)

    assert hall.order("m", "n", "o") == "short other middle long"
    assert hall.order("m") == "middle long"


# What is remembered


def test_flows_that_are_owed_nothing_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FLOWS", 10)
    hall = Hall()
    hall.enter("waits", "z", cost=1000.0)
    for number in range(500):
        hall.enter(f"r{number}", f"c{number}")
        assert hall.serve().request.id == f"r{number}"

        assert len(hall.line._flows) <= 2 * (1 + 10 // 2)
    assert hall.order() == "waits"


def test_who_has_had_more_than_the_others_is_not_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FLOWS", 4)
    hall = Hall()
    hall.enter("waits", "z", cost=1000.0)
    for number in range(9):
        hall.enter(f"greedy{number}", "greedy", cost=5.0)
        hall.serve()
    for number in range(20):
        hall.enter(f"r{number}", f"c{number}")
        hall.serve()
    hall.enter("greedy", "greedy")
    for number in range(20):
        hall.enter(f"again{number}", f"c{number}")

    assert hall.order().split()[-2:] == ["greedy", "waits"]


# Whatever happens


MODELS = ("m", "n", "o")
costs = st.floats(0.01, 100.0)
steps = st.one_of(
    st.tuples(
        st.just("enter"),
        st.sampled_from(("a", "b", "c", "d")),
        costs,
        st.sampled_from(MODELS),
        st.sampled_from(("high", "normal", "low")),
        st.booleans(),
    ),
    st.tuples(st.just("serve"), st.sampled_from(MODELS)),
    st.tuples(st.just("leave"), st.integers(0, 50)),
    st.tuples(st.just("again"), st.integers(0, 50)),
)


def step(hall: Hall, waiting: dict[str, Task], served: list[Task], what: tuple[Any, ...]) -> None:
    match what:
        case ("enter", client, cost, model, priority, urgent):
            task = hall.enter(
                f"r{hall.sequence}",
                client,
                cost=cost,
                at=float(hall.sequence),
                model=model,
                priority=priority,
                urgent=urgent,
            )
            waiting[task.request.id] = task
        case ("serve", model):
            if hall.line.count(model):
                served.append(hall.serve(model))
                del waiting[served[-1].request.id]
        case ("leave", number):
            if waiting:
                name = sorted(waiting)[number % len(waiting)]
                assert hall.line.remove(waiting.pop(name))
        case ("again", number):
            if served:
                task = served.pop(number % len(served))
                hall.line.refund(task)
                hall.line.add(task)
                waiting[task.request.id] = task


@settings(deadline=None, max_examples=150)
@given(st.lists(steps, max_size=60), st.sets(st.sampled_from(MODELS), min_size=1))
def test_everybody_comes_by_once_in_one_order(
    what: list[tuple[Any, ...]], models: set[str]
) -> None:
    hall = Hall()
    waiting: dict[str, Task] = {}
    served: list[Task] = []
    for each in what:
        step(hall, waiting, served, each)
        assert len(hall.line) == len(waiting)

    found = list(hall.line.ordered(models))
    expected = [task for task in waiting.values() if task.request.model in models]
    assert Counter(task.request.id for task in found) == Counter(t.request.id for t in expected)
    orders = [task.order for task in found]
    assert all(one < other for one, other in pairwise(orders))
    # Whoever is asked about fewer models finds the same first of each flow's own requests.
    for model in models:
        own = [task.request.id for task in hall.line.ordered([model])]
        assert own == sorted(own, key=lambda name: waiting[name].order)
        assert len(own) == hall.line.count(model)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.sampled_from("abc"), costs), min_size=1, max_size=40))
def test_the_order_told_at_the_entry_is_the_one_in_which_one_comes_by(
    who: list[tuple[str, float]],
) -> None:
    hall = Hall()
    for number, (client, cost) in enumerate(who):
        hall.enter(str(number), client, cost=cost)
    last = hall.enter("last", "a", cost=7.0)
    told = last.order

    list(hall.line.ordered(["m"]))
    assert last.order == pytest.approx(told, rel=1e-9)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(costs, min_size=1, max_size=25),
    st.lists(costs, min_size=1, max_size=25),
    st.integers(0, 5),
)
def test_two_who_both_wait_get_the_same_to_within_a_request_of_each(
    one: list[float], other: list[float], others: int
) -> None:
    """The bound of start-time fair queueing (Goyal, Vin and Cheng, 1996, theorem 1)."""
    hall = Hall()
    for index in range(max(len(one), len(other))):
        for client, each in (("one", one), ("other", other)):
            if index < len(each):
                hall.enter(f"{client}{index}", client, cost=each[index])
    for index in range(others):
        hall.enter(f"third{index}", "third", cost=3.0)
    left = {"one": len(one), "other": len(other), "third": others}
    had = dict.fromkeys(left, 0.0)
    while left["one"] and left["other"]:
        task = hall.serve()
        left[task.request.client] -= 1
        had[task.request.client] += task.cost
        assert abs(had["one"] - had["other"]) <= max(one) + max(other) + 1e-9
