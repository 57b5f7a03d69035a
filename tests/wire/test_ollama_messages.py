from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest

from herd.core.fleet import EngineKind
from herd.wire.ollama_messages import History, Message, image_part
from herd.wire.ollama_options import Untranslatable

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(30)).decode()


def translate(*messages: dict[str, Any], kind: EngineKind = "llamacpp") -> list[dict[str, Any]]:
    history = History(kind)
    given = msgspec.json.decode(msgspec.json.encode(messages), type=list[Message])
    return [history.translate(message) for message in given]


def called(*names: str, **fields: Any) -> dict[str, Any]:
    calls = [{"function": {"name": name, "arguments": {}}} | fields for name in names]
    return {"role": "assistant", "tool_calls": calls}


def result(**fields: Any) -> dict[str, Any]:
    return {"role": "tool", "content": "sunny"} | fields


def test_roles_may_be_written_in_any_case() -> None:
    assert translate({"role": "User", "content": "hi"}) == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("message", [{"role": "user"}, {"role": "user", "content": None}])
def test_no_content_is_empty_content(message: dict[str, Any]) -> None:
    assert translate(message) == [{"role": "user", "content": ""}]


@pytest.mark.parametrize(
    ("kind", "field"),
    [("llamacpp", "reasoning_content"), ("vllm", "reasoning"), ("mlx", "reasoning_content")],
)
def test_earlier_thoughts_go_by_the_engines_name(kind: EngineKind, field: str) -> None:
    made = translate({"role": "assistant", "content": "a", "thinking": "hm"}, kind=kind)

    assert made == [{"role": "assistant", "content": "a", field: "hm"}]


def test_images_follow_the_text_as_data_uris() -> None:
    made = translate({"role": "user", "content": "what?", "images": [PNG, PNG]})

    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    assert made == [{"role": "user", "content": [{"type": "text", "text": "what?"}, part, part]}]


def test_an_image_may_come_without_text() -> None:
    made = translate({"role": "user", "images": [PNG]})

    assert [part["type"] for part in made[0]["content"]] == ["image_url"]


@pytest.mark.parametrize(
    ("start", "mime"),
    [
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"GIF87a", "image/gif"),
        (b"BM", "image/bmp"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
    ],
)
def test_the_bytes_tell_the_kind_of_image(start: bytes, mime: str) -> None:
    url = image_part(base64.b64encode(start + bytes(9)).decode())["image_url"]["url"]

    assert url.startswith(f"data:{mime};base64,")


def test_base64_may_be_broken_into_lines() -> None:
    assert image_part(PNG[:20] + "\r\n" + PNG[20:]) == image_part(PNG)


@pytest.mark.parametrize("image", ["no base64!", "data:image/png;base64," + PNG, "iVBORw0KGgo"])
def test_bad_base64_is_refused(image: str) -> None:
    with pytest.raises(Untranslatable, match=r"^illegal base64 data"):
        image_part(image)


def test_bytes_of_another_kind_are_refused() -> None:
    with pytest.raises(Untranslatable, match="not PNG, JPEG, GIF, BMP or WebP"):
        image_part(base64.b64encode(b"RIFF\0\0\0\0WAVEfmt ").decode())


def test_a_tool_call_gets_an_id_and_its_arguments_as_text() -> None:
    call = {"function": {"index": 0, "name": "f", "arguments": {"city": "Paris", "n": 1.5}}}

    made = translate({"role": "assistant", "content": "", "tool_calls": [call]})

    assert made[0]["tool_calls"] == [
        {
            "id": "call00001",
            "type": "function",
            "function": {"name": "f", "arguments": '{"city":"Paris","n":1.5}'},
        }
    ]


def test_made_ids_have_the_form_that_mistrals_templates_ask_for() -> None:
    identity = translate(called("f"))[0]["tool_calls"][0]["id"]

    assert len(identity) == 9
    assert identity.isalnum()


def test_no_arguments_are_an_empty_object() -> None:
    made = translate({"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]})

    assert made[0]["tool_calls"][0]["function"]["arguments"] == "{}"


def test_results_find_their_calls_in_order() -> None:
    made = translate(called("f", "f"), result(), result())

    assert [message["tool_call_id"] for message in made[1:]] == ["call00001", "call00002"]


def test_results_find_their_calls_by_name() -> None:
    made = translate(called("f", "g"), result(tool_name="g"), result(tool_name="f"))

    assert [message["tool_call_id"] for message in made[1:]] == ["call00002", "call00001"]
    assert made[1]["name"] == "g"


def test_a_name_that_was_not_called_falls_back_to_the_order() -> None:
    made = translate(called("f"), result(tool_name="other"))

    assert made[1]["tool_call_id"] == "call00001"


def test_ids_of_the_client_are_kept() -> None:
    made = translate(called("f", id="abc"), called("g"), result(tool_call_id="abc"), result())

    assert made[0]["tool_calls"][0]["id"] == "abc"
    assert [message["tool_call_id"] for message in made[2:]] == ["abc", "call00001"]


def test_a_result_without_any_call_gets_an_id_of_its_own() -> None:
    assert translate(result())[0]["tool_call_id"] == "call00001"
