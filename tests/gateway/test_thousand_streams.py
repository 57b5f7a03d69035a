"""The bar for concurrency: a thousand streams at once, none lost, in bounded memory."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import psutil
import pytest

from devtools.processes import Process, RouterProcess, free_port, wait_until
from devtools.testbed import CHAT

STREAMS = 1000
TOKENS = 40
#: Tokens per second of each stream.
PACE = 10
#: Bytes of memory that the router may hold at any moment.
MOST_MEMORY = 250_000_000
#: What a process begins with on macOS.
FEW_FILES = 256
#: A connection of each client, and some more.
ENOUGH_FILES = 4096


class SimProcess(Process):
    """An emulated Ollama as a process, with slots for all."""

    def __init__(self, folder: Path, name: str) -> None:
        self.port = free_port()
        options = {
            "model": f"{CHAT}=2e9",
            "port": self.port,
            "slots": STREAMS,
            "decode-rate": PACE,
            "alpha": 0.0,
            "prefill-rate": 1e6,
            "load-rate": 1e12,
            "answer-tokens": TOKENS,
        }
        flags = [text for key, value in options.items() for text in (f"--{key}", str(value))]
        super().__init__(name, [sys.executable, "-m", "herd.sim", *flags], folder=folder)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_ready(self) -> None:
        def answers() -> bool:
            self.check()
            with suppress(OSError), urllib.request.urlopen(self.url, timeout=1):
                return True
            return False

        wait_until(answers, f"the first answer of {self.name}")


@pytest.fixture
def files() -> Iterator[None]:
    """Begin with few open files, as macOS does; the processes inherit that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def allow_files(count: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"no more than {hard} files can be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


@asynccontextmanager
async def peak_memory(process: psutil.Process) -> AsyncIterator[list[int]]:
    """Sample a process's resident memory; the last value is the highest."""
    peak = [process.memory_info().rss]

    async def sample() -> None:
        while True:
            await asyncio.sleep(0.05)
            peak.append(max(peak[-1], process.memory_info().rss))

    task = asyncio.create_task(sample())
    try:
        yield peak
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def stream(http: aiohttp.ClientSession, number: int) -> str:
    """One client; returns what is wrong with its answer, empty if nothing is."""
    messages = [{"role": "user", "content": f"Client number {number} says hello."}]
    body = {"model": CHAT, "messages": messages}
    try:
        async with http.post("/api/chat", json=body) as response:
            text = await response.read()
    except (aiohttp.ClientError, OSError) as error:
        return repr(error)
    lines = text.splitlines()
    if response.status != 200 or not lines:
        return f"{response.status} {text[:200]!r}"
    last = json.loads(lines[-1])
    if not last.get("done") or last.get("eval_count") != TOKENS:
        return f"ended with {lines[-1]!r}"
    return "" if len(lines) == TOKENS else f"{len(lines)} lines"


async def test_a_thousand_streams_at_once(tmp_path: Path, files: None) -> None:
    with ExitStack() as stack:
        allow_files(ENOUGH_FILES)
        sims = [stack.enter_context(SimProcess(tmp_path, f"sim-{n}")) for n in (1, 2)]
        allow_files(FEW_FILES)
        engines = [
            text
            for number, sim in enumerate(sims)
            for text in ("--engine", f"{sim.url}?slots={STREAMS // 2}&name=sim-{number}")
        ]
        router = stack.enter_context(RouterProcess(tmp_path, *engines, "--log-level", "warning"))
        allow_files(ENOUGH_FILES)
        await asyncio.to_thread(router.wait_for_replicas, CHAT, 2)

        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=60)
        async with (
            aiohttp.ClientSession(router.url, connector=connector, timeout=timeout) as http,
            peak_memory(router.process) as memory,
        ):
            asked = [asyncio.create_task(stream(http, number)) for number in range(STREAMS)]
            most = 0
            while not all(task.done() for task in asked):
                async with http.get("/herd/v1/fleet") as fleet:
                    most = max(most, (await fleet.json())["running"])
                await asyncio.sleep(0.3)
            wrong = [problem for task in asked if (problem := task.result())]
        assert wrong == []
        assert most == STREAMS
        assert memory[-1] < MOST_MEMORY
        router.check()
        summary = router.get("/herd/v1/fleet")
        assert (summary["running"], summary["waiting"]) == (0, 0)
        outcomes = [
            r["outcomes"] for n in summary["nodes"] for e in n["engines"] for r in e["replicas"]
        ]
        assert sum(outcomes) == STREAMS
