"""A router process over real engines, and ways to wait for what happens there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from devtools.engines import MODEL, LlamaServer
from devtools.processes import RouterProcess

#: Without its caches, llama-server gives bit for bit the same answer however often it is asked
#: and whatever runs beside it; a cached prefix changes the order of its sums.
REPEATABLE = ("--no-cache-prompt", "--cache-ram", "0")
#: The model's own chat template begins every prompt with a system message.
SHORT_TEMPLATE = ("--chat-template", "chatml")
#: Every answer has exactly as many tokens as were asked for.
ENDLESS = ("--ignore-eos",)
#: Prompts are worked off in small bites, between which the others' tokens come and work that is
#: no longer wanted ends.
SMALL_BITES = ("--batch-size", "64", "--ubatch-size", "64")
#: Words that are three tokens each.
LONG_PROMPT = " ".join(f"word{number}" for number in range(400))


@contextlib.contextmanager
def router_over(folder: Path, engines: Sequence[LlamaServer]) -> Iterator[RouterProcess]:
    """Run a router that knows the engines by URL and has seen them all."""
    options = [part for engine in engines for part in ("--engine", engine.url)]
    with RouterProcess(folder, *options) as router:
        router.wait_for_replicas(MODEL, len(engines))
        yield router


def node_of(engine: LlamaServer) -> str:
    """Name the node that an engine at a URL stands for."""
    return f"url:127.0.0.1:{engine.port}"


class Asking:
    """An HTTP session for questions to the router and the engines themselves."""

    def __init__(self, session: aiohttp.ClientSession, router: RouterProcess) -> None:
        self.session = session
        self.router = router

    async def get(self, url: str) -> Any:
        """Fetch JSON."""
        async with self.session.get(url) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def open_requests(self) -> list[dict[str, Any]]:
        """What the router has not ended yet."""
        fleet = await self.get(f"{self.router.url}/herd/v1/fleet")
        found: list[dict[str, Any]] = fleet["requests"]
        return found

    async def outcome(self, request: str) -> dict[str, Any] | None:
        """How a request ended; None while it is open."""
        detail = await self.get(f"{self.router.url}/herd/v1/requests/{request}")
        found: dict[str, Any] | None = detail["outcome"]
        return found

    async def kept(self, count: int) -> list[dict[str, Any]]:
        """All rows of the store, once there are at least so many and nothing is open."""
        rows: list[dict[str, Any]] = []

        async def there() -> bool:
            page = await self.get(f"{self.router.url}/herd/v1/requests?limit=500")
            rows[:] = page["requests"]
            return len(rows) >= count and not await self.open_requests()

        await until(there, f"{count} outcomes in the store")
        return rows


@contextlib.asynccontextmanager
async def asking(router: RouterProcess) -> AsyncIterator[Asking]:
    """Open a session; each question has a connection of its own, so that none is stale."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield Asking(session, router)


async def until(
    condition: Callable[[], Awaitable[object]], what: str, *, within: float = 20.0
) -> None:
    """Poll until the condition holds; raises `TimeoutError` that says what did not come."""
    try:
        async with asyncio.timeout(within):
            while not await condition():  # noqa: ASYNC110 - has a deadline
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise TimeoutError(f"{what} did not come within {within:g} s") from None
