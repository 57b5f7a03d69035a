"""Outcomes as rows: what is filtered or summed in columns of its own, all of it in `record`."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable

import msgspec
from msgspec import Struct

from herd.core.request import Dialect, Ending, Operation, Outcome, Usage
from herd.store.schema import StoreError, transaction

Row = tuple[str | bytes | float | None, ...]


class Summary(Struct, frozen=True, kw_only=True):
    """An outcome's columns: enough for a list of requests. Times are Unix seconds."""

    #: Place in the order in which outcomes were kept; the cursor for pages.
    seq: int
    id: str
    arrived: float
    ended: float
    ending: Ending
    dialect: Dialect
    operation: Operation
    endpoint: str
    model: str
    asked: str
    client: str
    stream: bool
    #: Of the last attempt; empty where there was none.
    node: str
    engine: str
    attempts: int
    #: Attempts after the first.
    retries: int
    dispatched: float | None
    first_frame: float | None
    #: Seconds until the first attempt began, or until the end where there was none.
    waited: float
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    finish_reason: str
    #: Seconds that the last attempt was expected to take; None where there was none.
    predicted: float | None
    #: Why it was refused or failed, or what cancelled it; empty where it completed.
    error: str


class Inserted(Struct, frozen=True):
    """What became of a batch of rows."""

    written: int
    #: Ids that the store already had; the first outcome stays.
    duplicates: tuple[str, ...] = ()
    #: What the database said to rows that it will never take.
    rejected: tuple[str, ...] = ()


SUMMARY_COLUMNS = tuple(Summary.__struct_fields__)
_COLUMNS = (*SUMMARY_COLUMNS[1:], "record")
_INSERT = (
    f"INSERT INTO outcomes ({', '.join(_COLUMNS)}) "  # noqa: S608 - names from this module
    f"VALUES ({', '.join('?' * len(_COLUMNS))}) ON CONFLICT (id) DO NOTHING"
)
_DELETE_OLD = """
DELETE FROM outcomes WHERE seq IN (
  SELECT seq FROM outcomes WHERE ended < ? ORDER BY ended LIMIT ?)
"""
_DELETE_FIRST = """
DELETE FROM outcomes WHERE seq IN (
  SELECT seq FROM outcomes WHERE seq <= ? ORDER BY seq LIMIT ?)
"""
_BEYOND = "SELECT seq FROM outcomes ORDER BY seq DESC LIMIT 1 OFFSET ?"

#: The fault of the row, not of the file: trying again would not help.
_ROW_ERRORS = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OverflowError,
    UnicodeError,
)
_LARGEST_INTEGER = 2**63 - 1

_json = msgspec.json.Encoder(order="deterministic")
_json_decoder = msgspec.json.Decoder(Outcome)
_msgpack = msgspec.msgpack.Encoder(order="deterministic")
_msgpack_decoder = msgspec.msgpack.Decoder(Outcome)


def to_row(outcome: Outcome) -> Row:
    """Return the values of one row; raises `ValueError` or `TypeError` if there can be none."""
    request = outcome.request
    result = outcome.result
    usage = result.usage if result is not None else Usage()
    last = outcome.attempts[-1] if outcome.attempts else None
    return (
        request.id,
        _time(outcome.arrived),
        _time(outcome.ended),
        outcome.ending,
        request.dialect,
        request.operation,
        request.endpoint,
        request.model,
        request.asked,
        request.client,
        request.stream,
        last.replica.node if last else "",
        last.replica.engine if last else "",
        len(outcome.attempts),
        max(0, len(outcome.attempts) - 1),
        outcome.dispatched,
        outcome.first_frame,
        _waited(outcome),
        _integer(usage.prompt_tokens),
        _integer(usage.completion_tokens),
        _integer(usage.cached_tokens),
        result.finish_reason if result is not None else "",
        last.predicted if last else None,
        _error(outcome),
        encode(outcome),
    )


def encode(outcome: Outcome) -> str | bytes:
    """Return the whole outcome as JSON, or as MessagePack where JSON has no words for it.

    JSON has no infinity: msgspec writes `null`, which no longer reads as the same outcome. Only
    `Request` writes fields that are None, so a `null` more than it has gives such a number away
    (or stands in a text, which then costs nothing but the legibility).
    """
    request = outcome.request
    limits = (request.max_tokens, request.context, request.patience, request.deadline)
    absent = limits.count(None)
    data = _json.encode(outcome)
    if data.count(b"null") > absent:
        return _msgpack.encode(outcome)
    return data.decode()


def decode(record: str | bytes) -> Outcome:
    """Read what `encode` gave; raises `StoreError` on anything else."""
    try:
        if isinstance(record, str):
            return _json_decoder.decode(record)
        return _msgpack_decoder.decode(record)
    except (msgspec.DecodeError, TypeError) as error:
        raise StoreError(f"the record of an outcome cannot be read: {error}") from error


def insert(connection: sqlite3.Connection, rows: Iterable[Row]) -> Inserted:
    """Write all rows in one transaction; raises `sqlite3.Error`, and then none is written."""
    written = 0
    duplicates: list[str] = []
    rejected: list[str] = []
    with transaction(connection):
        for row in rows:
            try:
                count = connection.execute(_INSERT, row).rowcount
            except _ROW_ERRORS as error:
                rejected.append(f"{row[0]!r}: {error}")
                continue
            written += count
            if not count:
                duplicates.append(str(row[0]))
    return Inserted(written, tuple(duplicates), tuple(rejected))


def last_beyond(connection: sqlite3.Connection, max_rows: int) -> int:
    """Return the newest `seq` that is too many where `max_rows` may stay; 0 if none is."""
    row = connection.execute(_BEYOND, (max_rows,)).fetchone()
    return int(row[0]) if row else 0


def delete(connection: sqlite3.Connection, older_than: float, up_to: int, limit: int) -> int:
    """Delete up to `limit` outcomes that ended before a time, then by `seq`; return how many."""
    with transaction(connection):
        deleted = connection.execute(_DELETE_OLD, (older_than, limit)).rowcount
        if deleted < limit:
            deleted += connection.execute(_DELETE_FIRST, (up_to, limit - deleted)).rowcount
    return deleted


def _waited(outcome: Outcome) -> float:
    if outcome.attempts:
        return outcome.attempts[0].started - outcome.arrived
    return (outcome.dispatched or outcome.ended) - outcome.arrived


def _error(outcome: Outcome) -> str:
    if outcome.ending == "completed":
        return ""
    if outcome.refusal is not None:
        return outcome.refusal.message
    failure = outcome.attempts[-1].failure if outcome.attempts else None
    return failure.message if failure is not None else ""


def _time(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{value} is no time at which a request can arrive or end")
    return value


def _integer(value: int | None) -> int | None:
    """Cap a count that an engine claims at what a column holds; the record keeps the claim."""
    return None if value is None else min(value, _LARGEST_INTEGER)
