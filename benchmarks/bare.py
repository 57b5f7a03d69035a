"""A relay of aiohttp alone: what the libraries cost that Herd stands on.

It reads the request, sends it on and sends the answer back, and does nothing of what a router is
for. Run as `python -m benchmarks.bare PORT BACKEND_PORT`.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import aiohttp
import uvloop
from aiohttp import web
from yarl import URL

from benchmarks import traffic
from benchmarks.backend import listening
from devtools.processes import Process, free_port, wait_until


class BareProcess(Process):
    """The relay in front of the backend."""

    def __init__(self, folder: Path, *, backend: int) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "benchmarks.bare", str(self.port), str(backend)]
        super().__init__("bare", command, folder=folder)

    def wait_ready(self) -> None:
        """Return when it listens."""

        def listens() -> bool:
            self.check()
            return listening(self.port)

        wait_until(listens, "the bare relay")


def main() -> None:
    """Serve until a signal."""
    uvloop.run(_serve(int(sys.argv[1]), int(sys.argv[2])))


async def _serve(port: int, backend: int) -> None:
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
        auto_decompress=False,
    ) as session:
        app = web.Application()
        for path in traffic.PATHS.values():
            app.router.add_post(path, _Relay(session, f"http://127.0.0.1:{backend}{path}"))
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
        await asyncio.Event().wait()


class _Relay:
    """Answers one path."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = URL(url)

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        sent = {"Content-Type": "application/json"}
        async with self._session.post(self._url, data=body, headers=sent) as answer:
            headers = {"Content-Type": answer.headers["Content-Type"]}
            if answer.content_length is not None:
                return web.Response(body=await answer.read(), headers=headers)
            response = web.StreamResponse(headers=headers)
            await response.prepare(request)
            while chunk := await answer.content.readany():
                await response.write(chunk)
            return response


if __name__ == "__main__":
    main()
