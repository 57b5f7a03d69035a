"""What an engine adapter is: one module that knows one kind of engine.

An adapter detects its engine by asking, surveys what it has, and says which paths it serves
itself, so that the gateway passes those through and translates the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Final, Protocol, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from herd.core.actions import Stay, Target
from herd.core.fleet import EngineKind, Replica
from herd.engines.http import Answer, EngineError, Http

#: A count or size as an engine tells it. Anything else in its place is not believed.
Count = Annotated[int, Meta(ge=0, le=2**53)]
#: A model's or an instance's name as an engine is told it.
Name = Annotated[str, Meta(min_length=1, max_length=1024)]

#: Seconds after which a request that was not refused counts as accepted.
REFUSAL_TIME = 1.0

_OK: Final = 200
_IN_TROUBLE: Final = frozenset({401, 403, 429, 502, 503, 504})

T = TypeVar("T")


def read_rows(listing: Iterable[Raw], shape: type[T], url: str) -> list[tuple[T, bytes]]:
    """Return each row of a listing as a `shape` and as it came; raises `EngineError`."""
    try:
        return [(msgspec.json.decode(raw, type=shape), bytes(raw)) for raw in listing]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineError(f"{url} answered with a row of another shape: {error}") from error


class Survey(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an engine said of itself at one look."""

    version: str = ""
    replicas: tuple[Replica, ...] = ()
    #: Requests it runs and holds back by its own count; None if it does not say.
    running: int | None = None
    waiting: int | None = None


async def accepts(http: Http, url: str, body: object) -> bool:
    """Whether the engine takes this request, to learn once what it nowhere says.

    What it cannot do it refuses at once, before the request is queued; so one that is not
    refused within `REFUSAL_TIME` counts as taken, and is broken off. Raises `EngineError` if the
    engine is in too much trouble for its answer to mean anything.
    """
    try:
        async with asyncio.timeout(REFUSAL_TIME):
            answer = await http.post(url, body)
    except TimeoutError:
        return True
    if answer.status in _IN_TROUBLE:
        raise EngineError(f"{url} answered {answer.status}: {answer.complaint()}")
    return answer.status == _OK


class SurveyCache:
    """What one engine told that need not be asked at every look, kept by whoever surveys it.

    One per engine. Adapters choose the keys, and make them change when the engine or the model
    behind a name does, so that nothing in here grows stale.
    """

    def __init__(self) -> None:
        self._known: dict[str, Replica] = {}

    def get(self, key: str) -> Replica | None:
        """Return what is known under `key`."""
        return self._known.get(key)

    def put(self, key: str, replica: Replica) -> Replica:
        """Keep the replica under `key` and return it."""
        self._known[key] = replica
        return replica

    def keep(self, keys: Iterable[str]) -> None:
        """Forget everything but these keys: an engine whose models come and go stays small."""
        self._known = {key: self._known[key] for key in keys if key in self._known}

    def clear(self) -> None:
        """Forget everything: the engine may have been replaced by another."""
        self._known.clear()


class Adapter(Protocol):
    """One kind of engine. Stateless: everything it learns goes into its surveys."""

    kind: ClassVar[EngineKind]
    #: Ports on which a default installation listens.
    ports: ClassVar[tuple[int, ...]]
    #: Inference paths that the engine serves itself, as the client's dialect has them.
    paths: ClassVar[frozenset[str]]

    async def detect(self, http: Http, url: str) -> bool:
        """Whether the server at `url` is of this kind; False too if nothing answers."""

    async def survey(self, http: Http, url: str, cache: SurveyCache | None = None) -> Survey:
        """Ask what it has and does; raises `EngineError` if it does not answer as it should.

        With a cache, what cannot change is asked once. An engine that is still loading its only
        model counts as one that does not answer: it is not ready for a request yet.
        """


class ModelLoader(Protocol):
    """What an adapter has besides, if its engine loads models and lets them go when it is told."""

    kind: ClassVar[EngineKind]
    #: Paths, beside the inference paths, on which the engine is told so, and the only shape of
    #: body for each. A door lets nothing else through to them.
    controls: ClassVar[Mapping[str, type[Struct]]]

    async def load(self, http: Http, target: Target, stay: Stay) -> None:
        """Have the model in memory when this returns; raises `EngineError` if it cannot be.

        What the engine has no words for in `stay` is left to the engine.
        """

    async def unload(self, http: Http, target: Target) -> None:
        """Have the model leave memory, after what runs on it; raises `EngineError`."""


def check(answer: Answer, url: str) -> None:
    """Raise `EngineError` with the engine's own words unless it has done what it was told."""
    if answer.status != _OK:
        complaint = answer.complaint() or "no reason"
        raise EngineError(f"{url} answered {answer.status}: {complaint}")
