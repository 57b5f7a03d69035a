"""Clients that name different contexts: what they cost, and that one plan for all saves it."""

from __future__ import annotations

import pytest

from herd.core.scheduler import Policy
from herd.sim.fleets import fleet
from herd.sim.habits import CONTEXTS, with_contexts
from herd.sim.herd_router import HerdRouter
from herd.sim.records import Run
from herd.sim.workloads import Workload, generate
from herd.sim.world import run

FIVE = fleet("five", 1)


def chat(seed: int) -> Workload:
    return with_contexts(generate("chat", FIVE, requests=250, load=0.6, seed=seed), seed=seed)


def served(work: Workload, *, plan: bool) -> Run:
    done = run(FIVE, work, HerdRouter(Policy(context_plan=plan, placement=False)))
    assert all(record.ending == "completed" for record in done.records)
    return done


def test_each_client_has_one_habit_and_all_habits_occur() -> None:
    habits: dict[str, set[int | None]] = {}
    for session in chat(1).sessions:
        for turn in session.turns:
            habits.setdefault(turn.request.client, set()).add(turn.request.context)

    assert all(len(contexts) == 1 for contexts in habits.values())
    assert {context for contexts in habits.values() for context in contexts} == set(CONTEXTS)


def test_dialects_without_a_place_for_it_name_none() -> None:
    work = with_contexts(generate("agents", FIVE, requests=50, load=0.6, seed=1), seed=1)

    assert all(turn.request.context is None for each in work.sessions for turn in each.turns)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_one_plan_for_all_clients_saves_the_reloads(seed: int) -> None:
    work = chat(seed)
    without, with_plan = served(work, plan=False), served(work, plan=True)

    assert without.reloads >= 40
    assert with_plan.reloads <= 4
    assert with_plan.loads < 0.5 * without.loads


def test_no_prompt_is_cut_for_the_sake_of_the_plan() -> None:
    """What the engine reports as prompt is what the client sent, though clients ask for less."""
    router = HerdRouter(Policy(context_plan=True, placement=False))
    done = run(FIVE, chat(1), router)
    sent = {record.id: record.arrival.turn.prompt_tokens for record in done.records}

    for outcome in router.outcomes:
        assert outcome.result is not None
        assert outcome.result.usage.prompt_tokens == sent[outcome.request.id]
