"""mDNS over loopback only; what needs interfaces that come and go runs in network namespaces."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest

from herd.fleet.discovery import Announcer, Finder, answers, interface_addresses, is_loopback
from herd.wire.link import PROTOCOL

LOOPBACK = ("127.0.0.1",)


@pytest.fixture
async def port() -> AsyncIterator[int]:
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


async def free_port() -> int:
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    number: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return number


@pytest.fixture
def fleet() -> str:
    """A name of its own, because tests that run side by side share the loopback interface."""
    return secrets.token_hex(8)


async def announced(fleet: str, port: int) -> Announcer:
    announcer = Announcer(
        router=secrets.token_hex(16), port=port, version="1.2", fleet=fleet, interfaces=LOOPBACK
    )
    announcer.start()
    return announcer


async def test_finder_returns_a_reachable_router_of_the_fleet(fleet: str, port: int) -> None:
    announcer = await announced(fleet, port)
    try:
        (found,) = await Finder(fleet=fleet, interfaces=LOOPBACK).find(within=5.0)
    finally:
        await announcer.close()

    assert found.url == f"http://127.0.0.1:{port}"
    assert (found.fleet, found.version, found.protocol) == (fleet, "1.2", PROTOCOL)


async def test_finder_does_not_wait_for_the_end_of_its_time(fleet: str, port: int) -> None:
    announcer = await announced(fleet, port)
    started = asyncio.get_running_loop().time()
    try:
        found = await Finder(fleet=fleet, interfaces=LOOPBACK).find(within=30.0)
    finally:
        await announcer.close()

    assert found
    assert asyncio.get_running_loop().time() - started < 10.0


async def test_router_of_another_fleet_is_left_alone(fleet: str, port: int) -> None:
    announcer = await announced(f"{fleet}-other", port)
    try:
        assert await Finder(fleet=fleet, interfaces=LOOPBACK).find(within=1.0) == []
    finally:
        await announcer.close()


async def test_router_that_accepts_no_connection_is_told_apart(fleet: str) -> None:
    dead = await free_port()
    announcer = await announced(fleet, dead)
    finder = Finder(fleet=fleet, interfaces=LOOPBACK)
    try:
        assert await finder.find(within=2.0) == []
    finally:
        await announcer.close()

    assert finder.unreachable == (f"http://127.0.0.1:{dead}",)


async def test_closed_announcer_is_no_longer_found(fleet: str, port: int) -> None:
    announcer = await announced(fleet, port)
    assert await Finder(fleet=fleet, interfaces=LOOPBACK).find(within=5.0)
    await announcer.close()

    assert announcer.addresses == ()
    assert await Finder(fleet=fleet, interfaces=LOOPBACK).find(within=1.0) == []


async def test_announcer_without_an_interface_keeps_trying(fleet: str, port: int) -> None:
    announcer = Announcer(
        router=secrets.token_hex(16),
        port=port,
        version="1",
        fleet=fleet,
        interfaces=("192.0.2.1",),  # RFC 5737: nobody's address
        poll=0.05,
    )
    announcer.start()
    try:
        await asyncio.sleep(0.3)  # several rounds
        assert announcer.addresses == ()
    finally:
        await announcer.close()


async def test_answers_tells_whether_a_port_accepts(port: int) -> None:
    assert await answers("127.0.0.1", port)
    assert not await answers("127.0.0.1", await free_port())


def test_loopback_is_not_among_the_interfaces() -> None:
    assert not any(is_loopback(address) for address in interface_addresses())


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("192.168.1.1", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
