"""MLX: `mlx_lm.server`, which speaks HTTP/1.0 and tells little; held to recorded answers."""

from __future__ import annotations

from typing import ClassVar

from msgspec import Raw, Struct

from herd.core.fleet import EngineKind, Replica, Residency
from herd.core.names import canonical
from herd.engines.adapter import Survey, SurveyCache, read_rows
from herd.engines.http import Http


class Mlx:
    """An mlx_lm.server.

    It names models and tells nothing else of them: no size, no context, no queue, no version. It
    keeps one model in memory and does not say which.
    """

    kind: ClassVar[EngineKind] = "mlx"
    ports: ClassVar[tuple[int, ...]] = (8080,)
    paths: ClassVar[frozenset[str]] = frozenset({"/v1/chat/completions", "/v1/completions"})

    async def detect(self, http: Http, url: str) -> bool:
        """Whether Python's plain HTTP server answers with models that nobody owns."""
        health = await http.peek(f"{url}/health")
        if health is None or not health.headers.get("server", "").startswith("BaseHTTP/"):
            return False
        if (state := health.maybe(_Health)) is None or state.status != "ok":
            return False
        models = await http.peek(f"{url}/v1/models")
        return models is not None and models.maybe(_Strict) is not None

    async def survey(self, http: Http, url: str, cache: SurveyCache | None = None) -> Survey:  # noqa: ARG002 - there is nothing worth keeping
        """List its models: the one it was started with and those in the cache of the hub."""
        listing = await http.fetch(f"{url}/v1/models", _Listing)
        rows = read_rows(listing.data, _Row, f"{url}/v1/models")
        return Survey(
            replicas=tuple(
                Replica(
                    model=canonical(row.id),
                    name=row.id,
                    residency=_residency(row.id, alone=len(rows) == 1),
                    capabilities=("completion", "tools"),
                    listing=raw,
                )
                for row, raw in rows
            )
        )


class _Health(Struct):
    status: str


class _Row(Struct):
    id: str


class _StrictRow(Struct, forbid_unknown_fields=True):
    """A row as this server alone writes it: every other engine adds an owner."""

    id: str
    object: str
    created: int


class _Strict(Struct, forbid_unknown_fields=True):
    object: str
    data: list[_StrictRow]


class _Listing(Struct):
    data: list[Raw]


def _residency(name: str, *, alone: bool) -> Residency:
    """Return where a model most likely is.

    A path can only come from the command line, and is loaded at the start; a name out of several
    in the cache of the hub is loaded when it is asked for.
    """
    return "resident" if alone or name.startswith(("/", "~", ".")) else "disk"
