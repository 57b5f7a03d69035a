from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from herd.core.request import Result, Timings, Usage
from herd.wire import openai_answer as openai
from herd.wire.ollama_answer import (
    Ending,
    Metrics,
    Part,
    answer_line,
    created_at,
    done_reason,
    error_line,
    logprobs_of,
    measure,
    tool_call,
)

METRICS = Metrics(
    total_duration=1,
    load_duration=0,
    prompt_eval_count=3,
    prompt_eval_duration=4,
    eval_count=5,
    eval_duration=6,
)


@pytest.mark.parametrize("endpoint", ["/api/chat", "/api/generate"])
def test_lines_have_ollamas_keys_in_its_order(
    endpoint: str, recorded: Callable[..., str], shape: Callable[[Any], Any]
) -> None:
    theirs = [
        json.loads(line)
        for line in recorded(
            "ollama",
            endpoint,
            stream=None,
            format=None,
            raw=None,
            think=None,
            options={"num_predict": 5 if endpoint.endswith("e") else 6, "temperature": 0},
        ).splitlines()
    ]
    theirs[-1].pop("context", None)

    middle = answer_line(endpoint, "m", 1.5, Part(text="The"))
    last = answer_line(endpoint, "m", 1.5, ending=Ending(reason="length", metrics=METRICS))

    assert shape(json.loads(middle)) == shape(theirs[0])
    assert shape(json.loads(last)) == shape(theirs[-1])


def test_thinking_stands_beside_the_text() -> None:
    part = Part(text="a", thinking="b")

    chat = json.loads(answer_line("/api/chat", "m", 0, part))
    generate = json.loads(answer_line("/api/generate", "m", 0, part))

    assert list(chat["message"].items()) == [
        ("role", "assistant"),
        ("content", "a"),
        ("thinking", "b"),
    ]
    assert list(generate) == ["model", "created_at", "response", "thinking", "done"]


def test_a_tool_call_has_its_arguments_as_an_object() -> None:
    part = Part(tool_calls=[tool_call(1, "id1", "f", b'{"city": "Paris"}')])

    line = json.loads(answer_line("/api/chat", "m", 0, part))

    assert line["message"]["tool_calls"] == [
        {"id": "id1", "function": {"index": 1, "name": "f", "arguments": {"city": "Paris"}}}
    ]


def test_arguments_stay_on_one_line_and_keep_their_numbers() -> None:
    call = tool_call(0, "", "f", b'{\n "a": 1.00,\n "b": [123456789012345678901234567890]\n}')

    assert msgspec.json.encode(call) == (
        b'{"function":{"index":0,"name":"f",'
        b'"arguments":{"a":1.00,"b":[123456789012345678901234567890]}}}'
    )


def test_no_arguments_are_an_empty_object() -> None:
    assert bytes(tool_call(0, "", "f", b" ").function.arguments) == b"{}"


@pytest.mark.parametrize("arguments", [b'{"a":', b"[1]", b"text"])
def test_arguments_that_are_no_object_are_refused(arguments: bytes) -> None:
    with pytest.raises(ValueError, match='"f" with arguments that are not a JSON object'):
        tool_call(0, "", "f", arguments)


@pytest.mark.parametrize(
    ("now", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1795428342.5, "2026-11-23T10:05:42.5Z"),
        (1795428342.036925, "2026-11-23T10:05:42.036925Z"),
    ],
)
def test_times_are_written_as_go_writes_them(now: float, text: str) -> None:
    assert created_at(now) == text


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("stop", "stop"), ("length", "length"), ("tool_calls", "stop"), ("function_call", "stop")],
)
def test_done_reasons(theirs: str, ours: str) -> None:
    assert done_reason(theirs) == ours


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_a_broken_off_answer_has_no_done_reason(reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        done_reason(reason)


def test_the_engines_clock_comes_first() -> None:
    result = Result(
        usage=Usage(prompt_tokens=42, completion_tokens=8),
        timings=Timings(prefill=0.25, decode=0.5),
    )

    assert measure(result, started=10.0, first=10.5, now=12.0) == Metrics(
        total_duration=2_000_000_000,
        load_duration=0,
        prompt_eval_count=42,
        prompt_eval_duration=250_000_000,
        eval_count=8,
        eval_duration=500_000_000,
    )


def test_without_its_clock_the_first_token_divides_the_time() -> None:
    metrics = measure(Result(), started=10.0, first=10.5, now=12.0)

    assert metrics.prompt_eval_duration == 500_000_000
    assert metrics.eval_duration == 1_500_000_000


def test_without_a_first_token_all_time_is_evaluation() -> None:
    metrics = measure(Result(), started=10.0, first=None, now=12.0)

    assert (metrics.prompt_eval_duration, metrics.eval_duration) == (0, 2_000_000_000)


def test_durations_are_never_negative() -> None:
    metrics = measure(Result(), started=10.0, first=9.0, now=8.0)

    assert (metrics.total_duration, metrics.prompt_eval_duration) == (0, 0)


def test_unknown_counts_are_left_out() -> None:
    metrics = measure(Result(), started=0, first=None, now=1)

    line = json.loads(
        answer_line("/api/chat", "m", 1, ending=Ending(reason="stop", metrics=metrics))
    )

    assert "eval_count" not in line


def test_logprobs_have_ollamas_shape(
    recorded: Callable[..., str], shape: Callable[[Any], Any]
) -> None:
    theirs = json.loads(recorded("ollama", "/api/chat", logprobs=True))
    choice = openai.answers.decode(
        recorded("llamacpp", "/v1/chat/completions", logprobs=True)
    ).choices
    assert choice is not None

    ours = logprobs_of(openai.token_logprobs(choice[0]), 2)

    assert shape(msgspec.to_builtins(ours)) == shape(theirs["logprobs"])


def test_rivals_that_nobody_asked_for_are_left_out() -> None:
    token = openai.TokenLogprob("é", -1.0, None, [openai.TopToken("e", -2.0)])

    assert msgspec.to_builtins(logprobs_of([token], 0)) == [
        {"token": "é", "logprob": -1.0, "bytes": [195, 169]}
    ]


def test_no_logprobs_are_none() -> None:
    assert logprobs_of([], 2) is None


def test_an_error_is_an_object_of_its_text() -> None:
    assert error_line('a "b"') == b'{"error":"a \\"b\\""}'
