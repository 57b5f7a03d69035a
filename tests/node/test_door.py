"""The door, between a real client and a real engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from yarl import URL

from herd.engines import registry
from herd.engines.registry import adapter
from herd.node import door as door_module
from herd.node.door import Door
from herd.node.engines import LocalEngine
from herd.wire.link import DOOR_ERROR_HEADER, DOOR_HEADER

TOKEN = "token-of-the-present-link-0123456789"
LIMIT = 64 * 1024


@pytest.fixture
async def door(ollama: Any) -> AsyncIterator[Door]:
    def find(engine: str) -> LocalEngine | None:
        if engine != "ollama-1":
            return None
        return LocalEngine(url=ollama.url, paths=adapter("ollama").paths)

    door = Door(find, max_body=LIMIT)
    await door.open("127.0.0.1", 0)
    door.admit(TOKEN)
    yield door
    await door.close()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


def url(door: Door, path: str) -> str:
    return f"http://127.0.0.1:{door.port}/engines/ollama-1{path}"


def headers(**more: str) -> dict[str, str]:
    return {DOOR_HEADER: TOKEN, **{name.replace("_", "-"): value for name, value in more.items()}}


async def test_answer_comes_as_the_engine_gave_it(
    door: Door, session: aiohttp.ClientSession, ollama: Any
) -> None:
    async with session.get(f"{ollama.url}/api/tags") as answer:
        direct = (answer.status, answer.headers["Content-Type"], await answer.read())
    async with session.get(url(door, "/api/tags"), headers=headers()) as answer:
        assert (answer.status, answer.headers["Content-Type"], await answer.read()) == direct
        assert DOOR_ERROR_HEADER not in answer.headers


async def test_error_of_the_engine_passes_through(
    door: Door, session: aiohttp.ClientSession, ollama: Any
) -> None:
    ollama.healthy = False
    async with session.get(url(door, "/api/tags"), headers=headers()) as answer:
        assert (answer.status, await answer.text()) == (500, "out of order")


async def test_each_chunk_is_passed_on_as_it_comes(
    door: Door, session: aiohttp.ClientSession, ollama: Any
) -> None:
    async with asyncio.timeout(5.0):
        await ollama.lines.put(b"first\n")
        async with session.post(url(door, "/api/chat"), headers=headers(), data=b"{}") as answer:
            assert await answer.content.readline() == b"first\n"
            await ollama.lines.put(b"second\n")
            assert await answer.content.readline() == b"second\n"
            await ollama.lines.put(b"")
            assert await answer.content.read() == b""


async def test_request_reaches_the_engine_byte_for_byte_without_secrets(
    door: Door, session: aiohttp.ClientSession, ollama: Any
) -> None:
    await ollama.lines.put(b"")
    body = b"\x28\xb5\x2f\xfd not really zstd"
    sent = headers(
        Origin="http://evil.example",
        Authorization="Bearer secret",
        Cookie="a=b",
        Host="fleet.example",
        Content_Encoding="zstd",
        Connection="close, X-Hop",
        X_Hop="1",
        X_Stainless_Lang="python",
        User_Agent="client/1",
    )
    place = URL(url(door, "/api/chat?beta=%2Ftrue"), encoded=True)
    async with session.post(place, headers=sent, data=body) as answer:
        assert answer.status == 200
    (request,) = ollama.requests

    assert ollama.bodies == [body]
    assert request.rel_url.raw_query_string == "beta=%2Ftrue"
    assert request.headers["Host"] == f"127.0.0.1:{ollama.port}"
    assert request.headers["X-Stainless-Lang"] == "python"
    assert request.headers["User-Agent"] == "client/1"
    assert request.headers["Content-Encoding"] == "zstd"
    assert request.headers["Content-Length"] == str(len(body))
    for name in ("Origin", "Authorization", "Cookie", "X-Hop", DOOR_HEADER):
        assert name not in request.headers


async def test_body_of_unknown_length_is_streamed(
    door: Door, session: aiohttp.ClientSession, ollama: Any
) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(8):
            yield b"x" * 1000

    await ollama.lines.put(b"")
    async with session.post(url(door, "/api/chat"), headers=headers(), data=body()) as answer:
        assert answer.status == 200

    assert ollama.bodies == [b"x" * 8000]


@pytest.mark.parametrize("when", ["before the first byte", "in the middle"])
async def test_client_that_hangs_up_stops_the_engine(
    door: Door, session: aiohttp.ClientSession, ollama: Any, until: Any, when: str
) -> None:
    if when == "in the middle":
        await ollama.lines.put(b"first\n")
    asking = asyncio.get_running_loop().create_task(_read(session, url(door, "/api/chat")))
    await until(lambda: ollama.bodies and ollama.lines.empty())
    assert door.in_flight == 1
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)

    async with asyncio.timeout(2.0):
        await ollama.cancelled.wait()
        await door.idle()
    assert door.in_flight == 0


async def test_engine_that_breaks_off_breaks_the_answer(
    door: Door, session: aiohttp.ClientSession, ollama: Any
) -> None:
    await ollama.lines.put(b"half an ans")
    async with session.post(url(door, "/api/chat"), headers=headers(), data=b"{}") as answer:
        assert await answer.content.readany() == b"half an ans"
        await ollama.lines.put(None)
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.content.read()


async def test_slow_reader_holds_the_engine_back(
    door: Door, session: aiohttp.ClientSession, ollama: Any, until: Any
) -> None:
    lines, size = 400, 64 * 1024
    for _ in range(lines):
        await ollama.lines.put(b"x" * size)
    await ollama.lines.put(b"")
    async with session.post(url(door, "/api/chat"), headers=headers(), data=b"{}") as answer:
        left = -1
        while left != ollama.lines.qsize():  # until the engine writes no more
            left = ollama.lines.qsize()
            await asyncio.sleep(0.3)
        assert left > lines / 2, "the door has taken in what nobody read"
        received = 0
        async for chunk in answer.content.iter_any():
            received += len(chunk)

    assert received == lines * size


@pytest.mark.parametrize("shown", [None, "", "wrong", TOKEN[:-1], TOKEN + "x", "é" * 36])
async def test_wrong_token_is_refused(
    door: Door, session: aiohttp.ClientSession, shown: str | None
) -> None:
    sent = {} if shown is None else {DOOR_HEADER: shown}
    async with session.get(url(door, "/api/tags"), headers=sent) as answer:
        assert answer.status == 403
        assert answer.headers[DOOR_ERROR_HEADER] == "refused"
        assert "token" in (await answer.json())["error"]["message"]


async def test_door_without_a_link_lets_nobody_in(session: aiohttp.ClientSession) -> None:
    door = Door(lambda _: None)
    await door.open("127.0.0.1", 0)
    try:
        async with session.get(url(door, "/api/tags"), headers={DOOR_HEADER: ""}) as answer:
            assert answer.status == 403
    finally:
        await door.close()


async def test_former_token_holds_for_a_moment_only(
    door: Door, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_module, "TOKEN_OVERLAP", 0.2)
    door.admit("token-of-the-next-link-0123456789012")

    async def status() -> int:
        async with session.get(url(door, "/api/tags"), headers=headers()) as answer:
            return answer.status

    assert await status() == 200
    async with asyncio.timeout(5.0):
        while await status() != 403:  # noqa: ASYNC110 - has a deadline
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/api/pull", 403),
        ("POST", "/api/create", 403),
        ("DELETE", "/api/delete", 403),
        ("DELETE", "/api/tags", 403),
        ("POST", "/api/chat/", 403),
        ("POST", "/api%2Fchat", 403),
        ("POST", "/api/../api/pull", 403),
        ("POST", "//api/chat", 403),
        ("GET", "/", 403),
        ("GET", "/api/version", 200),
        ("HEAD", "/api/version", 200),
        ("POST", "/api/show", 200),
    ],
)
async def test_only_listed_paths_and_methods_are_served(
    door: Door, method: str, path: str, status: int
) -> None:
    # By hand, because clients tidy such paths up before they send them.
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(
        f"{method} /engines/ollama-1{path} HTTP/1.1\r\nHost: x\r\n{DOOR_HEADER}: {TOKEN}\r\n"
        "Content-Length: 0\r\nConnection: close\r\n\r\n".encode()
    )
    first = await asyncio.wait_for(reader.readline(), 5.0)
    writer.close()
    await writer.wait_closed()

    assert first.split()[1] == str(status).encode()


@pytest.mark.parametrize(
    "path", ["/engines/none-1/api/tags", "/engines/ollama-1", "/", "/api/tags"]
)
async def test_what_is_no_engine_is_not_found(
    door: Door, session: aiohttp.ClientSession, path: str
) -> None:
    place = f"http://127.0.0.1:{door.port}{path}"
    async with session.get(place, headers=headers()) as answer:
        assert answer.status == 404


@pytest.mark.parametrize("declared", [True, False])
async def test_body_over_the_limit_is_refused(
    door: Door, session: aiohttp.ClientSession, declared: bool
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * (LIMIT // 2)

    body = b"x" * (LIMIT + 1) if declared else chunks()
    async with session.post(url(door, "/api/chat"), headers=headers(), data=body) as answer:
        assert answer.status == 413
        assert answer.headers[DOOR_ERROR_HEADER] == "too_large"


async def test_engine_that_is_gone_is_told_as_such(
    door: Door, session: aiohttp.ClientSession, ollama: Any
) -> None:
    await ollama.stop()
    async with session.get(url(door, "/api/tags"), headers=headers()) as answer:
        assert answer.status == 502
        assert answer.headers[DOOR_ERROR_HEADER] == "unreachable"


async def test_taken_port_is_replaced_by_a_free_one(door: Door) -> None:
    second = Door(lambda _: None)
    await second.open("127.0.0.1", door.port)
    try:
        assert second.port not in (0, door.port)
    finally:
        await second.close()


async def _read(session: aiohttp.ClientSession, place: str) -> bytes:
    async with session.post(place, headers=headers(), data=b"{}") as answer:
        return await answer.read()


# What an engine is told to load


@pytest.fixture
async def controlled(ollama: Any) -> AsyncIterator[Door]:
    """A door to a server that takes the instructions of llama.cpp and LM Studio."""
    controls = {**registry.controls("llamacpp"), **registry.controls("lmstudio")}

    def find(_: str) -> LocalEngine | None:
        return LocalEngine(url=ollama.url, paths=frozenset(), controls=controls)

    door = Door(find)
    await door.open("127.0.0.1", 0)
    door.admit(TOKEN)
    yield door
    await door.close()


@pytest.mark.parametrize(
    ("path", "sent", "told"),
    [
        ("/models/load", b'{"model":"a"}', b'{"model":"a"}'),
        ("/models/unload", b' { "model" : "x", "model" : "a" } ', b'{"model":"a"}'),
        ("/api/v1/models/load", b'{"model":"a"}', b'{"model":"a"}'),
        (
            "/api/v1/models/load",
            b'{"context_length":8192,"model":"a"}',
            b'{"model":"a","context_length":8192}',
        ),
        ("/api/v1/models/unload", b'{"instance_id":"a:2"}', b'{"instance_id":"a:2"}'),
    ],
)
async def test_instructions_are_read_and_written_anew(
    controlled: Door,
    session: aiohttp.ClientSession,
    ollama: Any,
    path: str,
    sent: bytes,
    told: bytes,
) -> None:
    sent_headers = headers(Authorization="Bearer secret", Content_Type="text/plain")
    async with session.post(url(controlled, path), headers=sent_headers, data=sent) as answer:
        assert DOOR_ERROR_HEADER not in answer.headers
    assert ollama.instructions == [(path, told)]


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/models/load", b'{"model":"a","extra_args":["--log-file","/etc/x"]}'),
        ("/models/load", b'{"model":["a"]}'),
        ("/models/load", b'{"model":""}'),
        ("/models/load", b"{}"),
        ("/models/load", b""),
        ("/models/load", b"model=a"),
        ("/api/v1/models/load", b'{"model":"a","flash_attention":true}'),
        ("/api/v1/models/load", b'{"model":"a","context_length":-1}'),
        ("/api/v1/models/unload", b'{"instance_id":"a","model":"a"}'),
    ],
)
async def test_nothing_else_is_told_to_an_engine(
    controlled: Door, session: aiohttp.ClientSession, ollama: Any, path: str, sent: bytes
) -> None:
    async with session.post(url(controlled, path), headers=headers(), data=sent) as answer:
        assert (answer.status, answer.headers[DOOR_ERROR_HEADER]) == (403, "refused")
    assert ollama.instructions == []


async def test_instructions_are_short(
    controlled: Door, session: aiohttp.ClientSession, ollama: Any
) -> None:
    sent = b'{"model":"%s"}' % (b"a" * door_module.MAX_CONTROL)
    async with session.post(
        url(controlled, "/models/load"), headers=headers(), data=sent
    ) as answer:
        assert (answer.status, answer.headers[DOOR_ERROR_HEADER]) == (413, "too_large")
    assert ollama.instructions == []


@pytest.mark.parametrize(("method", "query"), [("GET", ""), ("HEAD", ""), ("POST", "?model=b")])
async def test_instructions_are_a_plain_post(
    controlled: Door, session: aiohttp.ClientSession, ollama: Any, method: str, query: str
) -> None:
    place = url(controlled, "/models/load") + query
    async with session.request(method, place, headers=headers(), data=b'{"model":"a"}') as answer:
        assert answer.status == 403
    assert ollama.instructions == []


async def test_another_kind_of_engine_takes_no_such_instructions(
    door: Door, session: aiohttp.ClientSession, ollama: Any
) -> None:
    async with session.post(
        url(door, "/models/load"), headers=headers(), data=b'{"model":"a"}'
    ) as answer:
        assert answer.status == 403
    assert ollama.instructions == []
