"""`herd` as a process: what survives a restart, and how it stops."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from devtools.processes import RouterProcess, free_port
from devtools.testbed import CHAT, engine_spec, until
from herd.sim.server import EmulatedServer
from tests.gateway.bodies import body

PATH = "/api/chat"


@asynccontextmanager
async def running(
    folder: Path, engine: EmulatedServer, *options: str, port: int | None = None
) -> AsyncIterator[RouterProcess]:
    router = RouterProcess(folder, "--engine", f"{engine.url}?slots=4", *options, port=port)
    await asyncio.to_thread(router.__enter__)
    try:
        await asyncio.to_thread(router.wait_for_replicas, CHAT, 1)
        yield router
    finally:
        await asyncio.to_thread(router.stop)


async def records(router: RouterProcess) -> list[dict[str, Any]]:
    page = await asyncio.to_thread(router.get, "/herd/v1/requests")
    rows: list[dict[str, Any]] = page["requests"]
    return rows


async def ended(router: RouterProcess, *, within: float) -> int | None:
    await until(lambda: router.ended is not None, "the end of the router", within=within)
    return router.ended


async def test_outcomes_survive_a_restart(tmp_path: Path) -> None:
    async with EmulatedServer(engine_spec(), answer_tokens=(8, 8)) as engine:
        async with (
            running(tmp_path, engine) as router,
            aiohttp.ClientSession(router.url) as http,
            http.post(PATH, json=body(PATH)) as response,
        ):
            asked = response.headers["Herd-Request-Id"]
            await response.read()
        identity = (tmp_path / "router" / "router-id").read_text()
        async with running(tmp_path, engine) as router:
            [row] = await records(router)
            assert (row["id"], row["ending"]) == (asked, "completed")
            detail = await asyncio.to_thread(router.get, f"/herd/v1/requests/{asked}")
            assert detail["outcome"]["decision"]["estimates"]
            assert detail["outcome"]["story"][-1]["state"] == "completed"
        assert (tmp_path / "router" / "router-id").read_text() == identity


async def test_what_was_learned_survives_a_restart(tmp_path: Path) -> None:
    def believed(router: RouterProcess) -> tuple[int, dict[str, float]]:
        (node,) = router.get("/herd/v1/fleet")["nodes"]
        (found,) = [r for e in node["engines"] for r in e["replicas"] if r["model"] == CHAT]
        return found["outcomes"], found["rates"]

    async with EmulatedServer(engine_spec(), answer_tokens=(8, 8)) as engine:
        async with (
            running(tmp_path, engine) as router,
            aiohttp.ClientSession(router.url) as http,
        ):
            untaught, _ = await asyncio.to_thread(believed, router)
            for _ in range(3):
                async with http.post(PATH, json=body(PATH)) as response:
                    await response.read()
            taught, rates = await asyncio.to_thread(believed, router)
        async with running(tmp_path, engine) as router:
            after, again = await asyncio.to_thread(believed, router)
    assert (untaught, taught, after) == (0, 3, 3)
    assert again["decode"] == pytest.approx(rates["decode"], rel=0.2)


async def test_a_running_stream_ends_and_new_requests_are_refused(tmp_path: Path) -> None:
    slow = engine_spec(decode_rate=10.0)
    async with (
        EmulatedServer(slow, answer_tokens=(25, 25)) as engine,
        running(tmp_path, engine) as router,
        aiohttp.ClientSession(router.url) as http,
    ):
        async with http.post(PATH, json=body(PATH)) as stream:
            await stream.content.readline()
            router.process.send_signal(signal.SIGTERM)

            async def refused(path: str) -> tuple[int, Any, str]:
                async with http.post(path, json=body(path)) as response:
                    after = response.headers.get("Retry-After", "")
                    return response.status, await response.json(), after

            async with asyncio.timeout(5):
                while "Stopping" not in router.log.read_text():  # noqa: ASYNC110 - a file
                    await asyncio.sleep(0.01)
            status, problem, after = await refused("/v1/messages")
            assert status == 503
            assert problem["error"]["type"] == "overloaded_error"
            assert "stopping" in problem["error"]["message"]
            assert int(after) >= 1
            lines = (await stream.read()).splitlines()
        assert b'"done":true' in lines[-1]
        assert await ended(router, within=5) == 0
    assert "Stopped." in router.log.read_text()


async def test_the_second_signal_stops_at_once(tmp_path: Path) -> None:
    slow = engine_spec(decode_rate=2.0)
    async with EmulatedServer(slow, answer_tokens=(100, 100)) as engine:
        async with (
            running(tmp_path, engine) as router,
            aiohttp.ClientSession(router.url) as http,
            http.post(PATH, json=body(PATH)) as stream,
        ):
            await stream.content.readline()
            router.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            assert router.ended is None
            router.process.send_signal(signal.SIGTERM)
            started = time.monotonic()
            assert await ended(router, within=5) == 0
            assert time.monotonic() - started < 2.0
            with pytest.raises(aiohttp.ClientError):
                await stream.read()
        await until(lambda: engine.cancelled == 1, "the end of the engine's job")
        async with running(tmp_path, engine) as router:
            [row] = await records(router)
            assert row["ending"] == "cancelled"


async def test_it_does_not_wait_for_ever(tmp_path: Path) -> None:
    slow = engine_spec(decode_rate=2.0)
    config = tmp_path / "herd.toml"
    config.write_text("[router]\ndrain_timeout = 0.5\n")
    async with (
        EmulatedServer(slow, answer_tokens=(100, 100)) as engine,
        running(tmp_path, engine, "--config", str(config)) as router,
        aiohttp.ClientSession(router.url) as http,
        http.post(PATH, json=body(PATH)) as stream,
    ):
        await stream.content.readline()
        router.process.send_signal(signal.SIGTERM)
        assert await ended(router, within=5) == 0
        assert "are cut off" in router.log.read_text()


async def test_a_viewer_of_the_live_page_does_not_keep_it(tmp_path: Path) -> None:
    async with (
        EmulatedServer(engine_spec()) as engine,
        running(tmp_path, engine) as router,
        aiohttp.ClientSession(router.url) as http,
        http.get("/herd/v1/events") as events,
    ):
        await events.content.readline()
        router.process.send_signal(signal.SIGINT)
        assert await ended(router, within=4) == 0


def herd(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    empty = folder / "empty.toml"
    empty.touch()
    return subprocess.run(
        [sys.executable, "-m", "herd.cli.router", "--config", str(empty), *options],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_a_bad_start_is_told_in_one_line(tmp_path: Path) -> None:
    options = ("--host", "127.0.0.1", "--port", str(free_port()), "--data-dir", str(tmp_path))
    done = herd(tmp_path, *options, "--engine", "nonsense")
    assert done.returncode == 1
    assert done.stderr.startswith("herd cannot start: engine 'nonsense': ")
    assert len(done.stderr.splitlines()) == 1


def test_a_data_folder_that_cannot_be_is_told_in_one_line(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    done = herd(tmp_path, "--host", "127.0.0.1", "--port", "0", "--data-dir", str(blocked / "x"))
    assert done.returncode == 1
    assert done.stderr.startswith("herd cannot start: ")
    assert len(done.stderr.splitlines()) == 1


def test_the_version_is_told(tmp_path: Path) -> None:
    done = herd(tmp_path, "--version")
    assert done.returncode == 0
    assert done.stdout.startswith("herd ")
