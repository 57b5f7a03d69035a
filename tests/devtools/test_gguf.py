"""A model with fewer layers keeps everything else, and its data where the table says."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from devtools.gguf import drop_layers

ARRAY, STRING, UINT32 = 9, 8, 4


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def model(layers: int, names: dict[str, bytes]) -> bytes:
    """A GGUF with some metadata before and after the number of layers."""
    metadata = [
        text("general.name") + struct.pack("<I", STRING) + text("Tiny"),
        text("tiny.block_count") + struct.pack("<II", UINT32, layers),
        text("tokens") + struct.pack("<IIQ", ARRAY, STRING, 2) + text("a") + text("bc"),
        text("scores") + struct.pack("<IIQ2I", ARRAY, UINT32, 2, 7, 8),
    ]
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(names), len(metadata)) + b"".join(metadata)
    body = b""
    for name, data in names.items():
        head += text(name) + struct.pack("<IQQIQ", 2, len(data), 1, 24, len(body))
        body += data + bytes(-len(data) % 32)
    return head + bytes(-len(head) % 32) + body


def test_layers_are_left_out_and_nothing_else(tmp_path: Path) -> None:
    rest = {"token_embd.weight": b"e" * 70, "blk.0.up": b"0" * 33, "output_norm": b"n" * 5}
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(
        model(3, {"blk.10.up": b"x" * 40, **rest, "blk.2.up": b"2", "blk.1.up": b"1"})
    )

    drop_layers(source, target, keep=2)

    assert target.read_bytes() == model(2, {**rest, "blk.1.up": b"1"})


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"GGML" + bytes(100))

    with pytest.raises(ValueError, match="no GGUF"):
        drop_layers(source, tmp_path / "target", keep=1)
