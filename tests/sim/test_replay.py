"""Replays: they come near to what was recorded, and to what another policy really would do."""

from __future__ import annotations

import statistics

import pytest
from msgspec import structs

from herd.core.request import Outcome
from herd.sim.compare import Setting, scenario
from herd.sim.fleets import Fleet
from herd.sim.herd_router import HerdRouter
from herd.sim.policies import POLICIES
from herd.sim.recorded import Recorded, rebuild, site_of, took
from herd.sim.replay import replay, sentences, settings
from herd.sim.workloads import Workload
from herd.sim.world import run

SETTING = Setting(fleet="two", work="batch", requests=150, load=0.7)


def record(setting: Setting = SETTING) -> tuple[Fleet, Workload, list[Outcome]]:
    fleet, work = scenario(setting, 1)
    router = HerdRouter()
    run(fleet, work, router)
    return fleet, work, router.outcomes


def by_chance(what: Recorded) -> tuple[float, float]:
    """How near a random choice comes to the record: median error, share in the same place."""
    done = run(what.fleet, what.workload, POLICIES["random"](1))
    real = [what.outcomes[each.id] for each in done.records]
    pairs = list(zip(done.records, real, strict=True))
    places = [what.fleet.devices[each.site].name for each in done.records if each.site is not None]
    return (
        statistics.median(abs(each.completion / took(true) - 1.0) for each, true in pairs),
        statistics.fmean(map(str.__eq__, places, map(site_of, real))),
    )


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return rebuild(record()[2])


def test_the_fleet_is_rebuilt_as_it_behaved() -> None:
    true, _, outcomes = record()
    found = rebuild(outcomes).fleet
    rates = {(d.name.partition("/")[0], m.name): m for d in found.devices for m in d.spec.models}

    assert len(found.devices) == 2
    for device in true.devices:
        for model in device.spec.models:
            if (device.name, model.name) in rates:
                there = rates[device.name, model.name]
                assert there.decode_rate == pytest.approx(model.decode_rate, rel=0.1)


def test_the_same_places_at_the_same_times_take_as_long(recorded: Recorded) -> None:
    assert abs(replay(recorded).check.fleet_error) < 0.05


@pytest.mark.parametrize("work", ["chat", "batch"])
@pytest.mark.parametrize("fleet", ["two", "five"])
def test_herds_own_policy_comes_near_to_the_record(fleet: str, work: str) -> None:
    _, _, outcomes = record(Setting(fleet=fleet, work=work, requests=200, load=0.7))
    found = rebuild(outcomes)
    check = replay(found).check
    median, same_place = by_chance(found)

    assert abs(check.fleet_error) < 0.05
    assert abs(check.error) < 0.3
    # Single requests depend on what the router knew at the time, which nobody recorded. They are
    # still far nearer to the record than those of a router that knows nothing.
    assert check.median < 0.7 * median
    assert check.same_place > same_place


def test_another_policy_does_what_it_really_would(recorded: Recorded) -> None:
    fleet, work, _ = record()
    true = run(fleet, work, POLICIES["round-robin"](1))
    real = statistics.fmean(each.completion for each in true.records)
    found = replay(recorded, policy="round-robin")

    assert found.changed is not None
    assert found.changed.mean == pytest.approx(real, rel=0.15)


def test_moves_add_up_to_all_requests(recorded: Recorded) -> None:
    found = replay(recorded, policy="random")

    assert sum(move.requests for move in found.moves) == found.recorded.requests
    assert found.won[0].after - found.won[0].before <= found.won[-1].after - found.won[-1].before
    assert found.lost[0].after - found.lost[0].before >= found.won[0].after - found.won[0].before


def test_a_setting_changes_what_it_is_for(recorded: Recorded) -> None:
    found = replay(recorded, changes={"max_waiting": "1"})

    assert found.changed is not None
    assert found.changed.lost > 0
    assert found.other == "max_waiting = 1"
    assert any("would have been refused or lost, 0 without it" in line for line in sentences(found))


def test_without_another_policy_only_the_check_is_told(recorded: Recorded) -> None:
    found = replay(recorded)

    assert (found.changed, found.moves, found.other) == (None, (), "")
    assert len(sentences(found)) == 3


def test_a_difference_within_the_error_is_told_to_be_none(recorded: Recorded) -> None:
    found = replay(recorded, changes={"max_attempts": "2"})

    assert any("may as well be no difference" in line for line in sentences(found))


def test_what_goes_where_nothing_was_measured_is_told() -> None:
    _, _, outcomes = record(Setting(fleet="five", work="chat", requests=150, load=0.5))
    found = replay(rebuild(outcomes), policy="round-robin")

    assert found.untried > 0
    assert any("is a guess" in line for line in sentences(found))
    assert any("served nothing" in note for note in found.notes)


def test_what_cannot_be_replayed_is_counted() -> None:
    _, _, outcomes = record()
    outcomes[0] = structs.replace(outcomes[0], ending="cancelled")
    outcomes[1] = structs.replace(outcomes[1], result=None)
    found = rebuild(outcomes)

    assert sum(found.left_out.values()) == 2
    assert len(found.outcomes) == len(outcomes) - 2
    with pytest.raises(ValueError, match="no completed request is recorded"):
        rebuild(outcomes[:1])


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"no setting speed \(known: max_waiting"):
        settings({"speed": "9"})
    with pytest.raises(ValueError, match="patience"):
        settings({"patience": "long"})


def test_wrong_policies_are_named(recorded: Recorded) -> None:
    with pytest.raises(ValueError, match="no such policy: luck"):
        replay(recorded, policy="luck")
    with pytest.raises(ValueError, match="not of another"):
        replay(recorded, policy="random", changes={"patience": "1"})
