"""What was learned outlives the router; what cannot be used does not stop it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from herd.app.keeping import Keeper, recall
from herd.core.learned import Learned
from herd.core.scheduler import Scheduler
from herd.fleet.driver import Driver
from herd.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "herd.db") as opened:
        yield opened


def driver() -> Driver:
    return Driver(
        Scheduler(),
        lambda: 7.0,
        record=lambda outcome: None,
        release=lambda node: None,
        load=lambda _: None,
    )


async def written(store: Store) -> Learned | None:
    for _ in range(200):
        found = await asyncio.to_thread(store.reader.learned)
        if found is not None:
            return found
        await asyncio.sleep(0.01)
    return None


async def test_it_writes_now_and_then_if_anything_was_learned(store: Store) -> None:
    keeper = Keeper(driver(), store, every=0.01)
    await asyncio.sleep(0.1)
    assert await asyncio.to_thread(store.reader.learned) is None
    keeper.note()
    assert await written(store) == Learned(at=7.0)
    await keeper.close()


async def test_it_writes_at_the_end(store: Store) -> None:
    keeper = Keeper(driver(), store)
    keeper.note()
    await keeper.close()
    assert await written(store) == Learned(at=7.0)


@pytest.mark.parametrize("data", [b"nonsense", b"\x81\xa7version\x63"], ids=["spoilt", "newer"])
async def test_what_cannot_be_used_is_left_aside(tmp_path: Path, store: Store, data: bytes) -> None:
    with sqlite3.connect(tmp_path / "herd.db") as connection:
        connection.execute("INSERT INTO learned VALUES (1, 0.0, ?)", (data,))
    connection.close()
    fresh = driver()
    await recall(fresh, store)
    assert fresh.scheduler.learned(7.0) == Learned(at=7.0)
