"""Kinds of device: their true rates, and that nobody can compute them from the priors."""

from __future__ import annotations

import math
import statistics

import pytest

from herd.core import priors
from herd.core.fleet import Replica
from herd.sim.devices import (
    CONTEXT,
    KINDS,
    MODELS,
    DeviceKind,
    engine_spec,
    fits,
    hardware,
    model_spec,
)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_every_figure_has_a_source(kind: DeviceKind) -> None:
    assert kind.source
    assert kind.prefill > kind.decode > 0


def test_a_measured_model_has_the_measured_rate() -> None:
    """The table's own model, 3.56 GiB with 6.74 billion parameters, comes out as in the table."""
    studio = KINDS["mac-studio-m2-ultra"]
    model = MODELS["llama3.1:8b"]
    spec = model_spec(studio, model, device="", seed=0)

    assert spec.prefill_rate == pytest.approx(1238.5 * 6.74 / 8.03, rel=1e-6)
    assert 94.3 * 3.83 / 4.92 < spec.decode_rate < 94.3


def test_rates_are_the_same_in_every_process_and_differ_by_seed_and_device() -> None:
    kind, model = KINDS["mac-mini-m2"], MODELS["llama3.2:3b"]

    one = model_spec(kind, model, device="a", seed=1)
    assert one == model_spec(kind, model, device="a", seed=1)
    assert one.decode_rate == pytest.approx(68.3988, abs=1e-4)
    assert one.decode_rate != model_spec(kind, model, device="b", seed=1).decode_rate
    assert one.decode_rate != model_spec(kind, model, device="a", seed=2).decode_rate


def test_the_spread_of_true_rates_is_as_declared() -> None:
    kind, model = KINDS["mac-mini-m2"], MODELS["llama3.2:3b"]
    plain = model_spec(kind, model, device="", seed=0).decode_rate
    logs = [
        math.log(model_spec(kind, model, device=f"d{seed}", seed=seed).decode_rate / plain)
        for seed in range(400)
    ]

    assert statistics.fmean(logs) == pytest.approx(0.0, abs=0.06)
    assert statistics.stdev(logs) == pytest.approx(0.35, abs=0.05)


def test_priors_are_wrong_by_a_third_and_more() -> None:
    """What the scheduler believes at first is not what is true, so it has to learn."""
    errors = []
    for kind in KINDS.values():
        for model in MODELS.values():
            if kind.engine == "ollama" and fits(kind, model):
                spec = model_spec(kind, model, device=f"{kind.name}-1", seed=3)
                replica = Replica(model=model.name, name=model.name, size=model.weight_bytes)
                believed = priors.rates(hardware(kind), replica).decode
                errors.append(abs(math.log(believed / spec.decode_rate)))

    assert statistics.median(errors) > math.log(1.2)


def test_a_model_that_is_too_large_does_not_fit() -> None:
    assert not fits(KINDS["macbook-air-m1"], MODELS["qwen2.5:32b"])
    assert fits(KINDS["mac-studio-m2-ultra"], MODELS["llama3.3:70b"])


def test_a_vllm_server_keeps_its_model() -> None:
    spec = engine_spec(KINDS["vllm-h100"], (MODELS["qwen2.5:32b"],), device="v", seed=0)

    assert spec.keep_alive < 0
    assert spec.slots == 64
    # 32.8 billion parameters of two bytes leave less than 12 GB for the cache of all sequences.
    assert CONTEXT < spec.pool_blocks(spec.models[0]) * 16 < 45_000


def test_a_vllm_server_serves_one_model() -> None:
    with pytest.raises(ValueError, match="one model"):
        engine_spec(
            KINDS["vllm-h100"], (MODELS["llama3.2:3b"], MODELS["llama3.1:8b"]), device="v", seed=0
        )
