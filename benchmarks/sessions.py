"""Clients that hold the sessions of a script with a router, in real time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Any, Final

import aiohttp
import msgspec
from msgspec import Struct

from benchmarks.script import Line, Part, Script

#: Seconds until the first session begins, so that all clients are there.
_LEAD: Final = 0.5
_OK: Final = 200
_TIMEOUT: Final = aiohttp.ClientTimeout(total=600.0)


class Answered(Struct, frozen=True, kw_only=True):
    """What came of a request. Times are the event loop's."""

    sent: float
    first: float | None
    ended: float
    #: Seconds after its time at which it was sent.
    late: float
    #: It was answered with what the script says.
    good: bool


async def play(url: str, script: Script) -> tuple[list[Answered], float]:
    """Hold all sessions; return what came of the requests, and the seconds that it took.

    Every client has an address of its own on loopback (Linux has all of 127.0.0.0/8), by which
    the router tells them apart.
    """
    names = dict.fromkeys(line.client for part in script.parts for line in part.lines)
    async with AsyncExitStack() as stack:
        clients = {}
        for number, name in enumerate(names):
            address = f"127.0.{1 + number // 250}.{1 + number % 250}"
            connector = aiohttp.TCPConnector(limit=0, local_addr=(address, 0))
            client = aiohttp.ClientSession(url, connector=connector, timeout=_TIMEOUT)
            clients[name] = await stack.enter_async_context(client)
        begin = time.monotonic() + _LEAD
        answers: list[Answered] = []
        async with asyncio.TaskGroup() as group:
            for part in script.parts:
                group.create_task(_hold(clients, part, begin + part.start, answers))
        return answers, time.monotonic() - begin


async def _hold(
    clients: dict[str, aiohttp.ClientSession], part: Part, due: float, answers: list[Answered]
) -> None:
    """Hold one session: each request comes when the one before has ended and its time is over."""
    for line in part.lines:
        due += line.think if line is not part.lines[0] else 0.0
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        answered = await _send(clients[line.client], line, due)
        answers.append(answered)
        due = answered.ended


async def _send(client: aiohttp.ClientSession, line: Line, due: float) -> Answered:
    sent = time.monotonic()
    first: float | None = None
    parts: list[bytes] = []
    headers = {"Content-Type": "application/json"}
    try:
        async with client.post(line.path, data=line.body, headers=headers) as response:
            async for chunk in response.content.iter_any():
                if first is None and line.stream:
                    first = time.monotonic()
                parts.append(chunk)
            good = response.status == _OK
    except (aiohttp.ClientError, TimeoutError):
        good = False
    ended = time.monotonic()
    good = good and (not line.answer or _said(line, b"".join(parts)) == line.answer)
    return Answered(sent=sent, first=first, ended=ended, late=sent - due, good=good)


def _said(line: Line, body: bytes) -> str:
    """Return the text of an answer in either dialect, streamed or whole."""
    if not line.stream:
        return _text([msgspec.json.decode(body)])
    lines = (each.removeprefix(b"data: ").strip() for each in body.splitlines())
    return _text(msgspec.json.decode(each) for each in lines if each and each != b"[DONE]")


def _text(frames: Iterable[Any]) -> str:
    return "".join(map(_content, frames))


def _content(frame: Any) -> str:
    if "message" in frame:
        return str(frame["message"].get("content") or "")
    choices = frame.get("choices")
    if not choices:
        return ""
    said = choices[0].get("delta") or choices[0].get("message") or {}
    return str(said.get("content") or "")
