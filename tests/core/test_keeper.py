"""The keeper between scheduler, placement and context plan."""

from __future__ import annotations

from typing import Any

import pytest

from herd.core.actions import Dispatch, Preload, Stay, Unload
from herd.core.keeper import PLAN_EVERY, Keeper
from herd.core.request import Result, Usage
from tests.core.playbook import GB, Play, cold, model
from tests.core.test_contexts import request
from tests.core.test_inventory import NOW, node, replica


def placing(**limits: Any) -> Play:
    return Play(placement=True, context_plan=True, **limits)


def orders(play: Play) -> list[str]:
    """What was ordered so far."""
    return [
        f"{type(action).__name__.lower()} {action.target.model}"
        for action in play.actions
        if isinstance(action, Preload | Unload)
    ]


def test_what_completed_requests_needed_is_learned_once_they_tell_it() -> None:
    keeper = Keeper({})
    keeper.arrived(request(), NOW)
    before = keeper.contexts.need(request())
    keeper.finished(request(), Result(), 0.0, NOW)
    assert keeper.contexts.need(request()) == before

    usage = Usage(prompt_tokens=500, completion_tokens=900)
    keeper.finished(request(), Result(usage=usage), 400.0, NOW)
    assert keeper.contexts.need(request()) > before
    assert keeper.demand.models["m:latest"].prompts == 100.0


@pytest.mark.parametrize(
    ("plan", "place", "stay"),
    [
        (True, True, Stay(context=8192, keep_alive=-1.0)),
        (True, False, Stay(context=8192)),
        (False, True, Stay(keep_alive=-1.0)),
        (False, False, Stay()),
    ],
)
def test_each_part_speaks_only_if_it_is_wanted(*, plan: bool, place: bool, stay: Stay) -> None:
    keeper = Keeper({"m:latest": ["n"]}, plan=plan, place=place)
    state = node(model(loaded_context=8192, context_length=32_768))
    keeper.reported(state)
    keeper.look({"n": state}, (), NOW)

    assert keeper.stay(request(), replica(state, "m"), NOW) == stay


def test_a_load_that_is_ordered_is_under_way_and_what_leaves_is_gone() -> None:
    keeper = Keeper({"pin:latest": ["n"]})
    state = node(cold("pin", size=10 * GB), model("old", size=10 * GB), memory=24)
    keeper.reported(state)

    found = keeper.look({"n": state}, (), NOW)
    assert [type(action) for action in found] == [Unload, Preload]
    assert replica(state, "pin").loading_until > NOW
    assert not replica(state, "old").resident


def test_a_pin_is_loaded_soon_after_its_node_has_joined() -> None:
    play = placing(pins={"m:latest": ("n",)})
    play.node("n", cold("m"))
    play.wait(PLAN_EVERY)

    assert orders(play) == ["preload m"]


def test_without_placement_nothing_is_ordered() -> None:
    play = Play(context_plan=True, pins={"m:latest": ("n",)})
    play.node("n", cold("m"))
    play.wait(10 * PLAN_EVERY)

    assert orders(play) == []


def test_a_request_that_needs_memory_names_what_is_to_go_before_it() -> None:
    play = placing()
    play.node("n", model("hot"), cold("m"), memory=16)
    play.ask("a", "m")

    kinds = [type(action) for action in play.actions if isinstance(action, Unload | Dispatch)]
    assert kinds == [Unload, Dispatch]


def test_a_pinned_model_is_not_evicted_for_a_request() -> None:
    play = placing(pins={"hot:latest": ("n",)})
    play.node("n", model("hot"), cold("m"), memory=16)
    play.wait(PLAN_EVERY)
    play.ask("a", "m")

    assert play.refusal("a").kind == "too_big"
