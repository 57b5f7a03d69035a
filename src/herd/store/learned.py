"""What was learned of the fleet, as one row that is replaced as a whole."""

from __future__ import annotations

import sqlite3

import msgspec

from herd.core.learned import Learned
from herd.store.schema import StoreError, transaction

_WRITE = "INSERT OR REPLACE INTO learned (id, taken, data) VALUES (1, ?, ?)"
READ = "SELECT data FROM learned WHERE id = 1"

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Learned)


def write(connection: sqlite3.Connection, learned: Learned) -> None:
    """Put this in place of what was kept before; raises `sqlite3.Error`, and then that stays."""
    with transaction(connection):
        connection.execute(_WRITE, (learned.at, _encoder.encode(learned)))


def decode(data: bytes) -> Learned:
    """Read what was kept; raises `StoreError` if it is spoilt or of another layout."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, TypeError) as error:
        raise StoreError(f"what was learned cannot be read: {error}") from error
