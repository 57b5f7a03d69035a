from __future__ import annotations

import contextlib
import math
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from herd.core.decision import Decision, Estimate, Signals
from herd.core.fleet import ReplicaKey
from herd.core.request import Attempt, Failure, Outcome, Refusal, Result, Usage
from herd.store import outcomes
from herd.store.schema import StoreError, connect_writer

Make = Callable[..., Outcome]

_SIMPLE: dict[Any, st.SearchStrategy[Any]] = {
    type(None): st.none(),
    bool: st.booleans(),
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(allow_nan=False),
    str: st.text() | st.sampled_from(["null", "a\0b", "\N{SNOWMAN}"]),
}


def _any(hint: Any) -> st.SearchStrategy[Any]:
    """Anything at all that the type allows."""
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    if isinstance(hint, type) and issubclass(hint, Struct):
        return _struct(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in {Union, UnionType}:
        return st.one_of(*map(_any, arguments))
    items = st.lists(_any(arguments[0]), max_size=3)
    return items.map(frozenset) if origin is frozenset else items.map(tuple)


def _struct(kind: type[Struct], **fixed: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind)
    return st.builds(kind, **({name: _any(hint) for name, hint in hints.items()} | fixed))


_TIMES = st.floats(allow_nan=False, allow_infinity=False)
_OUTCOMES: st.SearchStrategy[Outcome] = _struct(Outcome, arrived=_TIMES, ended=_TIMES)

# A busy machine is no failure.
_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture
def connection(prepared: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(connect_writer(prepared)) as connection:
        yield connection


@_PATIENT
@given(_OUTCOMES)
def test_any_outcome_comes_back_equal(outcome: Outcome) -> None:
    assert outcomes.decode(outcomes.encode(outcome)) == outcome


@_PATIENT
@given(_OUTCOMES)
def test_any_outcome_has_a_row_that_sqlite_takes_and_returns(outcome: Outcome) -> None:
    row = outcomes.to_row(outcome)
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        marks = ", ".join("?" * len(row))
        kept = connection.execute(f"SELECT {marks}", row).fetchone()

    assert kept == row
    assert outcomes.decode(kept[-1]) == outcome


def test_a_row_has_a_value_for_each_column(make: Make) -> None:
    row = outcomes.to_row(make(5))

    assert dict(zip(outcomes.SUMMARY_COLUMNS[1:], row[:-1], strict=True)) == {
        "id": "r5",
        "arrived": 5.0,
        "ended": 7.0,
        "ending": "completed",
        "dialect": "openai",
        "operation": "chat",
        "endpoint": "/v1/chat/completions",
        "model": "llama3.2:3b",
        "asked": "LLAMA3.2:3B",
        "client": "10.0.0.7",
        "stream": True,
        "node": "mini",
        "engine": "ollama-11434",
        "attempts": 1,
        "retries": 0,
        "dispatched": 5.5,
        "first_frame": 6.0,
        "waited": 0.5,
        "prompt_tokens": 310,
        "completion_tokens": 40,
        "cached_tokens": 200,
        "finish_reason": "stop",
        "predicted": 1.25,
        "error": "",
    }


def test_of_several_attempts_the_last_names_the_node_and_the_first_ends_the_wait(
    make: Make,
) -> None:
    attempts = tuple(
        Attempt(number=n, replica=ReplicaKey(f"n{n}", f"e{n}", "m"), started=10.0 + n, predicted=n)
        for n in (1, 2, 3)
    )
    row = outcomes.to_row(make(10, attempts=attempts, dispatched=13.0))
    values = dict(zip(outcomes.SUMMARY_COLUMNS[1:], row[:-1], strict=True))

    assert (values["node"], values["engine"], values["predicted"]) == ("n3", "e3", 3)
    assert (values["attempts"], values["retries"], values["waited"]) == (3, 2, 1.0)


def test_a_request_without_an_attempt_waited_until_its_end(make: Make) -> None:
    row = outcomes.to_row(make(10, ending="rejected"))
    values = dict(zip(outcomes.SUMMARY_COLUMNS[1:], row[:-1], strict=True))

    assert (values["waited"], values["node"], values["predicted"]) == (2.0, "", None)


def test_the_error_is_the_refusals_where_there_is_one(make: Make) -> None:
    refusal = Refusal(kind="engine_failed", message="no node could answer")
    row = outcomes.to_row(make(1, ending="failed", refusal=refusal))

    assert row[-2] == "no node could answer"


def test_the_error_is_the_last_attempts_where_nothing_was_refused(make: Make) -> None:
    assert outcomes.to_row(make(1, ending="failed"))[-2] == "the stream ended early"


def test_a_completed_request_has_no_error_though_an_attempt_failed(make: Make) -> None:
    failed = make(1, ending="failed").attempts

    assert outcomes.to_row(make(1, attempts=failed))[-2] == ""


def test_an_ordinary_record_is_json_that_people_can_read(make: Make) -> None:
    for ending in ("completed", "failed", "cancelled", "rejected"):
        record = outcomes.encode(make(1, ending=ending))

        assert isinstance(record, str)
        assert msgspec.json.decode(record)["ending"] == ending


def test_infinite_seconds_survive(make: Make) -> None:
    outcome = make(1)
    key = ReplicaKey("a", "b", "c")
    endless = Estimate(replica=key, signals=Signals(memory=math.inf), total=math.inf)
    outcome = make(1, decision=Decision(at=1.0, chosen=key, estimates=(endless,), reason=""))

    assert outcomes.decode(outcomes.encode(outcome)) == outcome


@pytest.mark.parametrize("field", ["arrived", "ended"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_time_that_is_no_number_has_no_row(make: Make, field: str, value: float) -> None:
    with pytest.raises(ValueError, match="is no time"):
        outcomes.to_row(make(1, **{field: value}))


def test_an_absurd_count_is_capped_in_its_column_and_kept_in_the_record(make: Make) -> None:
    outcome = make(1, result=Result(usage=Usage(prompt_tokens=2**70)))
    row = outcomes.to_row(outcome)

    assert 2**63 - 1 in row
    assert outcomes.decode(row[-1]) == outcome  # type: ignore[arg-type]


@pytest.mark.parametrize("record", ["", "{}", '{"request": 1}', b"", b"\xff", b"{}"])
def test_a_spoilt_record_is_an_error(record: str | bytes) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        outcomes.decode(record)


def test_the_first_outcome_of_a_request_stays(connection: sqlite3.Connection, make: Make) -> None:
    first, second = make(1), make(1, ending="failed")
    outcomes.insert(connection, [outcomes.to_row(first)])

    result = outcomes.insert(connection, [outcomes.to_row(second), outcomes.to_row(make(2))])

    assert result == outcomes.Inserted(1, duplicates=("r1",))
    kept = connection.execute("SELECT ending FROM outcomes ORDER BY seq").fetchall()
    assert kept == [("completed",), ("completed",)]


def test_a_row_that_the_database_refuses_does_not_cost_the_others(
    connection: sqlite3.Connection, make: Make
) -> None:
    good = outcomes.to_row(make(1))
    bad = ("r2", None, *good[2:])

    result = outcomes.insert(connection, [bad, good])

    assert result.written == 1
    assert result.rejected == ("'r2': NOT NULL constraint failed: outcomes.arrived",)


def test_a_failure_of_the_whole_writes_none(connection: sqlite3.Connection, make: Make) -> None:
    connection.execute(
        "CREATE TRIGGER full BEFORE INSERT ON outcomes WHEN new.id = 'r2' "
        "BEGIN SELECT load_extension('none'); END"
    )
    rows = [outcomes.to_row(make(n)) for n in (1, 2)]

    with pytest.raises(sqlite3.OperationalError):
        outcomes.insert(connection, rows)

    assert connection.execute("SELECT count(*) FROM outcomes").fetchone() == (0,)
    assert not connection.in_transaction


def test_old_outcomes_are_deleted_before_young_ones(
    connection: sqlite3.Connection, make: Make
) -> None:
    # Kept in another order than they ended in; the oldest is neither first nor last.
    outcomes.insert(connection, [outcomes.to_row(make(n)) for n in (20, 10, 25, 40)])
    left = []
    for limit in (1, 1, 5):
        outcomes.delete(connection, older_than=32.0, up_to=0, limit=limit)
        left.append([row[0] for row in connection.execute("SELECT id FROM outcomes ORDER BY seq")])

    assert left == [["r20", "r25", "r40"], ["r25", "r40"], ["r40"]]


def test_the_first_kept_are_deleted_where_there_are_too_many(
    connection: sqlite3.Connection, make: Make
) -> None:
    outcomes.insert(connection, [outcomes.to_row(make(n)) for n in range(10)])

    up_to = outcomes.last_beyond(connection, max_rows=3)

    assert outcomes.delete(connection, older_than=-math.inf, up_to=up_to, limit=100) == 7
    left = connection.execute("SELECT id FROM outcomes ORDER BY seq").fetchall()
    assert left == [("r7",), ("r8",), ("r9",)]
    assert outcomes.last_beyond(connection, max_rows=3) == 0


def test_failures_of_an_attempt_survive(make: Make) -> None:
    attempt = Attempt(
        number=1,
        replica=ReplicaKey("a", "b", "c"),
        started=1.0,
        failure=Failure(kind="status", message="null and void", status=503, retryable=True),
    )
    outcome = make(1, ending="failed", attempts=(attempt,))

    assert outcomes.decode(outcomes.encode(outcome)) == outcome
