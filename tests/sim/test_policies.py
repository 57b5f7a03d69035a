"""The policies to compare with: each follows its rule; knowledge helps; nobody beats the bound."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import pytest

from herd.core.fleet import Load, NodeReport
from herd.sim.bound import alone_bound, lower_bound
from herd.sim.fleets import fleet
from herd.sim.points import SumOfPoints
from herd.sim.policies import POLICIES
from herd.sim.push import warm
from herd.sim.records import Run, Site
from herd.sim.workloads import Arrival, WorkName, generate
from herd.sim.world import run

FIVE = fleet("five", 1)
CHAT = generate("chat", FIVE, requests=150, load=0.8, seed=1)


def shares(policy: str) -> list[int]:
    done = run(FIVE, CHAT, POLICIES[policy](1))
    return [sum(record.site == index for record in done.records) for index in range(5)]


def mean(done: Run) -> float:
    return statistics.fmean(record.completion for record in done.records)


def test_all_policies_to_compare_with_are_there() -> None:
    assert set(POLICIES) >= {
        "herd",
        "random",
        "round-robin",
        "least-connections",
        "weighted-connections",
        "warm-first",
        "shortest-delay",
        "prefix-affinity",
        "two-choices",
        "sum-of-points",
        "clairvoyant",
    }


def test_round_robin_is_even_for_each_model() -> None:
    done = run(FIVE, CHAT, POLICIES["round-robin"](1))
    counts = [
        sum(r.site == index and r.arrival.request.model == "llama3.2:3b" for r in done.records)
        for index in range(5)
    ]

    assert max(counts) - min(counts) <= 1


def test_weights_send_more_to_the_fast() -> None:
    even, weighted = shares("least-connections"), shares("weighted-connections")

    assert weighted[0] > even[0]
    assert weighted[4] < even[4]


def test_warm_first_stays_where_the_model_is() -> None:
    """A model that one device has loaded is never loaded on a second one."""
    done = run(FIVE, CHAT, POLICIES["warm-first"](1))

    assert done.loads < run(FIVE, CHAT, POLICIES["random"](1)).loads / 3


def test_prefix_affinity_keeps_a_session_on_its_device() -> None:
    done = run(FIVE, CHAT, POLICIES["prefix-affinity"](1))
    sites: dict[int, set[int | None]] = {}
    for record in done.records:
        if record.arrival.turn.prefix.hashes:
            sites.setdefault(record.arrival.session, set()).add(record.site)

    assert statistics.fmean(len(each) for each in sites.values()) < 1.1


class Looking(SumOfPoints):
    """Notes how old a device's report is when it is used."""

    def __init__(self) -> None:
        super().__init__(1)
        self.beats: dict[int, float] = {}
        self.oldest = 0.0
        self.stale = 0

    def heard(self, site: Site, load: Load) -> None:
        self.beats[site.index] = self.world.now
        super().heard(site, load)

    def reported(self, site: Site, report: NodeReport) -> None:
        self.beats[site.index] = self.world.now
        super().reported(site, report)

    def choose(self, arrival: Arrival, sites: Sequence[Site]) -> Site:
        for site in sites:
            self.oldest = max(self.oldest, self.world.now - self.beats[site.index])
            (engine,) = self._reports[site.index].engines
            told = {r.model for r in engine.replicas if r.residency == "resident"}
            model = arrival.request.model
            self.stale += warm(site, model) != (model in told)
        return super().choose(arrival, sites)


def test_the_sum_of_points_sees_a_heartbeat_old_state() -> None:
    router = Looking()
    run(FIVE, CHAT, router)

    assert 2.0 < router.oldest <= 5.0
    assert router.stale > 0


@pytest.mark.parametrize(
    ("name", "work"),
    [("one", "chat"), ("one", "batch"), ("five", "chat"), ("five", "batch"), ("vllm", "agents")],
)
def test_nobody_beats_the_bound(name: str, work: WorkName) -> None:
    """On many seeds: bound of each schedule's own arrivals <= that schedule's mean."""
    for seed in range(1, 4):
        devices = fleet(name, seed)
        made = generate(work, devices, requests=80, load=0.8, seed=seed)
        for policy in POLICIES:
            done = run(devices, made, POLICIES[policy](seed))
            assert lower_bound(devices, done.records, steps=4) <= mean(done)


def test_prices_raise_the_bound() -> None:
    """Where all come at once, that devices have to be shared is most of the truth."""
    made = generate("batch", FIVE, requests=100, load=0.9, seed=1)
    done = run(FIVE, made, POLICIES["clairvoyant"](1))

    alone = alone_bound(FIVE, done.records)
    shared = lower_bound(FIVE, done.records, steps=15)

    assert 1.5 * alone < shared < mean(done)


def test_the_bound_of_a_lonely_request_is_its_time() -> None:
    """One request on one warm device: nothing can be better, and nothing is."""
    one = fleet("vllm", 1)
    made = generate("chat", one, requests=1, load=0.8, seed=5)
    done = run(one, made, POLICIES["clairvoyant"](1))
    (record,) = done.records
    loaded = (record.started or 0.0) - record.arrival.at

    assert alone_bound(one, done.records) == pytest.approx(record.completion - loaded, rel=1e-3)


def test_knowing_everything_is_best_on_average() -> None:
    """Clairvoyant <= every other policy, over seeds; it is greedy, so not in every single run."""
    ratios: dict[str, list[float]] = {}
    for seed in range(1, 6):
        devices = fleet("five", seed)
        made = generate("chat", devices, requests=150, load=0.8, seed=seed)
        means = {policy: mean(run(devices, made, POLICIES[policy](seed))) for policy in POLICIES}
        for policy, value in means.items():
            ratios.setdefault(policy, []).append(value / means["clairvoyant"])

    assert {p for p, r in ratios.items() if statistics.geometric_mean(r) < 1.0} == set()
