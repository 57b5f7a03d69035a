"""The router's HTTP application: routes, and answers for what no route or handler answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from herd import __version__
from herd.gateway.inference import dialect_of
from herd.gateway.problems import problem_response
from herd.ops.logs import logger
from herd.wire.errors import Problem
from herd.wire.link import PATH as LINK_PATH

_NOT_FOUND: Final = 404
_NOT_ALLOWED: Final = 405
_TOO_LARGE: Final = 413
_INTERNAL: Final = 500
_ERROR: Final = 400


def build(
    routes: Iterable[web.RouteDef],
    *,
    link: Callable[[web.Request], Awaitable[web.StreamResponse]],
    max_body: int,
) -> web.Application:
    """Put the application together. `max_body` is the largest body in bytes."""
    app = web.Application(client_max_size=max_body, middlewares=[_in_dialect])
    app.router.add_routes([web.get("/", _root), web.get(LINK_PATH, link), *routes])
    app.on_response_prepare.append(_sign)
    return app


async def _root(request: web.Request) -> web.StreamResponse:
    """Ollama's sign of life for its clients, the dashboard for a browser."""
    if "text/html" in request.headers.get("Accept", ""):
        raise web.HTTPFound("/dashboard/")
    return web.Response(text="Ollama is running")


async def _sign(_request: web.Request, response: web.StreamResponse) -> None:
    """Say who answers: nodes must not take a router for an engine."""
    response.headers["Herd-Version"] = __version__
    response.headers["Server"] = "Herd"


@web.middleware
async def _in_dialect(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what handlers raise into errors of the dialect in which the client asked."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < _ERROR:
            raise
        return _worded(request, error)
    except Exception as error:  # noqa: BLE001 - the last place: logged whole, told in short
        logger("gateway").exception("internal error", path=request.path)
        problem = Problem(status=_INTERNAL, message=f"internal error: {type(error).__name__}")
        return problem_response(dialect_of(request.path), problem)


def _worded(request: web.Request, error: web.HTTPException) -> web.Response:
    if error.status == _NOT_FOUND:
        return web.Response(
            status=_NOT_FOUND, body=b"404 page not found", headers={"Content-Type": "text/plain"}
        )
    if error.status == _NOT_ALLOWED:
        headers = {"Content-Type": "text/plain", "Allow": error.headers.get("Allow", "")}
        return web.Response(status=_NOT_ALLOWED, body=b"405 method not allowed", headers=headers)
    message = error.text or error.reason
    if error.status == _TOO_LARGE:
        message = f"request body too large: {message}"
    return problem_response(dialect_of(request.path), Problem(status=error.status, message=message))
