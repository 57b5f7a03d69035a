"""What the routing benchmark makes of its runs."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest

from benchmarks import standings
from benchmarks.standings import BOUND, CLAIRVOYANT, Figures, Key, Runs

CHAT = Key("five", "chat", 0.75)
BATCH = Key("two", "batch", 0.75)


def seeds(*means: float, first: float | None = 1.0) -> dict[int, Figures]:
    return {
        seed: Figures(mean=mean, p95=2.0 * mean, first=first, cpu=1.0)
        for seed, mean in enumerate(means, 1)
    }


def cell(**others: dict[int, Figures]) -> dict[str, dict[int, Figures]]:
    named = {name.replace("_", "-"): each for name, each in others.items()}
    return {"herd": seeds(10.0, 20.0, 40.0), **named}


def test_ratios_are_paired_by_seed() -> None:
    ratio = standings.ratio_to(seeds(5.0, 10.0, 20.0), seeds(10.0, 20.0, 40.0))

    assert (ratio.low, ratio.mean, ratio.high) == pytest.approx((0.5, 0.5, 0.5))


def test_a_policy_is_sooner_only_beyond_doubt() -> None:
    runs: Runs = {
        CHAT: cell(
            surely=seeds(9.0, 18.0, 36.0),
            maybe=seeds(5.0, 22.0, 40.0),
            equal=seeds(10.0, 20.0, 40.0),
        )
    }
    mean, _ = standings.places(runs)

    assert mean.rival == "maybe"
    assert list(mean.sooner) == ["surely"]
    assert not mean.holds
    # Told is the ratio of the one that is sooner, not that of the rival.
    assert "surely 0.90 (0.90 to 0.90) of Herd's" in standings.tables(standings.report(runs))
    del runs[CHAT]["surely"]
    assert standings.places(runs)[0].holds


def test_yardsticks_are_no_rivals() -> None:
    runs: Runs = {
        CHAT: {**cell(random=seeds(11.0, 22.0, 44.0)), CLAIRVOYANT: seeds(1.0), BOUND: seeds(1.0)}
    }
    mean, _ = standings.places(runs)

    assert (mean.rival, mean.holds) == ("random", True)


def test_without_streams_the_tail_is_of_completion() -> None:
    runs: Runs = {BATCH: cell(random=seeds(11.0, 22.0, 44.0, first=None))}
    runs[BATCH]["herd"] = seeds(10.0, 20.0, 40.0, first=None)
    _, tail = standings.places(runs)

    assert tail.herd == pytest.approx((20.0 + 40.0 + 80.0) / 3.0)


def test_goals_are_geometric_means_over_the_unequal_fleets() -> None:
    runs: Runs = {
        CHAT: cell(least_connections=seeds(20.0, 40.0, 80.0)),
        Key("vllm", "mix", 0.9): cell(least_connections=seeds(80.0, 160.0, 320.0)),
        BATCH: cell(least_connections=seeds(1.0, 1.0, 1.0)),
    }
    (goal,) = standings.goals(runs)

    assert goal.found.mean == pytest.approx(4.0)
    assert (goal.cells, goal.seeds, goal.reached) == (2, 3, True)
    assert goal.fleets == pytest.approx({"five": 2.0, "vllm": 8.0})


def test_the_bound_is_what_herd_is_over() -> None:
    runs: Runs = {CHAT: {**cell(), BOUND: seeds(5.0, 10.0)}}
    (goal,) = standings.goals(runs)

    assert (goal.policy, goal.seeds, goal.reached) == (BOUND, 2, False)
    assert goal.found.mean == pytest.approx(2.0)
    assert "2.00 (2.00 to 2.00), not reached" in standings.tables(standings.report(runs))


def test_tables_come_between_the_markers(tmp_path: Path) -> None:
    document = tmp_path / "routing.md"
    document.write_text("before\n<!-- routing:begin -->\nold\n<!-- routing:end -->\nafter\n")
    found = standings.report({CHAT: cell(random=seeds(11.0, 22.0, 44.0))})
    for _ in range(2):
        standings.write(found, tmp_path)

    text = document.read_text()
    assert text.startswith("before\n<!-- routing:begin -->\n\n")
    assert text.endswith("<!-- routing:end -->\nafter\n")
    assert "old" not in text
    assert text.count("| five unequal") == 3
    results = msgspec.json.decode((tmp_path / "routing-results.json").read_bytes())
    assert set(results) == {"goals", "places", "rows"}
    assert results["rows"][1]["ratio"]["mean"] == pytest.approx(1.1)


def test_a_document_without_markers_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "routing.md").write_text("mine")

    with pytest.raises(ValueError, match="has lost its markers"):
        standings.write(standings.report({CHAT: cell()}), tmp_path)
    assert (tmp_path / "routing.md").read_text() == "mine"


def test_results_are_rounded() -> None:
    found = standings.report({CHAT: cell(random=seeds(math.pi * 10, 20.0, 40.0))})

    assert b"3.14159" not in standings.compact(found)
    msgspec.json.decode(standings.compact(found))
