"""Ollama's words for how a model is to be loaded and kept, put into a request's body."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw

from herd.core.actions import Stay
from herd.wire.splice import members, replace

_NULL: Final = b"null"


def put_stay(body: bytes, stay: Stay, *, overrule: bool = False) -> tuple[bytes, Stay]:
    """Put `keep_alive` and `options.num_ctx` into a body for one of Ollama's own endpoints.

    Returns the body, and of the stay what it did not say before. A `keep_alive` of the client's
    own stays unless `overrule`; its `num_ctx` is replaced. No other byte changes (see `replace`).
    What cannot be read is left to the engine to judge.
    """
    try:
        found = members(body)
        # Go finds a field in any case.
        names = {name.lower(): name for name in found}
        changes: dict[str, bytes] = {}
        keep, context = _keep_alive(found, names, stay, overrule=overrule), None
        if keep is not None:
            changes[names.get("keep_alive", "keep_alive")] = number(keep)
        if stay.context is not None:
            name = names.get("options", "options")
            options = bytes(found.get(name, _NULL))
            changed = _with_context(options, stay.context)
            if changed != options:
                context, changes[name] = stay.context, changed
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body, Stay()
    if not changes:
        return body, Stay()
    return replace(body, found, changes), Stay(context=context, keep_alive=keep)


def number(seconds: float) -> bytes:
    """Return seconds as a JSON number, without a fraction if there is none."""
    return msgspec.json.encode(int(seconds) if seconds == int(seconds) else seconds)


def _keep_alive(
    found: dict[str, Raw], names: dict[str, str], stay: Stay, *, overrule: bool
) -> float | None:
    """Return the seconds that are to be said; None to leave it as it is."""
    own = bytes(found.get(names.get("keep_alive", ""), _NULL))
    if stay.keep_alive is None or own == number(stay.keep_alive):
        return None
    return stay.keep_alive if overrule or own == _NULL else None


def _with_context(options: bytes, context: int) -> bytes:
    """Return the options with another `num_ctx`, or as they are if they are no options at all."""
    if options == _NULL:
        options = b"{}"
    if not options.startswith(b"{"):
        return options
    value = number(context)
    found = members(options)
    if found.get("num_ctx", b"") == value:
        return options
    return replace(options, found, {"num_ctx": value})
