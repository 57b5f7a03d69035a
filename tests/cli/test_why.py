"""`herd why`: what a running router says of a request, to people and to programs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from devtools.testbed import FAST, SLOW, Testbed, until
from herd.cli.router import app
from herd.gateway.openapi import RequestDetail
from tests.gateway.bodies import body


async def why(bed: Testbed, *arguments: str) -> Result:
    url = f"http://127.0.0.1:{bed.router.port}"
    command = ["why", *arguments, "--router", url]
    return await asyncio.to_thread(CliRunner().invoke, app, command)


async def test_it_says_everything_of_a_request(tmp_path: Path) -> None:
    async with Testbed(tmp_path) as bed:
        await bed.add("first", facts=FAST)
        await bed.add("second", facts=SLOW)
        answer = await bed.ask("/api/chat", body("/api/chat"))
        name = answer.headers["Herd-Request-Id"]
        told = await why(bed, name)
        raw = await why(bed, name, "--json")

    assert told.exit_code == 0, told.output
    for part in (
        f"{name}\n",
        "completed after",
        "first was chosen: predicted",
        "> first / ollama-",
        "residency: loading llama3.2:3b takes about",
        "context: the context is long enough as it is",
        "from dispatch to end, took",
    ):
        assert part in told.output, part
    assert told.output.count("availability: ") == 2
    detail = msgspec.json.decode(raw.output, type=RequestDetail)
    assert detail.outcome is not None
    assert detail.outcome.request.id == name
    assert detail.explanation is not None
    assert [each.node for each in detail.explanation.candidates] == ["first", "second"]


async def test_a_request_that_runs_is_explained_by_its_decision(tmp_path: Path) -> None:
    async with Testbed(tmp_path) as bed:
        engine = await bed.add("slow", prefill_rate=1.0)
        asked = asyncio.create_task(bed.ask("/api/chat", body("/api/chat")))
        await until(lambda: engine.server.running == 1, "the job")
        (name,) = bed.router.driver.scheduler.tasks
        told = await why(bed, name)
        asked.cancel()

    assert told.exit_code == 0, told.output
    assert "llama3.2:3b: running for" in told.output
    assert "slow was chosen: the only candidate" in told.output
    assert "from dispatch to end" not in told.output


async def test_an_unknown_request_is_an_error_in_one_line(tmp_path: Path) -> None:
    async with Testbed(tmp_path) as bed:
        told = await why(bed, "req_0/../x")

    assert told.exit_code == 1
    assert "knows no request 'req_0/../x'" in told.stderr
    assert len(told.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("router", "code", "complaint"),
    [
        ("http://127.0.0.1:1", 1, "no router answers at http://127.0.0.1:1"),
        ("ftp://x", 2, "'ftp://x' is no URL of a router"),
    ],
)
def test_no_router_is_an_error_in_one_line(router: str, code: int, complaint: str) -> None:
    told = CliRunner().invoke(app, ["why", "req_0", "--router", router])

    assert told.exit_code == code
    assert complaint in told.stderr
    assert len(told.stderr.splitlines()) == 1
