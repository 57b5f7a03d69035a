"""The live page: its files, its policy, and its stream of snapshots."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from devtools.testbed import CHAT, Testbed
from tests.gateway.bodies import body


@pytest.fixture
async def bed(tmp_path: Path) -> AsyncIterator[Testbed]:
    async with Testbed(tmp_path) as running:
        yield running


async def event(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """Read the next snapshot."""
    text = await asyncio.wait_for(response.content.readuntil(b"\n\n"), 5)
    assert text.startswith(b"data: ")
    snapshot: dict[str, Any] = msgspec.json.decode(text[6:])
    return snapshot


@pytest.mark.parametrize(
    ("path", "kind", "piece"),
    [
        ("/dashboard/", "text/html; charset=utf-8", b"<!doctype html>"),
        ("/dashboard/index.html", "text/html; charset=utf-8", b"<!doctype html>"),
        ("/dashboard/live.css", "text/css; charset=utf-8", b"table {"),
        ("/dashboard/live.js", "text/javascript; charset=utf-8", b"EventSource"),
    ],
)
async def test_the_pages_files_are_served(bed: Testbed, path: str, kind: str, piece: bytes) -> None:
    answer = await bed.get(path)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == kind
    assert piece in answer.body


async def test_nothing_inline_and_nothing_from_elsewhere_is_allowed(bed: Testbed) -> None:
    answer = await bed.get("/dashboard/")
    policy = dict(
        part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert b"http" not in answer.body
    assert b"style=" not in answer.body
    assert b"onclick" not in answer.body


@pytest.mark.parametrize(
    "path", ["/dashboard/nope", "/dashboard/../live.py", "/dashboard/%2e%2e%2flive.py"]
)
async def test_no_other_file_is_served(bed: Testbed, path: str) -> None:
    answer = await bed.get(path)
    assert answer.status == 404


async def test_the_page_without_its_slash_is_found(bed: Testbed) -> None:
    answer = await bed.get("/dashboard", allow_redirects=False)
    assert (answer.status, answer.headers["Location"]) == (302, "/dashboard/")


async def test_a_viewer_gets_a_snapshot_at_once(bed: Testbed) -> None:
    await bed.add("box")
    answer = await bed.ask("/api/chat", body("/api/chat"))
    await bed.outcome(answer.headers["Herd-Request-Id"])
    async with bed.http.get("/herd/v1/events") as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        snapshot = await event(response)
    assert [node["name"] for node in snapshot["fleet"]["nodes"]] == ["box"]
    assert snapshot["total"] == 1
    [line] = snapshot["answered"]
    assert line["id"] == answer.headers["Herd-Request-Id"]
    assert (line["model"], line["ending"], line["node"]) == (CHAT, "completed", "box")
    assert line["tokens"] == 8
    assert 0 <= line["waited"] < line["took"]
    assert "the only candidate" in line["why"]


async def test_news_come_within_the_interval(bed: Testbed) -> None:
    async with bed.http.get("/herd/v1/events") as response:
        assert (await event(response))["fleet"]["nodes"] == []
        await bed.add("box")
        loop = asyncio.get_running_loop()
        started = loop.time()
        while not (await event(response))["fleet"]["nodes"]:
            pass
        assert loop.time() - started < 2.5


async def test_the_cause_of_a_failure_is_shown(bed: Testbed) -> None:
    engine = await bed.add("box")
    engine.server.faults.status = 500
    await bed.ask("/api/chat", body("/api/chat"))
    await bed.ask("/api/chat", body("/api/chat", model="nope"))
    async with bed.http.get("/herd/v1/events") as response:
        newest, oldest = (await event(response))["answered"]
    assert (newest["ending"], newest["node"]) == ("rejected", "")
    assert "'nope' not found" in newest["why"]
    assert (oldest["ending"], oldest["node"]) == ("failed", "box")
    assert "emulated failure" in oldest["why"]


async def test_the_list_is_bounded(bed: Testbed) -> None:
    for number in range(30):
        await bed.ask("/api/chat", body("/api/chat", model=f"nope-{number}"))
    async with bed.http.get("/herd/v1/events") as response:
        snapshot = await event(response)
    assert [line["model"] for line in snapshot["answered"]] == [
        f"nope-{number}:latest" for number in range(29, 4, -1)
    ]
    assert snapshot["total"] == 30


async def test_all_viewers_share_the_snapshots(bed: Testbed) -> None:
    async with (
        bed.http.get("/herd/v1/events") as one,
        bed.http.get("/herd/v1/events") as other,
    ):
        await event(one)
        await event(other)
        assert await event(one) == await event(other)


async def test_a_viewer_may_come_when_the_last_one_has_left(bed: Testbed) -> None:
    for _ in range(2):
        async with bed.http.get("/herd/v1/events") as response:
            await event(response)
            await event(response)
