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


def test_a_faster_fleet_does_everything_faster_and_says_so(devices: Fleet) -> None:
    slow, fast = devices.devices[0], faster(devices, 10.0).devices[0]

    assert fast.spec.load_rate == 10 * slow.spec.load_rate
    assert fast.spec.models[0].decode_rate == 10 * slow.spec.models[0].decode_rate
    assert fast.spec.models[0].prefill_rate == 10 * slow.spec.models[0].prefill_rate
    assert fast.kind.bandwidth == 10 * slow.kind.bandwidth
