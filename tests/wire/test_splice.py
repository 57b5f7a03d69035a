from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.wire.splice import members, replace, replace_model


def test_replaces_only_the_top_level_model() -> None:
    body = b'{"messages":[{"model":"inner"}],"model":"a","n":1}'

    assert replace_model(body, "b") == b'{"messages":[{"model":"inner"}],"model":"b","n":1}'


def test_other_values_keep_their_bytes() -> None:
    body = b'{"model": "a", "n": 1.00, "big": 123456789012345678901234567890, "t": [ 1,\n2 ]}'

    assert replace_model(body, "b") == body.replace(b'"a"', b'"b"')


def test_a_name_is_escaped() -> None:
    assert replace_model(b'{"model":"a"}', 'b"\\') == b'{"model":"b\\"\\\\"}'


def test_an_escaped_key_is_the_same_key() -> None:
    assert replace_model(b'{"mod\\u0065l":"a"}', "b") == b'{"mod\\u0065l":"b"}'


@pytest.mark.parametrize(
    ("body", "made"),
    [
        (b'{"n":1}', b'{"n":1,"model":"b"}'),
        (b'{\n  "n": 1\n}\n', b'{\n  "n": 1,"model":"b"\n}\n'),
        (b"{ }", b'{"model":"b" }'),
    ],
)
def test_an_object_without_model_gets_one(body: bytes, made: bytes) -> None:
    assert replace_model(body, "b") == made


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","n":1, "model":"c"}',
        b'{"model":"a","n":1,"model":"a"}',
        b'{"n":1,"n":11,"model":"a"}',
        b'{"model":"a","n":11,"n":1}',
        b'{"n":"x,","n":"1,\\"n\\":22}","model":"a"}',
        b'{"model":"a","n":1,"\\u006e":2}',
    ],
)
def test_a_field_that_comes_twice_is_written_once(body: bytes) -> None:
    made = replace_model(body, "b")

    assert msgspec.json.decode(made) == msgspec.json.decode(body) | {"model": "b"}
    assert made.count(b'"b"') == 1
    assert b'"model":"a"' not in made


def test_several_fields_change_at_once() -> None:
    body = b'{"a": 1, "b": [2], "c": 3}'

    made = replace(body, members(body), {"c": b"30", "a": b"10", "d": b"4"})

    assert made == b'{"a": 10, "b": [2], "c": 30,"d":4}'


@pytest.mark.parametrize("body", [b"", b"[]", b'"model"', b'{"model":'])
def test_anything_but_an_object_is_refused(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        replace_model(body, "b")


@given(
    st.dictionaries(st.text(), st.recursive(st.integers() | st.text(), st.lists, max_leaves=5)),
    st.text(),
)
def test_the_rest_of_any_object_stays(fields: dict[str, object], model: str) -> None:
    made = replace_model(msgspec.json.encode(fields), model)

    assert msgspec.json.decode(made) == fields | {"model": model}


@given(
    st.dictionaries(st.text(), st.recursive(st.integers() | st.text(), st.lists, max_leaves=5)),
    st.sampled_from([None, 1, 3]),
)
def test_nothing_but_the_value_changes(fields: dict[str, object], indent: int | None) -> None:
    body = json.dumps({**fields, "model": "MARK-a"}, indent=indent, ensure_ascii=False).encode()

    assert replace_model(body, "MARK-b") == body.replace(b'"MARK-a"', b'"MARK-b"')
