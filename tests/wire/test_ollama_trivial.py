from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from herd.wire.ollama_options import Untranslatable
from herd.wire.ollama_trivial import trivial_answer


def answer(endpoint: str, **fields: Any) -> Any:
    body = json.dumps({"model": "smollm2:135m"} | fields).encode()
    made = trivial_answer(endpoint, body, kind="llamacpp", now=1795428342.5)
    return None if made is None else json.loads(made)


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        ("/api/chat", {"messages": []}),
        ("/api/generate", {"prompt": None}),
    ],
)
def test_loading_is_answered_as_ollama_does(
    endpoint: str, fields: dict[str, Any], recorded: Callable[..., str]
) -> None:
    theirs = json.loads(recorded("ollama", endpoint, keep_alive=None, **fields))
    theirs["created_at"] = "2026-11-23T10:05:42.5Z"

    ours = answer(endpoint, **fields)

    assert json.dumps(ours) == json.dumps(theirs)


@pytest.mark.parametrize(
    ("endpoint", "fields", "expected"),
    [
        ("/api/embed", {"input": ""}, {"model": "smollm2:135m", "embeddings": []}),
        ("/api/embed", {"input": []}, {"model": "smollm2:135m", "embeddings": []}),
        ("/api/embeddings", {"prompt": ""}, {"embedding": []}),
    ],
)
def test_nothing_to_embed(endpoint: str, fields: dict[str, Any], expected: object) -> None:
    assert answer(endpoint, **fields) == expected


@pytest.mark.parametrize("keep_alive", [0, 0.0, "0", "0s", "0m0s"])
def test_unloading_is_refused(keep_alive: object) -> None:
    with pytest.raises(Untranslatable, match=r"^llama\.cpp keeps its model loaded"):
        answer("/api/generate", keep_alive=keep_alive)


@pytest.mark.parametrize("keep_alive", [-1, 30, "5m", "10s", "forever", None])
def test_any_other_keep_alive_is_loading(keep_alive: object) -> None:
    assert answer("/api/generate", keep_alive=keep_alive)["done_reason"] == "load"


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        ("/api/chat", {"messages": [{"role": "user", "content": ""}]}),
        ("/api/generate", {"prompt": "a", "keep_alive": 0}),
        ("/api/embed", {"input": "a"}),
        ("/api/embeddings", {"prompt": "a"}),
        ("/api/tags", {}),
        ("/api/chat", {"model": 1}),
    ],
)
def test_work_is_for_the_engine(endpoint: str, fields: dict[str, Any]) -> None:
    assert answer(endpoint, **fields) is None
