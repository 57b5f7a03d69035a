"""Carries out what the scheduler orders ahead of requests: models loaded, and let go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from msgspec import Struct

from herd.core.actions import Preload, Target, Unload
from herd.core.events import PreloadEnded
from herd.core.fleet import ReplicaKey
from herd.engines.adapter import ModelLoader
from herd.engines.http import EngineError, Http
from herd.engines.registry import LOADERS
from herd.ops.logs import logger

Order = Preload | Unload

#: Orders that are carried out at once in the whole fleet. Each is one connection that waits.
AT_ONCE: Final = 32
#: Seconds for an engine to let a model go: it answers at once, or after what runs on it.
UNLOAD_TIMEOUT: Final = 60.0


class _Job(Struct, frozen=True):
    order: Order
    task: asyncio.Task[None]


class Loading:
    """Tells engines what to load and unload, one order for a replica at a time.

    After each `Preload` one `PreloadEnded` comes through `feed`, never within `order`; a second
    order to load what is being loaded is answered by the end of the first. An `Unload` goes
    before a load under way, which ends with an error. Use within a running event loop.
    """

    def __init__(
        self,
        feed: Callable[[PreloadEnded], None],
        *,
        credentials: Callable[[Target], Mapping[str, str]],
        timeout: float,
        at_once: int = AT_ONCE,
    ) -> None:
        self._feed = feed
        #: What authenticates the router at a target.
        self._credentials = credentials
        #: Seconds that a load may take.
        self._timeout = timeout
        self._places = asyncio.Semaphore(at_once)
        #: The latest order for each replica that is not carried out yet, and the tasks of all.
        self._jobs: dict[ReplicaKey, _Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._log = logger("loading")

    def order(self, order: Order) -> None:
        """Begin to carry out an order."""
        key = order.target.replica
        before = self._jobs.get(key)
        if before is not None and type(before.order) is type(order):
            return
        if before is not None and isinstance(before.order, Preload):
            before.task.cancel()
        work = self._run(order, before.task if before is not None else None)
        task = asyncio.get_running_loop().create_task(work, name=f"load {key.model}")
        self._jobs[key] = _Job(order, task)
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, order))

    async def close(self) -> None:
        """Give up all orders; no event follows."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, order: Order, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        async with self._places:
            await self._tell(order)

    async def _tell(self, order: Order) -> None:
        """Tell the engine and wait until it has done it; raises `EngineError`."""
        target = order.target
        loader: ModelLoader | None = LOADERS.get(target.kind)
        if loader is None:
            raise EngineError(f"{target.kind} cannot be told what to load")
        limit = self._timeout if isinstance(order, Preload) else UNLOAD_TIMEOUT
        try:
            async with (
                asyncio.timeout(limit),
                Http(timeout=limit, headers=self._credentials(target)) as http,
            ):
                if isinstance(order, Preload):
                    await loader.load(http, target, order.stay)
                else:
                    await loader.unload(http, target)
        except TimeoutError:
            raise EngineError(f"{target.url} has not done it within {limit:g} s") from None

    def _ended(self, order: Order, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        target = order.target
        job = self._jobs.get(target.replica)
        if job is not None and job.task is task:
            del self._jobs[target.replica]
        if self._closed:
            return
        error = _why_not(task)
        loads = isinstance(order, Preload)
        facts = {"model": target.model, "node": target.node_name, "why": order.reason}
        if error:
            self._log.warning("not loaded" if loads else "not unloaded", cause=error, **facts)
        else:
            self._log.info("loaded" if loads else "unloaded", **facts)
        if loads:
            self._feed(PreloadEnded(target.replica, error))


def _why_not(task: asyncio.Task[None]) -> str:
    """Return why the order of this task that has ended was not carried out; empty if it was."""
    if task.cancelled():
        return "the model is to be unloaded"
    error = task.exception()
    if error is None:
        return ""
    return str(error) if isinstance(error, EngineError) else f"internal error: {error!r}"
