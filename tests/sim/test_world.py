"""The world: requests end once, engines are not overfilled, disturbances end cleanly."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from herd.core.fleet import NodeReport
from herd.core.scheduler import Policy
from herd.sim.disturbance import Disturbance, DisturbanceKind, some
from herd.sim.fleets import fleet
from herd.sim.herd_router import HerdRouter
from herd.sim.policies import POLICIES
from herd.sim.records import Run, Site
from herd.sim.workloads import Arrival, Workload, generate
from herd.sim.world import World, run

FIVE = fleet("five", 1)
CHAT = generate("chat", FIVE, requests=120, load=0.8, seed=1)
MIX = generate("mix", FIVE, requests=120, load=0.8, seed=2)


def fingerprint(done: Run) -> list[object]:
    return [
        (r.id, r.site, r.dispatched, r.first, r.ended, r.ending, r.cached) for r in done.records
    ]


@pytest.mark.parametrize("policy", POLICIES)
def test_each_request_ends_once(policy: str) -> None:
    done = run(FIVE, MIX, POLICIES[policy](1))

    assert len({record.id for record in done.records}) == len(done.records) == MIX.requests
    assert all(record.ending == "completed" for record in done.records)
    assert all(record.attempts == 1 for record in done.records)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_run_again_is_the_same(policy: str) -> None:
    one = run(FIVE, CHAT, POLICIES[policy](1))

    assert fingerprint(one) == fingerprint(run(FIVE, CHAT, POLICIES[policy](1)))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_turn_comes_after_the_answer_and_the_thought(policy: str) -> None:
    done = run(FIVE, CHAT, POLICIES[policy](1))
    sessions: dict[int, list[tuple[Arrival, float | None]]] = {}
    for record in done.records:
        sessions.setdefault(record.arrival.session, []).append((record.arrival, record.ended))

    for turns in sessions.values():
        for (_, ended), (arrival, _) in pairwise(turns):
            assert arrival.at == pytest.approx((ended or 0.0) + arrival.turn.think)


class Watched(HerdRouter):
    """Herd, with a look at the engines after everything that it does."""

    def attach(self, world: World) -> None:
        super().attach(world)
        self.most: Counter[str] = Counter()

    def arrive(self, arrival: Arrival) -> None:
        super().arrive(arrival)
        self.look()

    def woken(self) -> None:
        super().woken()
        self.look()

    def look(self) -> None:
        for site in self.world.sites:
            counts = Counter(attempt.job.model for attempt in site.attempts.values())
            for model, count in counts.items():
                self.most[f"{site.name}/{model}"] = max(self.most[f"{site.name}/{model}"], count)


def test_herd_binds_late_so_that_engines_have_no_queue() -> None:
    router = Watched()
    run(FIVE, generate("batch", FIVE, requests=120, load=0.9, seed=1), router)

    assert max(router.most.values()) == 1


def test_least_connections_does_let_engines_queue() -> None:
    """The counter-check: the same look finds a queue where there is one."""
    done = run(FIVE, MIX, POLICIES["least-connections"](1))

    assert any((r.started or 0.0) - (r.dispatched or 0.0) > 30.0 for r in done.records)


@pytest.mark.parametrize("kind", ["leaves", "throttles", "owner"])
@pytest.mark.parametrize("policy", ["herd", "least-connections", "sum-of-points", "clairvoyant"])
def test_disturbances_end_cleanly(policy: str, kind: DisturbanceKind) -> None:
    disturbances = some(kind, FIVE, length=MIX.sessions[-1].start, seed=1)

    done = run(FIVE, MIX, POLICIES[policy](1), disturbances=disturbances)

    assert len(done.records) == MIX.requests
    assert all(record.ending is not None for record in done.records)
    assert sum(record.ending == "completed" for record in done.records) > 0.9 * MIX.requests


def leaving(policy: str, work: Workload = CHAT) -> tuple[Run, float, float]:
    # Shortly after a session's start, so that something is under way.
    at = work.sessions[len(work.sessions) // 3].start + 2.0
    until = at + 0.3 * work.sessions[-1].start
    gone = [
        Disturbance(kind="leaves", device=device.name, at=at, until=until)
        for device in FIVE.devices[:2]
    ]
    return run(FIVE, work, POLICIES[policy](1), disturbances=gone), at, until


@pytest.mark.parametrize("policy", ["herd", "least-connections", "clairvoyant"])
def test_nothing_runs_on_a_device_that_is_gone(policy: str) -> None:
    done, at, until = leaving(policy)

    for record in done.records:
        if record.site in {0, 1} and record.ending == "completed":
            assert not at < (record.dispatched or 0.0) < until
            assert not at < (record.ended or 0.0) < until


@pytest.mark.parametrize("policy", ["herd", "least-connections", "clairvoyant"])
def test_what_had_not_begun_is_tried_elsewhere(policy: str) -> None:
    """Answers that are not streamed have shown nothing to their clients, so none is lost."""
    batch = generate("batch", FIVE, requests=120, load=0.8, seed=1)
    done, at, until = leaving(policy, batch)
    moved = [record for record in done.records if record.attempts > 1]

    assert moved
    assert all(at <= (record.dispatched or 0.0) for record in moved)
    elsewhere = {model.name for device in FIVE.devices[2:] for model in device.spec.models}
    for record in done.records:
        if record.ending != "completed":
            assert at <= (record.ended or 0.0) <= until
            assert record.arrival.request.model not in elsewhere


def test_a_throttled_device_takes_longer() -> None:
    two = fleet("one", 1)
    work = generate("chat", two, requests=40, load=0.5, seed=1)
    slow = [Disturbance(kind="throttles", device=two.devices[0].name, at=0.0, until=1e6)]

    plain = run(two, work, HerdRouter()).records
    hot = run(two, work, HerdRouter(), disturbances=slow).records

    assert sum(r.completion for r in hot) > 1.8 * sum(r.completion for r in plain)


@pytest.mark.parametrize("hedge", [True, False], ids=["hedged", "alone"])
def test_a_device_that_hardly_moves_is_hedged_against(hedge: bool) -> None:
    """The one that does all embeddings stalls: the one request that meets it is done elsewhere."""
    work = generate("rag", FIVE, requests=200, load=0.6, seed=3)
    stalls = Disturbance(kind="throttles", device="mac-mini-m2-1", at=20.0, until=200.0, speed=1e-4)
    router = HerdRouter(Policy(hedge=hedge))

    done = run(FIVE, work, router, disturbances=[stalls])

    short = [r for r in done.records if r.arrival.request.operation == "embedding"]
    beaten = [o for o in router.outcomes if "cancelled" in [a.ending for a in o.attempts]]
    assert {record.ending for record in done.records} == {"completed"}
    assert len(beaten) == hedge
    assert (max(record.completion for record in short) < 5.0) == hedge
    assert not any(site.attempts for site in router.world.sites)
    for outcome in beaten:
        record = router.world.records[outcome.request.id]
        winner = next(a for a in outcome.attempts if a.ending == "completed")
        assert router.world.sites[record.site or 0].name == winner.replica.node


def test_the_owners_load_is_reported() -> None:
    loads: list[float | None] = []

    class Listening(HerdRouter):
        def reported(self, site: Site, report: NodeReport) -> None:
            loads.append(report.load.cpu)
            super().reported(site, report)

    back = [Disturbance(kind="owner", device=FIVE.devices[0].name, at=100.0, until=200.0)]
    run(FIVE, CHAT, Listening(), disturbances=back)

    assert max(load or 0.0 for load in loads) == 0.9


def test_a_request_that_herd_refuses_is_rejected() -> None:
    done = run(FIVE, MIX, HerdRouter(Policy(max_waiting=0)))

    assert any(record.ending == "rejected" for record in done.records)
    assert all(record.ending is not None for record in done.records)


def test_the_network_takes_its_time() -> None:
    far = run(FIVE, CHAT, HerdRouter(), latency=0.1)

    for record in far.records:
        assert (record.started or 0.0) >= (record.dispatched or 0.0) + 0.1
        assert record.completion >= 0.2


def test_herd_hears_of_caches_and_durations_as_engines_tell_them() -> None:
    router = HerdRouter()
    run(FIVE, MIX, router)
    results = {o.request.dialect: o.result for o in router.outcomes if o.result is not None}

    assert results["ollama"].timings.decode is not None
    assert results["openai"].timings.decode is None
    assert results["openai"].usage.cached_tokens is not None
    quiet = HerdRouter()
    run(FIVE, MIX, quiet, cached_told=False)
    assert all(o.result is None or o.result.usage.cached_tokens is None for o in quiet.outcomes)


class Forgetful(HerdRouter):
    """Takes requests and does nothing with them."""

    heartbeat: float | None = None

    def arrive(self, arrival: Arrival) -> None:
        del arrival


def test_a_router_that_forgets_requests_is_found_out() -> None:
    with pytest.raises(RuntimeError, match="does not end"):
        run(FIVE, CHAT, Forgetful())


def test_an_empty_workload_is_over_at_once() -> None:
    done = run(FIVE, Workload("none", ()), HerdRouter())

    assert done.records == []
    assert done.end == 0.0
