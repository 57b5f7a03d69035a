"""The documents keep up with the code: whatever can be set, asked or decided is in them."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import msgspec
import pytest

from herd.core.actions import Action
from herd.core.decision import Signals
from herd.core.events import Event
from herd.engines.registry import ADAPTERS
from herd.gateway import openapi
from herd.gateway.endpoints import ENDPOINTS
from herd.ops.settings import NodeSettings, RouterSettings

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def text(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("settings", [RouterSettings, NodeSettings])
def test_every_setting_is_documented(settings: type[msgspec.Struct]) -> None:
    document = text("configuration.md")

    missing = [name for name in settings.__struct_fields__ if f"`{name}`" not in document]

    assert missing == []


def test_numeric_defaults_are_documented_as_they_are() -> None:
    document = text("configuration.md")
    rows = dict(re.findall(r"^\| `(\w+)` \| `([\d.]+)` \|", document, re.MULTILINE))
    defaults = msgspec.structs.asdict(RouterSettings()) | {
        "scan": True,
        "drain_timeout": RouterSettings().drain_timeout,
    }

    for name in ("port", "max_waiting", "patience", "max_attempts", "max_body", "idle_timeout"):
        assert float(rows[name]) == float(defaults[name]), name


def test_every_inference_endpoint_is_documented() -> None:
    document = text("api.md")

    assert [
        path for path in ENDPOINTS if f"`POST {path}`" not in document and path not in document
    ] == []


def test_every_path_of_our_own_api_is_documented() -> None:
    document = text("api.md")

    assert [path for path in openapi.document()["paths"] if path not in document] == []


def test_the_table_of_who_serves_what_is_true() -> None:
    """A row names the engines that serve its paths themselves, and no others."""
    names = {
        "ollama": "Ollama",
        "llamacpp": "llama.cpp",
        "vllm": "vLLM",
        "lmstudio": "LM Studio",
        "mlx": "MLX",
    }
    rows = [line.split("|") for line in text("api.md").splitlines() if line.startswith("| `POST /")]
    checked = 0
    for row in rows:
        for path in re.findall(r"`(?:POST )?(/[\w/]+)`", row[1]):
            if path not in ENDPOINTS:
                continue
            serving = {names[a.kind] for a in ADAPTERS if path in a.paths}
            assert {part.strip() for part in row[3].split(",")} == serving, path
            checked += 1

    assert checked == len(ENDPOINTS)


@pytest.mark.parametrize("union", [Event, Action])
def test_every_event_and_action_is_documented(union: object) -> None:
    document = text("architecture.md")

    missing = [
        kind.__name__ for kind in typing.get_args(union) if f"`{kind.__name__}`" not in document
    ]

    assert missing == []


def test_every_signal_is_documented() -> None:
    document = text("architecture.md")

    assert [name for name in Signals.__struct_fields__ if f"| {name}" not in document] == []


def test_every_folder_has_its_line() -> None:
    document = text("architecture.md")
    folders = [
        path.name for path in (ROOT / "src" / "herd").iterdir() if (path / "__init__.py").exists()
    ]

    assert [name for name in folders if f"| `{name}/` |" not in document] == []


def test_links_between_documents_lead_somewhere() -> None:
    documents = [*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    broken = [
        f"{document.name}: {link}"
        for document in documents
        for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
        if "://" not in link and not (document.parent / link).exists()
    ]

    assert broken == []
