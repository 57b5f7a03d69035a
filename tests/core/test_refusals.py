"""Refusals say the true cause, and whether asking again makes sense."""

from __future__ import annotations

import pytest

from herd.core import refusals
from herd.core.decision import Estimate, Exclusion, ExclusionKind
from herd.core.fleet import ReplicaKey
from herd.core.request import Failure, Request

REQUEST = Request(
    id="a",
    dialect="ollama",
    operation="chat",
    endpoint="/api/chat",
    asked="Llama3",
    model="llama3:latest",
)


def estimates(*exclusions: tuple[ExclusionKind, str]) -> tuple[Estimate, ...]:
    return tuple(
        Estimate(replica=ReplicaKey(f"n{number}", "e", "m"), excluded=Exclusion(kind, reason))
        for number, (kind, reason) in enumerate(exclusions)
    )


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        (["incapable"], "incapable"),
        (["incapable", "too_big"], "too_big"),
        (["too_big", "context"], "context"),
        (["context", "unreachable", "incapable"], "unreachable"),
        (["tried"], "incapable"),
    ],
)
def test_the_mildest_cause_is_told(kinds: list[ExclusionKind], told: str) -> None:
    excluded = estimates(*((kind, f"because {kind}") for kind in kinds))
    refusal = refusals.no_candidate(REQUEST, excluded, known=True, failure=None)
    assert refusal.kind == told
    assert (refusal.retry_after is not None) == (told == "unreachable")


def test_each_reason_is_told_once_under_the_name_that_was_asked_for() -> None:
    excluded = estimates(
        ("incapable", "model lacks vision"),
        ("unreachable", "node is leaving"),
        ("incapable", "model lacks vision"),
    )
    refusal = refusals.no_candidate(REQUEST, excluded, known=True, failure=None)
    assert refusal.message == ("no device can serve 'Llama3': model lacks vision; node is leaving")


def test_what_an_engine_said_comes_before_what_we_think() -> None:
    failure = Failure(kind="status", message="out of memory", status=500, retryable=True)
    refusal = refusals.no_candidate(REQUEST, (), known=False, failure=failure)
    assert (refusal.kind, refusal.message) == ("engine_failed", "out of memory")
    assert refusal.failure is failure


def test_a_wait_that_can_be_predicted_is_told() -> None:
    assert refusals.queue_full(10, 42.0).retry_after == 42.0
    assert refusals.queue_full(10, None).retry_after == refusals.RETRY_AFTER
    assert refusals.expired(60.0, 7.0).retry_after == 7.0
    assert refusals.expired(60.0, None).retry_after == refusals.RETRY_AFTER
