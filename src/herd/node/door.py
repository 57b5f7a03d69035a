"""The door: the one way from the router to engines that listen on localhost only.

It forwards `/engines/<id>/<path>` byte for byte in both directions, holds nothing back, and lets
nobody in but the router of the present link. What an engine is told to load or unload is read and
written anew, so that nothing but the name of a model gets through. A client that hangs up cancels
the handler, which closes the connection to the engine, which stops its work.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
from collections.abc import AsyncIterator, Callable

import aiohttp
import msgspec
from aiohttp import hdrs, web
from msgspec import Struct
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from herd.node.engines import LocalEngine
from herd.ops.logs import logger
from herd.wire.link import DOOR_ERROR_HEADER, DOOR_HEADER, DOOR_PREFIX

#: Bytes of one request's body; bodies are streamed, so this bounds the engine's memory, not ours.
MAX_BODY = 256 * 1024 * 1024
#: Seconds that a link's token outlives the link, for a request that is on its way already.
TOKEN_OVERLAP = 10.0
#: Beside the engine's inference paths: what tells the router of its models and its load.
READ_PATHS = frozenset(
    {
        "/api/ps",
        "/api/v1/models",
        "/api/show",
        "/api/tags",
        "/api/version",
        "/health",
        "/load",
        "/metrics",
        "/props",
        "/slots",
        "/v1/models",
        "/version",
    }
)
#: Bytes that an engine's instructions may have: they are a name and a number.
MAX_CONTROL = 16 * 1024
_METHODS = frozenset({"GET", "HEAD", "POST"})
#: RFC 9110, section 7.6.1, and `Expect`, which the server side has answered already.
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "expect",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
#: What an engine must not see: it would refuse a foreign host or origin, and it is owed no secret.
_KEPT_BACK = frozenset(
    {"authorization", "cookie", "host", "origin", "x-api-key", DOOR_HEADER.lower()}
)
#: aiohttp must add nothing of its own to what the client sent.
_ADD_NOTHING = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")

_log = logger("door")


class _Refusal(Struct, frozen=True):
    status: int
    reason: str


class _Goal(Struct, frozen=True):
    url: URL
    #: The only shape of body that goes there; None for any body.
    shape: type[Struct] | None = None


class _TooLargeError(Exception):
    """The request's body has more bytes than the door lets through."""


class Door:
    """The door of one agent; use `open` and `close`."""

    def __init__(
        self, find: Callable[[str], LocalEngine | None], *, max_body: int = MAX_BODY
    ) -> None:
        self._find = find
        self._max_body = max_body
        self._token = b""
        self._former = b""
        self._former_until = 0.0
        self._idle = asyncio.Event()
        self._idle.set()
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None
        #: Requests that are being forwarded now.
        self.in_flight = 0
        #: Where it listens; 0 while closed.
        self.port = 0

    async def open(self, host: str, port: int) -> None:
        """Listen on `port`, or on any free one if it is taken."""
        self._session = aiohttp.ClientSession(
            # A fresh connection costs microseconds on loopback, a stale one costs the request.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5.0),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=_ADD_NOTHING,
        )
        app = web.Application()
        app.router.add_route("*", "/{any:.*}", self._serve)
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,
            auto_decompress=False,
            access_log=None,
            shutdown_timeout=0.1,
        )
        await self._runner.setup()
        try:
            await self._listen(self._runner, host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or port == 0:
                raise
            await self._listen(self._runner, host, 0)
            _log.warning("the door's port is taken", wanted=port, using=self.port)

    async def close(self) -> None:
        """Stop listening and break off what is still in flight."""
        self.port = 0
        if self._runner is not None:
            await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()

    def admit(self, token: str) -> None:
        """Let in whoever shows this token; the one before it holds for a few seconds more."""
        self._former = self._token
        self._former_until = asyncio.get_running_loop().time() + TOKEN_OVERLAP
        self._token = token.encode()

    async def idle(self) -> None:
        """Wait until nothing is in flight."""
        await self._idle.wait()

    def authenticate(self, request: web.Request) -> bool:
        """Whether the peer is the router of this agent's link: the one place that decides it.

        Now it must show the token that was made for the link. Mutual TLS with the key that was
        pinned when node and router paired replaces the comparison here.
        """
        shown = request.headers.get(DOOR_HEADER, "").encode()
        if self._token and hmac.compare_digest(shown, self._token):
            return True
        overlaps = asyncio.get_running_loop().time() < self._former_until
        return overlaps and bool(self._former) and hmac.compare_digest(shown, self._former)

    async def _listen(self, runner: web.AppRunner, host: str, port: int) -> None:
        await web.TCPSite(runner, host, port).start()
        self.port = runner.addresses[0][1]

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        goal = self._goal(request)
        if isinstance(goal, _Refusal):
            _log.warning("refused", peer=request.remote, path=request.path, cause=goal.reason)
            return _error(goal.status, "refused", goal.reason)
        self.in_flight += 1
        self._idle.clear()
        try:
            return await self._forward(request, goal)
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()

    def _goal(self, request: web.Request) -> _Goal | _Refusal:
        """Return the engine's URL for this request, or why there is none."""
        if not self.authenticate(request):
            return _Refusal(403, "the door token is missing or not the one of the present link")
        raw = request.rel_url.raw_path
        engine_id, slash, rest = raw.removeprefix(DOOR_PREFIX).partition("/")
        if not raw.startswith(DOOR_PREFIX) or not slash:
            return _Refusal(404, f"the door serves {DOOR_PREFIX}<engine>/<path> only")
        engine = self._find(engine_id)
        if engine is None:
            return _Refusal(404, "there is no such engine on this node")
        # The path is compared as it came: a percent-encoded spelling is not on the list.
        return self._allowed(request, engine, f"/{rest}")

    def _allowed(self, request: web.Request, engine: LocalEngine, path: str) -> _Goal | _Refusal:
        if path in engine.controls:
            return self._control(request, engine, path)
        if path not in engine.paths and path not in READ_PATHS:
            return _Refusal(403, f"the door does not serve the path {path}")
        if request.method not in _METHODS:
            return _Refusal(403, f"the door does not serve the method {request.method}")
        query = request.rel_url.raw_query_string
        return _Goal(URL(f"{engine.url}{path}{'?' if query else ''}{query}", encoded=True))

    def _control(self, request: web.Request, engine: LocalEngine, path: str) -> _Goal | _Refusal:
        if request.method != hdrs.METH_POST or request.rel_url.raw_query_string:
            return _Refusal(403, f"the door takes nothing but a plain POST for {path}")
        return _Goal(URL(f"{engine.url}{path}", encoded=True), engine.controls[path])

    async def _forward(self, request: web.Request, goal: _Goal) -> web.StreamResponse:
        if goal.shape is not None:
            return await self._instruct(request, goal.url, goal.shape)
        body = self._body(request, self._max_body) if request.body_exists else None
        if (request.content_length or 0) > self._max_body:
            return self._too_large(self._max_body)
        return await self._send(request, goal.url, _onward(request.headers, _KEPT_BACK), body)

    async def _instruct(
        self, request: web.Request, url: URL, shape: type[Struct]
    ) -> web.StreamResponse:
        """Forward what the engine is to load or unload, if it is that and nothing else."""
        try:
            body = b"".join([part async for part in self._body(request, MAX_CONTROL)])
            told = msgspec.json.decode(body, type=shape)
        except _TooLargeError:
            return self._too_large(MAX_CONTROL)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            _log.warning("refused", peer=request.remote, path=request.path, cause=str(error))
            return _error(403, "refused", f"the door does not pass this on: {error}")
        headers = CIMultiDict({hdrs.CONTENT_TYPE: "application/json"})
        return await self._send(request, url, headers, msgspec.json.encode(told))

    async def _send(
        self,
        request: web.Request,
        url: URL,
        headers: CIMultiDict[str],
        body: bytes | AsyncIterator[bytes] | None,
    ) -> web.StreamResponse:
        if self._session is None:
            raise RuntimeError("the door is not open")
        try:
            async with self._session.request(
                request.method, url, headers=headers, data=body, allow_redirects=False
            ) as answer:
                return await self._answer(request, answer)
        except _TooLargeError:
            return self._too_large(self._max_body)
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error.__cause__, _TooLargeError):
                return self._too_large(self._max_body)
            cause = str(error) or type(error).__name__
            _log.warning("engine unreachable", url=str(url), cause=cause)
            return _error(502, "unreachable", f"the engine does not answer: {cause}")

    async def _answer(
        self, request: web.Request, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            status=answer.status,
            reason=answer.reason,
            headers=_onward(answer.headers, frozenset()),
        )
        await response.prepare(request)
        try:
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
        except aiohttp.ClientError as error:
            # The status has gone out: all that can still tell the truth is a connection that
            # ends before the answer does.
            _log.warning("the engine broke off", url=str(answer.url), cause=str(error))
            if request.transport is not None:
                request.transport.close()
            return response
        await response.write_eof()
        return response

    async def _body(self, request: web.Request, most: int) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in request.content.iter_any():
            size += len(chunk)
            if size > most:
                raise _TooLargeError
            yield chunk

    def _too_large(self, most: int) -> web.Response:
        return _error(413, "too_large", f"the request's body has more than {most} bytes")


def _onward(headers: CIMultiDictProxy[str], kept_back: frozenset[str]) -> CIMultiDict[str]:
    """Return the headers that go further: not those of this connection, nor those kept back."""
    named = headers.get(hdrs.CONNECTION, "").lower().split(",")
    dropped = _HOP_BY_HOP | kept_back | {name.strip() for name in named}
    return CIMultiDict(
        (name, value) for name, value in headers.items() if name.lower() not in dropped
    )


def _error(status: int, kind: str, message: str) -> web.Response:
    return web.json_response(
        {"error": {"message": message, "type": f"door_{kind}"}},
        status=status,
        headers={DOOR_ERROR_HEADER: kind},
    )
