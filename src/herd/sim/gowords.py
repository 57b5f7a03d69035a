"""Bad input in the words of Ollama, which is written in Go; and Go's notations of time."""

from __future__ import annotations

import re
import time
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

_T = TypeVar("_T")
_BYTE = re.compile(r"\(byte (\d+)\)")
_MISMATCH = re.compile(
    r"Expected `(?P<want>[^`]*)`, got `(?P<got>[^`]*)`(?: - at `(?P<at>[^`]*)`)?"
)
_DURATION = re.compile(r"(?P<number>\d+\.?\d*|\.\d+)(?P<unit>ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_GO_KINDS = {"str": "string", "int": "number", "float": "number", "object": "object"}


class Problem(Exception):
    """An error answer: its status, text, and the field at fault where the dialect tells that.

    `early` ones are found while the request is read, before any handler of the engine.
    """

    def __init__(
        self, status: int, message: str, *, early: bool = False, field: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.early = early
        self.field = field


def decode(body: bytes, kind: type[_T]) -> _T:
    """Read a request's body; raises `Problem` 400 worded as Go's JSON decoder does."""
    if not body.strip():
        raise Problem(400, "missing request body", early=True)
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise Problem(400, _mismatch(str(error)), early=True) from error
    except msgspec.DecodeError as error:
        raise Problem(400, _malformed(str(error), body), early=True) from error


def keep_alive(value: Any) -> float | None:
    """Return a `keep_alive` in seconds, negative for ever; None if unset; raises `Problem` 400."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Problem(400, "invalid keep_alive", early=True)
    return duration(value) if isinstance(value, str) else float(value)


def duration(text: str) -> float:
    """Return the seconds of a Go duration such as `1h30m`; raises `Problem` 400."""
    sign = -1.0 if text.startswith("-") else 1.0
    rest = text.lstrip("+-") if text[:1] in {"+", "-"} else text
    if rest == "0":
        return 0.0
    if re.fullmatch(r"\d+\.?\d*|\.\d+", rest):
        raise Problem(400, f'time: missing unit in duration "{text}"', early=True)
    parts = list(_DURATION.finditer(rest))
    if not parts or "".join(part.group() for part in parts) != rest:
        raise Problem(400, f'time: invalid duration "{text}"', early=True)
    return sign * sum(float(part["number"]) * _UNITS[part["unit"]] for part in parts)


def stamp(now: float) -> str:
    """Return RFC 3339 in UTC with up to nine decimals and no trailing zeros."""
    whole = int(now)
    fraction = f"{int((now - whole) * 1e9):09d}".rstrip("0")
    return f"{_second(whole)}.{fraction}Z" if fraction else f"{_second(whole)}Z"


@lru_cache(maxsize=8)
def _second(whole: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))


def _mismatch(text: str) -> str:
    found = _MISMATCH.search(text)
    if found is None:
        return text
    field = re.sub(r"\[[^\]]*\]", "", found["at"] or "$").removeprefix("$").lstrip(".")
    got = _GO_KINDS.get(found["got"], found["got"])
    want = found["want"].replace(" | null", "")
    want = "string" if want == "str" else want
    return f"json: cannot unmarshal {got} into Go struct field .{field} of type {want}"


def _malformed(text: str, body: bytes) -> str:
    place = _BYTE.search(text)
    if "truncated" in text or place is None:
        return "unexpected EOF"
    start = int(place[1])
    character = body.decode("utf-8", "replace")[start : start + 1]
    if not character:
        return "unexpected EOF"
    expected = "object key string" if "keys must be strings" in text else "value"
    return f"invalid character {character!r} looking for beginning of {expected}"
