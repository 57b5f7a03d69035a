"""`herd simulate`: tables, files, and what is wrong in one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from herd.cli.router import app

QUICK = ("--fleet", "two", "--requests", "40", "--seeds", "2", "--processes", "1")
TWO = ("--policies", "herd,least-connections")


def simulate(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["simulate", *arguments])


def test_a_table_has_a_row_for_each_policy_and_the_bound() -> None:
    done = simulate(*QUICK, *TWO, "--load", "0.5,0.7")

    assert done.exit_code == 0
    for part in ("two / chat, load 50%", "load 70%", "least-connections", "lower bound"):
        assert part in done.output
    assert "median prediction error" in done.output


def test_files_are_written(tmp_path: Path) -> None:
    json, html, png = tmp_path / "a.json", tmp_path / "a.html", tmp_path / "a.png"
    done = simulate(*QUICK, *TWO, "--json", str(json), "--html", str(html), "--png", str(png))

    assert done.exit_code == 0, done.output
    cells = msgspec.json.decode(json.read_bytes())["cells"]
    assert [cell["policy"] for cell in cells] == ["herd", "least-connections", "lower bound"]
    assert html.read_text().startswith("<!doctype html>")
    assert png.read_bytes().startswith(b"\x89PNG")


def test_png_without_matplotlib_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = simulate(*QUICK, "--policies", "random", "--png", str(tmp_path / "a.png"))

    assert done.exit_code == 1
    assert "pip install 'ollama-herd[plots]'" in done.stderr


def test_what_one_more_device_would_change(tmp_path: Path) -> None:
    json = tmp_path / "a.json"
    done = simulate(*QUICK, *TWO, "--add", "pc-rtx-4090=llama3.1:8b", "--json", str(json))

    assert done.exit_code == 0, done.output
    assert "With pc-rtx-4090=llama3.1:8b, the mean time to completion under herd is" in done.output
    changes: list[dict[str, Any]] = msgspec.json.decode(json.read_bytes())["changes"]
    assert {(each["policy"], each["figure"]) for each in changes} >= {
        ("herd", "mean"),
        ("herd", "p95"),
        ("least-connections", "first p95"),
    }
    assert all(each["ratio"]["mean"] < 1.0 for each in changes if each["figure"] == "mean")


def test_an_owners_own_fleet(tmp_path: Path) -> None:
    path = tmp_path / "home.toml"
    path.write_text('[[devices]]\nkind = "mac-mini-m2"\ncount = 2\n')
    done = simulate("--fleet", str(path), *QUICK[2:], "--policies", "random,round-robin")

    assert done.exit_code == 0, done.output
    assert "round-robin" in done.output


@pytest.mark.parametrize("kind", ["leaves", "throttles", "owner"])
def test_disturbances(kind: str) -> None:
    done = simulate(*QUICK, "--policies", "herd", "--disturb", kind)

    assert done.exit_code == 0
    assert "a device in three" in done.output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--fleet", "nine"), "no such fleet: nine (known: one, two"),
        (("--fleet", "nine.toml"), "nine.toml: No such file or directory"),
        (("--work", "poetry"), "no such workload: poetry (known: chat"),
        (("--work", "azure:nowhere.csv"), "nowhere.csv: No such file or directory"),
        (("--work", f"azure:{__file__}"), "is no trace of that kind: the trace lacks the columns"),
        (("--policies", "herd,luck"), "no such policy: luck (known: herd"),
        (("--load", "high"), "--load is shares such as 0.6,0.9, not 'high'"),
        (("--load", "75"), "--load is a share of the capacity"),
        (("--load", "nan"), "--load is a share of the capacity"),
        (("--disturb", "noise"), "nothing disturbs by 'noise'"),
        (("--add", "abacus"), "no such kind of device: abacus (known: mac-studio"),
        (("--add", "mac-mini-m2=gpt-5"), "no such model: gpt-5:latest (known:"),
        (("--add", "mac-mini-m2=llama3.3:70b"), "does not fit into the memory of mac-mini-m2"),
        (("--json", "/nowhere/a.json"), "there is no folder /nowhere"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(arguments: tuple[str, ...], complaint: str) -> None:
    done = simulate(*arguments)

    assert done.exit_code == 2
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1
