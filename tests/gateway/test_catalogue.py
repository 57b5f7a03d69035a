"""The listings, of what the engines said and of what had to be made up for those that say less."""

from __future__ import annotations

import json

import pytest

from devtools.testbed import CHAT, EMBEDDER, MB, Testbed, until
from herd.sim.spec import ModelSpec
from tests.gateway.bodies import body


async def test_an_empty_fleet_has_empty_listings(bed: Testbed) -> None:
    assert (await bed.get("/api/tags")).json() == {"models": []}
    assert (await bed.get("/api/ps")).json() == {"models": []}
    assert (await bed.get("/v1/models")).json() == {"object": "list", "data": []}
    assert (await bed.get("/api/version")).json()["version"]


async def test_a_row_of_ollama_is_handed_on_as_it_came(bed: Testbed) -> None:
    engine = await bed.add("box")
    said = json.loads(engine.tap.on("/api/tags")[0].answer.body)["models"]
    rows = (await bed.get("/api/tags")).json()["models"]
    assert [row.pop("herd") for row in rows] == [{"nodes": ["box"]}] * 2
    assert sorted(rows, key=str) == sorted(said, key=str)


async def test_a_model_on_two_nodes_is_listed_once(bed: Testbed) -> None:
    await bed.add("one")
    await bed.add("two")
    rows = (await bed.get("/api/tags")).json()["models"]
    assert sorted(row["name"] for row in rows) == sorted([CHAT, EMBEDDER])
    assert sorted(rows[0]["herd"]["nodes"]) == ["one", "two"]
    data = (await bed.get("/v1/models")).json()["data"]
    assert [entry["id"] for entry in data] == sorted([CHAT, EMBEDDER])


async def test_what_is_in_memory_is_listed_with_its_node(bed: Testbed) -> None:
    engine = await bed.add("box")
    await bed.ask("/api/chat", body("/api/chat"))

    def resident() -> bool:
        """Until the next look at the engine."""
        nodes = bed.router.driver.scheduler.nodes[engine.node].replicas.values()
        return any(replica.spec.resident_listing for replica in nodes)

    await until(resident, "the report of the load")
    [row] = (await bed.get("/api/ps")).json()["models"]
    assert row["name"] == CHAT
    assert row["herd"] == {"node": "box", "engine": f"ollama-{engine.tap.port}"}
    [said] = json.loads(engine.tap.on("/api/ps")[-1].answer.body)["models"]
    assert {name: value for name, value in row.items() if name != "herd"} == said


async def test_a_vllm_is_listed_too(bed: Testbed) -> None:
    await bed.add("gpu", dialect="openai")
    [row] = (await bed.get("/api/ps")).json()["models"]
    assert row["name"] == CHAT
    [tag] = (await bed.get("/api/tags")).json()["models"]
    assert tag["model"] == CHAT
    [entry] = (await bed.get("/v1/models")).json()["data"]
    assert entry["owned_by"] == "vllm"
    assert entry["max_model_len"] == 4096


async def test_show_asks_the_engine(bed: Testbed) -> None:
    engine = await bed.add()
    answer = await bed.ask("/api/show", {"model": CHAT, "verbose": True})
    assert answer.status == 200
    asked = engine.tap.on("/api/show")[-1]
    assert json.loads(asked.request.body) == {"model": CHAT, "verbose": True}
    assert answer.body == asked.answer.body


async def test_show_asks_the_next_engine_where_one_is_gone(bed: Testbed) -> None:
    first = await bed.add("first")
    await bed.add("second")
    await first.tap.stop()
    answer = await bed.ask("/api/show", {"model": CHAT})
    assert answer.status == 200


async def test_show_takes_the_deprecated_name(bed: Testbed) -> None:
    await bed.add()
    assert (await bed.ask("/api/show", {"name": CHAT})).status == 200


async def test_show_of_a_model_that_nobody_has(bed: Testbed) -> None:
    await bed.add()
    answer = await bed.ask("/api/show", {"model": "nope"})
    assert (answer.status, answer.json()) == (404, {"error": "model 'nope' not found"})


async def test_show_of_a_vllms_model_says_what_is_known(bed: Testbed) -> None:
    await bed.add(dialect="openai")
    shown = (await bed.ask("/api/show", {"model": CHAT})).json()
    assert "completion" in shown["capabilities"]
    assert shown["model_info"]["general.context_length"] == 4096


async def test_one_model_of_the_listing(bed: Testbed) -> None:
    await bed.add()
    assert (await bed.get(f"/v1/models/{CHAT}")).json()["id"] == CHAT
    missing = await bed.get("/v1/models/nope")
    assert missing.status == 404
    assert missing.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("asked", ["some/model:1b", "some%2Fmodel:1b"])
async def test_a_model_of_a_namespace(bed: Testbed, asked: str) -> None:
    spec = ModelSpec(name="some/model:1b", weight_bytes=MB)
    await bed.add(dialect="openai", models=(spec,))
    assert (await bed.get(f"/v1/models/{asked}")).json()["id"] == "some/model:1b"


async def test_what_is_gone_is_not_listed(bed: Testbed) -> None:
    engine = await bed.add()
    async with bed.http.delete(f"/herd/v1/engines/{engine.node}") as response:
        assert response.status == 204
    assert (await bed.get("/api/tags")).json() == {"models": []}
    assert (await bed.get("/v1/models")).json()["data"] == []


@pytest.mark.parametrize("path", ["/", "/api/version", "/api/tags"])
async def test_head_is_answered_as_ollama_does(bed: Testbed, path: str) -> None:
    async with bed.http.head(path) as response:
        assert response.status == 200
        assert await response.read() == b""


async def test_a_client_of_ollama_sees_a_sign_of_life(bed: Testbed) -> None:
    answer = await bed.get("/", headers={"Accept": "application/json", "User-Agent": "ollama/0.9"})
    assert (answer.status, answer.body) == (200, b"Ollama is running")


async def test_a_browser_is_sent_to_the_dashboard(bed: Testbed) -> None:
    headers = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    answer = await bed.get("/", headers=headers, allow_redirects=False)
    assert (answer.status, answer.headers["Location"]) == (302, "/dashboard/")
