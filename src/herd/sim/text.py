"""What an emulated engine says: a function of the request alone, so that every engine agrees."""

from __future__ import annotations

import hashlib
import math
import re
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec import Struct

#: Longest JSON text that a schema is turned into, in levels.
_MAX_DEPTH = 8
_PIECES = re.compile(r'"(?:[^"\\]|\\.)*"|[^"\s]|\s+')
_SENTENCE = (
    "the river carries small stones to sea while old trees keep quiet watch over fields of "
    "barley and a slow wind turns every page that children left open near the garden gate where "
    "two cats sleep under morning light until bread is warm again then someone sings about ships "
    "which never came home"
)
_WORDS = tuple(_SENTENCE.split())
#: Every word as it opens an answer, and as it follows another; and both as JSON strings.
_OPENING = _WORDS
_FOLLOWING = tuple(f" {word}" for word in _WORDS)
_OPENING_JSON = tuple(msgspec.json.encode(word) for word in _OPENING)
_FOLLOWING_JSON = tuple(msgspec.json.encode(word) for word in _FOLLOWING)


def tokenise(text: str) -> list[int]:
    """Return one token per word, the same for the same word everywhere."""
    return [zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in text.split()]


def render(turns: Iterable[tuple[str, str]]) -> tuple[int, ...]:
    """Return the tokens of a conversation of (role, text), up to where the answer begins.

    A later turn of the same conversation begins with the tokens of this one and its answer.
    """
    tokens: list[int] = []
    for role, text in turns:
        tokens += tokenise(f"<{role.lower()}>")
        tokens += tokenise(text)
    return (*tokens, *tokenise("<assistant>"))


def seed(tokens: Sequence[int]) -> int:
    """Return 63 bits that stand for a prompt."""
    packed = struct.pack(f"<{len(tokens)}I", *tokens)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


class Answer(Struct, frozen=True):
    """The text of one answer, piece by piece; a piece is a token."""

    seed: int
    #: Pieces of text; an engine generates one token more, which ends the answer.
    length: int
    #: Given where the answer has to be JSON, instead of words.
    pieces: tuple[str, ...] = ()

    def piece(self, number: int) -> str:
        """Return a piece, counted from 0."""
        if self.pieces:
            return self.pieces[number]
        return (_FOLLOWING if number else _OPENING)[self._index(number)]

    def encoded(self, number: int) -> bytes:
        """Return a piece as a JSON string."""
        if self.pieces:
            return msgspec.json.encode(self.pieces[number])
        return (_FOLLOWING_JSON if number else _OPENING_JSON)[self._index(number)]

    def text(self, count: int) -> str:
        """Return the first pieces as one."""
        return "".join(map(self.piece, range(count)))

    def tokens(self, count: int) -> tuple[int, ...]:
        """Return the tokens that the first pieces add to the conversation."""
        return tuple(tokenise(self.text(count)))

    def _index(self, number: int) -> int:
        # Knuth's multiplicative hash: consecutive numbers land far apart.
        return ((self.seed + number) * 2654435761 >> 7) % len(_WORDS)


def answer(tokens: Sequence[int], shortest: int, longest: int, schema: Any = None) -> Answer:
    """Return what a model says to a prompt: `shortest` to `longest` tokens with the ending one.

    With a schema ("json", or a JSON schema object) it is JSON of that form, as long as it takes.
    """
    key = seed(tokens)
    if schema is not None:
        value = _instance(schema, key, 0) if isinstance(schema, dict) else {"answer": _word(key)}
        pieces = tuple(_PIECES.findall(msgspec.json.encode(value).decode()))
        return Answer(key, len(pieces), pieces)
    return Answer(key, shortest - 1 + key % (longest - shortest + 1))


def embedding(text: str, dimensions: int) -> list[float]:
    """Return the vector of a text: unit length, the same on every engine."""
    raw = hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(4 * dimensions)
    return unit([number / 2**31 - 1 for number in struct.unpack(f"<{dimensions}I", raw)])


def unit(vector: list[float]) -> list[float]:
    """Return a vector scaled to length 1, in the precision that engines print."""
    length = math.sqrt(sum(number * number for number in vector)) or 1.0
    return [round(number / length, 8) for number in vector]


def logprob(answer_: Answer, number: int) -> float:
    """Return a made-up log-probability of a piece: between -2 and 0, the same each time."""
    return -((answer_.seed + number * 7919) % 2000) / 1000


def _word(key: int) -> str:
    return _WORDS[key % len(_WORDS)]


def _instance(schema: dict[str, Any], key: int, depth: int) -> Any:
    """Return a value that a JSON schema allows, as far as `type`, `enum` and `const` say."""
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][key % len(schema["enum"])]
    kind = schema.get("type")
    if kind == "object" and depth < _MAX_DEPTH:
        properties = schema.get("properties", {})
        return {
            name: _instance(part, key + place, depth + 1)
            for place, (name, part) in enumerate(properties.items(), 1)
        }
    if kind == "array" and depth < _MAX_DEPTH:
        return [_instance(schema.get("items", {}), key, depth + 1)]
    scalars: dict[Any, Any] = {
        "string": _word(key),
        "integer": key % 100,
        "number": key % 1000 / 10,
        "boolean": bool(key % 2),
    }
    return scalars.get(kind)
