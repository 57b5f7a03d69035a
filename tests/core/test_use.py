"""Whether others use a device, told by its agent's readings alone."""

from __future__ import annotations

import math

import pytest

from herd.core import explain
from herd.core.events import NodeHeard
from herd.core.fleet import Hardware, Load
from herd.core.priors import Processor, processor
from herd.core.shared import WEATHER_SECONDS, Device
from herd.core.use import LOSS, SLOWEST, Use
from tests.core.playbook import Play, model

HIGH = 0.7
BEAT = 2.0


class Watch:
    """A device whose readings come every two seconds."""

    def __init__(self, where: Processor = "cpu") -> None:
        self.device = Device()
        self.use = Use(self.device)
        self.use.processor = where
        self.now = 1000.0
        self.ours = 0.0

    def read(self, *cpus: float | None, ours: bool = False) -> Watch:
        for cpu in cpus:
            self.now += BEAT
            self.ours += BEAT * ours
            self.use.seen(Load(cpu=cpu), self.ours, self.now)
        return self

    def slower(self) -> float:
        self.device.tick(self.now)
        return math.exp(self.device.weather)


def test_two_high_readings_are_use_and_one_is_none() -> None:
    watch = Watch().read(0.1, HIGH)
    assert not watch.use.used
    assert watch.slower() == 1.0
    watch.read(HIGH)
    assert watch.use.used
    assert watch.use.slower == pytest.approx(1 / 0.3)
    assert watch.slower() == pytest.approx(1 / 0.3)


def test_high_readings_that_do_not_follow_one_another_are_none() -> None:
    assert not Watch().read(HIGH, 0.1, HIGH, 0.1, HIGH).use.used


def test_a_reading_that_is_told_twice_counts_once() -> None:
    watch = Watch().read(HIGH)
    watch.use.seen(Load(cpu=HIGH), 0.0, watch.now + 0.2)
    assert not watch.use.used


def test_what_may_be_ours_is_nobody_elses() -> None:
    watch = Watch().read(HIGH, HIGH, HIGH, ours=True)
    assert not watch.use.used
    # The last of ours ended before this reading, so the next is the first that is all others'.
    assert not watch.read(HIGH).use.used
    assert watch.read(HIGH).use.used


def test_on_apple_chips_engines_leave_the_processors_alone() -> None:
    assert Watch("apple").read(HIGH, HIGH, ours=True).use.used
    assert not Watch("card").read(HIGH, HIGH, ours=True).use.used


def test_one_low_reading_ends_it() -> None:
    watch = Watch().read(HIGH, HIGH)
    watch.read(0.1)
    assert not watch.use.used
    assert watch.use.slower == 1.0
    assert watch.slower() == 1.0


def test_it_is_believed_for_a_while_under_our_own_load() -> None:
    watch = Watch().read(HIGH, HIGH)
    beats = int(WEATHER_SECONDS / BEAT)
    assert watch.read(*[HIGH] * beats, ours=True).use.used
    assert not watch.read(HIGH, ours=True).use.used
    assert not Watch().read(HIGH, HIGH).read(0.1, ours=True).use.used


def test_nothing_is_concluded_where_nothing_is_read() -> None:
    assert not Watch().read(None, None, None).use.used
    assert Watch().read(HIGH, HIGH, None).use.used


def test_all_processors_busy_still_leave_some() -> None:
    watch = Watch().read(1.0, 1.0)
    assert watch.use.slower == SLOWEST
    assert watch.use.loss(10.0) == 0.0


@pytest.mark.parametrize("where", ["apple", "card"])
def test_where_a_gpu_computes_some_of_the_work_is_expected_to_be_lost(where: Processor) -> None:
    watch = Watch(where).read(0.1)
    assert watch.use.loss(10.0) == 0.0
    watch.read(HIGH, HIGH)
    assert watch.use.loss(10.0) == pytest.approx(10.0 * LOSS)
    assert watch.use.loss(-1.0) == 0.0
    assert watch.slower() == 1.0
    assert watch.read(0.1).use.loss(10.0) == 0.0


def test_outcomes_replace_what_was_expected() -> None:
    watch = Watch().read(HIGH, HIGH)
    for _ in range(20):
        error = math.log(1.5) - watch.device.weather
        watch.device.surprise(error, 0.01, watch.now)
    assert watch.slower() == pytest.approx(1.5, rel=0.05)
    # Without outcomes it goes back to what is expected, as long as the use lasts.
    watch.read(*[HIGH] * int(4 * WEATHER_SECONDS / BEAT))
    assert watch.slower() == pytest.approx(1 / 0.3, rel=0.05)


def test_slowness_that_came_with_others_goes_with_them() -> None:
    watch = Watch().read(0.1)
    for _ in range(20):
        watch.device.surprise(math.log(3.6) - watch.device.weather, 0.01, watch.now)
    watch.read(HIGH, HIGH)
    assert watch.slower() > 1 / 0.3
    watch.read(0.1)
    assert watch.slower() == 1.0


def test_where_a_gpu_computes_the_weather_is_left_to_outcomes() -> None:
    watch = Watch("apple").read(0.1)
    for _ in range(20):
        watch.device.surprise(math.log(3.0) - watch.device.weather, 0.01, watch.now)
    assert watch.read(HIGH, HIGH, 0.1).slower() > 2.5


@pytest.mark.parametrize(
    ("hardware", "where"),
    [
        (Hardware(chip="Apple M2 Pro"), "apple"),
        (Hardware(chip="Apple M99"), "apple"),
        (Hardware(gpu="NVIDIA GeForce RTX 4090"), "card"),
        (Hardware(vram_bytes=8 << 30), "card"),
        (Hardware(chip="Intel Core i7"), "cpu"),
        (Hardware(), "cpu"),
    ],
)
def test_where_engines_compute(hardware: Hardware, where: Processor) -> None:
    assert processor(hardware) == where


def beats(play: Play, node: str, *cpus: float) -> None:
    for cpu in cpus:
        play.wait(BEAT)
        play.feed(NodeHeard(node, Load(cpu=cpu)))


def test_an_idle_device_is_preferred_over_one_that_is_used() -> None:
    for used, idle in (("a", "b"), ("b", "a")):
        play = Play()
        play.node("a", model())
        play.node("b", model())
        beats(play, idle, 0.1)
        beats(play, used, HIGH, HIGH)
        play.ask("r", prompt=1000)
        assert play.where("r") == idle


def test_a_processor_in_use_is_predicted_to_be_slow() -> None:
    play = Play()
    play.node("a", model())
    play.ask("before", prompt=1000)
    before = play.signals("before", "a").speed
    play.client_leaves("before")
    beats(play, "a", HIGH, HIGH, HIGH)
    play.ask("after", prompt=1000)
    assert play.signals("after", "a").speed == pytest.approx(before / 0.3, rel=0.05)
    assert play.signals("after", "a").availability == 0.0


def test_a_graphics_card_in_use_is_told_in_words() -> None:
    play = Play()
    play.node("a", model())
    play.scheduler.nodes["a"].use.processor = "card"
    beats(play, "a", HIGH, HIGH, HIGH)
    play.ask("r", prompt=1000)
    estimate = play.estimate("r", "a")
    assert estimate.used == estimate.signals.availability > 0.0
    words = explain.sentences(play.scheduler.tasks["r"].request, estimate)
    (said,) = [each for each in words if each.startswith("availability")]
    assert said.startswith("availability: others, perhaps its owner, use the device; expected to")
