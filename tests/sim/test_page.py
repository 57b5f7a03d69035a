"""Charts: one file that needs nothing else, a PNG that is one, and the figures in both."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from herd.sim import plots, svg
from herd.sim.compare import BOUND, Cell, Setting, compare
from herd.sim.figures import colours, dash, figure
from herd.sim.page import page
from herd.sim.policies import POLICIES
from herd.sim.results import Interval
from herd.sim.whatif import Change

SETTING = Setting(fleet="two", work="chat", requests=40)


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return compare([SETTING], tuple(POLICIES), (1, 2))


def charts(text: str) -> list[ET.Element]:
    return [ET.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def test_the_page_needs_nothing_else(cells: list[Cell]) -> None:
    text = page([cells])

    assert "http" not in text
    assert "<script" not in text
    assert "prefers-color-scheme: dark" in text
    assert len(charts(text)) == 4


def test_every_policy_has_a_bar_a_line_and_a_row(cells: list[Cell]) -> None:
    text = page([cells])
    bars, completion, shares, first = charts(text)
    rects = bars.findall("rect/title")

    assert len(rects) == len(POLICIES) + 1
    assert any((title.text or "").startswith(f"{BOUND}: ") for title in rects)
    assert {title.text for title in completion.findall("polyline/title")} == set(POLICIES)
    assert {title.text for title in first.findall("polyline/title")} == set(POLICIES)
    assert len(shares.findall("rect")) == 2 * len(POLICIES)
    assert all(f"<td>{name}</td>" in text for name in POLICIES)


def test_everything_drawn_is_inside_the_chart(cells: list[Cell]) -> None:
    for chart in charts(page([cells])):
        _, _, width, height = map(float, chart.attrib["viewBox"].split())
        for line in chart.findall("polyline"):
            for point in line.attrib["points"].split():
                x, y = map(float, point.split(","))
                assert 0 <= x <= width
                assert 0 <= y <= height
        for rect in chart.findall("rect"):
            assert float(rect.attrib["x"]) + float(rect.attrib["width"]) <= width


def test_longer_bars_take_longer(cells: list[Cell]) -> None:
    shown = figure(cells)
    widths = [float(each.attrib["width"]) for each in ET.fromstring(svg.bars(shown)).iter("rect")]

    assert widths == sorted(widths)
    assert [each.mean for _, each in shown.bars] == sorted(each.mean for _, each in shown.bars)


def test_no_two_policies_look_the_same(cells: list[Cell]) -> None:
    shown = figure(cells)
    palette = colours(shown)
    looks = {(palette[name], dash(shown, name)) for name in POLICIES}

    assert len(looks) == len(POLICIES)


def test_a_workload_without_streams_has_no_first_tokens() -> None:
    text = page([compare([Setting(fleet="two", work="batch", requests=20)], ("random",), (1,))])

    assert "Nothing was streamed." in text
    assert len(charts(text)) == 3


def test_large_fleets_are_shown_by_kind() -> None:
    cells = compare([Setting(fleet="twenty", work="chat", requests=60)], ("random",), (1,))
    ((_, shares),) = figure(cells).shares

    assert "mac-mini-m2" in dict(shares)
    assert sum(dict(shares).values()) == pytest.approx(1.0)


def test_a_what_if_is_told_and_escaped(cells: list[Cell]) -> None:
    one = Interval(2.0, 1.5, 2.5)
    change = Change(
        setting=Setting(fleet="two", work="chat", add=("<b>",)),
        policy="herd",
        figure="mean",
        before=one,
        after=one,
        ratio=Interval(0.5, 0.4, 0.6),
    )
    text = page([cells], [change])

    assert "With &lt;b&gt;, the mean time to completion under herd is 50% less" in text


def test_a_png_is_drawn_for_each_setting(tmp_path: Path, cells: list[Cell]) -> None:
    plots.write([cells], tmp_path / "one.png")
    plots.write([cells, cells], tmp_path / "two.png")

    one, two = ((tmp_path / f"{name}.png").read_bytes() for name in ("one", "two"))
    height = [int.from_bytes(data[20:24], "big") for data in (one, two)]
    assert height[1] == 2 * height[0]
