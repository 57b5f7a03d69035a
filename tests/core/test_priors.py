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
        (Hardware(chip="Apple M1"), priors.APPLE_BANDWIDTH, priors.PREFILL_RATIO_SHARED),
        (Hardware(chip="Apple M4 Max", bandwidth=546e9), 546e9, priors.PREFILL_RATIO_SHARED),
        (
            Hardware(chip="Apple M2", gpu="Apple M2"),
            priors.APPLE_BANDWIDTH,
            priors.PREFILL_RATIO_SHARED,
        ),
        (Hardware(gpu="RTX 4060"), priors.GPU_BANDWIDTH, priors.PREFILL_RATIO_GPU),
        (Hardware(vram_bytes=8_000_000_000), priors.GPU_BANDWIDTH, priors.PREFILL_RATIO_GPU),
        (Hardware(gpu="RTX 4090", bandwidth=1008e9), 1008e9, priors.PREFILL_RATIO_GPU),
    ],
)
def test_decoding_reads_every_weight_once(
    hardware: Hardware, bandwidth: float, ratio: float
) -> None:
    rates = priors.rates(hardware, replica())
    assert rates.decode == pytest.approx(priors.EFFICIENCY * bandwidth / SIZE)
    assert rates.prefill == pytest.approx(rates.decode * ratio)


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
    assert priors.memory_budget(Hardware()) is None


def test_sharing_costs_an_engine_that_batches_little_and_others_much() -> None:
    assert priors.slowdown("ollama", 1) == priors.slowdown("vllm", 0) == 1.0
    assert 1.0 < priors.slowdown("vllm", 8) < 1.5
    assert 3.0 < priors.slowdown("ollama", 8) < 8.0
