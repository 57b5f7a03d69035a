"""Why a request gets no attempt, in words that tell its sender what to do."""

from __future__ import annotations

from herd.core.decision import Estimate, ExclusionKind
from herd.core.request import Failure, Refusal, RefusalKind, Request

#: What is told to wait when nobody can say how long.
RETRY_AFTER = 5.0


def stopping() -> Refusal:
    """The router is going down."""
    return Refusal(
        kind="stopping",
        message="the router is stopping; ask again in a moment",
        retry_after=RETRY_AFTER,
    )


def queue_full(limit: int, wait: float | None) -> Refusal:
    """The queue is at its bound."""
    return Refusal(
        kind="queue_full",
        message=f"server busy, please try again: {limit} requests are waiting already",
        retry_after=wait or RETRY_AFTER,
    )


def too_late(deadline: float, wait: float) -> Refusal:
    """No device will come free before its deadline."""
    return Refusal(
        kind="expired",
        message=f"no device is expected to come free within the {deadline:g} s that were given",
        retry_after=wait,
    )


def expired(waited: float, wait: float | None) -> Refusal:
    """No slot came free while the request was willing to wait."""
    return Refusal(
        kind="expired",
        message=f"no device came free within {waited:.0f} s",
        retry_after=wait or RETRY_AFTER,
    )


def engine_failed(failure: Failure) -> Refusal:
    """All attempts that it may have are used up."""
    return Refusal(
        kind="engine_failed",
        message=failure.message,
        retry_after=RETRY_AFTER,
        failure=failure,
    )


def no_candidate(
    request: Request, estimates: tuple[Estimate, ...], *, known: bool, failure: Failure | None
) -> Refusal:
    """No replica can serve it. `known`: a node that has left the fleet had the model."""
    if failure is not None:
        return engine_failed(failure)
    if not estimates:
        if known:
            return Refusal(
                kind="unreachable",
                message=f"no node that has model '{request.asked}' is reachable",
                retry_after=RETRY_AFTER,
            )
        return Refusal(kind="unknown_model", message=f"model '{request.asked}' not found")
    found = [estimate.excluded for estimate in estimates if estimate.excluded is not None]
    kind = _mildest({exclusion.kind for exclusion in found})
    reasons = "; ".join(sorted({exclusion.reason for exclusion in found}))
    return Refusal(
        kind=kind,
        message=f"no device can serve '{request.asked}': {reasons}",
        retry_after=RETRY_AFTER if kind == "unreachable" else None,
    )


def _mildest(kinds: set[ExclusionKind]) -> RefusalKind:
    """What one replica can mend soon is not the client's mistake, whatever the others lack."""
    order: tuple[RefusalKind, ...] = ("unreachable", "context", "too_big")
    return next((kind for kind in order if kind in kinds), "incapable")
