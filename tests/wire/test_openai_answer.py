from __future__ import annotations

import msgspec
import pytest

from herd.core.request import Result, Timings, Usage
from herd.wire import openai_answer as openai


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            b'{"error":{"code":400,"message":"\'messages\' is required","type":"x"}}',
            "'messages' is required",
        ),
        (b'{"error":{"message":"no model","param":"model","code":404}}', "no model"),
        (b'{"error": "Request did not contain messages"}', "Request did not contain messages"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b'{"detail":{"error":{"message":"deep"}}}', "deep"),
        (b'{"detail":[{"loc":["body"],"msg":"missing"},{"msg":"wrong"}]}', "missing; wrong"),
        (b'{"object":"error","message":"old shape","code":400}', "old shape"),
        (b'"just text"', "just text"),
        (b'{"status":"odd"}', '{"status":"odd"}'),
        (b'{"error":{"code":500}}', '{"code":500}'),
        (b"{}", "{}"),
        (b"[]", "[]"),
        (b"null", ""),
        (b"", ""),
        (b" Not Found\n", "Not Found"),
        (b"\xff bad gateway", "\ufffd bad gateway"),
    ],
)
def test_finds_the_message_in_any_error_body(body: bytes, text: str) -> None:
    assert openai.error_text(body) == text


def test_an_error_text_is_bounded() -> None:
    assert len(openai.error_text(b"x" * 10_000)) == openai.MAX_ERROR


def test_a_result_takes_usage_and_the_engines_clock() -> None:
    answer = openai.answers.decode(
        b'{"usage":{"prompt_tokens":42,"completion_tokens":8},'
        b'"timings":{"cache_n":41,"prompt_ms":12.5,"predicted_ms":85}}'
    )

    assert openai.result_of(answer.usage, answer.timings, "stop") == Result(
        usage=Usage(prompt_tokens=42, completion_tokens=8, cached_tokens=41),
        timings=Timings(prefill=0.0125, decode=0.085),
        finish_reason="stop",
    )


def test_usage_says_how_much_was_cached_before_timings_do() -> None:
    answer = openai.answers.decode(
        b'{"usage":{"prompt_tokens_details":{"cached_tokens":0}},"timings":{"cache_n":41}}'
    )

    assert openai.result_of(answer.usage, answer.timings, "").usage.cached_tokens == 0


def test_what_the_engine_left_out_stays_unknown() -> None:
    assert openai.result_of(None, None, "stop") == Result(finish_reason="stop")


@pytest.mark.parametrize(
    ("raw", "text"),
    [(b'"{\\"a\\""', b'{"a"'), (b'{"a":1}', b'{"a":1}'), (b"null", b""), (b"", b"")],
)
def test_arguments_are_text_or_a_bare_object(raw: bytes, text: bytes) -> None:
    assert openai.arguments_text(openai.FunctionPart(arguments=msgspec.Raw(raw))) == text


@pytest.mark.parametrize("logprobs", [b"", b"null", b'{"content":null}'])
def test_no_logprobs_are_an_empty_list(logprobs: bytes) -> None:
    assert openai.token_logprobs(openai.Choice(logprobs=msgspec.Raw(logprobs))) == []


@pytest.mark.parametrize(
    ("choice", "piece"),
    [
        (b'{"delta":{"content":"a"}}', openai.Piece(content="a")),
        (b'{"message":{"content":"b"}}', openai.Piece(content="b")),
        (b'{"text":"c"}', openai.Piece(content="c")),
    ],
)
def test_a_choice_carries_its_piece_in_one_of_three_fields(
    choice: bytes, piece: openai.Piece
) -> None:
    assert msgspec.json.decode(choice, type=openai.Choice).piece == piece


@pytest.mark.parametrize("field", [b"reasoning", b"reasoning_content"])
def test_thoughts_have_two_names(field: bytes) -> None:
    piece = msgspec.json.decode(b'{"%s":"hm"}' % field, type=openai.Piece)

    assert piece.thinking == "hm"
