"""Keeps what the scheduler has learned over restarts."""

from __future__ import annotations

import asyncio
import contextlib

from herd.fleet.driver import Driver
from herd.ops.logs import logger
from herd.store.schema import StoreError
from herd.store.store import Store

#: Seconds between two writes; what a crash loses was learned in the last of them.
EVERY = 60.0

_log = logger("learning")


async def recall(driver: Driver, store: Store) -> None:
    """Let the scheduler go on from what was kept. What cannot be used is told and left aside."""
    try:
        learned = await asyncio.to_thread(store.reader.learned)
        if learned is not None:
            driver.scheduler.restore(learned)
    except (StoreError, ValueError) as error:
        _log.warning("what was learned before is not used", reason=str(error))


class Keeper:
    """Writes what was learned every minute, if anything was, and at the end."""

    def __init__(self, driver: Driver, store: Store, *, every: float = EVERY) -> None:
        self._driver = driver
        self._store = store
        self._every = every
        self._changed = False
        self._task = asyncio.get_running_loop().create_task(self._run())

    def note(self) -> None:
        """Something may have been learned."""
        self._changed = True

    async def close(self) -> None:
        """Write the last of it; the store has to be open still."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._keep()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            self._keep()

    def _keep(self) -> None:
        if self._changed:
            self._changed = False
            self._store.keep(self._driver.scheduler.learned(self._driver.clock()))
