"""Requests in Ollama's dialect that an engine with a fixed load need not be asked.

Clients load and unload models with an empty chat or prompt, and embed nothing to the same end.
Such an engine has its model loaded, so the answer is known; unloading is what it cannot do.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw, Struct

from herd.core.fleet import EngineKind
from herd.wire.ollama_answer import Ending, answer_line
from herd.wire.ollama_options import ENGINE_NAMES, Untranslatable


class _Asked(Struct):
    model: str = ""
    messages: Raw = Raw()
    prompt: Raw = Raw()
    input: Raw = Raw()
    keep_alive: float | str | None = None


_asked: Final = msgspec.json.Decoder(_Asked)
_NOTHING: Final = (b"", b"null", b'""', b"[]", b'[""]')


def trivial_answer(endpoint: str, body: bytes, *, kind: EngineKind, now: float) -> bytes | None:
    """Answer a request that asks for no work; None if the engine must be asked.

    The answer is one JSON object, also where the request says `stream`. Raises `Untranslatable` for
    a request to unload, which the engine could not follow.
    """
    try:
        asked = _asked.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None  # for `translate_request` to refuse
    match endpoint:
        case "/api/chat" if bytes(asked.messages) in _NOTHING:
            return answer_line(endpoint, asked.model, now, ending=_loaded(asked, kind))
        case "/api/generate" if bytes(asked.prompt) in _NOTHING:
            return answer_line(endpoint, asked.model, now, ending=_loaded(asked, kind))
        case "/api/embed" if bytes(asked.input) in _NOTHING:
            return msgspec.json.encode({"model": asked.model, "embeddings": []})
        case "/api/embeddings" if bytes(asked.prompt) in _NOTHING:
            return msgspec.json.encode({"embedding": []})
    return None


def _loaded(asked: _Asked, kind: EngineKind) -> Ending:
    keep_alive = asked.keep_alive
    if isinstance(keep_alive, str):
        digits = [letter for letter in keep_alive if letter.isdigit()]
        unload = bool(digits) and set(digits) == {"0"}
    else:
        unload = keep_alive == 0
    if unload:
        raise Untranslatable(f"{ENGINE_NAMES[kind]} keeps its model loaded and cannot unload it")
    return Ending(reason="load")
