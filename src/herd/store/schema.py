"""The database file: how it is made, opened and brought up to date.

The version of the tables is the file's `user_version`. Each numbered file in `migrations/` takes
it one step further, in one transaction, so that a crash leaves the old version or the new one.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path

from msgspec import Struct

#: What migration 1 sets as `application_id`: "HERD" in ASCII.
APPLICATION_ID = 0x48455244
#: Seconds that SQLite itself waits for another process's lock.
BUSY_TIMEOUT = 1.0
#: Bytes that the write-ahead log keeps on disk after a checkpoint.
_LOG_LIMIT = 16 * 1024 * 1024
_MIGRATION = re.compile(r"(\d{4})_\w+\.sql")


class StoreError(Exception):
    """The store cannot do what was asked; the text says which file and why."""


class Migration(Struct, frozen=True):
    """The SQL that takes the tables from version `number - 1` to `number`."""

    number: int
    sql: str


def migrations() -> tuple[Migration, ...]:
    """Return all migrations of this version of Herd, in their order."""
    folder = resources.files("herd.store").joinpath("migrations")
    found = [
        Migration(int(match[1]), entry.read_text(encoding="utf-8"))
        for entry in folder.iterdir()
        if (match := _MIGRATION.fullmatch(entry.name))
    ]
    return tuple(sorted(found, key=lambda step: step.number))


def prepare(path: Path) -> None:
    """Make the file if there is none, for its owner alone, and bring its tables up to date.

    Raises `StoreError`, and leaves the file as it was, if it is from a newer version of Herd, from
    another program, or cannot be opened.
    """
    with explained(path):
        _make_file(path)
        with contextlib.closing(_open(path)) as connection:
            steps = migrations()
            _check(connection, path, steps[-1].number)
            migrate(connection, steps)
            # Lasting: whoever opens the file from now on uses the log.
            connection.execute("PRAGMA journal_mode = WAL")
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)


def migrate(connection: sqlite3.Connection, steps: Sequence[Migration]) -> None:
    """Apply the steps that the database has not had, each in one transaction."""
    for step in steps:
        with transaction(connection):
            # Read inside the transaction: another process may have taken the step meanwhile.
            if step.number > version(connection):
                for statement in _statements(step.sql):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {step.number:d}")


def version(connection: sqlite3.Connection) -> int:
    """Return the number of the last migration that the database has had; 0 for an empty one."""
    return _pragma(connection, "user_version")


def connect_writer(path: Path) -> sqlite3.Connection:
    """Open a prepared database for writing, in autocommit mode; raises `sqlite3.Error`."""
    return _open(
        path,
        "PRAGMA synchronous = NORMAL",
        f"PRAGMA journal_size_limit = {_LOG_LIMIT}",
    )


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open a prepared database for reading, from any one thread at a time; as above."""
    return _open(path, "PRAGMA query_only = 1")


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Write everything inside or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # What went wrong first is the cause; SQLite has often rolled back by itself already.
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what SQLite and the system raise into `StoreError` that names the file."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"the store {path} cannot be used: {error}") from error


def _make_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # SQLite would make it as the umask says; its log and its index take the file's own mode.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.close(descriptor)


def _open(path: Path, *pragmas: str) -> sqlite3.Connection:
    # mode=rw: a file that went missing is an error to tell, not an empty database to start.
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=BUSY_TIMEOUT,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        for pragma in pragmas:
            connection.execute(pragma)
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection, path: Path, known: int) -> None:
    """Refuse a database that this version of Herd would misread or spoil."""
    found = version(connection)
    owner = _pragma(connection, "application_id")
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if owner != APPLICATION_ID and (owner or found or tables):
        raise StoreError(f"{path} is the database of another program; it was left as it is")
    if found > known:
        raise StoreError(
            f"{path} was written by a newer version of Herd (its tables have version {found}, "
            f"this one knows {known}); it was left as it is: upgrade Herd or use another folder"
        )


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _statements(sql: str) -> Iterable[str]:
    """Split a script; `executescript` cannot be used, as it commits what stands open first."""
    pending = ""
    for line in sql.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
    if pending.strip():
        yield pending
