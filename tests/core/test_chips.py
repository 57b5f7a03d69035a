"""Chips are found by whatever their machines call them."""

from __future__ import annotations

import pytest

from herd.core import chips


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Apple M1", "apple m1"),
        ("Apple M2 Ultra", "apple m2 ultra"),
        ("Apple M4 Max", "apple m4 max"),
        ("NVIDIA GeForce RTX 4090", "rtx 4090"),
        ("2 x NVIDIA GeForce RTX 3090", "rtx 3090"),
        ("GeForce RTX 4070 Ti SUPER", "rtx 4070 ti super"),
        ("RTX4070Ti", "rtx 4070 ti"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "rtx 4090 laptop"),
        ("NVIDIA A100-SXM4-80GB", "a100 80gb"),
        ("NVIDIA A100-PCIE-40GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100 pcie"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx 6000 ada"),
        ("Tesla T4", "tesla t4"),
        ("NVIDIA L40S", "l40s"),
        ("AMD Radeon RX 7900 XTX", "radeon rx 7900 xtx"),
        ("AMD Instinct MI300X", "instinct mi300x"),
        ("AMD RYZEN AI MAX+ 395 w/ Radeon 8060S", "ryzen ai max+ 395"),
        ("Intel(R) Arc(TM) A770 Graphics", "arc a770"),
        ("Intel(R) Arc(TM) B580 Graphics", "arc b580"),
    ],
)
def test_names_find_their_chip(text: str, name: str) -> None:
    found = chips.find(text)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Apple M99",
        "NVIDIA GeForce RTX 2080 Laptop GPU",
        "Intel(R) Core(TM) i7-8700 CPU @ 3.20GHz",
        "AMD Ryzen 9 7950X 16-Core Processor",
        "Quadro RTX 4000",
    ],
)
def test_unknown_chips_are_not_taken_for_known_ones(text: str) -> None:
    assert chips.find(text) is None


def test_every_chip_is_found_by_its_own_name_and_has_likely_figures() -> None:
    for _, chip in chips._BY_WORDS:
        assert chips.find(chip.name) is chip
        assert 50e9 < chip.bandwidth < 10e12
        assert 2e12 < chip.compute < 3e15


def test_cards_are_counted() -> None:
    assert chips.count("2 x NVIDIA A100") == 2
    assert chips.count("NVIDIA A100") == chips.count("") == chips.count("0 x A100") == 1
