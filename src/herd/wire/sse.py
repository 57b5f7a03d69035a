"""Server-sent events, incrementally: bytes as they arrive in, complete events out.

Covers what engines send: lines that end in LF or CRLF, comments (`: keepalive 1/1`), `event` and
`data` fields, data over several lines. A lone CR ends no line: no engine writes it, and JSON never
holds a raw one. Fields that carry no answer (`id`, `retry`) are skipped.
"""

from __future__ import annotations

from msgspec import Struct

#: Bytes that one event may have. Answers come in events of a few hundred bytes.
MAX_EVENT = 16 * 1024 * 1024


class Event(Struct, frozen=True):
    """One event; `name` is empty where the stream gave none."""

    data: bytes
    name: str = ""


class EventTooLongError(ValueError):
    """The stream holds an event of more than `MAX_EVENT` bytes."""


class SseParser:
    """Cuts a stream into events, however its bytes are split into pieces."""

    def __init__(self) -> None:
        self._tail = b""
        self._data: list[bytes] = []
        self._size = 0
        self._name = ""

    def feed(self, piece: bytes) -> list[Event]:
        """Take the next bytes; return the events that they complete.

        Raises `EventTooLongError`; the parser is of no use after that.
        """
        lines = (self._tail + piece).split(b"\n")
        self._tail = lines.pop()
        events = self._take(lines)
        if self._size + len(self._tail) > MAX_EVENT:
            raise EventTooLongError(f"the engine sent an event of more than {MAX_EVENT} bytes")
        return events

    def finish(self) -> list[Event]:
        """Return what the stream's end completes: an event that lacks only its blank line."""
        last, self._tail = self._tail, b""
        return self._take([last, b""])

    def _take(self, lines: list[bytes]) -> list[Event]:
        events = []
        for raw in lines:
            line = raw.removesuffix(b"\r")
            if line:
                self._field(line)
            else:
                if self._data:
                    events.append(Event(b"\n".join(self._data), self._name))
                self._data, self._size, self._name = [], 0, ""
        return events

    def _field(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._size += len(value)
        elif field == b"event":
            self._name = value.decode("utf-8", "replace")
