"""The emulated engine as a server: official clients, timing, disconnects, faults."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import anthropic
import msgspec
import ollama
import openai
import pytest

from herd.sim.faults import Faults
from herd.sim.server import EmulatedServer, EngineDialect
from herd.sim.spec import EngineSpec, ModelSpec

MB = 1_000_000
CHAT = "llama3.2:3b"
EMBEDDER = "embedder:latest"
HELLO = [{"role": "user", "content": "Say hello to everyone here, please."}]


def spec(**changes: Any) -> EngineSpec:
    given: dict[str, Any] = {
        "models": (
            ModelSpec(name=CHAT, weight_bytes=10 * MB, capabilities=("completion", "tools")),
            ModelSpec(
                name=EMBEDDER,
                weight_bytes=MB,
                capabilities=("embedding",),
                embedding_length=32,
                context_length=64,
            ),
        ),
        "memory_bytes": 100 * MB,
        "load_rate": 1000.0 * MB,
        "prefill_rate": 10_000.0,
        "decode_rate": 200.0,
        "alpha": 0.0,
        "slots": 2,
    }
    return EngineSpec(**{**given, **changes})


@pytest.fixture
async def server() -> AsyncIterator[EmulatedServer]:
    async with EmulatedServer(spec(), answer_tokens=(10, 10)) as running:
        yield running


@pytest.fixture
async def vllm() -> AsyncIterator[EmulatedServer]:
    async with EmulatedServer(spec(slots=64), dialect="openai", answer_tokens=(10, 10)) as running:
        yield running


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Poll until a condition holds; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.005)


def lines(body: bytes) -> list[Any]:
    return [msgspec.json.decode(line) for line in body.splitlines()]


async def chat(http: aiohttp.ClientSession, url: str, **more: Any) -> tuple[int, bytes]:
    body = {"model": CHAT, "messages": HELLO, **more}
    async with http.post(f"{url}/api/chat", json=body) as response:
        return response.status, await response.read()


# --- official clients ---


async def test_the_ollama_client_chats_streams_embeds_and_lists(server: EmulatedServer) -> None:
    client = ollama.AsyncClient(host=server.url)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(client._client.aclose)
        whole = await client.chat(model=CHAT, messages=HELLO)
        parts = [part async for part in await client.chat(model=CHAT, messages=HELLO, stream=True)]
        vectors = await client.embed(model=EMBEDDER, input=["one", "two"])
        listed = await client.list()
        loaded = await client.ps()
        shown = await client.show(CHAT)

    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert (parts[-1].done_reason, parts[-1].eval_count) == ("stop", 10)
    assert [len(vector) for vector in vectors.embeddings] == [32, 32]
    assert {model.model for model in listed.models} == {CHAT, EMBEDDER}
    assert {model.model for model in loaded.models} == {CHAT, EMBEDDER}
    assert shown.capabilities == ["completion", "tools"]


@pytest.mark.parametrize("dialect", ["ollama", "openai"])
async def test_the_openai_client_chats_and_streams(dialect: Any) -> None:
    async with (
        EmulatedServer(spec(), dialect=dialect, answer_tokens=(10, 10)) as server,
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client,
    ):
        messages: Any = HELLO
        whole = await client.chat.completions.create(model=CHAT, messages=messages)
        stream = await client.chat.completions.create(
            model=CHAT, messages=messages, stream=True, stream_options={"include_usage": True}
        )
        parts = [part async for part in stream]
        completion = await client.completions.create(model=CHAT, prompt="hi", max_tokens=3)
        models = await client.models.list()

    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == whole.choices[0].message.content
    assert parts[-1].usage is not None
    assert parts[-1].usage.completion_tokens == 10
    assert completion.choices[0].finish_reason == "length"
    assert CHAT in [model.id for model in models.data]


async def test_the_openai_client_gets_the_same_vectors_in_its_base64(
    server: EmulatedServer, http: aiohttp.ClientSession
) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        encoded = await client.embeddings.create(model=EMBEDDER, input="a cat")
    async with http.post(
        f"{server.url}/api/embed", json={"model": EMBEDDER, "input": "a cat"}
    ) as response:
        plain = (await response.json())["embeddings"][0]

    assert encoded.data[0].embedding == pytest.approx(plain, abs=1e-6)
    assert sum(number * number for number in plain) == pytest.approx(1.0, abs=1e-6)


async def test_the_anthropic_client_chats_and_streams(server: EmulatedServer) -> None:
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none") as client:
        messages: Any = HELLO
        whole = await client.messages.create(model=CHAT, max_tokens=50, messages=messages)
        async with client.messages.stream(model=CHAT, max_tokens=50, messages=messages) as stream:
            text = "".join([part async for part in stream.text_stream])
            final = await stream.get_final_message()

    assert isinstance(whole.content[0], anthropic.types.TextBlock)
    assert text == whole.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", 10)


async def test_the_openai_client_understands_the_errors(server: EmulatedServer) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        with pytest.raises(openai.NotFoundError, match="model 'nope' not found"):
            await client.chat.completions.create(
                model="nope", messages=[{"role": "user", "content": "x"}]
            )


# --- the answer ---


async def test_every_engine_and_dialect_gives_the_same_answer(
    server: EmulatedServer, vllm: EmulatedServer, http: aiohttp.ClientSession
) -> None:
    body = {"model": CHAT, "messages": HELLO}
    texts = []
    for url in (server.url, vllm.url):
        async with http.post(f"{url}/v1/chat/completions", json=body) as response:
            texts.append((await response.json())["choices"][0]["message"]["content"])
    _, native = await chat(http, server.url, stream=False)
    texts.append(msgspec.json.decode(native)["message"]["content"])

    assert len(set(texts)) == 1


async def test_another_question_gets_another_answer(
    server: EmulatedServer, http: aiohttp.ClientSession
) -> None:
    _, one = await chat(http, server.url)
    _, two = await chat(http, server.url, messages=[{"role": "user", "content": "Goodbye."}])

    assert [x["message"] for x in lines(one)] != [x["message"] for x in lines(two)]


async def test_a_schema_is_kept_to(server: EmulatedServer, http: aiohttp.ClientSession) -> None:
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "people": {"type": "integer"},
            "kind": {"enum": ["big", "small"]},
            "names": {"type": "array", "items": {"type": "string"}},
        },
    }
    _, body = await chat(http, server.url, format=schema)

    text = "".join(line["message"]["content"] for line in lines(body))
    value = msgspec.json.decode(text)
    assert list(value) == ["city", "people", "kind", "names"]
    assert isinstance(value["people"], int)
    assert value["kind"] in {"big", "small"}


async def test_a_conversations_next_turn_finds_its_prefix_cached(
    server: EmulatedServer, http: aiohttp.ClientSession
) -> None:
    long = [{"role": "user", "content": "word " * 2000}]
    _, first = await chat(http, server.url, messages=long, stream=False)
    said = msgspec.json.decode(first)
    turns = [*long, said["message"], {"role": "user", "content": "and then?"}]
    _, second = await chat(http, server.url, messages=turns, stream=False)

    assert said["prompt_eval_duration"] == pytest.approx(2e9 / 10, rel=0.05)
    assert msgspec.json.decode(second)["prompt_eval_duration"] < said["prompt_eval_duration"] / 20


# --- time ---


async def test_tokens_come_at_the_decode_rate(http: aiohttp.ClientSession) -> None:
    body = {"model": CHAT, "messages": HELLO}
    async with (
        EmulatedServer(spec(decode_rate=50.0), answer_tokens=(26, 26)) as server,
        http.post(f"{server.url}/api/chat", json=body) as response,
    ):
        times = [time.monotonic() async for line in response.content if line]

    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert times[-1] - times[0] == pytest.approx(0.5, abs=0.15)
    assert max(gaps) < 0.2


async def test_a_cold_model_takes_its_time_to_load(http: aiohttp.ClientSession) -> None:
    async with EmulatedServer(spec(load_rate=50.0 * MB), answer_tokens=(2, 2)) as server:
        cold = lines((await chat(http, server.url))[1])[-1]
        hot = lines((await chat(http, server.url))[1])[-1]

    assert cold["load_duration"] == pytest.approx(0.2e9, rel=0.3)
    assert hot["load_duration"] < 0.01e9


async def test_beyond_its_slots_requests_wait(
    server: EmulatedServer, http: aiohttp.ClientSession
) -> None:
    asked = [asyncio.create_task(chat(http, server.url)) for _ in range(5)]
    await until(lambda: (server.running, server.waiting) == (2, 3))

    assert [status for status, _ in await asyncio.gather(*asked)] == [200] * 5
    assert (server.running, server.waiting, server.served) == (0, 0, 5)


async def test_a_full_queue_answers_503_in_ollamas_words(http: aiohttp.ClientSession) -> None:
    async with EmulatedServer(spec(queue_limit=1, slots=1, decode_rate=20.0)) as server:
        asked = [asyncio.create_task(chat(http, server.url, options={"num_predict": 5}))]
        await until(lambda: server.running == 1)
        asked.append(asyncio.create_task(chat(http, server.url)))
        await until(lambda: server.waiting == 1)
        status, body = await chat(http, server.url)
        for task in asked:
            task.cancel()

    assert status == 503
    assert msgspec.json.decode(body) == {
        "error": "server busy, please try again.  maximum pending requests exceeded"
    }


async def test_num_ctx_is_what_ps_tells_of_the_loaded_model(
    server: EmulatedServer, http: aiohttp.ClientSession
) -> None:
    await chat(http, server.url, options={"num_ctx": 1024}, keep_alive=-1)
    async with http.get(f"{server.url}/api/ps") as response:
        row = (await response.json())["models"][0]

    assert (row["name"], row["context_length"]) == (CHAT, 1024)
    assert row["expires_at"] > "2300"


async def test_a_copy_is_listed_by_the_name_that_loaded_it(
    server: EmulatedServer, http: aiohttp.ClientSession
) -> None:
    await http.post(f"{server.url}/api/copy", json={"source": CHAT, "destination": "alias"})
    await chat(http, server.url, model="alias")
    await chat(http, server.url)
    async with http.get(f"{server.url}/api/ps") as response:
        rows = (await response.json())["models"]

    assert [row["name"] for row in rows] == ["alias:latest"]


# --- clients that leave ---


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_its_slot_at_once(stream: bool) -> None:
    async with EmulatedServer(spec(decode_rate=5.0), answer_tokens=(500, 500)) as server:
        async with aiohttp.ClientSession() as http:
            asked = asyncio.create_task(chat(http, server.url, stream=stream))
            await until(lambda: server.running == 1)
            asked.cancel()
            await until(lambda: server.running == 0, seconds=1.0)

        assert (server.cancelled, server.served) == (1, 0)


async def test_a_client_that_leaves_the_queue_is_forgotten() -> None:
    async with (
        EmulatedServer(spec(decode_rate=5.0, slots=1), answer_tokens=(500, 500)) as server,
        aiohttp.ClientSession() as http,
    ):
        first = asyncio.create_task(chat(http, server.url))
        await until(lambda: server.running == 1)
        second = asyncio.create_task(chat(http, server.url))
        await until(lambda: server.waiting == 1)
        second.cancel()
        await until(lambda: server.waiting == 0, seconds=1.0)

        assert (server.running, server.cancelled) == (1, 1)
        first.cancel()


# --- callers ---


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "router.example.org"}, 403),
        ({"Host": "localhost:1234"}, 200),
        ({"Host": "192.168.1.7"}, 200),
        ({"Host": "studio.local"}, 200),
        ({"Origin": "https://example.org"}, 403),
        ({"Origin": "http://localhost:3000"}, 200),
        ({"Origin": "tauri://app"}, 200),
    ],
)
async def test_foreign_hosts_and_origins_are_refused_as_ollama_does(
    server: EmulatedServer, http: aiohttp.ClientSession, headers: dict[str, str], status: int
) -> None:
    async with http.get(f"{server.url}/api/version", headers=headers) as response:
        assert (response.status, (await response.read()) == b"") == (status, status == 403)


# --- faults ---


async def test_an_emulated_status_comes_before_any_work(
    server: EmulatedServer, http: aiohttp.ClientSession
) -> None:
    server.faults.status = 500

    assert (await chat(http, server.url))[0] == 500
    assert (server.served, server.counters.broken) == (0, 1)


async def test_a_cut_stream_breaks_after_its_tokens(
    server: EmulatedServer, http: aiohttp.ClientSession
) -> None:
    server.faults.break_after = 3
    async with http.post(
        f"{server.url}/api/chat", json={"model": CHAT, "messages": HELLO}
    ) as response:
        got = [await response.content.readline() for _ in range(3)]
        with pytest.raises(aiohttp.ClientError):
            await response.content.readline()

    assert all(got)
    await until(lambda: server.running == 0)
    assert (server.cancelled, server.counters.broken) == (0, 1)


async def test_a_silent_end_has_no_terminator(
    server: EmulatedServer, http: aiohttp.ClientSession
) -> None:
    server.faults.break_after = 3
    server.faults.how = "silent"

    status, body = await chat(http, server.url)

    assert status == 200
    assert [line["done"] for line in lines(body)] == [False] * 3


async def test_an_error_line_ends_a_stream_of_status_200(
    server: EmulatedServer, http: aiohttp.ClientSession
) -> None:
    server.faults.break_after = 3
    server.faults.how = "error"

    status, body = await chat(http, server.url)

    assert status == 200
    assert list(lines(body)[-1]) == ["error"]


async def test_a_break_after_the_whole_text_loses_the_terminator_alone(
    server: EmulatedServer, http: aiohttp.ClientSession
) -> None:
    server.faults.break_after = 9
    server.faults.how = "silent"

    _, body = await chat(http, server.url)

    assert [line["done"] for line in lines(body)] == [False] * 9


async def test_a_stalled_stream_sends_no_more_but_stays_open(
    server: EmulatedServer, http: aiohttp.ClientSession
) -> None:
    server.faults.stall_after = 2
    async with http.post(
        f"{server.url}/api/chat", json={"model": CHAT, "messages": HELLO}
    ) as response:
        got = [await response.content.readline() for _ in range(2)]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(response.content.readline(), 0.3)

    assert [msgspec.json.decode(line)["done"] for line in got] == [False, False]


async def test_a_mute_engine_takes_requests_but_still_tells_about_itself(
    server: EmulatedServer, http: aiohttp.ClientSession
) -> None:
    server.faults.mute = True

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(chat(http, server.url), 0.2)
    async with http.get(f"{server.url}/api/version") as response:
        assert response.status == 200


async def test_a_frozen_engine_tells_nothing(http: aiohttp.ClientSession) -> None:
    async with EmulatedServer(spec(), faults=Faults(frozen=True)) as server:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(http.get(f"{server.url}/api/version"), 0.2)


async def test_a_stopped_engine_refuses_and_comes_back_on_its_port_with_nothing_loaded(
    server: EmulatedServer, http: aiohttp.ClientSession
) -> None:
    url = server.url
    await chat(http, url)
    await server.stop()
    with pytest.raises(aiohttp.ClientConnectorError):
        await http.get(f"{url}/api/version")
    await server.start()

    assert server.url == url
    async with http.get(f"{url}/api/ps") as response:
        assert (await response.json())["models"] == []


async def test_stopping_breaks_the_streams_that_run(http: aiohttp.ClientSession) -> None:
    async with EmulatedServer(spec(decode_rate=5.0), answer_tokens=(500, 500)) as server:
        asked = asyncio.create_task(chat(http, server.url))
        await until(lambda: server.running == 1)
        await server.stop()

        with pytest.raises(aiohttp.ClientError):
            await asked


# --- vLLM ---


async def test_vllm_tells_its_load(vllm: EmulatedServer, http: aiohttp.ClientSession) -> None:
    vllm.throttle(0.05)
    body = {"model": CHAT, "messages": HELLO, "stream": True}
    async with http.post(f"{vllm.url}/v1/chat/completions", json=body) as response:
        await response.content.readline()
        async with http.get(f"{vllm.url}/metrics") as metrics:
            text = await metrics.text()

    assert f'vllm:num_requests_running{{engine="0",model_name="{CHAT}"}} 1.0\n' in text


async def metrics(http: aiohttp.ClientSession, url: str) -> dict[str, float]:
    async with http.get(f"{url}/metrics") as response:
        rows = (await response.text()).splitlines()
    pairs = (row.rsplit(" ", 1) for row in rows if not row.startswith("#"))
    return {name.partition("{")[0]: float(value) for name, value in pairs}


async def test_vllm_tells_how_full_its_cache_is_and_what_was_found_there(
    http: aiohttp.ClientSession,
) -> None:
    model = ModelSpec(name=CHAT, weight_bytes=MB, context_length=160, kv_bytes_per_token=1)
    small = spec(models=(model,), memory_bytes=MB + 160, decode_rate=50.0)
    text = " ".join(f"word{number}" for number in range(45))
    messages = [{"role": "user", "content": text}]
    body = {"model": CHAT, "messages": messages, "stream": True, "min_tokens": 10}
    async with EmulatedServer(small, dialect="openai", answer_tokens=(1, 1)) as server:
        for _ in range(2):
            async with http.post(f"{server.url}/v1/chat/completions", json=body) as response:
                await response.content.readline()
                during = await metrics(http, server.url)
                await response.read()
        after = await metrics(http, server.url)

    # A prompt of 47 tokens with its roles has three blocks of ten, and two of them are whole.
    assert during["vllm:kv_cache_usage_perc"] == pytest.approx(0.3)
    assert after["vllm:kv_cache_usage_perc"] == 0.0
    assert after["vllm:prefix_cache_hits_total"] == 32.0
    assert after["vllm:num_preemptions_total"] == 0.0


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/api/chat", "ollama"),
        ("/v1/chat/completions", "ollama"),
        ("/v1/chat/completions", "openai"),
    ],
)
async def test_min_tokens_fixes_the_length_of_an_answer(
    path: str, dialect: EngineDialect, http: aiohttp.ClientSession
) -> None:
    body: dict[str, Any] = {"model": CHAT, "messages": HELLO, "stream": False}
    body |= {"options": {"min_tokens": 7}} if path == "/api/chat" else {"min_tokens": 7}
    async with (
        EmulatedServer(spec(), dialect=dialect, answer_tokens=(1, 1)) as server,
        http.post(f"{server.url}{path}", json=body) as response,
    ):
        answer = await response.json()

    counted = answer.get("eval_count") or answer["usage"]["completion_tokens"]
    reason = answer.get("done_reason") or answer["choices"][0]["finish_reason"]
    assert (counted, reason) == (7, "stop")


async def test_vllm_answers_503_when_its_queue_is_full(http: aiohttp.ClientSession) -> None:
    full = spec(slots=1, queue_limit=0, decode_rate=5.0)
    body = {"model": CHAT, "messages": HELLO, "stream": True}
    async with EmulatedServer(full, dialect="openai") as server:
        url = f"{server.url}/v1/chat/completions"
        async with http.post(url, json=body), http.post(url, json=body) as second:
            assert (second.status, second.content_type) == (503, "application/json")


async def test_vllm_keeps_its_model_and_has_no_ollama_api(
    vllm: EmulatedServer, http: aiohttp.ClientSession
) -> None:
    async with http.get(f"{vllm.url}/v1/models") as response:
        row = (await response.json())["data"][0]
    async with http.post(f"{vllm.url}/api/chat", json={"model": CHAT}) as response:
        status = response.status

    assert (row["id"], row["owned_by"], row["max_model_len"]) == (CHAT, "vllm", 4096)
    assert status == 404
    assert [each.model for each in vllm.engine.residents()] == [CHAT]


# --- load, and the command ---


async def test_two_hundred_streams_at_once_lose_no_token(http: aiohttp.ClientSession) -> None:
    async with EmulatedServer(spec(slots=200, decode_rate=20.0), answer_tokens=(10, 10)) as server:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as many:
            before = time.process_time()
            bodies = await asyncio.gather(*(chat(many, server.url) for _ in range(200)))
            spent = time.process_time() - before

    assert {len(lines(body)) for _, body in bodies} == {10}
    assert server.served == 200
    assert spent < 2.5  # seconds for 2,000 tokens, both ends in this process


async def test_the_command_prints_its_url_and_serves(http: aiohttp.ClientSession) -> None:
    command = ["-m", "herd.sim", "--model", "tiny:1b=1e6,completion,tools", "--answer-tokens", "5"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, "--decode-rate", "500", stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        url = (await asyncio.wait_for(process.stdout.readline(), 20)).decode().strip()
        status, body = await chat(http, url, model="tiny:1b")
    finally:
        process.terminate()
        code = await asyncio.wait_for(process.wait(), 10)

    assert url.startswith("http://127.0.0.1:")
    assert (status, len(lines(body)), code) == (200, 5, 0)
