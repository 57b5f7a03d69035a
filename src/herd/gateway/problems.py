"""Error responses, in the dialect of the path on which they happen."""

from __future__ import annotations

import math

from aiohttp import web

from herd.core.request import Dialect
from herd.wire import errors
from herd.wire.errors import Problem


def problem_response(dialect: Dialect, problem: Problem, *, request_id: str = "") -> web.Response:
    """Build the response; `Retry-After` is whole seconds, as HTTP has it, and at least one."""
    headers = {"Content-Type": "application/json; charset=utf-8"}
    if request_id:
        headers["Herd-Request-Id"] = request_id
    if problem.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(problem.retry_after)))
    return web.Response(
        status=problem.status,
        headers=headers,
        body=errors.body(dialect, problem, request_id),
    )
