"""Which adapter fits: every recorded engine is detected as itself and as nothing else."""

from __future__ import annotations

import pytest

from devtools.replay import Replay, Reply, json_reply
from herd.core.fleet import EngineKind
from herd.engines import registry
from herd.engines.adapter import Adapter
from herd.engines.http import EngineError, Http
from herd.engines.survey import survey_engine

#: LM Studio was not recorded; this is what its documentation says it answers.
LMSTUDIO_ROW = {"id": "m", "object": "model", "type": "llm", "state": "loaded"}
LMSTUDIO = {"GET /api/v0/models": json_reply({"object": "list", "data": [LMSTUDIO_ROW]})}
LMSTUDIO_UNKNOWN = json_reply({"error": "Unexpected endpoint or method. Returning 200 anyway"})
KINDS: tuple[EngineKind, ...] = ("ollama", "llamacpp", "vllm", "lmstudio", "mlx")


def replayed(kind: EngineKind) -> Replay:
    return Replay(LMSTUDIO, LMSTUDIO_UNKNOWN) if kind == "lmstudio" else Replay.of(kind)


@pytest.mark.parametrize("adapter", registry.ADAPTERS, ids=lambda each: each.kind)
@pytest.mark.parametrize("kind", KINDS)
async def test_an_adapter_detects_its_own_engine_and_no_other(
    http: Http, kind: EngineKind, adapter: Adapter
) -> None:
    async with replayed(kind) as engine:
        assert await adapter.detect(http, engine.url) is (adapter.kind == kind)


@pytest.mark.parametrize("kind", KINDS)
async def test_the_registry_finds_the_adapter(http: Http, kind: EngineKind) -> None:
    async with replayed(kind) as engine:
        found = await registry.detect(http, engine.url)

    assert found is registry.adapter(kind)


@pytest.mark.parametrize("adapter", registry.ADAPTERS, ids=lambda each: each.kind)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_herd_router_that_speaks_as_an_engine_is_none(
    http: Http, kind: EngineKind, adapter: Adapter
) -> None:
    async with replayed(kind) as engine:
        engine.replies = {key: marked(reply) for key, reply in engine.replies.items()}
        engine.default = marked(engine.default or Reply(404))

        assert not await adapter.detect(http, engine.url)
        assert await registry.detect(http, engine.url) is None
        assert "is a Herd router" in await registry.why_undetected(http, engine.url)


def marked(reply: Reply) -> Reply:
    return reply._replace(headers=(*reply.headers, ("Herd-Version", "0.1.0")))


@pytest.mark.parametrize("adapter", registry.ADAPTERS, ids=lambda each: each.kind)
@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, b"<html>It works!</html>"),
        Reply(200, b""),
        Reply(200, b"[]"),
        Reply(200, b"null"),
        Reply(200, b'{"data": null, "version": 1, "models": "x"}'),
        Reply(200, b"[" * 100_000),
        Reply(401, b'{"error":"Unauthorized"}'),
        Reply(500, b"\xff"),
        None,
    ],
)
async def test_a_server_that_answers_rubbish_is_none(
    http: Http, reply: Reply | None, adapter: Adapter
) -> None:
    async with Replay(default=reply) as engine:
        assert not await adapter.detect(http, engine.url)


async def test_where_nothing_listens_one_question_is_enough(http: Http) -> None:
    async with Replay() as engine:
        assert await registry.detect(http, engine.url) is None
        assert engine.lines() == ["GET /"] * engine.lines().count("GET /")


async def test_why_undetected_tells_of_a_server_that_is_no_engine(http: Http) -> None:
    async with Replay(default=Reply(200, b"hello")) as engine:
        why = await registry.why_undetected(http, engine.url)

    assert "not like any engine" in why


async def test_why_undetected_tells_of_a_server_that_is_not_there(http: Http) -> None:
    async with Replay() as engine:
        url = engine.url

    assert url in await registry.why_undetected(http, url)


@pytest.mark.parametrize(
    ("path", "kinds"),
    [
        ("/v1/chat/completions", set(KINDS)),
        ("/api/chat", {"ollama"}),
        ("/v1/messages", {"ollama", "llamacpp", "vllm"}),
        ("/v1/messages/count_tokens", {"llamacpp", "vllm"}),
        ("/v1/embeddings", {"ollama", "llamacpp", "vllm", "lmstudio"}),
        ("/nowhere", set()),
    ],
)
def test_kinds_for_tells_who_serves_a_path(path: str, kinds: set[str]) -> None:
    assert registry.kinds_for(path) == kinds


@pytest.mark.parametrize(
    ("port", "kind"), [(11434, "ollama"), (8000, "vllm"), (1234, "lmstudio"), (5, "ollama")]
)
def test_a_port_suggests_a_kind(port: int, kind: str) -> None:
    assert registry.kind_by_port(port) == kind


#: Questions to which every adapter expects JSON of a shape of its own.
GARBAGE = [
    Reply(200, b"<html>"),
    Reply(200, b""),
    Reply(200, b"null"),
    Reply(200, b"[]"),
    Reply(200, b"{}"),
    Reply(200, b'{"data":[null],"models":[null],"version":"1"}'),
    Reply(200, b'{"data":[{"id":[]}],"models":[{"name":7}],"version":"1"}'),
    Reply(200, b'{"data":[{"id":true}],"models":[{"name":"a","digest":1}],"version":"1"}'),
    Reply(200, b'{"data":{"a":1},"models":{"a":1},"version":"1"}'),
    Reply(200, b"[" * 100_000),
    Reply(200, b'{"data":["\xff"],"models":["\xff"],"version":"1"}'),
    Reply(500, b"panic"),
    None,
]


@pytest.mark.parametrize("adapter", registry.ADAPTERS, ids=lambda each: each.kind)
@pytest.mark.parametrize("garbage", GARBAGE)
async def test_garbage_is_an_engine_error_and_nothing_worse(
    http: Http, adapter: Adapter, garbage: Reply | None
) -> None:
    async with Replay(default=garbage) as engine:
        with pytest.raises(EngineError):
            await adapter.survey(http, engine.url)


@pytest.mark.parametrize("adapter", registry.ADAPTERS, ids=lambda each: each.kind)
@pytest.mark.parametrize("garbage", [each for each in GARBAGE if each is not None])
async def test_garbage_in_one_answer_never_raises(
    http: Http, adapter: Adapter, garbage: Reply
) -> None:
    """Each question in turn is answered with garbage, the others as recorded."""
    async with replayed(adapter.kind) as engine:
        intact = dict(engine.replies)
        for question in [key for key in intact if key.startswith("GET ")]:
            engine.replies = intact | {question: garbage}
            report = await survey_engine(http, adapter, engine.url, engine_id="e", public_url="u")

            assert report.up is not bool(report.error)
