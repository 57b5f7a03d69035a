"""Generated workloads: sessions, shared prefixes, load; and the fleet's capacity behind it."""

from __future__ import annotations

import itertools
import statistics

import pytest

from herd.core.request import Prefix, Request
from herd.sim import capacity
from herd.sim.fleets import Fleet, alone, fleet
from herd.sim.spec import VLLM_MARGINAL
from herd.sim.workloads import BLOCK, LONGEST, WORKS, Turn, WorkName, generate

FIVE = fleet("five", 1)


def turns(name: WorkName) -> list[Turn]:
    made = generate(name, FIVE, requests=200, load=0.75, seed=1)
    return [turn for session in made.sessions for turn in session.turns]


@pytest.mark.parametrize("name", WORKS)
def test_a_seed_gives_the_same_workload_again(name: WorkName) -> None:
    one = generate(name, FIVE, requests=100, load=0.7, seed=3)

    assert one == generate(name, FIVE, requests=100, load=0.7, seed=3)
    assert one != generate(name, FIVE, requests=100, load=0.7, seed=4)


@pytest.mark.parametrize("name", WORKS)
def test_requests_are_as_many_as_asked_and_can_be_served(name: WorkName) -> None:
    made = turns(name)

    assert 200 <= len(made) <= 202
    assert len({turn.request.id for turn in made}) == len(made)
    assert {turn.request.model for turn in made} <= set(FIVE.models)
    assert all(turn.prompt_tokens <= LONGEST for turn in made)
    assert all(len(turn.prefix.hashes) == turn.prompt_tokens // BLOCK for turn in made)


def test_a_chat_grows_by_what_was_asked_and_answered() -> None:
    for session in generate("chat", FIVE, requests=200, load=0.75, seed=1).sessions:
        for before, after in itertools.pairwise(session.turns):
            known = before.prefix.hashes + before.produced
            assert after.prefix.hashes[: len(known)] == known
            assert after.shared == before.prompt_tokens + before.output_tokens
            assert after.think > 0


def test_agents_have_long_prompts_and_short_answers() -> None:
    made = turns("agents")

    assert statistics.median(t.prompt_tokens for t in made) > 4000
    assert statistics.median(t.output_tokens for t in made) < 200


def test_clients_of_one_kind_share_their_system_prompt_only() -> None:
    sessions = generate("agents", FIVE, requests=400, load=0.75, seed=1).sessions
    by_client: dict[str, list[Turn]] = {}
    for session in sessions:
        by_client.setdefault(session.turns[0].request.client, []).append(session.turns[0])
    one, other = next(firsts for firsts in by_client.values() if len(firsts) > 1)[:2]

    assert one.prefix.hashes[0] == other.prefix.hashes[0]
    assert one.prefix.hashes[-1] != other.prefix.hashes[-1]


def test_retrieval_embeds_and_then_asks() -> None:
    for session in generate("rag", FIVE, requests=100, load=0.75, seed=1).sessions:
        kinds = [turn.request.operation for turn in session.turns]
        assert kinds == ["embedding", "chat"] * (len(kinds) // 2)


def test_a_batch_comes_at_once_and_is_patient() -> None:
    sessions = generate("batch", FIVE, requests=200, load=0.75, seed=1).sessions
    gaps = [b.start - a.start for a, b in itertools.pairwise(sessions)]

    assert statistics.median(gaps) < 0.05
    assert all((s.turns[0].request.patience or 0) > 3600 for s in sessions)


def test_the_router_only_estimates_a_prompt() -> None:
    made = turns("chat")
    ratios = [turn.request.prompt_tokens / turn.prompt_tokens for turn in made]

    assert 0.9 < statistics.median(ratios) < 1.1
    assert max(ratios) > 1.1


def test_half_the_load_is_twice_the_time() -> None:
    busy = generate("chat", FIVE, requests=200, load=0.8, seed=1)
    calm = generate("chat", FIVE, requests=200, load=0.4, seed=1)

    assert calm.sessions[-1].start == pytest.approx(2 * busy.sessions[-1].start)


def work(model: str, *, prompt: int = 0, output: int = 1001) -> Turn:
    request = Request(
        id="r",
        dialect="ollama",
        operation="chat",
        endpoint="/api/chat",
        asked=model,
        model=model,
    )
    return Turn(
        request=request, prefix=Prefix(), think=0.0, prompt_tokens=prompt, output_tokens=output
    )


def test_one_device_needs_the_sum_of_the_work() -> None:
    one = fleet("one", 1)
    device = one.devices[0]
    models = ("llama3.1:8b", "gemma3:12b")
    seconds = sum(alone(device, m, 10, 1001) for name in models if (m := device.model(name)))

    assert capacity.span(one, [work(name, prompt=10) for name in models]) == pytest.approx(seconds)


def test_an_engine_that_batches_decodes_as_many_at_once_as_its_pool_holds() -> None:
    devices = fleet("vllm", 1)
    server = next(device for device in devices.devices if device.kind.engine == "vllm")
    model = server.spec.models[0]
    tokens = 16 * server.spec.pool_blocks(model)
    prompt = tokens // 4 - 500
    item = work(model.name, prompt=prompt)

    # Four sequences, each a thousand tokens longer in the end than in the beginning.
    decode = 1000 / model.decode_rate / (4 / (1 + 3 * VLLM_MARGINAL))
    expected = prompt / model.prefill_rate + decode
    assert capacity.span(Fleet("one", (server,)), [item]) == pytest.approx(expected, rel=1e-3)


def test_two_devices_share_the_work_by_their_rates() -> None:
    two = fleet("two", 1)
    rates = [m.decode_rate for d in two.devices if (m := d.model("llama3.1:8b"))]

    found = capacity.span(two, [work("llama3.1:8b")] * 40)

    assert found == pytest.approx(40 * 1000 / sum(rates), rel=0.01)


@pytest.mark.parametrize("name", ["five", "twenty", "two-hundred"])
def test_the_bounds_of_the_capacity_are_close(name: WorkName) -> None:
    devices = fleet(name, 2)
    made = [
        t for s in generate("mix", devices, requests=300, load=1, seed=2).sessions for t in s.turns
    ]

    low, high = capacity.bounds(devices, made)

    assert 0.95 * high <= low <= high


def test_a_model_that_nobody_has_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"has llama3\.3:70b"):
        capacity.span(fleet("one"), [work("llama3.3:70b")])
