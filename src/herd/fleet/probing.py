"""Nodes without an agent: engines that are known by URL alone and asked every other second."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from herd.core.fleet import EngineReport, NodeReport
from herd.engines import registry
from herd.engines.adapter import Adapter, SurveyCache
from herd.engines.declared import DeclaredEngine
from herd.engines.http import Http
from herd.engines.survey import survey_engine
from herd.ops.logs import logger

#: Seconds between probes of an engine that answers, and at most between those of one that is down.
INTERVAL = 2.0
MAX_BACKOFF = 10.0
#: A whole look at an engine may take this long: with the interval, no longer than a node with an
#: agent may be silent.
LOOK_TIMEOUT = 4.0
#: Share by which pauses vary, so that many engines are not asked in step.
JITTER = 0.1


class UrlNodes:
    """Probes declared engines, each in a task of its own, and reports them as nodes.

    Every probe ends in one call of `on_report`, changed or not: it is the node's heartbeat. Use
    within a running event loop, and `close` it before that ends.
    """

    def __init__(
        self,
        on_report: Callable[[NodeReport], None],
        *,
        interval: float = INTERVAL,
        max_backoff: float = MAX_BACKOFF,
        look_timeout: float = LOOK_TIMEOUT,
    ) -> None:
        self._on_report = on_report
        self._interval = interval
        self._max_backoff = max_backoff
        self._look_timeout = look_timeout
        self._engines: dict[str, DeclaredEngine] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def add(self, declared: DeclaredEngine) -> str:
        """Begin to probe an engine and return its node's id; raises `ValueError` if it is there."""
        node = declared.node
        if node in self._tasks:
            raise ValueError(f"{declared.url} is in the fleet already, as {node}")
        self._engines[node] = declared
        task = asyncio.get_running_loop().create_task(self._probe(declared), name=f"probe {node}")
        task.add_done_callback(_log_failure)
        self._tasks[node] = task
        return node

    async def remove(self, node: str) -> None:
        """Stop probing; raises `KeyError` if there is no such node. No report follows."""
        del self._engines[node]
        await _stop([self._tasks.pop(node)])

    async def close(self) -> None:
        """Stop probing them all. No report follows."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        self._engines.clear()
        await _stop(tasks)

    def declared(self, node: str) -> DeclaredEngine | None:
        """Return how the node was declared, such as for the key that its engine asks for."""
        return self._engines.get(node)

    def all(self) -> list[DeclaredEngine]:
        """Return all declared engines, in the order in which they were added."""
        return list(self._engines.values())

    async def _probe(self, declared: DeclaredEngine) -> None:
        key = declared.api_key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        pause = self._interval
        async with Http(headers=headers) as http:
            look = _Look(http, declared, self._look_timeout)
            while True:
                engine = await look.engine()
                self._on_report(_node_report(declared, engine))
                pause = self._interval if engine.up else min(pause * 2, self._max_backoff)
                await asyncio.sleep(pause * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311 - not a secret


class _Look:
    """Looks at one engine again and again; learns and unlearns what kind it is."""

    def __init__(self, http: Http, declared: DeclaredEngine, timeout: float) -> None:
        self._http = http
        self._declared = declared
        self._timeout = timeout
        self._cache = SurveyCache()
        self._kind = registry.kind_by_port(declared.port)
        self._adapter: Adapter | None = None

    async def engine(self) -> EngineReport:
        """Return what the engine says of itself now, or why it says nothing."""
        try:
            async with asyncio.timeout(self._timeout):
                report = await self._asked()
        except TimeoutError:
            report = self._down(f"{self._declared.url} did not answer within {self._timeout:g} s")
        if not report.up:
            self._adapter = None  # whatever comes back there may be of another kind
            self._cache.clear()
        return report

    async def _asked(self) -> EngineReport:
        url = self._declared.url
        adapter = self._adapter or await registry.detect(self._http, url)
        if adapter is None:
            return self._down(await registry.why_undetected(self._http, url))
        self._adapter, self._kind = adapter, adapter.kind
        return await survey_engine(
            self._http,
            adapter,
            url,
            engine_id=self._id(),
            public_url=url,
            slots=self._declared.slots,
            cache=self._cache,
        )

    def _down(self, why: str) -> EngineReport:
        """Report it as not up, of the kind that it was last, or that its port suggests."""
        return EngineReport(
            id=self._id(), kind=self._kind, url=self._declared.url, up=False, error=why
        )

    def _id(self) -> str:
        return f"{self._kind}-{self._declared.port}"


def _node_report(declared: DeclaredEngine, engine: EngineReport) -> NodeReport:
    return NodeReport(
        node=declared.node, name=declared.name, hardware=declared.hardware, engines=(engine,)
    )


async def _stop(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        logger("probing").error("a probe ended", task=task.get_name(), error=repr(error))
