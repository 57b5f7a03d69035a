"""What the demo makes of an Ollama that runs on this machine."""

from __future__ import annotations

from typing import Any

import pytest

from demo.fleet import get_json, smallest_chat_model
from devtools.processes import free_port


def row(name: str, size: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "size": size, **more}


@pytest.mark.parametrize(
    ("rows", "chosen"),
    [
        ([], ""),
        ([row("big:70b", 40), row("small:1b", 1)], "small:1b"),
        ([row("embed:1b", 1, capabilities=["embedding"]), row("chat:3b", 3)], "chat:3b"),
        ([row("old-embed:1b", 1, details={"family": "nomic-bert"}), row("chat:3b", 3)], "chat:3b"),
        ([row("hosted:cloud", 1, remote_host="https://ollama.example")], ""),
    ],
)
def test_smallest_model_that_chats_is_asked(rows: list[dict[str, Any]], chosen: str) -> None:
    assert smallest_chat_model(rows) == chosen


def test_nobody_at_a_port_is_no_answer() -> None:
    assert get_json(f"http://127.0.0.1:{free_port()}/api/version") is None
