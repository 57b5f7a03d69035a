"""Asking an engine: what counts as an answer, and what is said when none comes."""

from __future__ import annotations

import pytest
from msgspec import Struct

from devtools.replay import Replay, Reply, json_reply
from herd.engines import http as module
from herd.engines.http import Answer, EngineError, Http


class Named(Struct):
    name: str


async def test_an_answer_of_many_packets_is_read_to_its_end(http: Http) -> None:
    body = b"x" * 3_000_000
    async with Replay({"GET /metrics": Reply(body=body)}) as engine:
        answer = await http.get(f"{engine.url}/metrics")

    assert answer.body == body


async def test_an_endless_answer_is_cut_off(http: Http, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ANSWER", 1000)
    async with Replay({"GET /": Reply(body=b"x" * 1001)}) as engine:
        with pytest.raises(EngineError, match="more than 1000 bytes"):
            await http.get(f"{engine.url}/")


async def test_silence_is_an_error_that_names_the_limit() -> None:
    async with Replay({"GET /": Reply(delay=30)}) as engine, Http(timeout=0.1) as http:
        with pytest.raises(EngineError, match=r"did not answer within 0\.1 s"):
            await http.get(f"{engine.url}/")


async def test_a_refused_connection_is_an_error_that_names_the_url(http: Http) -> None:
    async with Replay() as engine:
        url = engine.url

    with pytest.raises(EngineError, match=url):
        await http.get(f"{url}/")


async def test_a_broken_connection_is_an_error(http: Http) -> None:
    async with Replay() as engine:
        with pytest.raises(EngineError):
            await http.get(f"{engine.url}/")


async def test_a_redirect_is_not_followed(http: Http) -> None:
    """An engine must not be able to send the router's key elsewhere."""
    moved = Reply(302, headers=(("Location", "/other"),))
    async with Replay({"GET /": moved, "GET /other": json_reply({})}) as engine:
        answer = await http.get(f"{engine.url}/")

        assert (answer.status, engine.lines()) == (302, ["GET /"])


async def test_headers_of_the_client_go_with_every_question() -> None:
    async with (
        Replay(default=json_reply({})) as engine,
        Http(headers={"Authorization": "Bearer sekret"}) as http,
    ):
        await http.get(f"{engine.url}/a")
        await http.post(f"{engine.url}/b", {})

        assert [headers["authorization"] for _, headers in engine.asked] == ["Bearer sekret"] * 2


async def test_fetch_decodes_what_it_asked_for(http: Http) -> None:
    async with Replay({"GET /": json_reply({"name": "a", "more": 1})}) as engine:
        assert await http.fetch(f"{engine.url}/", Named) == Named("a")


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (json_reply({"error": {"message": "Loading model"}}, 503), r"\(503\): Loading model"),
        (json_reply({"error": "Unauthorized"}, 401), r"asks for an API key \(401\): Unauthorized"),
        (json_reply({"detail": "Not Found"}, 404), r"\(404\): Not Found"),
        (Reply(500, b"<h1>oh</h1>"), r"\(500\): <h1>oh</h1>"),
        (Reply(500), r"\(500\): no reason"),
        (Reply(200, b"hello"), "not JSON"),
        (Reply(200, b'{"name":"\xff"}'), "not JSON"),
        (Reply(200, b"[" * 100_000), "shape"),
        (Reply(200, b'{"more":' + b"[" * 100_000), "not JSON"),
        (json_reply([]), "another shape"),
        (json_reply({"name": 1}), r"another shape: .*\$\.name"),
    ],
)
async def test_fetch_says_what_came_instead(http: Http, reply: Reply, why: str) -> None:
    async with Replay({"GET /": reply}) as engine:
        with pytest.raises(EngineError, match=why):
            await http.fetch(f"{engine.url}/", Named)


def test_a_long_complaint_is_cut() -> None:
    assert len(Answer(500, {}, b"x" * 10_000).complaint()) == module.MAX_COMPLAINT


async def test_peek_sees_nothing_where_nothing_answers(http: Http) -> None:
    async with Replay() as engine:
        assert await http.peek(f"{engine.url}/") is None


async def test_peek_does_not_take_a_herd_router_for_an_engine(http: Http) -> None:
    async with Replay(default=json_reply({}, Herd_Version="0.1.0")) as engine:
        assert await http.peek(f"{engine.url}/") is None


async def test_it_wants_to_be_entered_first() -> None:
    with pytest.raises(RuntimeError, match="outside its context"):
        await Http().get("http://127.0.0.1:1/")
