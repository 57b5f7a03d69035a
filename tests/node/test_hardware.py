"""What the machine says of itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from herd.core.fleet import Hardware
from herd.node import hardware
from herd.node.hardware import Gpu, LoadSensor, chip_from_cpuinfo, gpu_from_csv, read_hardware

GIB = 1024**3


async def test_this_machine_has_memory_and_cores() -> None:
    read = await read_hardware()

    assert read.memory_bytes > 0
    assert read.cores > 0
    assert read.chip
    assert read.bandwidth == 0.0


async def test_declared_values_stand_and_the_rest_is_read() -> None:
    read = await read_hardware(Hardware(bandwidth=400e9, chip="M4 Max"))

    assert (read.bandwidth, read.chip) == (400e9, "M4 Max")
    assert read.memory_bytes > 0


@pytest.mark.parametrize(
    ("text", "chip"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC 7B13\nflags\t\t: fpu vme\n", "AMD EPYC 7B13"),
        (
            "processor: 0\nBogoMIPS: 108.00\n\nModel\t: Raspberry Pi 5 Model B\n",
            "Raspberry Pi 5 Model B",
        ),
        ("Hardware\t: BCM2835\n", "BCM2835"),
        ("processor : 0\nCPU implementer : 0x41\n", ""),
        ("", ""),
    ],
)
def test_chip_from_cpuinfo(text: str, chip: str) -> None:
    assert chip_from_cpuinfo(text) == chip


@pytest.mark.parametrize(
    ("text", "gpu"),
    [
        ("NVIDIA GeForce RTX 4090, 24564\n", Gpu("NVIDIA GeForce RTX 4090", 24564 * 1024**2)),
        ("NVIDIA A100, 40960\nNVIDIA A100, 40960\n", Gpu("2 x NVIDIA A100", 80 * GIB)),
        ("NVIDIA GB10, [N/A]\n", Gpu("NVIDIA GB10", 0)),
        ("No devices were found\n", Gpu()),
        ("", Gpu()),
    ],
)
def test_gpu_from_csv(text: str, gpu: Gpu) -> None:
    assert gpu_from_csv(text) == gpu


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `nvidia-smi` of our own on the path."""
    script = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return script


def install(script: Path, text: str) -> None:
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(0o755)


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
async def test_gpu_comes_from_nvidia_smi(command: Path) -> None:
    install(command, "echo 'NVIDIA Test, 1024'")

    read = await read_hardware()

    assert (read.gpu, read.vram_bytes) == ("NVIDIA Test", GIB)


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
async def test_nvidia_smi_that_fails_means_no_gpu(command: Path) -> None:
    install(command, "echo 'NVIDIA Test, 1024'; exit 9")

    assert (await read_hardware()).gpu == ""


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
async def test_nvidia_smi_that_hangs_is_killed(
    command: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "COMMAND_TIMEOUT", 0.2)
    install(command, "exec sleep 60")

    assert (await read_hardware()).gpu == ""


def test_load_of_the_first_second_has_no_cpu_share() -> None:
    load = LoadSensor().read()

    assert load.cpu is None
    assert load.memory_available is not None
    assert load.memory_available > 0


def test_load_has_a_share_between_0_and_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "SHORTEST_READING", 0.0)
    cpu = LoadSensor().read().cpu

    assert cpu is not None
    assert 0.0 <= cpu <= 1.0
