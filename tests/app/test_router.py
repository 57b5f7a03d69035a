"""A router is put together, started and stopped in this process."""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from devtools.testbed import Testbed
from herd.app.router import Router, banner, router_id
from herd.ops.settings import RouterSettings, SettingsError


def settings(folder: Path, **changes: object) -> RouterSettings:
    given = {"host": "127.0.0.1", "port": 0, "data_dir": folder, **changes}
    return RouterSettings(**given)  # type: ignore[arg-type]


def test_the_identity_is_made_once(tmp_path: Path) -> None:
    first = router_id(tmp_path / "new")
    assert len(first) == 32
    assert router_id(tmp_path / "new") == first
    assert router_id(tmp_path / "other") != first


def test_an_empty_identity_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "router-id").write_text("\n")
    assert len(router_id(tmp_path)) == 32


async def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with AsyncExitStack() as stack:
            with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: .*in use"):
                await Router(settings(tmp_path, port=port)).start(stack)


async def test_an_engine_that_is_misspelt_is_named(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        with pytest.raises(SettingsError, match="engine 'gpu-box:8000': "):
            await Router(settings(tmp_path, engines=("gpu-box:8000",))).start(stack)


async def test_a_key_may_be_named_in_the_owners_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "hush")
    url = "http://127.0.0.1:9?api_key_env=MY_KEY"
    async with AsyncExitStack() as stack:
        router = Router(settings(tmp_path, engines=(url,)))
        await router.start(stack)
        [declared] = router.engines.all()
        assert declared.api_key == "hush"


async def test_nothing_is_announced_from_loopback(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        router = Router(settings(tmp_path))
        await router.start(stack)
        assert not router.announced


async def test_a_router_leaves_its_port_when_it_stops(tmp_path: Path) -> None:
    async with Testbed(tmp_path / "first") as bed:
        await bed.add()
        port = bed.router.port
    async with Testbed(tmp_path / "second", port=port) as bed:
        assert bed.router.port == port


def test_the_banner_tells_where_to_point(tmp_path: Path) -> None:
    text = "\n".join(banner(settings(tmp_path), 4711, discovery=False))
    for url in (
        "http://127.0.0.1:4711/dashboard/",
        "http://127.0.0.1:4711/v1",
        "herd-node --router http://127.0.0.1:4711",
    ):
        assert url in text


def test_the_banner_says_that_machines_find_it_by_themselves(tmp_path: Path) -> None:
    everywhere = settings(tmp_path, host="0.0.0.0")
    text = "\n".join(banner(everywhere, 4711, discovery=True))
    assert "finds this router by itself" in text
    assert "0.0.0.0" not in text
