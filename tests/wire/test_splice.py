from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.wire.splice import replace_model


def test_replaces_only_the_top_level_model() -> None:
    body = b'{"messages":[{"model":"inner"}],"model":"a","n":1}'

    assert replace_model(body, "b") == b'{"messages":[{"model":"inner"}],"model":"b","n":1}'


def test_other_values_keep_their_bytes() -> None:
    body = b'{"model": "a", "n": 1.00, "big": 123456789012345678901234567890, "t": [ 1,\n2 ]}'

    made = replace_model(body, "b")

    assert b'"n":1.00,' in made
    assert b'"big":123456789012345678901234567890,' in made
    assert b'"t":[ 1,\n2 ]' in made


def test_a_name_is_escaped() -> None:
    assert replace_model(b'{"model":"a"}', 'b"\\') == b'{"model":"b\\"\\\\"}'


def test_an_escaped_key_is_the_same_key() -> None:
    assert replace_model(b'{"mod\\u0065l":"a"}', "b") == b'{"model":"b"}'


def test_an_object_without_model_gets_one() -> None:
    assert replace_model(b'{"n":1}', "b") == b'{"n":1,"model":"b"}'


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
