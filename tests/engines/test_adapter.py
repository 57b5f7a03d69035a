"""What adapters share: the cache of a survey, rows, and trying a request out."""

from __future__ import annotations

import pytest
from msgspec import Raw, Struct

from devtools.replay import Replay, Reply, json_reply
from herd.core.fleet import Replica
from herd.engines.adapter import SurveyCache, accepts, read_rows
from herd.engines.http import EngineError, Http

REPLICA = Replica(model="m:latest", name="m")


class Row(Struct):
    id: str


def test_the_cache_gives_back_what_was_put_in() -> None:
    cache = SurveyCache()

    assert cache.get("a") is None
    assert cache.put("a", REPLICA) is REPLICA
    assert cache.get("a") is REPLICA


def test_the_cache_keeps_only_what_it_is_told_to() -> None:
    cache = SurveyCache()
    cache.put("a", REPLICA)
    cache.put("b", REPLICA)

    cache.keep(["b", "c"])

    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (None, REPLICA, None)


def test_a_cleared_cache_knows_nothing() -> None:
    cache = SurveyCache()
    cache.put("a", REPLICA)

    cache.clear()

    assert cache.get("a") is None


def test_rows_come_with_the_bytes_that_they_were() -> None:
    raw = b'{ "id" : "a", "more": 1 }'

    assert read_rows([Raw(raw)], Row, "url") == [(Row("a"), raw)]


@pytest.mark.parametrize("raw", [b'{"id":1}', b"[]", b"null", b"{}", b'{"id":"\xff"}'])
def test_a_row_of_another_shape_is_an_error_that_names_the_url(raw: bytes) -> None:
    with pytest.raises(EngineError, match=r"http://e/v1/models answered with a row"):
        read_rows([Raw(raw)], Row, "http://e/v1/models")


@pytest.mark.parametrize(
    ("status", "taken"), [(200, True), (400, False), (404, False), (501, False)]
)
async def test_an_answer_tells_whether_a_request_is_accepted(
    http: Http, status: int, taken: bool
) -> None:
    async with Replay({"POST /x": json_reply({}, status)}) as engine:
        assert await accepts(http, f"{engine.url}/x", {}) is taken


async def test_what_is_not_refused_at_once_counts_as_accepted(
    http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("herd.engines.adapter.REFUSAL_TIME", 0.05)
    async with Replay({"POST /x": Reply(500, delay=30)}) as engine:
        assert await accepts(http, f"{engine.url}/x", {})


@pytest.mark.parametrize("status", [401, 429, 503])
async def test_an_engine_in_trouble_tells_nothing(http: Http, status: int) -> None:
    async with Replay({"POST /x": json_reply({"error": "busy"}, status)}) as engine:
        with pytest.raises(EngineError, match=f"{status}: busy"):
            await accepts(http, f"{engine.url}/x", {})
