"""Fleets that owners describe."""

from __future__ import annotations

from pathlib import Path

import pytest

from herd.sim.fleets import fleet
from herd.sim.ownfleet import extended, load

HOME = """
name = "home"
[[devices]]
kind = "mac-studio-m2-ultra"
name = "studio"
models = ["Llama3.3:70b", "nomic-embed-text"]
[[devices]]
kind = "mac-mini-m2"
count = 2
"""


def written(folder: Path, text: str, name: str = "mine.toml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_devices_have_the_models_named_or_the_usual_ones(tmp_path: Path) -> None:
    made = load(written(tmp_path, HOME), 3)

    assert made.name == "home"
    assert [device.name for device in made.devices] == ["studio", "mac-mini-m2-1", "mac-mini-m2-2"]
    studio, mini, _ = made.devices
    assert [model.name for model in studio.spec.models] == [
        "llama3.3:70b",
        "nomic-embed-text:latest",
    ]
    assert "llama3.1:8b" in [model.name for model in mini.spec.models]


def test_the_seed_moves_the_true_rates(tmp_path: Path) -> None:
    path = written(tmp_path, HOME)

    assert load(path, 1) == load(path, 1)
    assert load(path, 1) != load(path, 2)


def test_json_is_read_too_and_named_after_its_file(tmp_path: Path) -> None:
    made = load(written(tmp_path, '{"devices": [{"kind": "cpu-box"}]}', "attic.json"))

    assert (made.name, len(made.devices)) == ("attic", 1)


def test_a_name_is_one_of_the_six() -> None:
    assert load("five", 2) == fleet("five", 2)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "missing required field `devices`"),
        ("devices = []", "no devices"),
        ('[[devices]]\nkind = "toaster"', "no such kind of device: toaster"),
        ('[[devices]]\nkind = "cpu-box"\ncount = 0', "count must be at least 1"),
        ('[[devices]]\nkind = "cpu-box"\ncount = 5000', "more than 1000 devices"),
        ('[[devices]]\nkind = "cpu-box"\ncolour = "red"', "unknown field `colour`"),
        ('[[devices]]\nkind = "cpu-box"\nmodels = ["x"]', "no such model: x:latest"),
        ('[[devices]]\nkind = "mac-mini-m2"\nmodels = ["llama3.3:70b"]', "does not fit"),
        ("[[devices]", "mine.toml"),
    ],
)
def test_what_cannot_be_names_the_file(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=r"mine\.toml: ") as caught:
        load(written(tmp_path, text))

    assert complaint in str(caught.value)


def test_two_devices_of_one_name_are_numbered_or_refused(tmp_path: Path) -> None:
    one = '[[devices]]\nkind = "cpu-box"\nname = "box"\n'

    assert [d.name for d in load(written(tmp_path, one * 2)).devices] == ["box", "box-1"]
    with pytest.raises(ValueError, match="two devices are called box-1"):
        load(written(tmp_path, one * 3))


def test_devices_are_added_with_names_of_their_own() -> None:
    before = fleet("two", 1)
    after = extended(before, ("cpu-box", "cpu-box=llama3.2:3b"), 1)

    assert after.devices[:2] == before.devices
    assert [device.name for device in after.devices[2:]] == ["cpu-box-new-1", "cpu-box-new-2"]
    assert [model.name for model in after.devices[3].spec.models] == ["llama3.2:3b"]
