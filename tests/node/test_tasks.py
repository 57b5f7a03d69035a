"""Running things side by side."""

from __future__ import annotations

import asyncio

import pytest

from herd.node.tasks import first_to_end


async def test_first_end_stops_the_others() -> None:
    stopped = asyncio.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    await first_to_end(forever(), asyncio.sleep(0))

    assert stopped.is_set()


async def test_failure_is_everybody_s() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await first_to_end(asyncio.sleep(60), fail())


async def test_cancelling_stops_all() -> None:
    stopped = 0

    async def forever() -> None:
        nonlocal stopped
        try:
            await asyncio.Event().wait()
        finally:
            stopped += 1

    task = asyncio.get_running_loop().create_task(first_to_end(forever(), forever()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert stopped == 2
