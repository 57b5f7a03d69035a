from __future__ import annotations

from typing import Any

import pytest

from herd.core.fleet import EngineKind
from herd.wire.ollama_options import MLX_UNLIMITED, Untranslatable, translate_options

ALL = {
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "typical_p": 0.8,
    "seed": 1,
    "stop": ["\n"],
    "num_predict": 7,
    "repeat_penalty": 1.2,
    "repeat_last_n": 32,
    "presence_penalty": 0.3,
    "frequency_penalty": 0.4,
}


def test_llama_cpp_has_every_option() -> None:
    expected = ALL | {"max_tokens": 7}
    del expected["num_predict"]

    assert translate_options(ALL, "llamacpp") == expected


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("llamacpp", "repeat_penalty"),
        ("vllm", "repetition_penalty"),
        ("lmstudio", "repeat_penalty"),
        ("mlx", "repetition_penalty"),
    ],
)
def test_the_repeat_penalty_goes_by_the_engines_name(kind: EngineKind, field: str) -> None:
    assert translate_options({"repeat_penalty": 1.2}, kind)[field] == 1.2


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("vllm", {"typical_p": 0.8}, "vLLM has no option typical_p"),
        ("mlx", {"typical_p": 0.8}, "MLX has no option typical_p"),
        ("lmstudio", {"min_p": 0.1}, "LM Studio has no option min_p"),
        ("vllm", {"repeat_last_n": 32}, "vLLM has no option repeat_last_n 32"),
        ("lmstudio", {"repeat_last_n": -1}, "LM Studio has no option repeat_last_n -1"),
        ("mlx", {"repeat_last_n": 0}, "MLX has no option repeat_last_n 0"),
        ("vllm", {"num_predict": 0}, "vLLM cannot answer with num_predict 0"),
    ],
)
def test_an_option_that_the_engine_lacks_is_refused_by_name(
    kind: EngineKind, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(Untranslatable, match=f"^{message}$"):
        translate_options(options, kind)


@pytest.mark.parametrize("kind", ["vllm", "lmstudio"])
def test_an_option_that_is_switched_off_needs_no_field(kind: EngineKind) -> None:
    assert translate_options({"typical_p": 1.0}, kind) == {}


@pytest.mark.parametrize("kind", ["llamacpp", "vllm", "lmstudio"])
@pytest.mark.parametrize("tokens", [-1, -2])
def test_no_limit_is_left_out(kind: EngineKind, tokens: int) -> None:
    assert translate_options({"num_predict": tokens}, kind) == {}


@pytest.mark.parametrize("options", [{}, {"num_predict": -1}, {"num_predict": -2}])
def test_mlx_must_be_told_that_there_is_no_limit(options: dict[str, Any]) -> None:
    assert translate_options(options, "mlx") == {"max_tokens": MLX_UNLIMITED}


def test_mlx_keeps_a_limit() -> None:
    assert translate_options({"num_predict": 9}, "mlx") == {"max_tokens": 9}


def test_llama_cpp_takes_a_limit_of_zero() -> None:
    assert translate_options({"num_predict": 0}, "llamacpp") == {"max_tokens": 0}


def test_vllm_always_penalises_over_the_whole_context() -> None:
    assert translate_options({"repeat_last_n": -1}, "vllm") == {}


@pytest.mark.parametrize(("given", "window"), [(64, 64), (-1, MLX_UNLIMITED)])
def test_mlx_has_a_window_for_each_penalty(given: int, window: int) -> None:
    assert translate_options({"repeat_last_n": given, "num_predict": 1}, "mlx") == {
        "max_tokens": 1,
        "repetition_context_size": window,
        "presence_context_size": window,
        "frequency_context_size": window,
    }


@pytest.mark.parametrize("options", [{"seed": -1}, {"stop": []}, {"temperature": None}])
def test_a_value_that_says_nothing_is_left_out(options: dict[str, Any]) -> None:
    assert translate_options(options, "llamacpp") == {}


@pytest.mark.parametrize(("kind", "sent"), [("llamacpp", -1), ("vllm", 0)])
def test_any_negative_top_k_means_off(kind: EngineKind, sent: int) -> None:
    assert translate_options({"top_k": -1}, kind) == {"top_k": sent}


@pytest.mark.parametrize(
    "name",
    [
        "num_ctx",
        "num_batch",
        "num_gpu",
        "main_gpu",
        "num_thread",
        "use_mmap",
        "num_keep",
        "nonsense",
    ],
)
def test_load_time_and_unknown_options_are_left_out(name: str) -> None:
    assert translate_options({name: 1}, "vllm") == {}


def test_integers_may_be_written_as_floats() -> None:
    assert translate_options({"top_k": 5.0}, "vllm") == {"top_k": 5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": "hot"}, 'option "temperature" must be of type float32'),
        ({"temperature": True}, 'option "temperature" must be of type float32'),
        ({"seed": "1"}, 'option "seed" must be of type integer'),
        ({"stop": "\n"}, 'option "stop" must be of type array'),
        ({"stop": [1]}, 'option "stop" must be of an array of strings'),
    ],
)
def test_a_wrong_type_is_refused_in_ollamas_words(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Untranslatable) as raised:
        translate_options(options, "llamacpp")

    assert str(raised.value) == message
