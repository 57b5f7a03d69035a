"""The OpenAPI document of Herd's own API, its schemas generated from the types that are served."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from herd import __version__
from herd.core.request import Outcome
from herd.core.view import FleetView, OpenRequest
from herd.store.outcomes import Summary


class RequestPage(Struct, frozen=True):
    """A page of ended requests, newest first; `next` is the `before` of the following page."""

    requests: tuple[Summary, ...]
    next: int | None


class RequestDetail(Struct, frozen=True):
    """One request: where it is, or how it ended, with its decision and its story."""

    open: OpenRequest | None
    outcome: Outcome | None


class EngineEntry(Struct, frozen=True, kw_only=True):
    """An engine that was added by URL."""

    node: str
    name: str
    url: str


class EngineList(Struct, frozen=True):
    """All engines that were added by URL."""

    engines: tuple[EngineEntry, ...]


class NewEngine(Struct, frozen=True, forbid_unknown_fields=True):
    """A URL, with what is declared of the machine in its query."""

    url: str


class LoadOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Load a model on a node, named by name or id; without the rest as the engine is set."""

    node: str
    #: Tokens of context to load it with.
    context: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    #: Seconds that it stays after its last request; below 0 for ever.
    keep_alive: Annotated[float, Meta(le=1e9)] | None = None


class UnloadOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Let a model leave memory on a node, named by name or id."""

    node: str


class Ordered(Struct, frozen=True, kw_only=True):
    """Where an order goes. What became of it, `/herd/v1/fleet` and the log tell."""

    node: str
    engine: str
    model: str


class Health(Struct, frozen=True, kw_only=True):
    """The router's own state. `problems` is empty when all is well."""

    status: str
    version: str
    nodes: int
    problems: tuple[str, ...]


class ErrorDetail(Struct, frozen=True):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(Struct, frozen=True):
    """An error, in OpenAI's shape."""

    error: ErrorDetail


_TYPES: Final = (
    FleetView,
    RequestPage,
    RequestDetail,
    EngineList,
    EngineEntry,
    NewEngine,
    LoadOrder,
    UnloadOrder,
    Ordered,
    Health,
    Error,
)
_FILTERS: Final = ("model", "node", "client", "ending")


def document() -> dict[str, Any]:
    """Build the document."""
    _, components = msgspec.json.schema_components(
        _TYPES, ref_template="#/components/schemas/{name}"
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "Herd", "version": __version__, "license": {"name": "MIT"}},
        "paths": _paths(),
        "components": {"schemas": components},
    }


def _paths() -> dict[str, Any]:
    return {
        "/herd/v1/health": {"get": _operation("The router's own state", "Health")},
        "/herd/v1/fleet": {
            "get": _operation("Nodes, engines, models, queues and open requests", "FleetView")
        },
        "/herd/v1/requests": {
            "get": _operation(
                "Ended requests, newest first",
                "RequestPage",
                parameters=[
                    _query("limit", {"type": "integer", "minimum": 1, "maximum": 500}),
                    _query("before", {"type": "integer"}),
                    *(_query(name, {"type": "string"}) for name in _FILTERS),
                ],
                errors=(400,),
            )
        },
        "/herd/v1/requests/{id}": {
            "get": _operation(
                "One request with its decision, signals and story",
                "RequestDetail",
                parameters=[_path("id")],
                errors=(404,),
            )
        },
        "/herd/v1/engines": {
            "get": _operation("Engines added by URL", "EngineList"),
            "post": _operation(
                "Add an engine by URL (from the router's own machine)",
                "EngineEntry",
                status=201,
                body="NewEngine",
                errors=(400, 403),
            ),
        },
        "/herd/v1/engines/{node}": {
            "delete": _operation(
                "Remove an engine that was added by URL (from the router's own machine)",
                None,
                status=204,
                parameters=[_path("node")],
                errors=(403, 404),
            )
        },
        "/herd/v1/models/{model}/load": {
            "post": _operation(
                "Have a node load a model (from the router's own machine)",
                "Ordered",
                status=202,
                parameters=[_path("model")],
                body="LoadOrder",
                errors=(400, 403, 404),
            )
        },
        "/herd/v1/models/{model}/unload": {
            "post": _operation(
                "Have a node let a model leave memory (from the router's own machine)",
                "Ordered",
                status=202,
                parameters=[_path("model")],
                body="UnloadOrder",
                errors=(400, 403, 404),
            )
        },
    }


def _operation(
    summary: str,
    schema: str | None,
    *,
    status: int = 200,
    parameters: list[dict[str, Any]] | None = None,
    body: str | None = None,
    errors: tuple[int, ...] = (),
) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": summary}
    if schema is not None:
        answer["content"] = _content(schema)
    responses: dict[str, Any] = {str(status): answer}
    for code in errors:
        responses[str(code)] = {"description": "Refused", "content": _content("Error")}
    operation: dict[str, Any] = {"summary": summary, "responses": responses}
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        operation["requestBody"] = {"required": True, "content": _content(body)}
    return operation


def _content(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _query(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
