"""Emulated engines are held to what real ones answered, request by request, field for field."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from herd.sim.server import EmulatedServer
from herd.sim.spec import EngineSpec, ModelSpec

RECORDINGS = Path(__file__).parents[1] / "recordings"

#: Recorded paths that the emulated engine does not serve, and why.
EXCLUDED = {
    "ollama": {
        "/v1/responses": "no emulated engine has the Responses API",
    },
    "vllm": {
        "/v1/responses": "no emulated engine has the Responses API",
        "/v1/messages": "the emulated vLLM stands for engines that speak OpenAI's API alone",
        "/v1/messages/count_tokens": "as /v1/messages",
        "/tokenize": "no emulated engine has a real tokeniser",
        "/metrics": "only what tells of load is emulated; compared in a test of its own",
    },
}

#: Headers that a client or router can depend on. Lengths are compared by their presence.
HEADERS = (
    *("content-type", "transfer-encoding", "content-length", "allow", "cache-control"),
    *("server", "vary"),
)

#: Fields whose values differ from answer to answer; their types are compared.
MASKED = {
    *("modified_at", "created_at", "created", "expires_at", "id"),
    *("root", "size", "size_vram", "modelfile", "parameters", "template"),
    *("content", "response", "text", "token", "logprob", "embedding"),
    *("total_duration", "load_duration", "prompt_eval_duration", "eval_duration"),
    *("prompt_eval_count", "prompt_tokens", "total_tokens", "input_tokens"),
    *("eval_count", "completion_tokens", "output_tokens"),
}
#: Facts of one model's weights, which no emulated model has: any object, any list.
OPAQUE = {"model_info", "tensors"}
#: Lists of numbers whose length is part of the answer, unless the recorder cut it.
VECTORS = {"embedding", "embeddings"}
DIGEST = re.compile(r"[0-9a-f]{64}|(?<=0-)[0-9a-f]{8}$")


Replies = dict[tuple[str, int], tuple[int, dict[str, str], str]]


class Recording(msgspec.Struct):
    exchanges: list[dict[str, Any]]


def exchanges(engine: str) -> list[dict[str, Any]]:
    data = (RECORDINGS / f"{engine}.json").read_bytes()
    return msgspec.json.decode(data, type=Recording).exchanges


def served() -> list[Any]:
    """Every recorded exchange that has to be matched, as parameters of a test."""
    return [
        pytest.param(
            (engine, number),
            exchange,
            id=f"{engine} {number} {request['method']} {request['path']}",
        )
        for engine, excluded in EXCLUDED.items()
        for number, exchange in enumerate(exchanges(engine))
        if (request := exchange["request"])["path"] not in excluded
    ]


def recorded_models() -> tuple[ModelSpec, ...]:
    """The three models as the recorded /api/tags lists them."""
    tags = next(x for x in exchanges("ollama") if x["request"]["path"] == "/api/tags")
    return tuple(
        ModelSpec(
            name=row["name"],
            weight_bytes=row["size"],
            digest=row["digest"],
            family=row["details"]["family"],
            parameter_size=row["details"]["parameter_size"],
            quantization=row["details"]["quantization_level"],
            context_length=row["details"]["context_length"],
            embedding_length=row["details"]["embedding_length"],
            capabilities=tuple(row["capabilities"]),
            modified=1_795_426_071.0,
        )
        for row in msgspec.json.decode(tags["response"]["body"])["models"]
    )


def server(engine: str) -> EmulatedServer:
    """The recorded machine, with answers as long as the recorded ones, but faster."""
    models = recorded_models()
    if engine == "vllm":
        models = tuple(model for model in models if model.name == "smollm2:135m")
    spec = EngineSpec(
        models=models,
        memory_bytes=10**9,
        load_rate=1e10,
        prefill_rate=1e5,
        decode_rate=1e4,
        default_context=2048,
    )
    return EmulatedServer(
        spec,
        dialect="openai" if engine == "vllm" else "ollama",
        version="0.33.0-rc2",
        gpu=False,
        answer_tokens=(8, 8),
    )


async def replay(
    session: aiohttp.ClientSession, url: str, request: dict[str, Any]
) -> tuple[int, dict[str, str], str]:
    """Send one recorded request; return status, headers and body."""
    body = request["body"]
    if body is not None:
        body = body.encode() if isinstance(body, str) else msgspec.json.encode(body)
    async with session.request(
        request["method"],
        url + request["path"],
        data=body,
        headers={"Content-Type": "application/json"},
    ) as response:
        headers = {key.lower(): value for key, value in response.headers.items()}
        return response.status, headers, await response.text()


async def replay_all() -> Replies:
    replies: Replies = {}
    for engine, excluded in EXCLUDED.items():
        async with server(engine) as emulated, aiohttp.ClientSession() as session:
            for number, exchange in enumerate(exchanges(engine)):
                request = exchange["request"]
                if request["path"] not in excluded:
                    replies[engine, number] = await replay(session, emulated.url, request)
    return replies


@pytest.fixture(scope="module")
def replies() -> Replies:
    """Every recorded request, replayed in its order against one server for each engine."""
    return asyncio.run(replay_all())


@pytest.mark.parametrize(("key", "exchange"), served())
def test_status_and_headers_are_the_recorded_ones(
    key: tuple[str, int], exchange: dict[str, Any], replies: Replies
) -> None:
    status, headers, _ = replies[key]
    recorded = exchange["response"]

    assert status == recorded["status"]
    assert relevant(headers) == relevant(recorded["headers"])


@pytest.mark.parametrize(("key", "exchange"), served())
def test_every_frame_has_the_recorded_shape(
    key: tuple[str, int], exchange: dict[str, Any], replies: Replies
) -> None:
    _, _, body = replies[key]
    recorded = exchange["response"]

    cut = recorded["cut"]
    if cut:  # re-encoded by the recorder, with shortened lists and without the last newline
        body = body.rstrip("\n")
    assert shape(frames(body), cut=cut) == shape(frames(recorded["body"]), cut=cut)


@pytest.mark.parametrize("how", ["/api/chat", "/v1/chat/completions", "/v1/messages"])
async def test_a_dying_model_ends_a_stream_as_recorded(how: str) -> None:
    """After some tokens comes exactly what a real one sent last, and a clean end."""
    recorded = next(
        exchange
        for exchange in msgspec.json.decode((RECORDINGS / "ollama-killed.json").read_bytes())[
            "exchanges"
        ]
        if exchange["request"]["path"] == how
    )
    request = {**recorded["request"]["body"], "model": "smollm2:135m"}
    async with server("ollama") as emulated, aiohttp.ClientSession() as session:
        emulated.faults.break_after = 3
        emulated.faults.how = "error"
        _, headers, body = await replay(
            session, emulated.url, {"method": "POST", "path": how, "body": request}
        )

    assert headers["content-type"] == recorded["content_type"]
    tail = recorded["tail"].replace('"smol"', '"smollm2:135m"')
    assert shape(frames(body))[-5:] == shape(frames(tail))[-5:]


async def test_the_metrics_that_tell_of_load_are_named_as_recorded() -> None:
    recorded = next(x for x in exchanges("vllm") if x["request"]["path"] == "/metrics")
    async with server("vllm") as emulated, aiohttp.ClientSession() as session:
        _, headers, body = await replay(session, emulated.url, recorded["request"])

    assert headers["content-type"] == recorded["response"]["headers"]["content-type"]
    names = {line.partition(" ")[0] for line in recorded["response"]["body"].splitlines()}
    emulated_names = {line.partition(" ")[0] for line in body.splitlines() if line[0] != "#"}
    assert 'vllm:num_requests_running{engine="0",model_name="smollm2:135m"}' in emulated_names
    own = {name for name in emulated_names if "request_success" in name or "config_info" in name}
    assert emulated_names - own <= names


async def test_the_pool_is_told_by_labels_that_were_recorded() -> None:
    recorded = next(x for x in exchanges("vllm") if x["request"]["path"] == "/metrics")
    async with server("vllm") as emulated, aiohttp.ClientSession() as session:
        _, _, body = await replay(session, emulated.url, recorded["request"])

    def labels(text: str) -> dict[str, str]:
        (line,) = re.findall(r"^vllm:cache_config_info\{(.*)\} 1.0$", text, re.MULTILINE)
        return dict(re.findall(r'(\w+)="([^"]*)"', line))

    told, known = labels(body), labels(recorded["response"]["body"])
    assert told.keys() <= known.keys()
    for each in (told, known):
        size = int(each["block_size"]) * int(each["num_gpu_blocks"])
        assert int(each["kv_cache_size_tokens"]) == size


def test_nothing_is_excluded_that_was_not_recorded() -> None:
    for engine, excluded in EXCLUDED.items():
        assert set(excluded) <= {exchange["request"]["path"] for exchange in exchanges(engine)}


def test_the_order_of_keys_matters_to_the_comparison() -> None:
    assert shape([{"a": 1, "b": 2}]) != shape([{"b": 2, "a": 1}])


def test_constant_strings_matter_to_the_comparison() -> None:
    assert shape([{"error": "one"}]) != shape([{"error": "two"}])


def relevant(headers: dict[str, str]) -> dict[str, str]:
    return {
        key: "present" if key == "content-length" else headers[key]
        for key in HEADERS
        if key in headers
    }


def frames(body: str) -> list[Any]:
    """Split a body into JSON values, decoded, and what is between them, as it is."""
    found: list[Any] = []
    for part in re.split(r"(data: |\n\n|\n)", body):
        try:
            found.append(msgspec.json.decode(part))
        except msgspec.DecodeError:
            found.append(part)
    return found


def shape(value: Any, key: str = "", *, cut: bool = False) -> Any:
    """Reduce a value to what must be equal: keys in order, types, and constant values."""
    if key in OPAQUE:
        return type(value).__name__
    if isinstance(value, dict):
        return [(name_, shape(part, name_, cut=cut)) for name_, part in value.items()]
    if isinstance(value, list):
        return listed(value, key, cut=cut)
    if isinstance(value, int | float) and not isinstance(value, bool) and key in MASKED:
        return "number"
    if isinstance(value, str) and key in {"status", "system_fingerprint"}:
        return DIGEST.sub("digest", value)
    return type(value).__name__ if key in MASKED else value


def listed(value: list[Any], key: str, *, cut: bool) -> Any:
    """Reduce a list: numbers to their count where it matters, listings to a fixed order."""
    if value and all(isinstance(part, int | float) for part in value):
        return ("numbers", len(value) if key in VECTORS and not cut else None)
    if key in {"models", "data"}:
        value = sorted(value, key=lambda row: str(row.get("name") or row.get("id")))
    return [shape(part, key, cut=cut) for part in value]
