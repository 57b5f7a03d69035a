"""What replicas have in common, and the weather of a device."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.core.shared import MODEL, WEATHER, WEATHER_SECONDS, Device, Shared


class Ear:
    """Hears what dependants are told."""

    def __init__(self) -> None:
        self.stale = False
        self.felt = 0

    def feel(self) -> None:
        self.felt += 1


def test_nothing_is_believed_at_first() -> None:
    shared = Shared()

    assert shared.value("decode") == 0.0
    assert shared.variance("decode") == pytest.approx(MODEL**2)


def test_more_evidence_is_believed_more_and_never_quite() -> None:
    weak, strong = Shared(), Shared()
    weak.replace("decode", (0.0, 0.0), (1.0, 0.5))
    strong.replace("decode", (0.0, 0.0), (100.0, 0.5))

    assert 0.0 < weak.value("decode") < strong.value("decode") < 0.5
    assert strong.variance("decode") < weak.variance("decode") < MODEL**2
    assert strong.value("prefill") == 0.0


def test_a_device_may_be_further_off_than_a_model() -> None:
    device, model = Device(), Shared()
    for shared in (device, model):
        shared.replace("load", (0.0, 0.0), (5.0, 0.5))

    assert device.value("load") > model.value("load")


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 50.0), st.floats(-2.0, 2.0)), min_size=1, max_size=30))
def test_only_what_a_replica_gave_last_counts(given: list[tuple[float, float]]) -> None:
    changed, fresh = Shared(), Shared()
    old = (0.0, 0.0)
    for new in given:
        changed.replace("decode", old, new)
        old = new
    fresh.replace("decode", (0.0, 0.0), given[-1])

    assert changed.value("decode") == pytest.approx(fresh.value("decode"), abs=1e-9)
    assert changed.variance("decode") == pytest.approx(fresh.variance("decode"), abs=1e-9)


def test_others_are_told_of_a_change_that_matters_and_of_no_other() -> None:
    shared, own, other = Shared(), Ear(), Ear()
    shared.dependants += [own, other]
    shared.replace("decode", (0.0, 0.0), (5.0, 0.001))
    shared.tell("decode", but=own)
    assert not other.stale

    shared.replace("decode", (5.0, 0.001), (5.0, 0.5))
    shared.tell("decode", but=own)
    assert (own.stale, other.stale) == (False, True)
    other.stale = False
    shared.tell("decode", but=own)
    assert not other.stale


def test_what_is_restored_is_as_it_was() -> None:
    device, again = Device(), Device()
    device.replace("decode", (0.0, 0.0), (5.0, 0.5))
    device.surprise(0.4, 0.01, 100.0)
    again.restore(device.state())

    assert again.value("decode") == device.value("decode")
    assert again.weather == device.weather
    assert again.state() == device.state()


# The weather


def test_a_surprise_is_put_down_to_the_weather_as_far_as_is_likely() -> None:
    sure, unsure = Device(), Device()
    sure.surprise(0.3, 0.001, 1000.0)
    unsure.surprise(0.3, 1.0, 1000.0)

    assert 0.0 < unsure.weather < 0.05
    assert 0.25 < sure.weather < 0.3
    assert sure.weather_variance < unsure.weather_variance < WEATHER**2


def test_the_weather_fades_and_is_uncertain_again() -> None:
    device = Device()
    device.surprise(0.3, 0.001, 1000.0)
    before = device.weather
    device.tick(1000.0 + WEATHER_SECONDS)

    assert device.weather == pytest.approx(before / math.e)
    device.tick(1000.0 + 20 * WEATHER_SECONDS)
    assert device.weather == pytest.approx(0.0, abs=0.011)
    assert device.weather_variance == pytest.approx(WEATHER**2)


def test_one_stall_moves_it_little_and_a_second_one_is_believed() -> None:
    device = Device()
    for second in range(20):
        device.surprise(0.0, 0.001, 1000.0 + second)
    device.surprise(5.0, 0.001, 1020.0)
    first = device.weather
    device.surprise(5.0 - first, 0.001, 1021.0)

    assert first < 0.2
    assert device.weather > 2.5 * first


def test_time_does_not_run_backwards() -> None:
    device = Device()
    device.surprise(0.3, 0.001, 1000.0)
    before = device.state()
    device.tick(900.0)

    assert device.state() == before


def test_dependants_feel_a_change_that_matters() -> None:
    device, ear = Device(), Ear()
    device.dependants.append(ear)
    device.surprise(0.005, 0.001, 1000.0)
    assert ear.felt == 0
    device.surprise(0.3, 0.001, 1001.0)
    assert ear.felt == 1
    device.tick(1001.5)
    assert ear.felt == 1
    device.tick(2000.0)
    assert ear.felt == 2
