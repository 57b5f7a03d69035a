"""`herd-node` as a process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from herd.core.events import Event, NodeLeaving, NodeReported
from herd.fleet.links import Links
from herd.wire.link import PATH

COMMAND = (sys.executable, "-m", "herd.cli.node")


def environment(data_dir: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HERD_")}
    return kept | {"HERD_DATA_DIR": str(data_dir), "XDG_CONFIG_HOME": str(data_dir)}


def run(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env=environment(data_dir),
    )


class Router:
    """A router that consists of its links, and releases a node that leaves if told so."""

    def __init__(self, *, releases: bool) -> None:
        self.events: list[Event] = []
        self.releases = releases
        self.links = Links(self._heard, router="r" * 32, version="9")
        self.url = ""

    def _heard(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, NodeLeaving) and self.releases:
            self.links.release(event.node)

    async def saw(self, kind: type[NodeReported | NodeLeaving]) -> None:
        async with asyncio.timeout(15.0):
            while not any(isinstance(event, kind) for event in self.events):  # noqa: ASYNC110 - has a deadline
                await asyncio.sleep(0.02)


@asynccontextmanager
async def serving(*, releases: bool = True) -> AsyncIterator[Router]:
    router = Router(releases=releases)
    app = web.Application()
    app.router.add_get(PATH, router.links.serve)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    router.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield router
    finally:
        await router.links.close()
        await runner.cleanup()


@asynccontextmanager
async def node(data_dir: Path, router: Router) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *("--router", router.url, "--name", "attic", "--host", "127.0.0.1", "--door-port", "0"),
        stdout=asyncio.subprocess.PIPE,
        env=environment(data_dir),
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_stops_it_in_good_order(tmp_path: Path, number: signal.Signals) -> None:
    async with serving() as router, node(tmp_path, router) as process:
        await router.saw(NodeReported)
        process.send_signal(number)
        await router.saw(NodeLeaving)
        output, _ = await asyncio.wait_for(process.communicate(), 10.0)

    assert process.returncode == 0
    assert "This is node attic" in output.decode()
    assert f"Joined the router at {router.url}" in output.decode()
    assert output.decode().endswith("Stopped.\n")


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
async def test_second_signal_stops_it_at_once(tmp_path: Path) -> None:
    async with serving(releases=False) as router, node(tmp_path, router) as process:
        await router.saw(NodeReported)
        process.send_signal(signal.SIGTERM)
        await router.saw(NodeLeaving)
        process.send_signal(signal.SIGTERM)

        assert await asyncio.wait_for(process.wait(), 10.0) == 0


def test_version(tmp_path: Path) -> None:
    done = run(tmp_path, "--version")

    assert done.returncode == 0
    assert done.stdout.startswith("herd-node ")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--engine", "http://10.0.0.1:11434"), "no port of this machine"),
        (("--no-scan",), "without scanning, at least one engine's port has to be given"),
        (("--router", "ftp://example"), "router 'ftp://example' is no URL"),
        (("--host", "192.0.2.1", "--router", "127.0.0.1:1"), "192.0.2.1"),
    ],
)
def test_wrong_setting_is_told_in_one_line(
    tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    done = run(tmp_path, *arguments)

    assert done.returncode == 1
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_agent_imports_neither_gateway_nor_store_nor_web(tmp_path: Path) -> None:
    code = (
        "import sys, herd.cli.node, herd.app.node\n"
        "print([name for name in sys.modules if name.startswith("
        "('herd.gateway', 'herd.store', 'herd.web'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )

    assert done.stdout == "[]\n"
