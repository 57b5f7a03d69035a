"""The port through which requests reach engines, and its adapter on aiohttp.

This is the hot path's client half. It knows nothing of dialects: bytes out, bytes in, one chunk
at a time as they come off the socket, and errors that say what really happened.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, Protocol

import aiohttp
from yarl import URL

from herd.engines.http import why_not

#: Idle connections are kept for less than any engine keeps them (llama.cpp and uvicorn close
#: after 5 s), so that a request hardly ever goes out on a connection that is being closed.
KEEP_ALIVE = 3.0
#: Bytes read ahead of a slow client before the engine's socket is left alone.
READ_AHEAD = 64 * 1024


class UpstreamError(Exception):
    """The engine could not be reached, or broke off. `kind` says which."""

    def __init__(self, kind: Literal["connect", "broken", "protocol"], message: str) -> None:
        super().__init__(message)
        self.kind: Literal["connect", "broken", "protocol"] = kind


class UpstreamAnswer(Protocol):
    """An engine's answer whose headers have come."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Names in lower case."""

    async def chunk(self) -> bytes:
        """Return what has come, as it came; empty at the clean end. Raises `UpstreamError`."""

    async def read(self) -> bytes:
        """Return the rest, whole. Raises `UpstreamError`."""

    def close(self) -> None:
        """Give the connection back if the answer was read to its end, else close it at once."""


class Upstream(Protocol):
    """Sends requests to engines."""

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> UpstreamAnswer:
        """Send and wait for the answer's headers. Raises `UpstreamError`; cancelling closes."""

    async def close(self) -> None:
        """Close all connections."""


class AiohttpUpstream:
    """The adapter on aiohttp's client: any URL, TLS included."""

    def __init__(self, *, connect_timeout: float) -> None:
        connector = aiohttp.TCPConnector(
            limit=0,
            keepalive_timeout=KEEP_ALIVE,
            ttl_dns_cache=30,
            family=socket.AF_UNSPEC,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            auto_decompress=False,
            read_bufsize=READ_AHEAD,
            trust_env=False,
        )

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> UpstreamAnswer:
        """Send and wait for the answer's headers."""
        try:
            response = await self._session.request(
                method, _parsed(url), data=body, headers=headers, allow_redirects=False
            )
        except aiohttp.ClientConnectorError as error:
            raise UpstreamError("connect", f"cannot connect to {url}: {why_not(error)}") from error
        except (aiohttp.ServerTimeoutError, TimeoutError) as error:
            raise UpstreamError("connect", f"no connection to {url} in time") from error
        except (aiohttp.ClientConnectionError, OSError) as error:
            raise _broken(error) from error
        except (aiohttp.ClientError, ValueError) as error:
            raise UpstreamError("protocol", f"{url}: {error}") from error
        return _Answer(response)

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()


class _Answer:
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.headers.items()}
        self._response = response
        self._content = response.content

    async def chunk(self) -> bytes:
        try:
            return await self._content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise _broken(error) from error

    async def read(self) -> bytes:
        try:
            return await self._response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise _broken(error) from error

    def close(self) -> None:
        # aiohttp gives the connection back to the pool by itself at the end of the body, and
        # then there is nothing left to close.
        self._response.close()


def _broken(error: Exception) -> UpstreamError:
    return UpstreamError("broken", f"the engine closed the connection: {_text(error)}")


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__


@lru_cache(maxsize=1024)
def _parsed(url: str) -> URL:
    """Parsing costs more than the rest of building a request; a fleet has few URLs."""
    return URL(url, encoded=True)
