"""Running things side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def first_to_end(*work: Coroutine[Any, Any, None]) -> None:
    """Run all until one ends, stop the others, and end as that one did."""
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(part) for part in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
