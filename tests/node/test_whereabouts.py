"""Where an agent looks for its router."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from herd.fleet.discovery import Finder
from herd.node.whereabouts import RouterSearch, Whereabouts

NOBODY = ("192.0.2.1",)  # RFC 5737: searching on an address that is not ours ends at once


@pytest.fixture
async def listener() -> AsyncIterator[int]:
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


def search(data_dir: Path, local_port: int, *, url: str = "", fleet: str = "") -> RouterSearch:
    return RouterSearch(
        url=url,
        fleet=fleet,
        data_dir=data_dir,
        finder=Finder(interfaces=NOBODY),
        local_port=local_port,
    )


async def places(looking: RouterSearch) -> list[Whereabouts]:
    return [place async for place in looking.places()]


async def test_given_url_rules_out_all_others(tmp_path: Path, listener: int) -> None:
    looking = search(tmp_path, listener, url="10.0.0.1")

    assert await places(looking) == [Whereabouts("http://10.0.0.1:11435")]
    assert looking.given == "http://10.0.0.1:11435"


async def test_router_on_this_machine_is_found_without_a_network(
    tmp_path: Path, listener: int
) -> None:
    assert await places(search(tmp_path, listener)) == [Whereabouts(f"http://127.0.0.1:{listener}")]


async def test_last_known_address_is_tried_again(
    tmp_path: Path, listener: int, dead_port: int
) -> None:
    url = f"http://127.0.0.1:{listener}"
    search(tmp_path, dead_port).remember(url)

    assert await places(search(tmp_path, dead_port)) == [Whereabouts(url)]


async def test_address_of_another_fleet_is_not_tried(
    tmp_path: Path, listener: int, dead_port: int
) -> None:
    search(tmp_path, dead_port, fleet="attic").remember(f"http://127.0.0.1:{listener}")

    assert await places(search(tmp_path, dead_port, fleet="cellar")) == []


async def test_place_where_nobody_answers_is_left_out(tmp_path: Path, dead_port: int) -> None:
    search(tmp_path, dead_port).remember(f"http://127.0.0.1:{dead_port}")

    assert await places(search(tmp_path, dead_port)) == []


@pytest.mark.parametrize("kept", [b"", b"{", b'{"url": 5}', b'{"url": "ftp://x"}'])
async def test_damaged_memory_is_no_obstacle(tmp_path: Path, dead_port: int, kept: bytes) -> None:
    (tmp_path / "router.json").write_bytes(kept)

    assert await places(search(tmp_path, dead_port)) == []


def test_given_url_that_is_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="router"):
        search(tmp_path, 1, url="ftp://example")
