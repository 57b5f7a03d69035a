from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from herd.core.request import Result, Usage
from herd.wire.ollama_request import Endpoint, Translated
from herd.wire.ollama_response import BadAnswer, translate_error, translate_response

PATHS = {
    "/api/chat": "/v1/chat/completions",
    "/api/generate": "/v1/completions",
    "/api/embed": "/v1/embeddings",
    "/api/embeddings": "/v1/embeddings",
}
ENGINES = ["llamacpp", "vllm", "mlx"]


def asked(endpoint: Endpoint = "/api/chat", **fields: Any) -> Translated:
    return Translated(
        endpoint=endpoint,
        path=PATHS[endpoint],
        body=b"",
        stream=False,
        asked="SmolLM2:135m",
        **fields,
    )


def translate(translated: Translated, body: str | bytes | dict[str, Any]) -> tuple[Any, Result]:
    given = json.dumps(body) if isinstance(body, dict) else body
    data = given.encode() if isinstance(given, str) else given
    made, result = translate_response(translated, data, started=100.0, now=102.0)
    assert result.bytes_out == len(made)
    return json.loads(made), result


def choice(**message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_chat_has_ollamas_shape(
    engine: str, recorded: Callable[..., str], shape: Callable[[Any], Any]
) -> None:
    theirs = json.loads(recorded("ollama", "/api/chat", stream=False, format=None))

    ours, result = translate(asked(), recorded(engine, "/v1/chat/completions", stream=None))

    assert shape(ours) == shape(theirs)
    assert ours["model"] == "SmolLM2:135m"
    assert ours["message"]["content"] == "The capital of France is Paris."
    assert (ours["prompt_eval_count"], ours["eval_count"]) == (42, 8)
    assert (ours["done_reason"], result.finish_reason) == ("stop", "stop")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_raw_completion_has_ollamas_shape(
    engine: str, recorded: Callable[..., str], shape: Callable[[Any], Any]
) -> None:
    theirs = json.loads(recorded("ollama", "/api/generate", raw=True))

    ours, _ = translate(asked("/api/generate"), recorded(engine, "/v1/completions", stream=None))

    assert shape(ours) == shape(theirs)
    assert ours["response"].strip().startswith("a canvas of")
    assert ours["done_reason"] == "length"


@pytest.mark.parametrize("engine", ["llamacpp", "vllm"])
def test_logprobs_have_ollamas_shape(
    engine: str, recorded: Callable[..., str], shape: Callable[[Any], Any]
) -> None:
    theirs = json.loads(recorded("ollama", "/api/chat", logprobs=True))

    ours, _ = translate(
        asked(logprobs=True, top_logprobs=2),
        recorded(engine, "/v1/chat/completions", logprobs=True),
    )

    assert shape(ours) == shape(theirs)
    assert [len(token["top_logprobs"]) for token in ours["logprobs"]] == [2, 2, 2, 2]


def test_logprobs_that_nobody_asked_for_stay_away(recorded: Callable[..., str]) -> None:
    ours, _ = translate(asked(), recorded("vllm", "/v1/chat/completions", logprobs=True))

    assert "logprobs" not in ours


def test_the_engines_clock_is_in_the_metrics(recorded: Callable[..., str]) -> None:
    ours, result = translate(asked(), recorded("llamacpp", "/v1/chat/completions", seed=1))

    assert ours["total_duration"] == 2_000_000_000
    assert ours["prompt_eval_duration"] == 222_569_000
    assert ours["eval_duration"] == 83_186_000
    assert result.timings.prefill == pytest.approx(0.222569)
    assert result.timings.decode == pytest.approx(0.083186)
    assert result.usage == Usage(prompt_tokens=42, completion_tokens=8, cached_tokens=0)


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_thoughts_are_thinking(field: str) -> None:
    ours, _ = translate(asked(), choice(content="Paris", **{field: "hm"}))

    assert ours["message"] == {"role": "assistant", "content": "Paris", "thinking": "hm"}


def test_tool_calls_have_their_arguments_as_objects() -> None:
    calls = [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": ""}},
        {"type": "function", "function": {"name": "h", "arguments": {"y": 2}}},
    ]
    body = choice(content=None, tool_calls=calls)
    body["choices"][0]["finish_reason"] = "tool_calls"

    ours, result = translate(asked(), body)

    assert ours["message"]["content"] == ""
    assert ours["message"]["tool_calls"] == [
        {"id": "a", "function": {"index": 0, "name": "f", "arguments": {"x": 1}}},
        {"id": "b", "function": {"index": 1, "name": "g", "arguments": {}}},
        {"function": {"index": 2, "name": "h", "arguments": {"y": 2}}},
    ]
    assert (ours["done_reason"], result.finish_reason) == ("stop", "tool_calls")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>", "not as it should be"),
        (b'{"choices":[{"text":"\xff"}]}', "not as it should be"),
        (b'{"choices":[{"index":"0"}]}', "not as it should be"),
        (b'{"error":{"message":"out of memory"}}', "^out of memory$"),
        (b"{}", "holds no choice"),
        (b'{"choices":[]}', "holds no choice"),
        (b'{"choices":[{"text":"a"}]}', "does not say how it ended"),
        (b'{"choices":[{"text":"a","finish_reason":"abort"}]}', "broke off"),
        (
            b'{"choices":[{"finish_reason":"length","message":{"tool_calls":[{"function":{"name":"f","arguments":"{\\"a"}}]}}]}',
            "not a JSON object",
        ),
    ],
)
def test_an_answer_that_is_none_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(BadAnswer, match=message):
        translate_response(asked(), body, started=0, now=1)


def vectors(*embeddings: list[float]) -> dict[str, Any]:
    data = [
        {"object": "embedding", "index": index, "embedding": embedding}
        for index, embedding in enumerate(embeddings)
    ]
    return {"object": "list", "data": data, "usage": {"prompt_tokens": 8, "total_tokens": 8}}


def test_embeddings_have_ollamas_shape(
    recorded: Callable[..., str], shape: Callable[[Any], Any]
) -> None:
    theirs = json.loads(recorded("ollama", "/api/embed", input=["a cat", "a dog"]))

    ours, result = translate(asked("/api/embed", inputs=2), vectors([0.6, 0.8], [1.0, 0.0]))

    assert shape(ours) == shape(theirs)
    assert ours["embeddings"] == [[0.6, 0.8], [1.0, 0.0]]
    assert result.usage.prompt_tokens == 8


def test_the_older_embedding_has_ollamas_shape(
    recorded: Callable[..., str], shape: Callable[[Any], Any]
) -> None:
    theirs = json.loads(recorded("ollama", "/api/embeddings"))

    ours, _ = translate(asked("/api/embeddings"), vectors([3.0, 4.0]))

    assert shape(ours) == shape(theirs)
    assert ours == {"embedding": [3.0, 4.0]}


def test_embeddings_are_brought_to_length_one() -> None:
    ours, _ = translate(asked("/api/embed", inputs=2), vectors([3.0, 4.0], [0.0, 0.0]))

    assert ours["embeddings"] == [[0.6, 0.8], [0.0, 0.0]]


def test_embeddings_are_cut_and_then_brought_to_length_one() -> None:
    ours, _ = translate(asked("/api/embed", dimensions=2), vectors([3.0, 4.0, 12.0]))

    assert ours["embeddings"] == [[0.6, 0.8]]


def test_cutting_equals_what_ollama_does(recorded: Callable[..., str]) -> None:
    theirs = json.loads(recorded("ollama", "/api/embed", dimensions=64))["embeddings"][0]
    whole = [value / 7 for value in theirs] + [0.5] * 320

    ours, _ = translate(asked("/api/embed", dimensions=64), vectors(whole))

    assert ours["embeddings"][0] == pytest.approx(theirs, abs=1e-6)
    assert math.hypot(*ours["embeddings"][0]) == pytest.approx(1)


def test_embeddings_come_in_the_order_of_their_texts() -> None:
    body = vectors([1.0, 0.0], [0.0, 1.0])
    body["data"].reverse()

    ours, _ = translate(asked("/api/embed", inputs=2), body)

    assert ours["embeddings"] == [[1.0, 0.0], [0.0, 1.0]]


def test_an_unknown_count_is_left_out() -> None:
    body = vectors([1.0])
    del body["usage"]

    ours, _ = translate(asked("/api/embed"), body)

    assert "prompt_eval_count" not in ours


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (vectors([1.0]), "1 embeddings for 2 texts"),
        ({"data": [{"embedding": "AAAA"}]}, "not as it should be"),
        ({"error": "no"}, "not as it should be"),
    ],
)
def test_embeddings_that_are_none_are_refused(body: dict[str, Any], message: str) -> None:
    with pytest.raises(BadAnswer, match=message):
        translate(asked("/api/embed", inputs=2), body)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error":{"code":400,"message":"too long","type":"x"}}', "too long"),
        (b'{"error":"Repo id must use ..."}', "Repo id must use ..."),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b"Bad Gateway", "Bad Gateway"),
        (b"", "the engine answered with status 502"),
    ],
)
def test_errors_take_ollamas_shape(body: bytes, text: str) -> None:
    assert json.loads(translate_error(502, body)) == {"error": text}
