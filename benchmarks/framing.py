"""Reads answers of HTTP/1.1 as their bytes come: just enough of it for a load generator."""

from __future__ import annotations

import re
from typing import Final

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)


class Answer:
    """One answer. `done` when its last byte was fed; nothing may be fed after that."""

    __slots__ = ("_buffer", "_left", "done", "status")

    def __init__(self) -> None:
        #: 0 until the head has come.
        self.status = 0
        self.done = False
        self._buffer = b""
        #: Bytes of the body that are to come; None where it comes in chunks.
        self._left: int | None = None

    def feed(self, data: bytes) -> bytes:
        """Take what came; return the part of the body that is in it, without its framing."""
        if not self.status:
            self._buffer += data
            head, found, data = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return b""
            self._buffer = b""
            self._begin(head)
        if self._left is None:
            return self._chunks(data)
        self._left -= len(data)
        self.done = self._left <= 0
        return data

    def _begin(self, head: bytes) -> None:
        self.status = int(head[9:12])
        if _CHUNKED.search(head) is None:
            length = _LENGTH.search(head)
            if length is None:
                raise ValueError(f"an answer without length: {head!r}")
            self._left = int(length[1])

    def _chunks(self, data: bytes) -> bytes:
        """Take whole chunks off the front."""
        if self._buffer:
            data = self._buffer + data
        parts: list[bytes] = []
        at = 0
        while (end := data.find(b"\r\n", at)) >= 0:
            start = end + 2
            size = int(data[at:end], 16)
            if start + size + 2 > len(data):
                break
            if not size:
                self.done = True
                break
            parts.append(data[start : start + size])
            at = start + size + 2
        self._buffer = data[at:]
        return parts[0] if len(parts) == 1 else b"".join(parts)
