"""Readers of recorded traces, and how those are brought to the scale of a fleet."""

from __future__ import annotations

import msgspec
import pytest

from herd.sim.fleets import fleet
from herd.sim.traces import Row, read, workload
from herd.sim.workloads import LONGEST

FIVE = fleet("five", 1)
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:18:03.9799600,110,27
"""
MOONCAKE = """{"timestamp": 500, "input_length": 1200, "output_length": 6, "hash_ids": [0, 1, 2]}

{"timestamp": 1500, "input_length": 2000, "output_length": 4, "hash_ids": [0, 1, 3, 4]}
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,GPT-4,1087,230,1317,API log
118,GPT-4,417,0,417,Conversation log
"""


def test_azure_has_times_and_lengths() -> None:
    rows = read("azure", AZURE.splitlines())

    assert [row.at for row in rows] == pytest.approx([0.0, 0.052, 60.0])
    assert rows[0] == Row(at=0.0, prompt_tokens=4808, output_tokens=10)


def test_mooncake_has_milliseconds_and_hashes_of_complete_blocks() -> None:
    rows = read("mooncake", MOONCAKE.splitlines())

    assert [row.at for row in rows] == [0.5, 1.5]
    assert [row.hashes for row in rows] == [(0, 1), (0, 1, 3)]


def test_burstgpt_has_models_and_failures_are_left_out() -> None:
    rows = read("burstgpt", BURSTGPT.splitlines())

    assert [(row.at, row.model) for row in rows] == [(5.0, "ChatGPT"), (45.0, "GPT-4")]


def test_other_columns_are_an_error() -> None:
    with pytest.raises(ValueError, match="lacks the columns ContextTokens, GeneratedTokens"):
        read("azure", ["TIMESTAMP,a,b", "1,2,3"])


def test_a_broken_line_is_an_error() -> None:
    with pytest.raises(msgspec.DecodeError):
        read("mooncake", ['{"timestamp": 1}'])


def test_shortened_prompts_share_what_they_shared() -> None:
    rows = read("mooncake", MOONCAKE.splitlines())

    one, other = (
        session.turns[0]
        for session in workload("mooncake", rows, FIVE, requests=2, load=0.5, seed=1).sessions
    )

    assert (one.prompt_tokens, other.prompt_tokens) == (300, 500)
    assert one.prefix.block == 128
    assert one.prefix.hashes == other.prefix.hashes[:2] == (0, 1)
    assert other.shared == 256
    assert one.request.model == other.request.model or len(one.prefix.hashes) < 3


def test_the_larger_of_two_models_stays_the_larger() -> None:
    rows = read("burstgpt", BURSTGPT.splitlines())
    made = workload("burstgpt", rows, FIVE, requests=2, load=0.5, seed=1)

    assert [s.turns[0].request.model for s in made.sessions] == ["llama3.1:8b", "qwen2.5:32b"]


def test_bursts_keep_their_pattern_when_time_is_stretched() -> None:
    rows = read("azure", AZURE.splitlines())
    one = workload("azure", rows, FIVE, requests=3, load=0.8, seed=1)
    other = workload("azure", rows, FIVE, requests=3, load=0.4, seed=1)
    starts = [session.start for session in one.sessions]

    assert starts[1] / starts[2] == pytest.approx(0.052 / 60.0)
    assert other.sessions[2].start == pytest.approx(2 * starts[2])


def test_a_prompt_that_is_too_long_is_cut() -> None:
    rows = [Row(at=0.0, prompt_tokens=10**6, output_tokens=5)]
    made = workload("azure", rows, FIVE, requests=1, load=0.5, seed=1)

    assert made.sessions[0].turns[0].prompt_tokens == LONGEST


def test_a_trace_without_answers_is_an_error() -> None:
    with pytest.raises(ValueError, match="no answered requests"):
        workload("azure", [], FIVE, requests=1, load=0.5, seed=1)
