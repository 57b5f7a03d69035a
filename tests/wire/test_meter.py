"""Measured streams: the same bytes go out, and their end tells usage, reason and completeness."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.core.request import Result, Timings, Usage
from herd.wire.meter import Form, Meter, measure

RECORDINGS = Path(__file__).parent.parent / "recordings"
Recorded = Callable[..., str]


def run(form: Form, *chunks: bytes) -> tuple[Meter, bytes]:
    """Pass chunks through a meter; return it, ended, and all that came out."""
    meter = Meter(form)
    out = b"".join([meter.feed(chunk, 0.0) for chunk in chunks])
    return meter, out + meter.finish(1.0)


def split(data: bytes, *places: int) -> list[bytes]:
    edges = [0, *sorted(places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def sse(*data: Any, end: str = "\n\n") -> bytes:
    return "".join(
        f"data: {item if isinstance(item, str) else json.dumps(item)}{end}" for item in data
    ).encode()


def chunk(text: str, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]}


# Recorded from real engines

STREAMS: list[tuple[Form, str, str, dict[str, Any], Usage, bool, str]] = [
    ("ollama", "ollama", "/api/chat", {}, Usage(prompt_tokens=21, completion_tokens=6), True, "length"),
    ("ollama", "ollama", "/api/generate", {"stream": None, "prompt": "The sky is"}, Usage(prompt_tokens=12, completion_tokens=5), True, "length"),
    ("openai", "ollama", "/v1/chat/completions", {"stream": True, "stream_options": {"include_usage": True}}, Usage(prompt_tokens=21, completion_tokens=8), False, "stop"),
    ("openai", "llamacpp", "/v1/chat/completions", {"stream": True, "stream_options": {"include_usage": True}}, Usage(prompt_tokens=42, completion_tokens=8, cached_tokens=41), True, "stop"),
    ("openai", "llamacpp", "/v1/completions", {"stream": True}, Usage(prompt_tokens=3, completion_tokens=5, cached_tokens=2), True, "length"),
    ("openai", "vllm", "/v1/chat/completions", {"stream": True, "stream_options": {"include_usage": True}}, Usage(prompt_tokens=42, completion_tokens=8), False, "stop"),
    ("openai", "mlx", "/v1/chat/completions", {"stream": True, "stream_options": {"include_usage": True}}, Usage(prompt_tokens=42, completion_tokens=8, cached_tokens=41), False, "stop"),
    ("anthropic", "ollama", "/v1/messages", {"stream": True}, Usage(prompt_tokens=21, completion_tokens=8), False, "end_turn"),
    ("anthropic", "vllm", "/v1/messages", {"stream": True}, Usage(prompt_tokens=42, completion_tokens=8), False, "max_tokens"),
    ("anthropic", "llamacpp", "/v1/messages", {"stream": True}, Usage(prompt_tokens=42, completion_tokens=8, cached_tokens=41), False, "end_turn"),
]  # fmt: skip
each_stream = pytest.mark.parametrize(
    ("form", "engine", "path", "fields", "usage", "timed", "reason"),
    STREAMS,
    ids=[f"{engine}{path}" for _, engine, path, *_ in STREAMS],
)


@each_stream
def test_a_recorded_stream_split_anywhere(
    recorded: Recorded,
    form: Form,
    engine: str,
    path: str,
    fields: dict[str, Any],
    usage: Usage,
    timed: bool,
    reason: str,
) -> None:
    data = recorded(engine, path, **fields).encode()
    for place in range(len(data) + 1):
        meter, out = run(form, *split(data, place))
        assert out == data
        assert meter.complete
        assert meter.error is None
        assert meter.result.usage == usage
        assert (meter.result.timings != Timings()) == timed
        assert meter.result.finish_reason == reason
        assert meter.result.bytes_out == len(data)


@each_stream
def test_a_recorded_stream_cut_short_is_incomplete_and_ends_with_a_whole_frame(
    recorded: Recorded,
    form: Form,
    engine: str,
    path: str,
    fields: dict[str, Any],
    usage: Usage,
    timed: bool,
    reason: str,
) -> None:
    data = recorded(engine, path, **fields).encode()
    separator = b"\n" if form == "ollama" else b"\n\n"
    # All but the last frame's own text, whose line ends are not needed to understand it.
    for end in range(len(data.rstrip()) - 1):
        meter, out = run(form, data[:end])
        assert not meter.complete
        assert data.startswith(out)
        assert out == b"" or out.endswith(separator)
        assert meter.result.bytes_out == len(out)


@each_stream
def test_a_last_frame_without_its_line_end_still_counts(
    recorded: Recorded,
    form: Form,
    engine: str,
    path: str,
    fields: dict[str, Any],
    usage: Usage,
    timed: bool,
    reason: str,
) -> None:
    data = recorded(engine, path, **fields).encode().rstrip()
    meter, out = run(form, data)
    assert (meter.complete, out) == (True, data)
    assert meter.result.bytes_out == len(data)


def test_timings_are_seconds(recorded: Recorded) -> None:
    ollama, _ = run("ollama", recorded("ollama", "/api/chat").encode())
    assert ollama.result.timings.load == pytest.approx(0.001068393)
    assert ollama.result.timings.prefill == pytest.approx(0.097047)
    assert ollama.result.timings.decode == pytest.approx(0.062028)
    llamacpp, _ = run("openai", recorded("llamacpp", "/v1/completions", stream=True).encode())
    assert llamacpp.result.timings.load is None
    assert llamacpp.result.timings.prefill == pytest.approx(0.012427)
    assert llamacpp.result.timings.decode == pytest.approx(0.047953)


@pytest.mark.parametrize(
    ("path", "form", "error"),
    [
        (
            "/api/chat",
            "ollama",
            "an error was encountered while running the model: unexpected EOF",
        ),
        ("/v1/chat/completions", "openai", None),
        ("/v1/messages", "anthropic", None),
    ],
)
def test_a_stream_of_a_killed_model_is_incomplete(path: str, form: Form, error: str | None) -> None:
    """The connection ends as if all were well; only the terminator is missing."""
    exchanges = json.loads((RECORDINGS / "ollama-killed.json").read_text())["exchanges"]
    (tail,) = [found["tail"] for found in exchanges if found["request"]["path"] == path]
    meter, _ = run(form, tail.encode())
    assert not meter.complete
    assert meter.error == error


@given(st.data())
def test_bytes_are_the_same_however_they_are_split(data: st.DataObject) -> None:
    form: Form = data.draw(st.sampled_from(["ollama", "openai", "anthropic"]))
    end = b"\n" if form == "ollama" else data.draw(st.sampled_from([b"\n\n", b"\r\n\r\n"]))
    lines = st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), max_size=20)
    body = b"".join(line + end for line in data.draw(lines))
    body += {
        "ollama": b'{"done":true}',
        "openai": b"data: [DONE]",
        "anthropic": b'data: {"type":"message_stop"}',
    }[form] + end
    places = data.draw(st.lists(st.integers(0, len(body)), max_size=12))
    meter, out = run(form, *split(body, *places))
    assert out == body
    assert meter.complete


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_nothing_upsets_it_and_only_whole_frames_of_nonsense_go_out(
    body: bytes, places: list[int]
) -> None:
    meter, out = run("openai", *split(body, *(min(place, len(body)) for place in places)))
    assert body.startswith(out)
    assert meter.complete is False or b"[DONE]" in body


# Frames


def test_only_whole_frames_go_out_at_once() -> None:
    meter = Meter("openai")
    assert meter.feed(b'data: {"a":1}\n\ndata: {"b"', 0.0) == b'data: {"a":1}\n\n'
    assert meter.feed(b":2}", 0.0) == b""
    assert meter.feed(b"\n", 0.0) == b""
    assert meter.feed(b"\ndata: [DONE]\n\n", 0.0) == b'data: {"b":2}\n\ndata: [DONE]\n\n'
    assert meter.finish(0.0) == b""
    assert meter.complete
    assert meter.result.frames == 3


def test_the_stump_of_a_frame_is_dropped() -> None:
    meter, out = run("openai", sse(chunk("a")) + b'data: {"choices": [{"ind')
    assert out == sse(chunk("a"))
    assert not meter.complete
    assert meter.result.bytes_out == len(out)


def test_frames_that_end_in_crlf() -> None:
    data = sse(chunk("a"), chunk("", "stop"), "[DONE]", end="\r\n\r\n")
    for place in range(len(data) + 1):
        meter = Meter("openai")
        out = b""
        for part in split(data, place):
            piece = meter.feed(part, 0.0)
            assert piece == b"" or piece.endswith(b"\r\n\r\n")
            out += piece
        assert out + meter.finish(0.0) == data
        assert meter.complete
        assert meter.result.finish_reason == "stop"
        assert meter.result.frames == 3


def test_frames_that_end_in_one_way_and_then_in_another() -> None:
    data = sse(chunk("a")) + sse(chunk("b"), end="\r\n\r\n") + sse(chunk("", "stop"), "[DONE]")
    for place in range(len(data) + 1):
        meter, out = run("openai", *split(data, place))
        assert out == data
        assert meter.complete


def test_a_long_stream_with_crlf_is_not_kept_in_memory() -> None:
    meter = Meter("openai")
    frame = sse(chunk("x" * 100), end="\r\n\r\n")
    for _ in range(5000):
        meter.feed(frame, 0.0)
    assert sum(map(len, meter._tail)) < 100_000


@pytest.mark.parametrize("form", ["ollama", "openai", "anthropic"])
def test_a_long_stream_is_not_kept_in_memory(form: Form) -> None:
    meter = Meter(form)
    frame = b'{"done":false}\n' if form == "ollama" else sse({"type": "content_block_delta"})
    for _ in range(20_000):
        meter.feed(frame, 0.0)
    assert sum(map(len, meter._tail)) < 100_000


def test_comments_and_event_names_are_passed_on_and_ignored() -> None:
    data = b": ping\n\n" + b"event: x\nid: 7\n" + sse(chunk("", "stop")) + b":\n\n" + sse("[DONE]")
    meter, out = run("openai", data, b": bye\n\n")
    assert out == data + b": bye\n\n"
    assert meter.complete
    assert meter.result.finish_reason == "stop"


def test_data_without_a_space_after_the_colon() -> None:
    meter, _ = run("openai", b'data:{"choices":[{"finish_reason":"stop"}]}\n\ndata:[DONE]\n\n')
    assert (meter.complete, meter.result.finish_reason) == (True, "stop")


@pytest.mark.parametrize("size", [1400, 16_384, 1_000_000_000])
def test_a_last_ollama_line_longer_than_what_is_kept(size: int) -> None:
    """`/api/generate` ends with the whole context as numbers."""
    last = {
        "model": "m",
        "response": "",
        "done": True,
        "done_reason": "stop",
        "context": list(range(100_000, 300_000)),
        "prompt_eval_count": 199_990,
        "eval_count": 10,
    }
    data = b'{"response":"a","done":false}\n' * 100 + json.dumps(last).encode() + b"\n"
    meter, out = run("ollama", *split(data, *range(size, len(data), size)))
    assert out == data
    assert meter.complete
    assert meter.result.usage == Usage(prompt_tokens=199_990, completion_tokens=10)


@pytest.mark.parametrize("size", [1400, 65_536])
def test_an_event_of_a_megabyte(size: int) -> None:
    data = sse(
        chunk("a"),
        chunk("x" * 1_000_000),
        chunk("", "stop"),
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}},
        "[DONE]",
    )
    meter, out = run("openai", *split(data, *range(size, len(data), size)))
    assert out == data
    assert meter.complete
    assert meter.result.usage == Usage(prompt_tokens=3, completion_tokens=4)
    assert meter.result.finish_reason == "stop"


# How streams end


def test_a_stream_without_a_terminator_is_incomplete_though_it_told_its_reason() -> None:
    meter, out = run("openai", sse(chunk("a"), chunk("", "stop")))
    assert not meter.complete
    assert meter.error is None
    assert out == sse(chunk("a"), chunk("", "stop"))


def test_an_empty_stream_is_incomplete() -> None:
    for form in ("ollama", "openai", "anthropic"):
        meter, out = run(form)
        assert (meter.complete, meter.error, out) == (False, None, b"")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ({"message": "out of memory", "code": 500}, "out of memory"),
        ("out of memory", "out of memory"),
        ({"code": 7}, '{"code":7}'),
        ({"message": {"detail": "x"}}, '{"detail":"x"}'),
    ],
)
def test_an_error_inside_a_stream_is_seen_and_passed_on(error: Any, message: str) -> None:
    data = sse(chunk("a"), {"error": error})
    meter, out = run("openai", data)
    assert (meter.complete, meter.error, out) == (False, message, data)


def test_a_terminator_does_not_make_an_error_good() -> None:
    meter, _ = run("openai", sse(chunk("a"), {"error": {"message": "x"}}, "[DONE]"))
    assert (meter.complete, meter.error) == (False, "x")
    anthropic = {"type": "error", "error": {"type": "api_error", "message": "y"}}
    meter, _ = run("anthropic", sse(anthropic, {"type": "message_stop"}))
    assert (meter.complete, meter.error) == (False, "y")


def test_an_error_of_nothing_is_none() -> None:
    meter, _ = run("openai", sse({**chunk("", "stop"), "error": None}, "[DONE]"))
    assert (meter.complete, meter.error) == (True, None)


def test_ollama_is_done_when_it_says_true() -> None:
    meter, _ = run("ollama", b'{"done":"true"}\n')
    assert not meter.complete


def test_anthropic_prompt_tokens_of_a_long_stream_are_in_its_first_event() -> None:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 7, "output_tokens": 1}}}
    delta = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x" * 100}}
    end = {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn"},
        "usage": {"input_tokens": None, "output_tokens": 900},
    }
    meter = Meter("anthropic")
    meter.feed(sse(start), 0.0)
    for _ in range(2000):
        meter.feed(sse(delta), 0.0)
    meter.feed(sse(end, {"type": "message_stop"}), 0.0)
    meter.finish(0.0)
    assert meter.complete
    assert meter.result.usage == Usage(prompt_tokens=7, completion_tokens=900)


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "message_start"},
        {"type": "message_start", "message": {"usage": 5}},
        {"type": "message_delta", "delta": "x", "usage": []},
        {"type": "message_delta", "delta": {"stop_reason": 5}},
        [1, 2],
    ],
)
def test_odd_anthropic_frames_tell_nothing(frame: Any) -> None:
    meter, _ = run("anthropic", sse(frame, {"type": "message_stop"}))
    assert meter.complete
    assert meter.result.usage == Usage()


@pytest.mark.parametrize(
    "odd",
    [
        b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n',
        b'data: {"choices":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n\n",
        b'data: {"choices":"x","usage":5,"timings":[]}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":-1,"completion_tokens":true}}\n\n',
        b'data: {"usage":{"prompt_tokens":1' + b"0" * 400 + b"}}\n\n",
        b'data: {"timings":{"prompt_ms":1' + b"0" * 400 + b',"predicted_ms":-5}}\n\n',
        b"data: nonsense\n\n",
    ],
    ids=["utf8", "deep", "types", "counts", "huge", "durations", "nonsense"],
)
def test_frames_that_make_no_sense_are_passed_on_and_tell_nothing(odd: bytes) -> None:
    data = odd + sse(chunk("", "stop"), "[DONE]")
    meter, out = run("openai", data)
    assert out == data
    assert meter.complete
    assert meter.result == Result(finish_reason="stop", bytes_out=len(data), frames=3)


def test_a_line_that_is_no_json_is_no_end() -> None:
    meter, out = run("ollama", b'{"response":"\xff","done":true\n')
    assert not meter.complete
    assert out == b'{"response":"\xff","done":true\n'


# Answers that come whole


def test_whole_answers_of_real_engines(recorded: Recorded) -> None:
    body = recorded("ollama", "/api/chat", stream=False).encode()
    found = measure("ollama", body)
    assert found.usage.completion_tokens is not None
    assert found.timings.decode is not None
    assert found.bytes_out == len(body)
    body = recorded("llamacpp", "/v1/messages", stream=None).encode()
    assert measure("anthropic", body) == Result(
        usage=Usage(prompt_tokens=42, completion_tokens=8, cached_tokens=24),
        finish_reason="max_tokens",
        bytes_out=len(body),
    )
    body = recorded("vllm", "/v1/completions", stream=None).encode()
    found = measure("openai", body)
    assert (found.usage.completion_tokens, found.finish_reason) == (5, "length")


@pytest.mark.parametrize("form", ["ollama", "openai", "anthropic"])
@pytest.mark.parametrize(
    "body",
    [b"", b"nonsense", b"[]", b"\xff", b'{"stop_reason":5,"done_reason":5}', b'{"choices":[[]]}'],
)
def test_whole_answers_that_tell_nothing(form: Form, body: bytes) -> None:
    assert measure(form, body) == Result(bytes_out=len(body))


def test_a_whole_answer_that_is_nested_too_deeply_tells_nothing() -> None:
    body = b'{"choices":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert measure("openai", body) == Result(bytes_out=len(body))
