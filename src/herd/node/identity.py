"""Who this node is: an id that outlives restarts and renames, and one agent per data directory."""

from __future__ import annotations

import os
import re
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ID = re.compile(r"[0-9a-f]{32}")
_ID_FILE = "node-id"
_LOCK_FILE = "node-lock"


class IdentityError(Exception):
    """The data directory cannot be used; the text says why and what to do."""


def node_id(data_dir: Path) -> str:
    """Return this node's id, 128 random bits in hex, made and kept at the first call."""
    path = data_dir / _ID_FILE
    try:
        known = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        made = secrets.token_hex(16)
        write_private(path, made + "\n")
        return made
    except (OSError, UnicodeDecodeError) as error:
        raise IdentityError(f"the node's id in {path} cannot be read: {error}") from error
    if not _ID.fullmatch(known):
        raise IdentityError(f"{path} holds no node id; delete it to join as a new node")
    return known


def default_name() -> str:
    """Return the host's name without its domain."""
    return socket.gethostname().split(".")[0] or "node"


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all; raises `IdentityError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # mkstemp opens with mode 0600.
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(draft).replace(path)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise IdentityError(f"{path} cannot be written: {error}") from error


@contextmanager
def claimed(data_dir: Path) -> Iterator[None]:
    """Hold the data directory for this process alone; raises `IdentityError` if it is taken.

    Two agents with one identity would take the node's place in the fleet from one another.
    """
    path = data_dir / _LOCK_FILE
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise IdentityError(f"the data directory {data_dir} cannot be used: {error}") from error
    with file:
        try:
            _lock(file.fileno())
        except OSError as error:
            raise IdentityError(
                f"herd-node already runs with the data directory {data_dir}; stop it, or give "
                "this one another with --data-dir"
            ) from error
        yield


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
