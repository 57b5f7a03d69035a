"""Small, bounded GET and POST for asking engines about themselves; never on the hot path."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
import msgspec
from msgspec import Struct

#: An engine that does not answer a question of a few hundred bytes within this is not well.
PROBE_TIMEOUT = 3.0
#: Bytes that an answer may have; Ollama's listing of 1,000 models is under 1 MB.
MAX_ANSWER = 16 * 1024 * 1024
#: Characters of an engine's complaint that are passed on; a page of HTML helps nobody.
MAX_COMPLAINT = 300
#: Header by which a Herd router marks its answers, in lower case. It speaks the engines' APIs, so
#: nothing else tells it from one, and a router that takes itself for an engine calls itself.
ROUTER_HEADER = "herd-version"

_DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_STATUS_OK = 200
_ASKS_FOR_KEY = (401, 403)

T = TypeVar("T")


class EngineError(Exception):
    """An engine did not answer, or not as it should; the text says how, in one sentence."""


class Answer(Struct, frozen=True):
    """A whole, small HTTP answer."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    def json(self) -> Any:
        """Return the decoded body; raises `EngineError` if it is not JSON."""
        return self.decode(Any)

    def decode(self, shape: type[T]) -> T:
        """Return the body as a `shape`; raises `EngineError` if it is not JSON of that shape."""
        try:
            return msgspec.json.decode(self.body, type=shape)
        except msgspec.ValidationError as error:
            raise EngineError(f"answered with JSON of another shape: {error}") from error
        except _DECODE_ERRORS as error:
            raise EngineError(f"answered with something that is not JSON: {error}") from error

    def maybe(self, shape: type[T]) -> T | None:
        """Return the body as a `shape`, or None if the status is not 200 or it is another."""
        if self.status != _STATUS_OK:
            return None
        try:
            return self.decode(shape)
        except EngineError:
            return None

    def complaint(self) -> str:
        """Return what the body says went wrong, in the words of the engine; may be empty."""
        try:
            told = msgspec.json.decode(self.body)
        except _DECODE_ERRORS:
            return self.body[:MAX_COMPLAINT].decode(errors="replace").strip()
        for key in ("error", "message", "detail"):
            if isinstance(told, dict) and told.get(key):
                told = told[key]
        return str(told)[:MAX_COMPLAINT] if told else ""


class Http:
    """An HTTP client for probing; use as an async context manager.

    `headers` go with every question, such as the key that an engine asks for.
    """

    def __init__(
        self, *, timeout: float = PROBE_TIMEOUT, headers: Mapping[str, str] | None = None
    ) -> None:
        self._headers = dict(headers or {})
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            timeout=self._timeout, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, url: str, *, headers: dict[str, str] | None = None) -> Answer:
        """Fetch `url`; raises `EngineError` if no complete answer comes in time."""
        return await self._ask("GET", url, None, headers)

    async def fetch(self, url: str, shape: type[T]) -> T:
        """GET `url` as a `shape`; raises `EngineError` unless it answers 200 and just that."""
        answer = await self.get(url)
        if answer.status != _STATUS_OK:
            why = "asks for an API key" if answer.status in _ASKS_FOR_KEY else "answered"
            raise EngineError(f"{url} {why} ({answer.status}): {answer.complaint() or 'no reason'}")
        try:
            return answer.decode(shape)
        except EngineError as error:
            raise EngineError(f"{url} {error}") from error

    async def peek(self, url: str) -> Answer | None:
        """GET `url` to see what is there; None if nothing answers, or only a Herd router."""
        try:
            answer = await self.get(url)
        except EngineError:
            return None
        return None if ROUTER_HEADER in answer.headers else answer

    async def post(
        self, url: str, body: object, *, headers: dict[str, str] | None = None
    ) -> Answer:
        """Send `body` as JSON; raises `EngineError` if no complete answer comes in time."""
        return await self._ask("POST", url, msgspec.json.encode(body), headers)

    async def _ask(
        self, method: str, url: str, body: bytes | None, headers: dict[str, str] | None
    ) -> Answer:
        if self._session is None:
            raise RuntimeError("Http is used outside its context")
        sent = self._headers | (headers or {})
        if body is not None:
            sent["Content-Type"] = "application/json"
        try:
            async with self._session.request(
                method, url, data=body, headers=sent, allow_redirects=False
            ) as response:
                data = bytearray()
                async for chunk in response.content.iter_any():
                    data += chunk
                    if len(data) > MAX_ANSWER:
                        raise EngineError(f"{url} answered with more than {MAX_ANSWER} bytes")
                return Answer(
                    status=response.status,
                    headers={name.lower(): value for name, value in response.headers.items()},
                    body=bytes(data),
                )
        except TimeoutError as error:
            raise EngineError(f"{url} did not answer within {self._timeout.total:g} s") from error
        except aiohttp.ClientConnectorError as error:
            raise EngineError(f"cannot connect to {url}: {why_not(error)}") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise EngineError(f"{url}: {str(error) or type(error).__name__}") from error


def why_not(error: aiohttp.ClientConnectorError) -> str:
    """Return why there is no connection, in the system's words, such as `Connection refused`."""
    number = error.os_error.errno
    return os.strerror(number) if number and number > 0 else error.strerror or str(error)
