"""What is believed of a replica before it was measured."""

from __future__ import annotations

import pytest

from herd.core import priors
from herd.core.fleet import Hardware, Replica

SIZE = 5_000_000_000


def replica(*, size: int = SIZE, parameters: int = 0, memory: int = 0) -> Replica:
    return Replica(
        model="m:latest", name="m", size=size, parameters=parameters, memory_bytes=memory
    )


@pytest.mark.parametrize(
    ("hardware", "bandwidth", "ratio"),
    [
        (Hardware(), priors.CPU_BANDWIDTH, priors.PREFILL_RATIO_CPU),
        (Hardware(bandwidth=90e9), 90e9, priors.PREFILL_RATIO_CPU),
        (Hardware(chip="Apple M99"), priors.APPLE_BANDWIDTH, priors.PREFILL_RATIO_SHARED),
        (Hardware(chip="Apple M99", bandwidth=546e9), 546e9, priors.PREFILL_RATIO_SHARED),
        (Hardware(gpu="RTX 99"), priors.GPU_BANDWIDTH, priors.PREFILL_RATIO_GPU),
        (Hardware(vram_bytes=8_000_000_000), priors.GPU_BANDWIDTH, priors.PREFILL_RATIO_GPU),
        (Hardware(gpu="RTX 99", bandwidth=1008e9), 1008e9, priors.PREFILL_RATIO_GPU),
    ],
)
def test_decoding_reads_every_weight_once(
    hardware: Hardware, bandwidth: float, ratio: float
) -> None:
    rates = priors.rates(hardware, replica())
    assert rates.decode == pytest.approx(priors.EFFICIENCY * bandwidth / SIZE)
    assert rates.prefill == pytest.approx(rates.decode * ratio)


@pytest.mark.parametrize(
    ("hardware", "prefill", "decode"),
    [
        # normiebench issue 3, llama.cpp, Llama 3.1 8B Q4_K_M.
        (Hardware(chip="Apple M4"), 224.8, 20.9),
    ],
)
def test_known_chips_come_near_published_measurements(
    hardware: Hardware, prefill: float, decode: float
) -> None:
    rates = priors.rates(hardware, replica(size=4_920_000_000, parameters=8_030_000_000))
    assert rates.prefill == pytest.approx(prefill, rel=0.4)
    assert rates.decode == pytest.approx(decode, rel=0.25)


def test_what_was_declared_or_measured_wins_over_the_table() -> None:
    told = priors.rates(Hardware(chip="Apple M1"), replica())
    measured = priors.rates(Hardware(chip="Apple M1", bandwidth=34e9), replica())
    assert measured.decode == pytest.approx(told.decode / 2.0, rel=0.05)
    assert measured.prefill == told.prefill


def test_a_mixture_of_experts_reads_and_computes_what_is_active() -> None:
    dense = Replica(model="x:30b", name="x", size=18 * 10**9)
    mixture = Replica(model="x:30b-a3b", name="x", size=18 * 10**9)
    hardware = Hardware(chip="Apple M2 Max")
    one, other = priors.rates(hardware, dense), priors.rates(hardware, mixture)
    assert other.prefill == pytest.approx(one.prefill * 10 * priors.EXPERTS_SHARE)
    assert 3.0 < other.decode / one.decode < 5.0
    assert other.load == one.load


def test_a_model_larger_than_the_card_is_read_from_the_systems_memory_as_well() -> None:
    card = Hardware(gpu="RTX 4060", vram_bytes=8 * 2**30)
    fits = priors.rates(card, replica(size=8 * 10**9)).decode
    spills = priors.rates(card, replica(size=16 * 10**9)).decode
    assert spills < fits / 3.0


def test_vllm_serves_two_bytes_for_each_parameter_unless_the_name_says_otherwise() -> None:
    plain = Replica(model="qwen2.5:32b", name="Qwen/Qwen2.5-32B-Instruct")
    packed = Replica(model="qwen2.5:32b", name="Qwen/Qwen2.5-32B-Instruct-AWQ")
    assert priors.weight_bytes(plain, "vllm") == pytest.approx(64e9)
    assert priors.weight_bytes(packed, "vllm") == pytest.approx(17e9)
    assert priors.weight_bytes(plain, "mlx") == pytest.approx(18e9)
    assert priors.parameters(plain, "vllm") == 32e9


def test_vllm_lets_all_cards_work_on_each_token() -> None:
    one = Hardware(gpu="NVIDIA H100 80GB HBM3")
    two = Hardware(gpu="2 x NVIDIA H100 80GB HBM3")
    model = replica(size=64 * 10**9)
    assert priors.rates(two, model, "vllm").prefill == 2 * priors.rates(one, model, "vllm").prefill
    assert priors.rates(two, model).prefill == priors.rates(one, model).prefill


def test_cores_tell_of_prefill_where_there_is_no_gpu() -> None:
    rates = priors.rates(Hardware(cores=8), replica(parameters=8_000_000_000))
    assert rates.prefill == pytest.approx(8 * priors.COMPUTE_CORE / 16e9)


def test_context_takes_memory_but_an_embedder_keeps_none() -> None:
    model = replica(parameters=8_000_000_000)
    assert priors.context_bytes(model) == pytest.approx(priors.CONTEXT_BYTES)
    embedder = Replica(model="m:latest", name="m", capabilities=("embedding",))
    assert priors.context_bytes(embedder) == 0.0


def test_loading_takes_as_long_as_reading_the_weights_and_never_nothing() -> None:
    assert priors.rates(Hardware(), replica()).load == pytest.approx(5.0)
    assert priors.rates(Hardware(), replica(size=1000)).load == priors.LOAD_LEAST


def test_weights_are_known_or_guessed_from_parameters_or_guessed() -> None:
    assert priors.weight_bytes(replica()) == SIZE
    assert priors.weight_bytes(replica(size=0, parameters=1_000_000_000)) == 600_000_000
    assert priors.weight_bytes(replica(size=0)) == priors.UNKNOWN_SIZE


def test_memory_need_is_measured_or_a_little_over_the_weights() -> None:
    assert priors.memory_need(replica(memory=7_000_000_000)) == 7e9
    assert priors.memory_need(replica()) == pytest.approx(6e9)


def test_the_budget_is_the_gpus_own_memory_or_a_share_of_the_systems() -> None:
    both = Hardware(memory_bytes=64_000_000_000, vram_bytes=24_000_000_000)
    assert priors.memory_budget(both) == 24e9
    assert priors.memory_budget(Hardware(memory_bytes=64_000_000_000)) == 48e9
    assert priors.memory_budget(Hardware(gpu="RTX 4090")) == 24 * 2**30
    assert priors.memory_budget(Hardware()) is None


def test_sharing_costs_an_engine_that_batches_little_and_others_much() -> None:
    assert priors.slowdown("ollama", 1) == priors.slowdown("vllm", 0) == 1.0
    assert 1.0 < priors.slowdown("vllm", 8) < 1.5
    assert 3.0 < priors.slowdown("ollama", 8) < 8.0
