"""The node's id, and the right to use it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from herd.node.identity import IdentityError, claimed, default_name, node_id, write_private


def test_id_is_made_once_and_kept(tmp_path: Path) -> None:
    made = node_id(tmp_path / "data")

    assert re.fullmatch(r"[0-9a-f]{32}", made)
    assert node_id(tmp_path / "data") == made
    assert node_id(tmp_path / "other") != made


@pytest.mark.skipif(os.name == "nt", reason="Windows has no mode bits")
def test_id_can_be_read_by_its_owner_alone(tmp_path: Path) -> None:
    node_id(tmp_path)

    assert (tmp_path / "node-id").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kept", ["", "not an id", "F" * 32, "0" * 33, "é"])
def test_damaged_id_is_not_replaced_in_silence(tmp_path: Path, kept: str) -> None:
    (tmp_path / "node-id").write_text(kept, encoding="utf-8")

    with pytest.raises(IdentityError, match="node-id"):
        node_id(tmp_path)
    assert (tmp_path / "node-id").read_text(encoding="utf-8") == kept


def test_failed_write_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    write_private(tmp_path / "kept", "old")
    with pytest.raises(UnicodeEncodeError):
        write_private(tmp_path / "kept", "\ud800")

    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_text() == "old"


def test_unusable_data_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(IdentityError, match="file"), claimed(tmp_path / "file" / "data"):
        pass
    with pytest.raises(IdentityError, match="file"):
        node_id(tmp_path / "file" / "data")


def test_second_agent_cannot_use_the_same_data_directory(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom herd.node.identity import claimed, IdentityError\n"
        "try:\n with claimed(pathlib.Path(sys.argv[1])): print('mine')\n"
        "except IdentityError as error: print(error)\n"
    )
    with claimed(tmp_path):
        held = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
        )
    freed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )

    assert "already runs" in held.stdout
    assert freed.stdout == "mine\n"


def test_default_name_is_the_bare_host_name() -> None:
    assert default_name()
    assert "." not in default_name()
