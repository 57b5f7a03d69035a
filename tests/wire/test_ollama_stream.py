from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.core.request import Result, Timings, Usage
from herd.wire.ollama_request import Endpoint, Translated
from herd.wire.ollama_stream import StreamTranslator
from herd.wire.sse import MAX_EVENT

ENGINES = ["llamacpp", "vllm", "mlx", "ollama"]
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}
NOW = 1795428342.5
DONE = b"data: [DONE]\n\n"


def asked(endpoint: Endpoint = "/api/chat", **fields: Any) -> Translated:
    path = "/v1/completions" if endpoint == "/api/generate" else "/v1/chat/completions"
    return Translated(
        endpoint=endpoint, path=path, body=b"", stream=True, asked="SmolLM2:135m", **fields
    )


def translator(translated: Translated | None = None) -> StreamTranslator:
    return StreamTranslator(translated or asked(), started=NOW - 2)


def run(stream: bytes, translated: Translated | None = None) -> tuple[list[Any], StreamTranslator]:
    made = translator(translated)
    out = made.feed(stream, NOW) + made.finish(NOW)
    assert made.result.bytes_out == len(out)
    lines = [json.loads(line) for line in out.splitlines()]
    assert made.result.frames == len(lines)
    return lines, made


def sse(*chunks: dict[str, Any]) -> bytes:
    return b"".join(b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in chunks)


def delta(finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": finish_reason, "delta": fields}]}


def fragment(index: int | None, arguments: object = None, **fields: Any) -> dict[str, Any]:
    """A part of a tool call; `name` goes into its function."""
    function = {name: fields.pop(name) for name in ("name",) if name in fields}
    if arguments is not None:
        function["arguments"] = arguments
    place = {} if index is None else {"index": index}
    return delta(tool_calls=[place | fields | {"function": function}])


def text(lines: list[Any]) -> str:
    return "".join(line["message"]["content"] for line in lines)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_chat_has_ollamas_lines(
    engine: str, recorded: Callable[..., str], shape: Callable[[Any], Any]
) -> None:
    theirs = [
        json.loads(line)
        for line in recorded("ollama", "/api/chat", stream=None, think=None).splitlines()
    ]

    lines, made = run(recorded(engine, "/v1/chat/completions", **WITH_USAGE).encode())

    assert [shape(line) for line in lines[:-1]] == [shape(theirs[0])] * (len(lines) - 1)
    assert shape(lines[-1]) == shape(theirs[-1])
    assert [line["message"]["content"] for line in lines] == [
        "The", " capital", " of", " France", " is", " Paris", ".", "",
    ]  # fmt: skip
    assert {line["model"] for line in lines} == {"SmolLM2:135m"}
    assert (lines[-1]["done_reason"], lines[-1]["eval_count"]) == ("stop", 8)
    assert (made.complete, made.error) == (True, None)


@pytest.mark.parametrize("engine", ["llamacpp", "vllm", "mlx"])
def test_a_completion_has_ollamas_lines(
    engine: str, recorded: Callable[..., str], shape: Callable[[Any], Any]
) -> None:
    theirs = json.loads(recorded("ollama", "/api/generate", prompt="The sky is").splitlines()[0])

    lines, made = run(
        recorded(engine, "/v1/completions", stream=True).encode(), asked("/api/generate")
    )

    assert [shape(line) for line in lines[:-1]] == [shape(theirs)] * (len(lines) - 1)
    assert "".join(line["response"] for line in lines).strip().startswith("a canvas of")
    assert lines[-1]["done_reason"] == "length"
    assert made.complete


@pytest.mark.parametrize("engine", ENGINES)
def test_a_split_anywhere_changes_nothing(engine: str, recorded: Callable[..., str]) -> None:
    stream = recorded(engine, "/v1/chat/completions", **WITH_USAGE).encode()
    whole = translator()
    expected = whole.feed(stream, NOW) + whole.finish(NOW)

    for at in range(len(stream) + 1):
        made = translator()
        out = made.feed(stream[:at], NOW) + made.feed(stream[at:], NOW) + made.finish(NOW)
        assert (out, made.result) == (expected, whole.result)


@given(data=st.data())
def test_many_splits_change_nothing(data: st.DataObject, recorded: Callable[..., str]) -> None:
    engine = data.draw(st.sampled_from(ENGINES))
    stream = recorded(engine, "/v1/chat/completions", **WITH_USAGE).encode()
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=50))
    edges = [0, *sorted(cuts), len(stream)]
    made = translator()

    out = b"".join(made.feed(stream[start:end], NOW) for start, end in pairwise(edges))

    assert out + made.finish(NOW) == translator().feed(stream, NOW)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))), st.booleans())
def test_no_text_is_lost_or_reordered(pieces: list[str], crlf: bool) -> None:
    stream = sse(*[delta(content=piece) for piece in pieces], delta("stop")) + DONE
    if crlf:
        stream = stream.replace(b"\n", b"\r\n")

    lines, made = run(stream)

    assert text(lines) == "".join(pieces)
    assert made.complete


def test_each_line_goes_out_as_its_event_comes() -> None:
    made = translator()

    assert b'"content":"a"' in made.feed(sse(delta(content="a")), NOW)
    assert made.feed(b'data: {"choices":[', NOW) == b""
    assert made.feed(sse(delta("stop")), NOW) != b""  # the stump and this are no event together
    assert made.error is not None


def test_the_engines_clock_is_in_the_last_line(recorded: Callable[..., str]) -> None:
    lines, made = run(recorded("llamacpp", "/v1/chat/completions", **WITH_USAGE).encode())

    assert lines[-1] == {
        "model": "SmolLM2:135m",
        "created_at": "2026-11-23T10:05:42.5Z",
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "stop",
        "total_duration": 2_000_000_000,
        "load_duration": 0,
        "prompt_eval_count": 42,
        "prompt_eval_duration": 12_511_000,
        "eval_count": 8,
        "eval_duration": 85_213_000,
    }
    assert made.result == Result(
        usage=Usage(prompt_tokens=42, completion_tokens=8, cached_tokens=41),
        timings=Timings(prefill=0.012511, decode=0.085213),
        finish_reason="stop",
        bytes_out=made.result.bytes_out,
        frames=8,
    )


def test_without_the_engines_clock_the_first_token_divides_the_time() -> None:
    made = StreamTranslator(asked(), started=100.0)
    made.feed(sse(delta(role="assistant", content="")), 100.1)
    made.feed(sse(delta(content="a")), 100.5)
    made.feed(sse(delta("stop")), 101.5)

    last = json.loads(made.feed(DONE, 102.0))

    assert last["prompt_eval_duration"] == 500_000_000
    assert last["eval_duration"] == 1_500_000_000


def test_a_last_piece_beside_the_finish_reason_is_kept() -> None:
    lines, _ = run(sse(delta(content="a"), delta("length", content="b")) + DONE)

    assert text(lines) == "ab"
    assert [line["done"] for line in lines] == [False, False, True]


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_thoughts_are_thinking(field: str) -> None:
    lines, _ = run(sse(delta(**{field: "hm"}), delta(content="a"), delta("stop")) + DONE)

    assert lines[0]["message"] == {"role": "assistant", "content": "", "thinking": "hm"}
    assert lines[1]["message"] == {"role": "assistant", "content": "a"}


def test_thoughts_of_a_prompt_are_thinking() -> None:
    lines, _ = run(sse(delta(reasoning="hm"), delta("stop")) + DONE, asked("/api/generate"))

    assert (lines[0]["response"], lines[0]["thinking"]) == ("", "hm")


def test_parallel_tool_calls_are_gathered_and_keep_their_order() -> None:
    lines, made = run(
        sse(
            delta(content="Looking."),
            fragment(0, "", id="a", name="f"),
            fragment(0, '{"city":'),
            fragment(1, '{"n"', id="b", name="g"),
            fragment(0, ' "Paris"}'),
            fragment(1, ": 1}"),
            delta("tool_calls"),
        )
        + DONE
    )

    assert [line["done"] for line in lines] == [False, False, True]
    assert lines[1]["message"] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "a", "function": {"index": 0, "name": "f", "arguments": {"city": "Paris"}}},
            {"id": "b", "function": {"index": 1, "name": "g", "arguments": {"n": 1}}},
        ],
    }
    assert lines[2]["done_reason"] == "stop"
    assert made.result.finish_reason == "tool_calls"


def test_tool_calls_without_an_index_begin_with_their_name() -> None:
    lines, _ = run(
        sse(
            fragment(None, "", id="a", name="f"),
            fragment(None, '{"x":1}'),
            fragment(None, {"y": 2}, name="g"),
            delta("tool_calls"),
        )
        + DONE
    )

    functions = [call["function"] for call in lines[0]["message"]["tool_calls"]]
    assert functions == [
        {"index": 0, "name": "f", "arguments": {"x": 1}},
        {"index": 1, "name": "g", "arguments": {"y": 2}},
    ]


def test_a_fragment_without_function_is_harmless() -> None:
    lines, _ = run(
        sse(delta(tool_calls=[{"index": 0, "id": "a"}]), fragment(0, name="f"), delta("tool_calls"))
        + DONE
    )

    assert lines[0]["message"]["tool_calls"][0]["function"]["name"] == "f"


def test_a_tool_call_that_was_cut_off_is_an_error() -> None:
    lines, made = run(sse(fragment(0, '{"city":', id="a", name="f"), delta("length")) + DONE)

    assert lines == [{"error": 'the model called "f" with arguments that are not a JSON object'}]
    assert not made.complete


def test_logprobs_go_with_their_token(recorded: Callable[..., str]) -> None:
    answer = json.loads(recorded("vllm", "/v1/chat/completions", logprobs=True))
    token = answer["choices"][0]["logprobs"]["content"][0]
    chunk = delta(content="The")
    chunk["choices"][0]["logprobs"] = {"content": [token]}

    lines, _ = run(sse(chunk, delta("stop")) + DONE, asked(logprobs=True, top_logprobs=2))

    assert lines[0]["logprobs"] == [token]
    assert "logprobs" not in lines[1]


def test_a_token_of_half_a_letter_has_a_line_for_its_logprob() -> None:
    chunk = delta(content="")
    chunk["choices"][0]["logprobs"] = {
        "content": [{"token": "\ufffd", "logprob": -1, "bytes": [240]}]
    }

    lines, _ = run(sse(chunk, delta("stop")) + DONE, asked(logprobs=True))

    assert lines[0]["logprobs"] == [{"token": "\ufffd", "logprob": -1, "bytes": [240]}]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (b'data: {"error":{"message":"out of memory","code":500}}\n\n', "out of memory"),
        (b'data: {"error":"gone"}\n\n', "gone"),
        (b'event: error\ndata: {"message":"gone"}\n\n', "gone"),
        (b'event: error\ndata: ""\n\n', "the engine reported an error without saying which"),
    ],
)
def test_an_error_in_the_stream_is_its_last_line(event: bytes, message: str) -> None:
    lines, made = run(sse(delta(content="a")) + event + sse(delta(content="b")) + DONE)

    assert text(lines[:1]) == "a"
    assert lines[1:] == [{"error": message}]
    assert (made.complete, made.error) == (False, message)


@pytest.mark.parametrize("event", [b"data: <html>\n\n", b'data: {"choices":[{"text":"\xff"}]}\n\n'])
def test_an_event_that_cannot_be_read_is_an_error(event: bytes) -> None:
    lines, made = run(sse(delta(content="a")) + event)

    assert lines[1]["error"].startswith("the engine sent an event that cannot be read")
    assert not made.complete


def test_an_endless_event_is_an_error() -> None:
    lines, made = run(b"data: " + b"x" * MAX_EVENT)

    assert lines == [{"error": "the engine sent an event of more than 16777216 bytes"}]
    assert not made.complete


def test_an_answer_that_the_engine_broke_off_is_an_error() -> None:
    lines, made = run(sse(delta(content="a"), delta("abort")) + DONE)

    assert lines[-1] == {"error": "the engine broke off its answer (abort)"}
    assert not made.complete


def test_nothing_comes_after_an_error() -> None:
    made = translator()
    made.feed(b'data: {"error":"gone"}\n\n', NOW)

    assert made.feed(sse(delta("stop")) + DONE, NOW) == b""
    assert made.finish(NOW) == b""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_stream_that_stops_early_is_not_complete(
    engine: str, recorded: Callable[..., str]
) -> None:
    stream = recorded(engine, "/v1/chat/completions", **WITH_USAGE)
    head = stream[: stream.index('"usage"')].encode()

    lines, made = run(head)

    assert text(lines) == "The capital of France is Paris."
    assert not any(line["done"] for line in lines)
    assert (made.complete, made.error) == (False, None)


def test_an_ollama_whose_model_died_is_not_complete() -> None:
    # Ollama ends such a stream cleanly, but for a model without a name and no terminator.
    stream = sse(delta(content=" have"), delta(content="") | {"model": ""})

    lines, made = run(stream)

    assert len(lines) == 1
    assert not made.complete


def test_a_terminator_without_a_finish_reason_is_not_complete() -> None:
    lines, made = run(sse(delta(content="a")) + DONE)

    assert len(lines) == 1
    assert not made.complete


def test_usage_and_a_clean_end_make_up_for_a_missing_terminator() -> None:
    stream = sse(delta(content="a"), delta("stop"), {"choices": [], "usage": {"prompt_tokens": 1}})

    lines, made = run(stream)

    assert lines[-1]["done"]
    assert made.complete


def test_a_terminator_may_lack_its_blank_line() -> None:
    lines, made = run(sse(delta("stop")) + b"data: [DONE]")

    assert lines[-1]["done"]
    assert made.complete


def test_the_last_event_may_lack_its_blank_line() -> None:
    stream = sse(delta("stop"), {"choices": [], "usage": {"prompt_tokens": 1}})

    lines, made = run(stream.removesuffix(b"\n\n"))

    assert lines[-1]["prompt_eval_count"] == 1
    assert made.complete


def test_the_stump_of_an_event_is_no_error() -> None:
    lines, made = run(sse(delta(content="a")) + b'data: {"choices":[{"del')

    assert len(lines) == 1
    assert (made.complete, made.error) == (False, None)


def test_comments_and_empty_choices_make_no_line() -> None:
    made = translator()

    assert made.feed(b": keepalive 1/1\n\n" + sse({"choices": []}, {"choices": None}), NOW) == b""
