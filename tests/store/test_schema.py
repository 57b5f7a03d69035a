from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from pathlib import Path

import pytest

from herd.store import schema
from herd.store.schema import Migration, StoreError, connect_reader, connect_writer, prepare


def _tables(path: Path) -> set[str]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}


def _execute(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def test_migrations_are_numbered_without_a_gap() -> None:
    numbers = [step.number for step in schema.migrations()]

    assert numbers == list(range(1, len(numbers) + 1))
    assert numbers


def test_an_absent_file_gets_its_folders_and_every_table(path: Path) -> None:
    prepare(path)

    assert "outcomes" in _tables(path)
    with contextlib.closing(connect_reader(path)) as connection:
        assert schema.version(connection) == schema.migrations()[-1].number


def test_an_empty_file_gets_every_table(path: Path) -> None:
    path.parent.mkdir()
    path.touch()

    prepare(path)

    assert "outcomes" in _tables(path)


def test_preparing_again_changes_nothing(prepared: Path) -> None:
    before = prepared.read_bytes()

    prepare(prepared)

    assert prepared.read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize("existing", [False, True])
def test_only_the_owner_may_read_the_file_and_its_log(path: Path, existing: bool) -> None:
    if existing:
        path.parent.mkdir()
        path.touch(0o644)
        path.chmod(0o644)
    prepare(path)

    with contextlib.closing(connect_writer(path)) as connection:
        connection.execute("CREATE TABLE extra (a)")
        files = list(path.parent.iterdir())
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in files}

    assert modes == {"herd.db": 0o600, "herd.db-wal": 0o600, "herd.db-shm": 0o600}


def test_a_database_of_a_newer_version_is_refused_and_left_alone(prepared: Path) -> None:
    newer = schema.migrations()[-1].number + 1
    _execute(prepared, "PRAGMA journal_mode = DELETE", f"PRAGMA user_version = {newer}")
    before = prepared.read_bytes()

    with pytest.raises(StoreError, match=f"newer version of Herd .* version {newer}"):
        prepare(prepared)

    assert prepared.read_bytes() == before
    assert [file.name for file in prepared.parent.iterdir()] == ["herd.db"]


@pytest.mark.parametrize(
    "statement",
    ["CREATE TABLE notes (a)", "PRAGMA application_id = 7", "PRAGMA user_version = 1"],
)
def test_another_programs_database_is_refused_and_left_alone(path: Path, statement: str) -> None:
    path.parent.mkdir()
    _execute(path, statement)
    path.chmod(0o644)
    before = path.read_bytes()

    with pytest.raises(StoreError, match="another program"):
        prepare(path)

    assert path.read_bytes() == before
    assert stat.S_IMODE(path.stat().st_mode) & 0o044 == 0o044 or os.name == "nt"


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"Dear diary, " * 100)

    with pytest.raises(StoreError, match=r"herd\.db cannot be used: file is not a database"):
        prepare(path)

    assert path.read_bytes() == b"Dear diary, " * 100


def test_a_folder_that_cannot_be_made_is_an_error_that_names_the_cause(tmp_path: Path) -> None:
    (tmp_path / "data").touch()

    with pytest.raises(StoreError, match=r"herd\.db cannot be used"):
        prepare(tmp_path / "data" / "herd.db")


def test_a_migration_that_fails_leaves_the_version_before_it(prepared: Path) -> None:
    known = schema.migrations()[-1].number
    steps = (
        *schema.migrations(),
        Migration(known + 1, "CREATE TABLE fine (a);"),
        Migration(known + 2, "CREATE TABLE half (a);\nCREATE TABLE fine (a);"),
    )

    with (
        contextlib.closing(connect_writer(prepared)) as connection,
        pytest.raises(sqlite3.OperationalError, match="fine already exists"),
    ):
        schema.migrate(connection, steps)

    with contextlib.closing(connect_reader(prepared)) as connection:
        assert schema.version(connection) == known + 1
    assert "fine" in _tables(prepared)
    assert "half" not in _tables(prepared)


def test_a_migration_may_have_statements_of_many_lines_and_with_semicolons(prepared: Path) -> None:
    step = Migration(
        schema.migrations()[-1].number + 1,
        "CREATE TABLE log (a TEXT);\n-- a remark; with a semicolon\n"
        "CREATE TRIGGER t AFTER DELETE ON outcomes BEGIN\n"
        "  INSERT INTO log VALUES ('gone;');\n  INSERT INTO log VALUES ('twice');\nEND;\n",
    )

    with contextlib.closing(connect_writer(prepared)) as connection:
        schema.migrate(connection, [step])

    assert {"log", "t"} <= _tables(prepared)


def test_a_reading_connection_cannot_write(prepared: Path) -> None:
    with (
        contextlib.closing(connect_reader(prepared)) as connection,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        connection.execute("DELETE FROM outcomes")


def test_a_missing_file_is_not_made_by_opening_it(path: Path) -> None:
    path.parent.mkdir()

    with pytest.raises(sqlite3.OperationalError):
        connect_writer(path)

    assert not path.exists()


def test_a_path_with_characters_that_mean_something_in_a_url(tmp_path: Path) -> None:
    path = tmp_path / "50% of #1?mode=memory" / "my herd.db"

    prepare(path)

    assert "outcomes" in _tables(path)
