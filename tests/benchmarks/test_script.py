"""A script's real requests are what the simulated workload says of them."""

from __future__ import annotations

import msgspec
import pytest

from benchmarks.agreement import faster
from benchmarks.script import ANSWER_TOKENS, Script, write
from herd.sim.fleets import Fleet, fleet
from herd.sim.ollama import ChatRequest, chat_ask
from herd.sim.workloads import Turn, Workload, WorkName, generate
from herd.wire.peek import peek

WORKS: tuple[WorkName, ...] = ("chat", "agents", "rag", "batch")


@pytest.fixture(scope="module")
def devices() -> Fleet:
    return fleet("five", 1)


def made(devices: Fleet, work: WorkName) -> tuple[Workload, Script]:
    workload = generate(work, devices, requests=24, load=0.75, seed=1)
    return workload, write(workload, speed=10.0, seed=1)


def turns(workload: Workload) -> list[Turn]:
    return [turn for session in workload.sessions for turn in session.turns]


@pytest.mark.parametrize("work", WORKS)
def test_true_lengths_are_the_workloads(devices: Fleet, work: WorkName) -> None:
    workload, script = made(devices, work)

    lengths = [(turn.prompt_tokens, turn.output_tokens) for turn in turns(script.workload)]
    assert lengths == [(turn.prompt_tokens, turn.output_tokens) for turn in turns(workload)]


@pytest.mark.parametrize("work", WORKS)
def test_the_simulated_router_gets_what_the_real_one_reads(devices: Fleet, work: WorkName) -> None:
    _, script = made(devices, work)
    lines = [line for part in script.parts for line in part.lines]

    for line, turn in zip(lines, turns(script.workload), strict=True):
        seen = peek(line.body)
        assert (seen.model, seen.prompt_tokens) == (turn.request.model, turn.request.prompt_tokens)
        assert (seen.prefix, seen.max_tokens) == (turn.prefix, None)


def test_the_simulated_engine_gets_what_the_real_one_counts(devices: Fleet) -> None:
    _, script = made(devices, "chat")
    line, turn = script.parts[0].lines[0], script.workload.sessions[0].turns[0]

    ask = chat_ask(msgspec.json.decode(line.body, type=ChatRequest), ANSWER_TOKENS)

    assert turn.cached_as is not None
    assert ask.tokens == turn.cached_as.hashes
    assert (ask.output_tokens, ask.produced) == (turn.output_tokens, turn.produced)
    assert ask.answer.text(ask.pieces) == line.answer


@pytest.mark.parametrize("work", ["chat", "agents"])
def test_a_conversation_goes_on_from_its_answer(devices: Fleet, work: WorkName) -> None:
    _, script = made(devices, work)

    for session in script.workload.sessions:
        before: tuple[int, ...] = ()
        for turn in session.turns:
            assert turn.cached_as is not None
            assert turn.cached_as.hashes[: len(before)] == before
            before = turn.cached_as.hashes + turn.produced


def test_sessions_of_one_client_share_its_system_prompt(devices: Fleet) -> None:
    _, script = made(devices, "rag")
    by_client: dict[str, list[Turn]] = {}
    for turn in turns(script.workload):
        if turn.request.operation == "chat":
            by_client.setdefault(turn.request.client, []).append(turn)
    several = next(each for each in by_client.values() if len(each) > 1)
    one, other = (turn.cached_as.hashes for turn in several[:2] if turn.cached_as)

    assert one[: several[0].shared] == other[: several[0].shared]
    assert one != other


@pytest.mark.parametrize("name", ["five", "vllm"])
def test_a_faster_fleet_does_everything_faster(name: str) -> None:
    slow = fleet(name, 1)
    for before, after in zip(slow.devices, faster(slow, 10.0).devices, strict=True):
        one, other = before.spec.models[-1], after.spec.models[-1]
        load = one.weight_bytes / before.spec.load_rate
        bandwidth = before.kind.bandwidth / one.weight_bytes

        assert other.decode_rate == pytest.approx(10 * one.decode_rate)
        assert other.prefill_rate == pytest.approx(10 * one.prefill_rate)
        assert other.weight_bytes / after.spec.load_rate == pytest.approx(load / 10, rel=1e-6)
        assert after.kind.bandwidth / other.weight_bytes == pytest.approx(10 * bandwidth, rel=1e-6)
        assert after.spec.memory_bytes / other.weight_bytes == pytest.approx(
            before.spec.memory_bytes / one.weight_bytes, rel=1e-6
        )
