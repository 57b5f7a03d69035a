"""What routing reads from bodies of every dialect, however odd they are."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.wire.peek import TOKENS_PER_IMAGE, BadBody, Peek, _Body, peek

PICTURE = base64.b64encode(bytes(range(256)) * 300).decode()


def look(**fields: Any) -> Peek:
    return peek(json.dumps({"model": "m", **fields}).encode())


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


# The model and the plain fields


def test_the_model_is_as_the_client_wrote_it() -> None:
    assert peek(b'{"model":"Llama3:8B "}').model == "Llama3:8B "


def test_the_old_name_of_the_field_serves_where_the_new_one_is_missing() -> None:
    assert peek(b'{"name":"a"}').model == "a"
    assert peek(b'{"name":"a","model":"b"}').model == "b"


@pytest.mark.parametrize("body", [b"{}", b'{"model":""}', b'{"model":null}', b'{"model":0}'])
def test_a_missing_model_is_empty(body: bytes) -> None:
    assert peek(body).model == ""


@pytest.mark.parametrize(
    ("value", "read"), [(True, True), (False, False), (None, None), ("true", None), (1, None)]
)
def test_stream_is_what_the_client_said_or_unknown(value: Any, read: bool | None) -> None:
    assert look(stream=value).stream is read
    assert look().stream is None


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, None),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 8}, 8),
        ({"max_completion_tokens": 8, "max_tokens": 7}, 8),
        ({"options": {"num_predict": 9}}, 9),
        ({"options": {"num_predict": -1}}, None),
        ({"max_tokens": 0}, None),
        ({"max_tokens": -5}, None),
        ({"max_tokens": "7"}, None),
        ({"max_tokens": 7.5}, None),
        ({"max_tokens": True}, None),
        ({"max_tokens": 10**400}, None),
        ({"options": "x"}, None),
        ({"options": ["num_predict", 5]}, None),
    ],
)
def test_limits_of_the_answer(fields: dict[str, Any], limit: int | None) -> None:
    assert look(**fields).max_tokens == limit


@pytest.mark.parametrize(
    ("options", "context"),
    [
        ({"num_ctx": 8192}, 8192),
        ({"num_ctx": 0}, None),
        ({"num_ctx": "8192"}, None),
        ({"num_ctx": True}, None),
        ({"num_ctx": 10**30}, None),
        (None, None),
    ],
)
def test_context_that_is_asked_for(options: Any, context: int | None) -> None:
    assert look(options=options).context == context


@pytest.mark.parametrize(
    ("tools", "used"),
    [([{"type": "function", "function": {"name": "f"}}], True), ([], False), (None, False)],
)
def test_tools(tools: Any, used: bool) -> None:
    assert look(messages=user("hi"), tools=tools).tools is used
    assert not look(messages=user("hi")).tools


@pytest.mark.parametrize(
    ("think", "thinks"), [(True, True), ("high", True), (False, False), (None, False)]
)
def test_thinking(think: Any, thinks: bool) -> None:
    assert look(think=think).thinking is thinks


@pytest.mark.parametrize(
    ("fields", "empty"),
    [
        ({}, True),
        ({"messages": []}, True),
        ({"prompt": ""}, True),
        ({"prompt": None}, True),
        ({"prompt": "hi"}, False),
        ({"messages": user("hi")}, False),
        ({"input": ["a"]}, False),
    ],
)
def test_an_empty_prompt_loads_a_model(fields: dict[str, Any], empty: bool) -> None:
    assert look(**fields).empty is empty


@pytest.mark.parametrize(
    ("keep", "unloads"),
    [
        *((zero, True) for zero in (0, 0.0, "0", "0s", "0m", "0h")),
        ("5m", False),
        (-1, False),
        (None, False),
        (False, False),
        ([], False),
    ],
)
def test_no_keep_alive_unloads(keep: Any, unloads: bool) -> None:
    assert look(keep_alive=keep).unload is unloads


# How long a prompt is


@pytest.mark.parametrize(
    ("fields", "session"),
    [
        ({"prompt_cache_key": "a"}, "a"),
        ({"session_id": "a"}, "a"),
        ({"metadata": {"session_id": "a"}}, "a"),
        ({"metadata": {"user_id": "user_1_account__session_a"}}, "a"),
        ({"user": "a"}, ""),
    ],
)
def test_a_conversation_may_have_a_name(fields: dict[str, Any], session: str) -> None:
    assert look(**fields).session == session


def test_the_tier_is_as_the_client_wrote_it() -> None:
    assert look(service_tier="flex").tier == "flex"
    assert look().tier is None


def test_prompts_are_about_four_bytes_a_token_in_any_field() -> None:
    text = "a word " * 400
    for fields in (
        {"prompt": text},
        {"input": text},
        {"system": text},
        {"messages": user(text)},
        {"tools": [{"description": text}]},
    ):
        assert look(**fields).prompt_tokens == pytest.approx(700, rel=0.05)


def test_a_prompt_has_at_least_a_token() -> None:
    assert look().prompt_tokens == 1


@pytest.mark.parametrize("pictures", [0, 1])
def test_a_text_is_as_long_whether_or_not_the_client_escapes_it(pictures: int) -> None:
    """Many clients write all but ASCII as \\uXXXX, twice as many bytes as UTF-8."""
    body = {"model": "m", "messages": user("請問你今天好嗎" * 300)}
    if pictures:
        body["messages"][0]["images"] = [PICTURE]  # type: ignore[index]
    plain = peek(json.dumps(body, ensure_ascii=False).encode())
    escaped = peek(json.dumps(body).encode())
    assert plain.prompt_tokens == pytest.approx(escaped.prompt_tokens, rel=0.01)
    assert plain.prompt_tokens == pytest.approx(
        7 * 300 * 3 / 4 + pictures * TOKENS_PER_IMAGE, rel=0.03
    )


# Pictures


def openai_picture() -> list[dict[str, Any]]:
    return [
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}},
    ]


def anthropic_picture() -> list[dict[str, Any]]:
    source = {"type": "base64", "media_type": "image/png", "data": PICTURE}
    return [{"type": "image", "source": source}, {"type": "text", "text": "what is it?"}]


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": user(openai_picture())},
        {"messages": user(anthropic_picture())},
        {"messages": [{"role": "user", "content": "what is it?", "images": [PICTURE]}]},
        {"prompt": "what is it?", "images": [PICTURE]},
    ],
    ids=["openai", "anthropic", "ollama-chat", "ollama-generate"],
)
def test_a_picture_counts_as_a_picture_and_not_as_text(fields: dict[str, Any]) -> None:
    found = look(**fields)
    assert found.images
    assert TOKENS_PER_IMAGE <= found.prompt_tokens < TOKENS_PER_IMAGE + 50


def test_each_picture_counts() -> None:
    found = look(messages=user(openai_picture() * 3))
    assert found.prompt_tokens == pytest.approx(3 * TOKENS_PER_IMAGE, rel=0.05)


def test_a_picture_by_address_is_a_picture() -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    assert look(messages=user([part])).images


def test_a_picture_of_the_newer_openai_api() -> None:
    assert look(messages=user([{"type": "input_image", "image_url": "x"}])).images


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": user('what does "image_url" mean? And \'images\', "image"?')},
        {"prompt": 'the key "images" of a body', "images": []},
        {"prompt": "hi", "images": None},
        {"messages": [{"role": "user", "content": "hi", "images": []}]},
        {"messages": [{"role": "user", "content": "hi", "images": None}]},
        {"messages": user([{"type": "text", "text": "image"}])},
        {
            "messages": user("hi"),
            "tools": [{"parameters": {"properties": {"image": {"type": "string"}}}}],
        },
        {"messages": "image", "x": {"image": 1}},
        {"messages": ["image", {"content": ["image"]}], "image": 1},
    ],
)
def test_what_merely_mentions_pictures_has_none(fields: dict[str, Any]) -> None:
    assert not look(**fields).images


def test_a_long_text_without_spaces_is_no_picture() -> None:
    """Chinese has no spaces; nor has minified code."""
    text = "今天天氣很好我們去公園散步吧" * 200
    found = look(messages=[*user(text), *user(anthropic_picture())])
    assert found.prompt_tokens == pytest.approx(len(text) * 3 / 4 + TOKENS_PER_IMAGE, rel=0.05)
    code = "f(a,b);g[c]=d?e:h;" * 200
    found = look(messages=[*user(code), *user(anthropic_picture())])
    assert found.prompt_tokens == pytest.approx(len(code) / 4 + TOKENS_PER_IMAGE, rel=0.05)


# Bodies that cannot be read


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "missing request body"),
        (b" \n", "missing request body"),
        (b"[]", "Expected `object`, got `array`"),
        (b"null", "Expected `object`, got `null`"),
        (b'"model"', "Expected `object`, got `str`"),
        (b"{not json", "malformed"),
        (b'{"model":"a"', "truncated"),
        (b'{"model":"a"} x', "trailing characters"),
        (b'{"model":["a"]}', "model must be a string"),
        (b'{"model":true}', "model must be a string"),
        (b'{"model":{"a":1}}', "model must be a string"),
        (b'{"model":"a\xff"}', "not UTF-8"),
        (b"\xef\xbb\xbf{}", "malformed"),
    ],
)
def test_a_body_that_cannot_be_read_says_why(body: bytes, message: str) -> None:
    with pytest.raises(BadBody, match=message):
        peek(body)


@pytest.mark.parametrize("field", ["messages", "options", "tools", "unheard_of"])
def test_deep_nesting_is_refused_and_not_a_crash(field: str) -> None:
    body = f'{{"model":"a","images":[],"{field}":{"[" * 10_000}{"]" * 10_000}}}'
    with pytest.raises(BadBody, match="nested too deeply"):
        peek(body.encode())


def test_bad_text_where_it_must_be_read_is_refused() -> None:
    with pytest.raises(BadBody, match="not UTF-8"):
        peek(b'{"model":"a","messages":[{"content":"\xff","images":["x"]}]}')


def test_bad_text_where_nobody_reads_it_is_the_engines_affair() -> None:
    assert peek(b'{"model":"a","prompt":"\xff"}').model == "a"


def test_of_a_key_that_comes_twice_the_last_counts() -> None:
    assert peek(b'{"model":"a","model":"b"}').model == "b"


def test_a_key_may_be_escaped() -> None:
    assert peek(b'{"\\u006dodel":"a"}').model == "a"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
FIELDS = ["other", *(field.name for field in msgspec.structs.fields(_Body))]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_json_is_read_or_refused(fields: dict[str, Any]) -> None:
    try:
        found = peek(json.dumps(fields).encode())
    except BadBody:
        return
    assert found.prompt_tokens >= 1
    assert found.max_tokens is None or found.max_tokens > 0


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with contextlib.suppress(BadBody):
        peek(body)


# Cost


def cpu(work: Callable[[], object]) -> float:
    """The least CPU seconds of five runs."""
    spent = []
    for _ in range(5):
        begun = time.process_time()
        work()
        spent.append(time.process_time() - begun)
    return min(spent)


@pytest.mark.parametrize("kind", ["text", "escapes", "picture"])
def test_ten_megabytes_cost_little_more_than_parsing_them(kind: str) -> None:
    """A yardstick on the same machine: what it takes to parse the body in full."""
    text = {
        "text": "some words of text " * 520_000,
        "escapes": 'say "好"\n' * 600_000,
        "picture": "",
    }[kind]
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if kind == "picture":
        url = "data:image/png;base64," + PICTURE * 98
        parts.append({"type": "image_url", "image_url": {"url": url}})
    body = json.dumps({"model": "m", "messages": user(parts)}).encode()
    assert 9_000_000 < len(body) < 13_000_000
    assert cpu(lambda: peek(body)) < 6 * cpu(lambda: json.loads(body))
