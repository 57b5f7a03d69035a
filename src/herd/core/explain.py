"""Decisions in sentences that an owner can read: every signal says what it stands for here.

The words are made from what the record holds, so they can be made long after the request, and by
anyone. What the record does not hold is left out, not guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct

from herd.core.decision import Decision, Estimate, Signals
from herd.core.fleet import ReplicaKey
from herd.core.request import Attempt, Outcome, Request

#: Candidates that are put into words; the others are counted.
LIMIT: Final = 50
#: Seconds below which a signal counts as nothing, as it is shown with two decimals.
_LEAST: Final = 0.005


class Candidate(Struct, frozen=True, kw_only=True):
    """One candidate in words."""

    replica: ReplicaKey
    #: What its node is called, or its identity where that is not known.
    node: str
    chosen: bool
    #: Predicted seconds until the request would be done; None if it cannot serve it.
    total: float | None
    #: What adds up to it; None where it is.
    signals: Signals | None
    #: One for each of the seven signals in their order, or the one reason why it is out.
    sentences: tuple[str, ...]


class Explanation(Struct, frozen=True, kw_only=True):
    """Why a request went where it went, what was predicted and what came."""

    #: Where it is or how it ended, attempts that failed, the reason for the choice.
    summary: tuple[str, ...]
    #: The chosen one first, then the others by their prediction, then those that are out.
    candidates: tuple[Candidate, ...] = ()
    #: Further candidates that are not listed.
    more: int = 0
    #: Prediction beside result; empty as long as there is none.
    came: tuple[str, ...] = ()


def outcome(
    record: Outcome, names: Mapping[str, str] | None = None, *, limit: int = LIMIT
) -> Explanation:
    """Put an ended request into words; `names` are those of nodes by identity."""
    names = names or {}
    summary = [_ending(record), *_failures(record.attempts, names)]
    if record.decision is None:
        return Explanation(summary=tuple(summary))
    summary.append(_choice(record.decision, names))
    candidates, more = _candidates(record.request, record.decision, names, limit)
    return Explanation(
        summary=tuple(summary), candidates=candidates, more=more, came=tuple(_came(record))
    )


def decision(
    request: Request,
    made: Decision,
    names: Mapping[str, str] | None = None,
    *,
    limit: int = LIMIT,
) -> Explanation:
    """Put the decision behind a running request into words."""
    names = names or {}
    candidates, more = _candidates(request, made, names, limit)
    return Explanation(summary=(_choice(made, names),), candidates=candidates, more=more)


def sentences(request: Request, estimate: Estimate) -> tuple[str, ...]:
    """One sentence for each signal of a candidate, or why it cannot serve the request."""
    if estimate.excluded is not None:
        return (f"cannot serve it: {estimate.excluded.reason}",)
    parts = estimate.signals
    return (
        f"residency: {_residency(request, parts.residency)}",
        f"memory: {_memory(parts.memory)}",
        f"queue: {_queue(parts.queue)}",
        f"speed: {_speed(request, parts.speed)}",
        f"affinity: {_affinity(parts.affinity, estimate.harm)}",
        f"availability: {_availability(parts.availability, estimate.used)}",
        f"context: {_context(request, parts.context)}",
    )


def _residency(request: Request, seconds: float) -> str:
    if seconds < _LEAST:
        return f"{request.model} is in memory"
    return f"loading {request.model} takes about {_s(seconds)}, it is not in memory"


def _memory(seconds: float) -> str:
    if seconds < _LEAST:
        return "nothing of worth has to leave memory for it"
    return f"loading it puts other models out of memory, which will cost about {_s(seconds)}"


def _queue(seconds: float) -> str:
    if seconds < _LEAST:
        return "no work is ahead of it"
    return f"work ahead of it on the device takes about {_s(seconds)}"


def _speed(request: Request, seconds: float) -> str:
    what = "the embedding" if request.operation == "embedding" else "an answer of usual length"
    return (
        f"reading about {request.prompt_tokens:,} tokens and {what} take about {_s(seconds)} "
        "at the present load"
    )


def _affinity(seconds: float, harm: float) -> str:
    saved = harm - seconds
    words = []
    if saved >= _LEAST:
        words.append(f"the beginning of the prompt is cached, which saves about {_s(saved)}")
    elif saved <= -_LEAST:
        words.append(f"taking this device costs later requests about {_s(-saved)}")
    else:
        words.append("nothing of the prompt is cached")
    if harm >= _LEAST:
        words.append(f"what runs on the device loses about {_s(harm)} by one more")
    return "; ".join(words)


def _availability(seconds: float, used: float) -> str:
    lost = seconds - used
    words = []
    if lost >= _LEAST:
        words.append(f"attempts were lost there lately; expected to cost about {_s(lost)}")
    if used >= _LEAST:
        words.append(
            f"others, perhaps its owner, use the device; expected to cost about {_s(used)}"
        )
    return "; ".join(words) or "nothing is expected to be lost by failures or by others' use"


def _context(request: Request, seconds: float) -> str:
    if seconds < _LEAST:
        return "the context is long enough as it is"
    asked = f" of {request.context:,} tokens" if request.context is not None else ""
    return f"loading the model anew with a context{asked} takes about {_s(seconds)}"


def _candidates(
    request: Request, made: Decision, names: Mapping[str, str], limit: int
) -> tuple[tuple[Candidate, ...], int]:
    ordered = sorted(
        made.estimates,
        key=lambda each: (
            each.replica != made.chosen,
            each.total is None,
            each.total or 0.0,
            each.replica,
        ),
    )
    shown = tuple(
        Candidate(
            replica=each.replica,
            node=_name(each.replica, names),
            chosen=each.replica == made.chosen,
            total=each.total,
            signals=each.signals if each.total is not None else None,
            sentences=sentences(request, each),
        )
        for each in ordered[:limit]
    )
    return shown, len(ordered) - len(shown) + made.more


def _choice(made: Decision, names: Mapping[str, str]) -> str:
    return f"{_name(made.chosen, names)} was chosen: {made.reason}"


def _ending(record: Outcome) -> str:
    took = _s(record.ended - record.arrived)
    what = f"{record.request.model} for {record.request.client or 'a client'}"
    if record.refusal is not None:
        return f"{what}: {record.ending} after {took}: {record.refusal.message}"
    waited = (record.dispatched or record.ended) - record.arrived
    waiting = f", of which it waited {_s(waited)} in the router" if waited >= _LEAST else ""
    return f"{what}: {record.ending} after {took}{waiting}"


def _failures(attempts: Iterable[Attempt], names: Mapping[str, str]) -> Iterable[str]:
    for attempt in attempts:
        if attempt.failure is not None:
            where = _name(attempt.replica, names)
            yield f"attempt {attempt.number} on {where} failed: {attempt.failure.message}"


def _came(record: Outcome) -> Iterable[str]:
    """What the last attempt was predicted to take, and what it took, as far as anyone says."""
    last = record.attempts[-1] if record.attempts else None
    if last is None or last.ended is None or last.ending != "completed":
        return
    took = last.ended - last.started
    yield f"predicted {_s(last.predicted)} from dispatch to end, took {_s(took)}{_off(last, took)}"
    if last.first_frame is not None:
        yield f"the first frame came {_s(last.first_frame - last.started)} after dispatch"
    if record.result is None:
        return
    usage, timings = record.result.usage, record.result.timings
    if usage.prompt_tokens is not None:
        cached = f", {usage.cached_tokens:,} of them cached" if usage.cached_tokens else ""
        yield (
            f"the prompt looked like {record.request.prompt_tokens:,} tokens by its length and had "
            f"{usage.prompt_tokens:,}{cached}"
        )
    if usage.completion_tokens is not None and record.request.operation != "embedding":
        yield f"the answer had {usage.completion_tokens:,} tokens"
    told = {"load": timings.load, "prefill": timings.prefill, "decode": timings.decode}
    known = [f"{name} {_s(value)}" for name, value in told.items() if value is not None]
    if known:
        yield f"by the engine's own clock: {', '.join(known)}"


def _off(attempt: Attempt, took: float) -> str:
    """How far off the prediction was, as a share of what it took."""
    if took <= 0.0:
        return ""
    share = (attempt.predicted - took) / took
    if abs(share) < _LEAST:
        return ""
    return f": {abs(share):.0%} too {'long' if share > 0.0 else 'short'}"


def _name(replica: ReplicaKey, names: Mapping[str, str]) -> str:
    return names.get(replica.node, replica.node)


def _s(seconds: float) -> str:
    if seconds >= 100.0:  # noqa: PLR2004 - decimals say nothing more
        return f"{seconds:,.0f} s"
    return f"{seconds:.1f} s" if seconds >= 1.0 else f"{seconds:.2f} s"
