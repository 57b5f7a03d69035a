"""How a model is to stay in memory, said in a body of which nothing else changes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.core.actions import Stay
from herd.wire.stay import number, put_stay

BOTH = Stay(context=8192, keep_alive=3600.0)
CONTEXT = Stay(context=8192)
KEEP = Stay(keep_alive=-1.0)


@pytest.mark.parametrize(
    ("body", "stay", "made"),
    [
        (b'{"model":"m"}', CONTEXT, b'{"model":"m","options":{"num_ctx":8192}}'),
        (b'{"model":"m"}', KEEP, b'{"model":"m","keep_alive":-1}'),
        (b'{"options":{}}', CONTEXT, b'{"options":{"num_ctx":8192}}'),
        (b'{"options":null}', CONTEXT, b'{"options":{"num_ctx":8192}}'),
        (b'{"Options": { "seed": 1 } }', CONTEXT, b'{"Options": { "seed": 1,"num_ctx":8192 } }'),
        (
            b'{"options": {"num_ctx": 512, "x": 1e400}, "y":\t1.0}',
            CONTEXT,
            b'{"options": {"num_ctx": 8192, "x": 1e400}, "y":\t1.0}',
        ),
        (
            b'{"options":{"num_ctx":512,"num_ctx":1024},"y": 1}',
            CONTEXT,
            b'{"options":{"num_ctx":8192},"y": 1}',
        ),
        (b'{"keep_alive": null}', KEEP, b'{"keep_alive": -1}'),
        (
            b'{"messages":[{"options":{"num_ctx":1},"keep_alive":2}]}',
            CONTEXT,
            b'{"messages":[{"options":{"num_ctx":1},"keep_alive":2}],"options":{"num_ctx":8192}}',
        ),
    ],
)
def test_only_what_is_to_be_said_changes(body: bytes, stay: Stay, made: bytes) -> None:
    assert put_stay(body, stay) == (made, stay)


def test_nothing_to_say_changes_nothing() -> None:
    assert put_stay(b'{"options":{"num_ctx":1}}', Stay()) == (b'{"options":{"num_ctx":1}}', Stay())


def test_what_the_client_says_already_is_not_said_again() -> None:
    body = b'{"options": {"num_ctx": 8192}, "keep_alive": 3600}'
    assert put_stay(body, BOTH, overrule=True) == (body, Stay())


@pytest.mark.parametrize("own", [b"0", b'"5m"', b"-1", b"false"])
@pytest.mark.parametrize("name", [b"keep_alive", b"Keep_Alive"])
def test_the_clients_own_keep_alive_stays(name: bytes, own: bytes) -> None:
    body = b'{"%s": %s, "options":{"num_ctx":8192}}' % (name, own)
    assert put_stay(body, BOTH) == (body, Stay())


def test_the_owner_may_overrule_it() -> None:
    made = put_stay(b'{"keep_alive": "5m", "n": 1}', BOTH, overrule=True)
    assert made == (b'{"keep_alive": 3600, "n": 1,"options":{"num_ctx":8192}}', BOTH)


@pytest.mark.parametrize("options", [b"[1]", b'"big"', b"7"])
def test_options_that_are_none_are_left_to_the_engine(options: bytes) -> None:
    body = b'{"options":%s}' % options
    assert put_stay(body, CONTEXT) == (body, Stay())


@pytest.mark.parametrize("body", [b"", b"[]", b'{"a":', b'{"\xff":1}', b'{"options":{"\xff":1}}'])
def test_what_cannot_be_read_is_left_to_the_engine(body: bytes) -> None:
    assert put_stay(body, BOTH) == (body, Stay())


@pytest.mark.parametrize(
    ("seconds", "text"), [(3600.0, b"3600"), (-1.0, b"-1"), (0.5, b"0.5"), (1e7, b"10000000")]
)
def test_seconds_are_plain_numbers(seconds: float, text: bytes) -> None:
    assert number(seconds) == text


names = st.sampled_from(["model", "options", "keep_alive", "num_ctx", "seed"]) | st.text()
values: Any = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(names, inner),
    max_leaves=8,
)


@given(st.dictionaries(names, values), st.sampled_from([None, 2]))
def test_the_rest_of_any_body_stays(fields: dict[str, Any], indent: int | None) -> None:
    made, said = put_stay(json.dumps(fields, indent=indent).encode(), BOTH)

    expected = dict(fields)
    if said.keep_alive is not None:
        expected["keep_alive"] = 3600
    if said.context is not None:
        expected["options"] = (fields.get("options") or {}) | {"num_ctx": 8192}
    assert json.loads(made) == expected
    assert list(json.loads(made)) == [*fields, *(name for name in expected if name not in fields)]
