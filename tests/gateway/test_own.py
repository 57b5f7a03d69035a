"""Herd's own API: the fleet, requests with their decisions, engines that come and go."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from devtools.testbed import CHAT, EMBEDDER, FAST, SLOW, Testbed, until, until_async
from tests.gateway.bodies import body

SIGNALS = {"residency", "memory", "queue", "speed", "affinity", "availability", "context"}


async def own(bed: Testbed, path: str) -> Any:
    answer = await bed.get(f"/herd/v1/{path}")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    return answer.json()


async def test_health(bed: Testbed) -> None:
    assert (await own(bed, "health"))["nodes"] == 0
    await bed.add()
    health = await own(bed, "health")
    assert (health["status"], health["nodes"], health["problems"]) == ("ok", 1, [])


async def test_the_fleet_lists_nodes_engines_and_models(bed: Testbed) -> None:
    engine = await bed.add("box", facts="&memory=64GB")
    fleet = await own(bed, "fleet")
    [node] = fleet["nodes"]
    assert (node["node"], node["name"]) == (engine.node, "box")
    assert node["hardware"]["memory_bytes"] == 64e9
    [found] = node["engines"]
    assert (found["kind"], found["url"], found["up"]) == ("ollama", engine.tap.url, True)
    assert sorted(replica["model"] for replica in found["replicas"]) == sorted([CHAT, EMBEDDER])
    assert {replica["residency"] for replica in found["replicas"]} == {"disk"}


async def test_an_engine_that_went_down_is_shown_with_the_reason(bed: Testbed) -> None:
    engine = await bed.add("box")
    await engine.tap.stop()

    async def down() -> bool:
        [found] = (await own(bed, "fleet"))["nodes"][0]["engines"]
        return not found["up"] and found["error"]

    await until_async(down, "the report", within=10)


async def test_a_requests_decision_has_all_candidates_and_all_signals(bed: Testbed) -> None:
    first = await bed.add("first", facts=FAST)
    second = await bed.add("second", facts=SLOW)
    answer = await bed.ask("/api/chat", body("/api/chat"))
    detail = await own(bed, f"requests/{answer.headers['Herd-Request-Id']}")
    decision = detail["outcome"]["decision"]
    assert decision["chosen"] == {
        "node": first.node,
        "engine": f"ollama-{first.tap.port}",
        "model": CHAT,
    }
    candidates = {estimate["replica"]["node"]: estimate for estimate in decision["estimates"]}
    assert set(candidates) == {first.node, second.node}
    for estimate in candidates.values():
        assert set(estimate["signals"]) == SIGNALS
        assert sum(estimate["signals"].values()) == pytest.approx(estimate["total"])
    assert candidates[first.node]["total"] < candidates[second.node]["total"]
    assert "sooner than the next" in decision["reason"]


async def test_a_requests_story_is_told_in_order(bed: Testbed) -> None:
    first = await bed.add("first", facts=FAST)
    await bed.add("second", facts=SLOW)
    first.server.faults.status = 500
    answer = await bed.ask("/api/chat", body("/api/chat"))
    outcome = (await own(bed, f"requests/{answer.headers['Herd-Request-Id']}"))["outcome"]
    story = [step["state"] for step in outcome["story"]]
    assert story == ["arrived", "running", "failed", "running", "streaming", "completed"]
    times = [step["at"] for step in outcome["story"]]
    assert times == sorted(times)
    assert "500" in outcome["story"][2]["note"]


async def test_a_candidate_that_cannot_serve_says_why(bed: Testbed) -> None:
    await bed.add("gpu", dialect="openai")
    await bed.add("mac")
    answer = await bed.ask("/v1/chat/completions", body("/v1/chat/completions", tools=[{}]))
    outcome = (await own(bed, f"requests/{answer.headers['Herd-Request-Id']}"))["outcome"]
    excluded = [e["excluded"] for e in outcome["decision"]["estimates"] if e.get("excluded")]
    assert excluded == [{"kind": "incapable", "reason": "model lacks tools"}]


async def test_a_request_that_there_never_was(bed: Testbed) -> None:
    answer = await bed.get("/herd/v1/requests/req_0")
    assert answer.status == 404
    assert answer.json()["error"]["type"] == "not_found_error"


async def listed(bed: Testbed, count: int) -> list[str]:
    """Wait until so many requests are on disk; their ids, newest first."""
    ids: list[str] = []

    async def there() -> bool:
        page = await own(bed, "requests")
        ids[:] = [row["id"] for row in page["requests"]]
        return len(ids) == count

    await until_async(there, f"{count} records")
    return ids


async def test_requests_are_paged_from_the_newest(bed: Testbed) -> None:
    await bed.add()
    asked = []
    for _ in range(5):
        answer = await bed.ask("/api/chat", body("/api/chat"))
        asked.append(answer.headers["Herd-Request-Id"])
    assert await listed(bed, 5) == asked[::-1]
    paged: list[str] = []
    pages = 0
    query = "limit=2"
    while query:
        page = await own(bed, f"requests?{query}")
        paged += [row["id"] for row in page["requests"]]
        pages += 1
        query = f"limit=2&before={page['next']}" if page["next"] is not None else ""
    assert paged == asked[::-1]
    assert pages == 3


async def test_requests_are_filtered(bed: Testbed) -> None:
    engine = await bed.add("one")
    await bed.ask("/api/chat", body("/api/chat"))
    await bed.ask("/api/embed", body("/api/embed"))
    await bed.ask("/api/chat", body("/api/chat", model="nope"))
    await listed(bed, 3)

    async def endpoints(query: str) -> list[str]:
        return [row["endpoint"] for row in (await own(bed, f"requests?{query}"))["requests"]]

    assert await endpoints(f"model={EMBEDDER}") == ["/api/embed"]
    assert await endpoints("ending=rejected") == ["/api/chat"]
    assert await endpoints(f"node={engine.node}") == ["/api/embed", "/api/chat"]
    assert await endpoints(f"node={engine.node}&model={CHAT}") == ["/api/chat"]
    assert len(await endpoints("client=127.0.0.1")) == 3
    assert await endpoints("client=10.0.0.1") == []


@pytest.mark.parametrize(
    "query",
    ["limit=x", "limit=0", "limit=-5", "before=x", f"before={10**30}", "ending=well", "limit=1.5"],
)
async def test_a_filter_that_means_nothing_is_refused(bed: Testbed, query: str) -> None:
    answer = await bed.get(f"/herd/v1/requests?{query}")
    assert answer.status == 400
    assert answer.json()["error"]["message"]


async def test_engines_come_and_go(bed: Testbed) -> None:
    assert await own(bed, "engines") == {"engines": []}
    other = await bed.add("other")
    asked = bed.ask("/herd/v1/engines", {"url": f"{other.server.url}/v1?name=mine&slots=2"})
    added = await asked
    assert added.status == 201
    node = added.json()["node"]
    assert added.json() == {"node": node, "name": "mine", "url": other.server.url}
    entries = (await own(bed, "engines"))["engines"]
    assert entries == [
        {"node": other.node, "name": "other", "url": other.tap.url},
        {"node": node, "name": "mine", "url": other.server.url},
    ]
    nodes = bed.router.driver.scheduler.nodes
    await until(lambda: node in nodes and nodes[node].replicas, "the new engine")
    async with bed.http.delete(f"/herd/v1/engines/{node}") as response:
        assert response.status == 204
        assert await response.read() == b""
    assert node not in nodes
    assert [entry["name"] for entry in (await own(bed, "engines"))["engines"]] == ["other"]


async def test_what_is_added_is_asked(bed: Testbed) -> None:
    hidden = await bed.add("hidden")
    async with bed.http.delete(f"/herd/v1/engines/{hidden.node}"):
        pass
    assert (await bed.ask("/api/chat", body("/api/chat"))).status == 503
    assert (await bed.ask("/herd/v1/engines", {"url": f"{hidden.tap.url}?name=back"})).status == 201
    nodes = bed.router.driver.scheduler.nodes
    await until(lambda: hidden.node in nodes and nodes[hidden.node].replicas, "the engine")
    answer = await bed.ask("/api/chat", body("/api/chat"))
    assert answer.headers["Herd-Node"] == "back"


async def test_a_stream_of_an_engine_that_is_removed_may_end(bed: Testbed) -> None:
    engine = await bed.add(decode_rate=20.0)
    async with bed.http.post("/api/chat", json=body("/api/chat")) as response:
        await response.content.readline()
        async with bed.http.delete(f"/herd/v1/engines/{engine.node}") as removed:
            assert removed.status == 204
        lines = (await response.read()).splitlines()
    assert b'"done":true' in lines[-1]
    assert (await bed.only_outcome()).ending == "completed"


async def test_a_request_on_an_engine_that_is_removed_before_it_answers_goes_elsewhere(
    bed: Testbed,
) -> None:
    first = await bed.add("first", prefill_rate=1.0, facts=FAST)
    await bed.add("second", facts=SLOW)
    asked = asyncio.create_task(bed.ask("/api/chat", body("/api/chat")))
    await until(lambda: first.server.running == 1, "the job")
    async with bed.http.delete(f"/herd/v1/engines/{first.node}") as response:
        assert response.status == 204
    answer = await asked
    assert (answer.status, answer.headers["Herd-Node"]) == (200, "second")
    await until(lambda: first.server.cancelled == 1, "the end of the first job")


@pytest.mark.parametrize(
    "new",
    [
        {},
        {"url": 5},
        {"url": "ftp://x"},
        {"url": "nonsense"},
        {"url": "http://127.0.0.1:1?memory=lots"},
        {"url": "http://127.0.0.1:1?api_key_env=PATH"},
        {"url": "http://127.0.0.1:1", "more": 1},
        [],
    ],
)
async def test_an_engine_that_cannot_be_is_refused(bed: Testbed, new: Any) -> None:
    answer = await bed.ask("/herd/v1/engines", new)
    assert answer.status == 400
    assert answer.json()["error"]["message"]
    assert await own(bed, "engines") == {"engines": []}


async def test_an_engine_is_not_added_twice(bed: Testbed) -> None:
    engine = await bed.add()
    answer = await bed.ask("/herd/v1/engines", {"url": engine.tap.url})
    assert answer.status == 400
    assert "in the fleet already" in answer.json()["error"]["message"]


async def test_an_engine_that_is_not_there_cannot_be_removed(bed: Testbed) -> None:
    async with bed.http.delete("/herd/v1/engines/url:nowhere:1") as response:
        assert response.status == 404


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Origin": "https://evil.example"}],
    ids=["host", "origin"],
)
async def test_a_stranger_changes_nothing(bed: Testbed, headers: dict[str, str]) -> None:
    engine = await bed.add()
    added = await bed.ask("/herd/v1/engines", {"url": "http://127.0.0.1:1"}, headers=headers)
    assert added.status == 403
    async with bed.http.delete(f"/herd/v1/engines/{engine.node}", headers=headers) as response:
        assert response.status == 403
    assert len((await own(bed, "engines"))["engines"]) == 1


async def test_an_engines_key_is_shown_to_it_and_to_nobody_else(bed: Testbed) -> None:
    other = await bed.add("other")
    await bed.declare(f"{other.tap.url.replace('127.0.0.1', 'localhost')}?name=keyed&api_key=hush")
    for path in ("fleet", "engines", "requests"):
        assert "hush" not in str(await own(bed, path))
    async with bed.http.delete(f"/herd/v1/engines/{other.node}"):
        pass
    answer = await bed.ask("/api/chat", body("/api/chat"), headers={"Authorization": "Bearer mine"})
    assert answer.headers["Herd-Node"] == "keyed"
    [traffic] = other.tap.on("/api/chat")
    assert traffic.request.headers.get_all("Authorization") == ["Bearer hush"]
