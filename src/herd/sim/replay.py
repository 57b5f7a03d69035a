"""Recorded requests under another policy or setting: what would have changed.

The fleet is rebuilt from what outcomes say of it (`recorded`), and the same requests arrive at the
same moments. First Herd's own policy is replayed: how near that comes to what was recorded is how
far the rest can be believed. Another policy is then compared with that replay, not with the record,
so that what the rebuilt fleet has wrong is wrong in both.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping

import msgspec
from msgspec import Struct

from herd.core.scheduler import Policy
from herd.sim.herd_router import HerdRouter
from herd.sim.policies import POLICIES
from herd.sim.recorded import Recorded, first, site_of, took
from herd.sim.records import Record, Run
from herd.sim.results import quantile
from herd.sim.retraced import Retraced
from herd.sim.world import Router, run

HERD = "herd"
#: Requests that are named for having won or lost most.
_NAMED = 5
#: Relative error of the replayed mean beyond which a replay is called no more than a hint.
GOOD = 0.15


class Summary(Struct, frozen=True, kw_only=True):
    """Seconds, over the requests that were completed."""

    requests: int
    mean: float
    p95: float
    #: Times to the first token of streamed answers; None if nothing was streamed.
    first_mean: float | None
    first_p95: float | None
    #: Requests that were not completed.
    lost: int = 0


class Check(Struct, frozen=True, kw_only=True):
    """How far the replay under Herd's own policy is from the record."""

    #: Replayed mean over the recorded one, less 1: with every request sent when and where it was,
    #: which is the rebuilt fleet's error, and under Herd's own policy.
    fleet_error: float
    error: float
    #: Median over requests of |replayed - recorded| / recorded, under Herd's own policy.
    median: float
    #: Share of the requests that went where they had gone.
    same_place: float


class Move(Struct, frozen=True, kw_only=True):
    """Requests that went from one place to another, and what that did to them."""

    before: str
    after: str
    requests: int
    #: Mean change in seconds; negative is sooner.
    change: float


class Changed(Struct, frozen=True, kw_only=True):
    """One request under both policies. Seconds to completion."""

    request: str
    model: str
    before: float
    after: float
    before_at: str
    after_at: str


class Replay(Struct, frozen=True, kw_only=True):
    """What was recorded, what Herd makes of it in the replay, and what another policy does."""

    recorded: Summary
    herd: Summary
    check: Check
    #: Name of the other policy, or the settings that differ; empty where there is none.
    other: str
    changed: Summary | None
    moves: tuple[Move, ...]
    won: tuple[Changed, ...]
    lost: tuple[Changed, ...]
    #: Requests that the other policy sends where nothing was measured.
    untried: int
    left_out: dict[str, int]
    notes: tuple[str, ...]


def settings(given: Mapping[str, str]) -> Policy:
    """Read settings of the scheduler; raises ValueError that names the wrong one."""
    for name in given:
        if name not in Policy.__struct_fields__:
            known = ", ".join(Policy.__struct_fields__)
            raise ValueError(f"the scheduler has no setting {name} (known: {known})")
    try:
        return msgspec.convert(dict(given), Policy, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error


def replay(
    what: Recorded, *, policy: str = HERD, changes: Mapping[str, str] | None = None, seed: int = 1
) -> Replay:
    """Replay under Herd's own policy, and then under another policy or settings, if given.

    Raises ValueError for an unknown policy or setting.
    """
    if policy not in POLICIES:
        raise ValueError(f"no such policy: {policy} (known: {', '.join(POLICIES)})")
    if changes and policy != HERD:
        raise ValueError("settings are those of Herd's own policy, not of another")
    own = settings(changes or {})
    before = _run(what, HerdRouter())
    after: Run | None = None
    if policy != HERD:
        after = _run(what, POLICIES[policy](seed))
    elif changes:
        after = _run(what, HerdRouter(own))
    own_changes = ", ".join(f"{name} = {value}" for name, value in (changes or {}).items())
    other = policy if policy != HERD else own_changes
    pairs = _pairs(before, after) if after is not None else []
    return Replay(
        recorded=_recorded(what),
        herd=_summary(before),
        check=_check(what, _run(what, Retraced(_places(what))), before),
        other=other,
        changed=_summary(after) if after is not None else None,
        moves=tuple(_moves(pairs)),
        won=tuple(sorted(pairs, key=_gain)[:_NAMED]),
        lost=tuple(sorted(pairs, key=_gain, reverse=True)[:_NAMED]),
        untried=sum((pair.after_at, pair.model) in what.untried for pair in pairs),
        left_out=what.left_out,
        notes=what.notes,
    )


def sentences(found: Replay) -> list[str]:
    """Say what was found, in words and numbers."""
    check, recorded = found.check, found.recorded
    worth = "" if abs(check.error) <= GOOD else " Take what follows as a hint."
    what = (
        f"{recorded.requests} requests were recorded and can be replayed: mean "
        f"{recorded.mean:.2f} s, 95 % within {recorded.p95:.2f} s."
    )
    fleet = (
        "Sent again when and where they were sent they take "
        f"{_apart(check.fleet_error)} that in the mean: so far off is the rebuilt fleet. What the "
        "router knew at the time, and the memory of devices, are not recorded, so that its policy "
        "may decide otherwise in the replay."
    )
    how = (
        f"Replayed under Herd's own policy they take {found.herd.mean:.2f} s in the mean, "
        f"{_apart(check.error)} the record; a request is off by {check.median:.0%} in the median, "
        f"and {check.same_place:.0%} went where they had gone.{worth}"
    )
    lines = [what, fleet, how]
    if found.changed is not None:
        lines += _effects(found, found.changed)
    return lines


def _effects(found: Replay, changed: Summary) -> Iterable[str]:
    herd = found.herd
    moved = sum(move.requests for move in found.moves if move.before != move.after)
    whole = sum(move.requests for move in found.moves)
    yield (
        f"With {found.other} the mean would be {changed.mean:.2f} s instead of {herd.mean:.2f} s "
        f"({_more(changed.mean, herd.mean)}), 95 % would be done within {changed.p95:.2f} s "
        f"instead of {herd.p95:.2f} s ({_more(changed.p95, herd.p95)})."
    )
    if changed.first_mean is not None and herd.first_mean is not None:
        yield (
            f"The first token would come after {changed.first_mean:.2f} s in the mean instead of "
            f"{herd.first_mean:.2f} s ({_more(changed.first_mean, herd.first_mean)})."
        )
    if whole:
        yield f"{moved} of {whole} requests would have been served elsewhere."
    if found.untried:
        yield (
            f"{found.untried} of them would go to replicas that served nothing in the record: how "
            "fast those are is what Herd believed, so what they would take is a guess."
        )
    if changed.lost != herd.lost:
        yield f"{changed.lost} requests would have been refused or lost, {herd.lost} without it."
    limit = abs(found.check.error)
    if abs(changed.mean / herd.mean - 1.0) <= limit:
        yield (
            "That is no more than the replay itself is off, so it may as well be no difference "
            "at all."
        )


def _run(what: Recorded, router: Router) -> Run:
    return run(what.fleet, what.workload, router)


def _recorded(what: Recorded) -> Summary:
    times = sorted(took(outcome) for outcome in what.outcomes.values())
    firsts = sorted(f for o in what.outcomes.values() if (f := first(o)) is not None)
    return _summed(times, firsts, 0)


def _summary(done: Run) -> Summary:
    completed = _completed(done)
    return _summed(
        sorted(record.completion for record in completed),
        sorted(r.first - r.arrival.at for r in completed if r.first is not None),
        len(done.records) - len(completed),
    )


def _summed(times: list[float], firsts: list[float], lost: int) -> Summary:
    if not times:
        raise ValueError("no request would be completed")
    return Summary(
        requests=len(times),
        mean=statistics.fmean(times),
        p95=quantile(times, 0.95),
        first_mean=statistics.fmean(firsts) if firsts else None,
        first_p95=quantile(firsts, 0.95) if firsts else None,
        lost=lost,
    )


def _places(what: Recorded) -> dict[str, tuple[str, float]]:
    return {
        name: (site_of(outcome), (outcome.dispatched or outcome.arrived) - outcome.arrived)
        for name, outcome in what.outcomes.items()
    }


def _check(what: Recorded, retraced: Run, own: Run) -> Check:
    records = _completed(own)
    errors = [
        abs(record.completion - real) / real
        for record in records
        if (real := took(what.outcomes[record.id])) > 0.0
    ]
    same = sum(_place(own, record) == site_of(what.outcomes[record.id]) for record in records)
    return Check(
        fleet_error=_mean_error(what, retraced),
        error=_mean_error(what, own),
        median=statistics.median(errors) if errors else 0.0,
        same_place=same / len(records),
    )


def _mean_error(what: Recorded, done: Run) -> float:
    records = _completed(done)
    real = sum(took(what.outcomes[record.id]) for record in records)
    return sum(record.completion for record in records) / real - 1.0 if real > 0.0 else 0.0


def _completed(done: Run) -> list[Record]:
    return [record for record in done.records if record.ending == "completed"]


def _pairs(before: Run, after: Run) -> list[Changed]:
    new = {record.id: record for record in after.records}
    return [
        Changed(
            request=old.id,
            model=old.arrival.request.model,
            before=old.completion,
            after=new[old.id].completion,
            before_at=_place(before, old),
            after_at=_place(after, new[old.id]),
        )
        for old in before.records
        if old.ending == new[old.id].ending == "completed"
    ]


def _moves(pairs: Iterable[Changed]) -> Iterable[Move]:
    """Group requests by where they went, the most frequent first."""
    groups: dict[tuple[str, str], list[float]] = {}
    for pair in pairs:
        groups.setdefault((pair.before_at, pair.after_at), []).append(_gain(pair))
    for (before, after), gains in sorted(groups.items(), key=lambda item: -len(item[1])):
        yield Move(before=before, after=after, requests=len(gains), change=statistics.fmean(gains))


def _gain(pair: Changed) -> float:
    return pair.after - pair.before


def _place(done: Run, record: Record) -> str:
    return done.fleet.devices[record.site].name if record.site is not None else ""


def _apart(error: float) -> str:
    return f"{abs(error):.1%} {'more' if error > 0.0 else 'less'} than"


def _more(after: float, before: float) -> str:
    change = after / before - 1.0 if before > 0.0 else 0.0
    return f"{abs(change):.0%} {'more' if change > 0.0 else 'less'}"
