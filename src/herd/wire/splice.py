"""Changes to one field of a JSON body that leave the rest of it as it came."""

from __future__ import annotations

import msgspec

_object: msgspec.json.Decoder[dict[str, msgspec.Raw]] = msgspec.json.Decoder(dict[str, msgspec.Raw])


def replace_model(body: bytes, model: str) -> bytes:
    """Return the JSON object `body` with `model` as its top-level `model`, in its old place.

    Every other value keeps its bytes; white space between top-level fields goes. An object without
    the field gets it at its end. Raises `msgspec.DecodeError` if `body` is not a JSON object.
    """
    fields = _object.decode(body)
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)
