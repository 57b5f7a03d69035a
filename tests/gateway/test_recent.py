"""The last outcomes in memory."""

from __future__ import annotations

from herd.core.request import Outcome, Request
from herd.gateway.recent import Recent


def outcome(name: str) -> Outcome:
    request = Request(
        id=name,
        dialect="ollama",
        operation="chat",
        endpoint="/api/chat",
        asked="m",
        model="m:latest",
    )
    return Outcome(request=request, ending="completed", arrived=1.0, ended=2.0)


def test_the_oldest_is_forgotten_first() -> None:
    recent = Recent(limit=2)
    for name in "abc":
        recent.add(outcome(name))
    assert recent.get("a") is None
    assert recent.get("b") == outcome("b")
    assert [one.request.id for one in recent.latest(9)] == ["c", "b"]
    assert [one.request.id for one in recent.latest(1)] == ["c"]
    assert recent.total == 3


def test_nothing_is_there_at_first() -> None:
    assert Recent().latest(5) == []
