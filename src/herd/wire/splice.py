"""Changes to a few fields of a JSON body that leave the rest of it as it came."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Raw

Members = dict[str, Raw]

_object: Final = msgspec.json.Decoder(Members)
_KEY: Final = re.compile(rb'[ \t\n\r]*("(?:[^"\\]|\\.)*")[ \t\n\r]*:[ \t\n\r]*', re.DOTALL)
_NEXT: Final = re.compile(rb"[ \t\n\r]*([,}])")


def members(body: bytes) -> Members:
    """Return the top-level fields of a JSON object, each value as its bytes.

    Raises `msgspec.DecodeError` if it is no JSON object, `UnicodeDecodeError` if it is no text.
    """
    return _object.decode(body)


def replace_model(body: bytes, model: str) -> bytes:
    """Return the JSON object `body` with another `model`; raises like `members`."""
    return replace(body, members(body), {"model": msgspec.json.encode(model)})


def replace(body: bytes, found: Members, changes: Mapping[str, bytes]) -> bytes:
    """Return the JSON object `body` with other values for some of its top-level fields.

    `found` are its `members`. A field keeps its place; one that is missing comes last. No other
    byte changes, unless a field comes twice: then each is written once, with its last value,
    which is the one that counts, and the white space between fields goes.
    """
    places = _places(body, found)
    if places is None:
        changed = found | {name: Raw(value) for name, value in changes.items()}
        return msgspec.json.encode(changed)
    parts = []
    done = 0
    for name, (start, end) in places.items():
        if name in changes:
            parts += [body[done:start], changes[name]]
            done = end
    last = max((end for _, end in places.values()), default=body.index(b"{") + 1)
    new = [
        msgspec.json.encode(name) + b":" + value
        for name, value in changes.items()
        if name not in places
    ]
    if new:
        comma = b"," if places else b""
        parts += [body[done:last], comma, b",".join(new)]
        done = last
    return b"".join([*parts, body[done:]])


def _places(body: bytes, found: Members) -> dict[str, tuple[int, int]] | None:
    """Return where each value begins and ends; None if a field comes twice.

    The lengths of the values are known, so the fields alone are walked, not what is in them.
    """
    places = {}
    at = body.index(b"{") + 1
    after = b"," if found else b"}"
    for name, value in found.items():
        key = _KEY.match(body, at)
        if key is None or msgspec.json.decode(key[1]) != name:
            return None
        start = key.end()
        end = start + len(value)
        follows = _NEXT.match(body, end) if body.startswith(bytes(value), start) else None
        if follows is None:
            return None
        places[name] = (start, end)
        at, after = follows.end(), follows[1]
    return places if after == b"}" else None
