from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from herd.core.decision import Decision, Estimate, Signals
from herd.core.fleet import ReplicaKey
from herd.core.request import (
    Attempt,
    Ending,
    Failure,
    Outcome,
    Refusal,
    Request,
    Result,
    Transition,
    Usage,
)
from herd.store.schema import prepare

MakeOutcome = Callable[..., Outcome]
Until = Callable[[Callable[[], object]], None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a store may come to be; nothing is there yet."""
    return tmp_path / "data" / "herd.db"


@pytest.fixture
def prepared(path: Path) -> Path:
    """A file with all tables and no rows."""
    prepare(path)
    return path


@pytest.fixture
def until() -> Until:
    """Poll until something is true; fails after ten seconds."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, "it did not become true in time"
            time.sleep(0.005)

    return wait


@pytest.fixture
def make() -> MakeOutcome:
    """Make the outcome of request `r<number>`, which arrives at `number` and takes 2 seconds."""
    return _make


def _make(
    number: int,
    *,
    ending: Ending = "completed",
    node: str = "mini",
    model: str = "llama3.2:3b",
    client: str = "10.0.0.7",
    **changes: Any,
) -> Outcome:
    replica = ReplicaKey(node, "ollama-11434", model)
    tried = ending != "rejected"
    failure = (
        Failure(kind="broken", message="the stream ended early") if ending == "failed" else None
    )
    attempt = Attempt(
        number=1,
        replica=replica,
        started=number + 0.5,
        first_frame=number + 1.0,
        ended=number + 2.0,
        ending="failed" if failure else "completed",
        failure=failure,
        predicted=1.25,
    )
    fields: dict[str, Any] = {
        "request": Request(
            id=f"r{number}",
            dialect="openai",
            operation="chat",
            endpoint="/v1/chat/completions",
            asked=model.upper(),
            model=model,
            stream=True,
            needs=frozenset({"completion", "tools"}),
            kinds=frozenset({"ollama"}),
            prompt_tokens=300,
            client=client,
        ),
        "ending": ending,
        "arrived": float(number),
        "ended": number + 2.0,
        "dispatched": number + 0.5 if tried else None,
        "first_frame": number + 1.0 if tried else None,
        "attempts": (attempt,) if tried else (),
        "decision": Decision(
            at=number + 0.5,
            chosen=replica,
            estimates=(Estimate(replica=replica, signals=Signals(speed=1.25), total=1.25),),
            reason="the only candidate",
        )
        if tried
        else None,
        "result": Result(
            usage=Usage(prompt_tokens=310, completion_tokens=40, cached_tokens=200),
            finish_reason="stop",
            bytes_out=9000,
            frames=41,
        )
        if ending == "completed"
        else None,
        "refusal": None
        if tried
        else Refusal(kind="queue_full", message="1000 requests wait already", retry_after=3.0),
        "story": (Transition(float(number), "waiting"), Transition(number + 2.0, ending)),
    }
    return Outcome(**(fields | changes))
