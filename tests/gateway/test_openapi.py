"""The document of Herd's own API is valid, complete, and true of the live answers."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import openapi_spec_validator
from openapi_schema_validator import OAS31Validator

from devtools.testbed import FAST, SLOW, Testbed, until, until_async
from herd.gateway import openapi
from tests.gateway.bodies import body

#: As it is served.
DOCUMENT: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(openapi.document()))


def test_the_document_is_valid() -> None:
    openapi_spec_validator.validate(DOCUMENT)


async def test_the_document_is_served(bed: Testbed) -> None:
    assert (await bed.get("/herd/v1/openapi.json")).json() == DOCUMENT


async def test_every_path_of_the_document_is_routed(bed: Testbed) -> None:
    await bed.add()
    for path, operations in DOCUMENT["paths"].items():
        for method in operations:
            async with bed.http.request(
                method, path.format(id="x", node="x", model="x"), json={}
            ) as response:
                # Not text: the answer comes from the handler, not from the want of one.
                assert response.status not in {404, 405} or response.content_type != "text/plain"


def check(value: Any, path: str, *, status: int = 200, method: str = "get") -> None:
    """Validate an answer by the schema that the document has for it."""
    assert faults(value, path, status=status, method=method) == []


def faults(value: Any, path: str, *, status: int = 200, method: str = "get") -> list[str]:
    answer = DOCUMENT["paths"][path][method]["responses"][str(status)]
    schema = answer["content"]["application/json"]["schema"]
    whole = {**schema, "components": DOCUMENT["components"]}
    return [str(fault) for fault in OAS31Validator(whole).iter_errors(value)]


async def test_the_check_can_fail(bed: Testbed) -> None:
    health = (await bed.get("/herd/v1/health")).json()
    [wrong] = faults({**health, "nodes": "many"}, "/herd/v1/health")
    assert "'many' is not of type 'integer'" in wrong
    del health["version"]
    assert len(faults(health, "/herd/v1/health")) == 1


async def test_live_answers_are_as_the_document_says(bed: Testbed) -> None:
    first = await bed.add("first", facts=f"{FAST}&memory=64GB")
    await bed.add("second", facts=SLOW, dialect="openai")
    first.server.faults.status = 500
    path = "/v1/chat/completions"
    retried = await bed.ask(path, body(path))
    rejected = await bed.ask(path, body(path, model="nope"))
    first.server.faults.status = 0
    first.server.faults.mute = True
    open_ = asyncio.create_task(bed.ask("/api/embed", body("/api/embed")))
    await until(lambda: bed.router.driver.scheduler.tasks, "an open request")
    [running] = bed.router.driver.scheduler.tasks

    async def stored() -> bool:
        return len((await bed.get("/herd/v1/requests")).json()["requests"]) == 2

    await until_async(stored, "the records")
    for plain in ("health", "fleet", "requests", "engines"):
        answer = await bed.get(f"/herd/v1/{plain}")
        check(answer.json(), f"/herd/v1/{plain}")
    for id_ in (retried.headers["Herd-Request-Id"], rejected.headers["Herd-Request-Id"], running):
        detail = await bed.get(f"/herd/v1/requests/{id_}")
        check(detail.json(), "/herd/v1/requests/{id}")
    open_.cancel()
    await asyncio.gather(open_, return_exceptions=True)


async def test_live_refusals_are_as_the_document_says(bed: Testbed) -> None:
    missing = await bed.get("/herd/v1/requests/none")
    check(missing.json(), "/herd/v1/requests/{id}", status=404)
    bad = await bed.get("/herd/v1/requests?limit=x")
    check(bad.json(), "/herd/v1/requests", status=400)
    path = "/herd/v1/engines"
    check((await bed.ask(path, {})).json(), path, method="post", status=400)
    stranger = await bed.ask(path, {}, headers={"Host": "evil.example"})
    check(stranger.json(), path, method="post", status=403)
    added = await bed.ask(path, {"url": "http://127.0.0.1:9?name=nobody"})
    check(added.json(), path, method="post", status=201)
    async with bed.http.delete(f"{path}/none") as gone:
        check(await gone.json(), path + "/{node}", method="delete", status=404)
