"""Makes a second real model of the one that is installed: the same weights with fewer layers.

What it writes is no good at prose, and need not be: it is as fast as a model of its size is. The
format is GGUF 3, as llama.cpp describes it in `docs/gguf.md` of ggml: a header, metadata, a table
of tensors, and their data, each aligned.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Final

from msgspec import Struct

_MAGIC: Final = b"GGUF"
_VERSION: Final = 3
_ALIGNMENT: Final = 32
_STRING: Final = 8
_ARRAY: Final = 9
#: Bytes of the values of a metadata type, by its number.
_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_LAYER: Final = re.compile(rb"blk\.(\d+)\.")


class _Tensor(Struct):
    #: Name, dimensions and type, as they are in the table.
    entry: bytes
    name: bytes
    #: Where its data begins, from the begin of all data.
    offset: int


class _Reader:
    """Reads one number or value after the other."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def number(self, form: str) -> int:
        """Return a little-endian number by its `struct` letter."""
        (value,) = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return int(value)

    def text(self) -> bytes:
        """Return a string."""
        length = self.number("Q")
        self.at += length
        return self.data[self.at - length : self.at]

    def skip(self, kind: int) -> None:
        """Pass over a value of a type."""
        if kind == _STRING:
            self.text()
        elif kind == _ARRAY:
            of, count = self.number("I"), self.number("Q")
            for _ in range(count) if of == _STRING else ():
                self.text()
            self.at += 0 if of == _STRING else count * _SIZES[of]
        else:
            self.at += _SIZES[kind]


def drop_layers(source: Path, target: Path, *, keep: int) -> None:
    """Write a model that has the first `keep` layers of another.

    Raises `ValueError` if that is no GGUF 3, or says nothing of its layers.
    """
    data = source.read_bytes()
    reader = _Reader(data)
    if data[:4] != _MAGIC or (reader.number("I"), reader.number("I"))[1] != _VERSION:
        raise ValueError(f"{source.name} is no GGUF of version {_VERSION}")
    tensors, values = reader.number("Q"), reader.number("Q")
    begin = reader.at
    blocks = [at for at in (_value(reader) for _ in range(values)) if at is not None]
    if not blocks:
        raise ValueError(f"{source.name} does not say how many layers it has")
    metadata = bytearray(data[begin : reader.at])
    struct.pack_into("<I", metadata, blocks[0] - begin, keep)
    table = [_tensor(reader) for _ in range(tensors)]
    base = _aligned(reader.at)
    ends = [*sorted(tensor.offset for tensor in table)[1:], len(data) - base]
    end_of = dict(zip(sorted(tensor.offset for tensor in table), ends, strict=True))
    kept = [tensor for tensor in table if _number(tensor.name) < keep]
    head = bytearray(struct.pack("<4sIQQ", _MAGIC, _VERSION, len(kept), values) + metadata)
    body = bytearray()
    for tensor in kept:
        head += tensor.entry + struct.pack("<Q", len(body))
        body += data[base + tensor.offset : base + end_of[tensor.offset]]
        body += bytes(_aligned(len(body)) - len(body))
    target.write_bytes(bytes(head) + bytes(_aligned(len(head)) - len(head)) + bytes(body))


def _value(reader: _Reader) -> int | None:
    """Pass over a piece of metadata; returns where its value is if that counts the layers."""
    key, kind = reader.text(), reader.number("I")
    at = reader.at
    reader.skip(kind)
    return at if key.endswith(b".block_count") else None


def _tensor(reader: _Reader) -> _Tensor:
    begin = reader.at
    name = reader.text()
    dimensions = reader.number("I")
    reader.at += 8 * dimensions + 4
    entry = reader.data[begin : reader.at]
    return _Tensor(entry, name, reader.number("Q"))


def _number(name: bytes) -> int:
    """Return a tensor's layer; -1 if it belongs to none."""
    found = _LAYER.match(name)
    return int(found[1]) if found else -1


def _aligned(at: int) -> int:
    return -(-at // _ALIGNMENT) * _ALIGNMENT
