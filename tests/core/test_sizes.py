"""Names tell how large a model is, as far as they do."""

from __future__ import annotations

import pytest

from herd.core import sizes


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("llama3.2:3b", 3e9, 3e9),
        ("qwen2.5:0.5b", 0.5e9, 0.5e9),
        ("smollm:135m", 135e6, 135e6),
        ("qwen3:30b-a3b-q4_k_m", 30.5e9, 3.3e9),
        ("some-30b-a3b:latest", 30e9, 3e9),
        ("hf.co/unsloth/qwen3-30b-a3b-gguf:q4_k_m", 30e9, 3e9),
        ("granite4:7b-a1b-h", 7e9, 1e9),
        ("mixtral:8x7b", 46.7e9, 12.9e9),
        ("other:8x7b", 46.7e9, 12.9e9),
        ("gpt-oss:20b", 20.9e9, 3.6e9),
        ("openai/gpt-oss-120b:latest", 116.8e9, 5.1e9),
        ("deepseek-r1:671b", 671e9, 37e9),
        ("meta-llama/llama-3.1-70b-instruct:latest", 70e9, 70e9),
        ("gemma3n:e4b", 4e9, 4e9),
        ("nomic-embed-text:latest", 137e6, 137e6),
    ],
)
def test_parameters_by_name(name: str, total: float, active: float) -> None:
    found = sizes.parameters(name)
    assert found is not None
    assert found == pytest.approx((total, active), rel=0.01)


@pytest.mark.parametrize(
    "name", ["", "mistral:latest", "llama3:latest", "foo-8bit:latest", "a3b:x"]
)
def test_a_name_that_tells_nothing_tells_nothing(name: str) -> None:
    assert sizes.parameters(name) is None


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("llama3.1:8b-instruct-q4_k_m", 4.89),
        ("llama3.1:8b-q4_k_s", 4.67),
        ("llama3.1:8b-q8_0", 8.5),
        ("llama3.1:8b-instruct-fp16", 16.0),
        ("x-bf16:latest", 16.0),
        ("qwen2.5-32b-awq:latest", 4.25),
        ("mlx-community/qwen3-8b-4bit:latest", 4.5),
    ],
)
def test_bits_by_name(name: str, bits: float) -> None:
    assert sizes.bytes_per_parameter(name) == bits / 8.0


def test_no_quantisation_in_the_name_is_none() -> None:
    assert sizes.bytes_per_parameter("llama3.2:3b") is None
