"""Who asks and how urgently: Herd's own headers, other programs' fields, and what is no name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from multidict import CIMultiDict

from herd.wire.caller import (
    LONGEST_NAME,
    BadHeader,
    Caller,
    body_session,
    fingerprint,
    read_caller,
)

NOBODY = Raw(b"")
UUID = "54c1eb09-bc4c-4d2f-98eb-6d2ab2d5e2fe"
ADDRESS = "10.0.0.7"


def read(tier: Any = None, session: str = "", **headers: str) -> Caller:
    """Read a caller whose headers are given with underscores for hyphens."""
    given = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    return read_caller(given, ADDRESS, tier=tier, session=session)


def metadata(**fields: Any) -> Raw:
    return Raw(json.dumps(fields).encode())


def test_whoever_says_nothing_is_an_address_with_an_ordinary_request() -> None:
    assert read() == Caller(client=ADDRESS, priority="normal", deadline=None, session="")


# Order


@pytest.mark.parametrize(
    ("text", "priority"),
    [("high", "high"), ("normal", "normal"), ("low", "low"), (" HIGH ", "high")],
)
def test_a_header_sets_the_priority(text: str, priority: str) -> None:
    assert read(Herd_Priority=text).priority == priority


@pytest.mark.parametrize(
    ("tier", "priority"),
    [
        ("flex", "low"),
        ("priority", "high"),
        ("auto", "normal"),
        ("default", "normal"),
        ("standard_only", "normal"),
        (None, "normal"),
        (["flex"], "normal"),
        (3, "normal"),
    ],
)
def test_openais_tiers_are_priorities(tier: Any, priority: str) -> None:
    assert read(tier).priority == priority


def test_the_header_comes_before_the_tier() -> None:
    assert read("flex", Herd_Priority="normal").priority == "normal"


@pytest.mark.parametrize("text", ["", "urgent", "1", "high, low"])
def test_a_priority_that_there_is_not_is_refused(text: str) -> None:
    with pytest.raises(BadHeader, match="Herd-Priority must be high, normal or low"):
        read(Herd_Priority=text)


@pytest.mark.parametrize(("text", "seconds"), [("30", 30.0), ("0.5", 0.5), (" 2 ", 2.0)])
def test_a_deadline_is_in_seconds(text: str, seconds: float) -> None:
    assert read(Herd_Deadline=text).deadline == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0.0", "-1", "nan", "inf", "1_000", "1e3", "30s", "soon", "9" * 10, "\u0663"]
)
def test_a_deadline_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadHeader, match="Herd-Deadline must be a number of seconds above 0"):
        read(Herd_Deadline=text)


# Who


def test_a_name_holds_for_its_address() -> None:
    assert read(Herd_Client="anna").client == f"anna@{ADDRESS}"


def test_a_key_is_told_by_its_fingerprint_alone() -> None:
    """The first 8 digits of `printf sk-secret | sha256sum`."""
    assert fingerprint("sk-secret") == "key:746b4ad1"
    assert read(Authorization="Bearer sk-secret").client == f"key:746b4ad1@{ADDRESS}"


def test_one_key_is_one_client_however_it_is_shown() -> None:
    shown = [
        read(Authorization="Bearer k"),
        read(authorization="bearer  k "),
        read(X_Api_Key="k"),
    ]
    assert len({caller.client for caller in shown}) == 1
    assert read(Authorization="Basic k").client != shown[0].client


def test_a_name_comes_before_a_key() -> None:
    assert read(Herd_Client="anna", Authorization="Bearer k").client == f"anna@{ADDRESS}"


def test_the_users_of_an_open_webui_are_told_apart() -> None:
    users = [read(X_OpenWebUI_User_Id=user, Authorization="Bearer shared") for user in "ab"]
    assert [caller.client for caller in users] == [f"a@{ADDRESS}", f"b@{ADDRESS}"]


@pytest.mark.parametrize("header", ["Herd_Client", "Herd_Session"])
@pytest.mark.parametrize("text", ["", "x" * (LONGEST_NAME + 1), "a\tb", "\x7f"])
def test_what_is_no_name_is_refused(header: str, text: str) -> None:
    with pytest.raises(BadHeader, match="must have 1 to 128 printable characters"):
        read(**{header: text})


# Conversations


@pytest.mark.parametrize(
    "header",
    ["Herd-Session", "X-Claude-Code-Session-Id", "session-id", "session_id", "X-OpenWebUI-Chat-Id"],
)
def test_a_header_names_the_conversation(header: str) -> None:
    given = CIMultiDict({header: UUID})
    assert read_caller(given, ADDRESS, tier=None, session="other").session == UUID


def test_our_header_comes_before_others_and_those_before_the_body() -> None:
    assert read(session="c", Herd_Session="a", X_Session_Id="b").session == "a"
    assert read(session="c", X_Session_Id="b").session == "b"
    assert read(session="c").session == "c"


@pytest.mark.parametrize("text", ["", "x" * (LONGEST_NAME + 1), "a\tb"])
def test_what_is_no_name_in_another_programs_header_is_passed_over(text: str) -> None:
    assert read(session="c", X_Session_Id=text).session == "c"


@pytest.mark.parametrize(
    ("cache_key", "session_id", "fields", "session"),
    [
        ("a", "b", {"session_id": "c"}, "a"),
        (None, "b", {"session_id": "c"}, "b"),
        (None, None, {"session_id": "c"}, "c"),
        (7, None, {"session_id": ["c"]}, ""),
        ("x" * (LONGEST_NAME + 1), None, {}, ""),
        (None, None, {"user_id": f"user_0a1b_account__session_{UUID}"}, UUID),
        (None, None, {"user_id": f"user_0a1b_account_77_session_{UUID}"}, UUID),
        (
            None,
            None,
            {"user_id": json.dumps({"device_id": "d", "account_uuid": "", "session_id": UUID})},
            UUID,
        ),
        (None, None, {"user_id": "anna"}, ""),
        (None, None, {"user_id": "{"}, ""),
        (None, None, {"user_id": "[]"}, ""),
        (None, None, {"user_id": 5}, ""),
    ],
)
def test_a_body_names_the_conversation(
    cache_key: Any, session_id: Any, fields: dict[str, Any], session: str
) -> None:
    assert body_session(cache_key, session_id, metadata(**fields)) == session


@pytest.mark.parametrize("text", [b"", b"null", b"[1]", b'"x"', b"[" * 5000])
def test_metadata_of_another_shape_names_none(text: bytes) -> None:
    assert body_session(None, None, Raw(text)) == ""


@given(st.text(), st.text())
def test_no_text_upsets_the_reader(cache_key: str, user: str) -> None:
    assert len(body_session(cache_key, None, metadata(user_id=user))) <= LONGEST_NAME
