"""What the application answers where a handler fails."""

from __future__ import annotations

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from herd.gateway import application
from tests.gateway.bodies import each_dialect, error_text


async def broken(_: web.Request) -> web.StreamResponse:
    raise KeyError("a secret of the inside")


@each_dialect
async def test_a_fault_of_our_own_is_told_in_short(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    app = application.build([web.post(path, broken)], link=broken, max_body=1000)
    async with TestClient(TestServer(app)) as client:
        answer = await client.post(path, json={})
        assert answer.status == 500
        text = error_text(path, await answer.json())
    assert text == "internal error: KeyError"
    # The whole of it is for the log.
    assert "a secret of the inside" in capsys.readouterr().out
