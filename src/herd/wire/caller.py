"""Who asks and what they say of their request's order, from headers and a few fields of a body.

Herd's own headers are checked: a value that means nothing is refused, as a wish that is silently
dropped is worse than none. Fields and headers that belong to other programs are read where they
say something useful, and passed over where they do not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from herd.core.request import Priority

CLIENT_HEADER: Final = "Herd-Client"
PRIORITY_HEADER: Final = "Herd-Priority"
DEADLINE_HEADER: Final = "Herd-Deadline"
SESSION_HEADER: Final = "Herd-Session"
#: Characters that the name of a client or a session may have; a UUID has 36.
LONGEST_NAME: Final = 128

#: Headers in which programs name their conversation: Claude Code (since 2.1.86), Codex (with a
#: hyphen since 2026, with an underscore before), Open WebUI (`ENABLE_FORWARD_USER_INFO_HEADERS`),
#: and what others have taken over from them.
_SESSION_HEADERS: Final = (
    "X-Claude-Code-Session-Id",
    "session-id",
    "session_id",
    "X-OpenWebUI-Chat-Id",
    "X-Session-Id",
)
#: The user of an Open WebUI that forwards who that is; an opaque id, unlike name and address.
_USER_HEADER: Final = "X-OpenWebUI-User-Id"
#: Where keys are shown, in the order in which they are looked for: OpenAI and Anthropic.
_KEY_HEADERS: Final = ("Authorization", "x-api-key")
_PRIORITIES: Final[dict[str, Priority]] = {"high": "high", "normal": "normal", "low": "low"}
#: OpenAI's processing tiers that say something of order.
_TIERS: Final[dict[str, Priority]] = {"flex": "low", "priority": "high"}
_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
#: Claude Code's `metadata.user_id` before 2.1.78; from then on it is an object in a string.
_CLAUDE_SESSION: Final = re.compile(r"user_.*_session_([0-9A-Za-z-]+)")
_FINGERPRINT: Final = 8


class BadHeader(Exception):
    """A header of Herd's own has a value that means nothing; the text says what it should be."""


class Caller(Struct, frozen=True, kw_only=True):
    """Who asks, and how urgent it is."""

    client: str
    priority: Priority
    #: Seconds; None if the answer is always of use.
    deadline: float | None
    session: str


def read_caller(headers: Mapping[str, str], address: str, *, tier: Any, session: str) -> Caller:
    """Read a request's headers; raises `BadHeader`.

    `headers` finds names in any spelling. `tier` and `session` are what the body says, and yield
    to a header of Herd's own.
    """
    return Caller(
        client=_client(headers, address),
        priority=_priority(headers.get(PRIORITY_HEADER), tier),
        deadline=_deadline(headers.get(DEADLINE_HEADER)),
        session=_named(headers, SESSION_HEADER) or _foreign(headers, _SESSION_HEADERS) or session,
    )


def body_session(cache_key: Any, session_id: Any, metadata: Raw) -> str:
    """Return the conversation that a body names, or an empty string.

    OpenAI's `prompt_cache_key` marks requests that share their beginning; some clients send a
    `session_id`, in `metadata` too; Claude Code puts one into Anthropic's `metadata.user_id`.
    OpenAI's `user` is a person and no conversation.
    """
    found = _usable(cache_key) or _usable(session_id)
    if found or not metadata:
        return found
    known = _decoded(metadata)
    return _usable(known.get("session_id")) or _of_claude_code(known.get("user_id"))


def fingerprint(key: str) -> str:
    """Return what stands for an API key in records: it tells keys apart and gives none away."""
    return f"key:{sha256(key.encode(errors='surrogateescape')).hexdigest()[:_FINGERPRINT]}"


def _client(headers: Mapping[str, str], address: str) -> str:
    """A name or key together with the address that it came from.

    People behind one proxy differ in name or key; those who all send the same placeholder for a
    key differ in address; and nobody uses up another's share by taking their name elsewhere.
    """
    name = _named(headers, CLIENT_HEADER) or _foreign(headers, (_USER_HEADER,))
    if not name and (key := _key(headers)):
        name = fingerprint(key)
    return f"{name}@{address}" if name else address


def _key(headers: Mapping[str, str]) -> str:
    for header in _KEY_HEADERS:
        if text := headers.get(header, "").strip():
            scheme, _, rest = text.partition(" ")
            return rest.strip() if scheme.lower() == "bearer" else text
    return ""


def _priority(text: str | None, tier: Any) -> Priority:
    if text is None:
        return _TIERS.get(tier, "normal") if isinstance(tier, str) else "normal"
    found = _PRIORITIES.get(text.strip().lower())
    if found is None:
        raise BadHeader(f"{PRIORITY_HEADER} must be high, normal or low")
    return found


def _deadline(text: str | None) -> float | None:
    if text is None:
        return None
    text = text.strip()
    seconds = float(text) if _SECONDS.fullmatch(text) else 0.0
    if seconds <= 0.0:
        raise BadHeader(f"{DEADLINE_HEADER} must be a number of seconds above 0")
    return seconds


def _named(headers: Mapping[str, str], header: str) -> str:
    text = headers.get(header)
    if text is None:
        return ""
    found = _usable(text)
    if not found:
        raise BadHeader(f"{header} must have 1 to {LONGEST_NAME} printable characters")
    return found


def _foreign(headers: Mapping[str, str], names: tuple[str, ...]) -> str:
    for name in names:
        if found := _usable(headers.get(name)):
            return found
    return ""


def _usable(value: Any) -> str:
    """Return the value as a name, or an empty string if it is none."""
    if not isinstance(value, str) or len(value) > LONGEST_NAME or not value.isprintable():
        return ""
    return value.strip()


def _of_claude_code(user: Any) -> str:
    if not isinstance(user, str):
        return ""
    if user.startswith("{"):
        return _usable(_decoded(user.encode()).get("session_id"))
    match = _CLAUDE_SESSION.fullmatch(user)
    return _usable(match[1]) if match else ""


def _decoded(text: bytes | Raw) -> dict[str, Any]:
    """Return an object; an empty one for anything else, which is then for the engine to judge."""
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
