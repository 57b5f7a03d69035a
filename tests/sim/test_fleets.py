"""The six fleets: who is in them and what lies where."""

from __future__ import annotations

import pytest

from herd.sim.fleets import FLEETS, Device, alone, describe, fleet

SIZES = {"one": 1, "two": 2, "five": 5, "vllm": 5, "twenty": 20, "two-hundred": 200}


@pytest.mark.parametrize("name", FLEETS)
def test_a_fleet_has_its_devices(name: str) -> None:
    devices = fleet(name).devices

    assert len(devices) == SIZES[name]
    assert len({device.name for device in devices}) == len(devices)
    assert all(device.spec.models for device in devices)


def test_the_five_are_unequal() -> None:
    """The fastest device serves a model more than four times as fast as the slowest."""
    devices = fleet("five", 1).devices
    rates = [model.decode_rate for d in devices if (model := d.model("llama3.2:3b"))]

    assert len(rates) == 5
    assert max(rates) > 4 * min(rates)


def test_not_every_model_lies_on_every_device() -> None:
    five = fleet("five")
    counts = {name: sum(d.model(name) is not None for d in five.devices) for name in five.models}

    assert counts["llama3.3:70b"] == 1
    assert counts["llama3.2:3b"] == 5


def test_in_a_large_fleet_models_are_missing_at_random_but_nowhere_altogether() -> None:
    one, other = fleet("twenty", 1), fleet("twenty", 2)

    def models(device: Device) -> set[str]:
        return {model.name for model in device.spec.models}

    assert any(models(a) != models(b) for a, b in zip(one.devices, other.devices, strict=True))
    assert one.models == other.models


def test_one_more_device_changes_nothing_about_the_others() -> None:
    before = fleet("five", 4)
    after = before.with_device("pc-rtx-4090", seed=4)

    assert after.devices[:5] == before.devices
    assert len(after.devices) == 6
    assert "RTX 4090" in describe(after.devices[5])


def test_a_request_alone_takes_its_prefill_and_its_decode() -> None:
    device = fleet("one").devices[0]
    model = device.model("llama3.1:8b")
    assert model is not None

    seconds = alone(device, model, 1000, 101)

    assert seconds == pytest.approx(1000 / model.prefill_rate + 100 / model.decode_rate)
    assert device.resident == ()
    assert fleet("vllm").devices[-1].resident == ("qwen2.5:32b",)
