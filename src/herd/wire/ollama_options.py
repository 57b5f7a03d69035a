"""Ollama's `options` as fields of an OpenAI request, for each kind of engine.

A sampling option that the engine has no field for is refused by name, unless its value switches
it off. Options that only matter when a model is loaded (`num_ctx`, `num_batch`, `num_gpu`,
`main_gpu`, `num_thread`, `use_mmap`, `num_keep`, `draft_num_predict`) are left out: these engines
are loaded before any request comes, and what context a request needs is for routing to see to.
Options that Ollama does not know it ignores, and so does this.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

from herd.core.fleet import EngineKind


class Untranslatable(Exception):
    """The request cannot be put to this engine unchanged; the text tells its sender why."""


#: What people call the engines.
ENGINE_NAMES: Final = MappingProxyType(
    {
        "ollama": "Ollama",
        "llamacpp": "llama.cpp",
        "vllm": "vLLM",
        "lmstudio": "LM Studio",
        "mlx": "MLX",
    }
)
_INTEGERS: Final = frozenset({"num_predict", "repeat_last_n", "seed", "top_k"})
_COMMON: Final = (
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "stop",
)
_same: Final = {name: name for name in _COMMON}
#: By kind: Ollama's name of an option and the engine's. Sources: llama.cpp's server README,
#: vLLM's ChatCompletionRequest, LM Studio's list of supported payload parameters, mlx_lm.server.
_FIELDS: Final = MappingProxyType(
    {
        "llamacpp": _same
        | {
            "min_p": "min_p",
            "typical_p": "typical_p",
            "repeat_penalty": "repeat_penalty",
            "repeat_last_n": "repeat_last_n",
        },
        "vllm": _same | {"min_p": "min_p", "repeat_penalty": "repetition_penalty"},
        "lmstudio": _same | {"repeat_penalty": "repeat_penalty"},
        "mlx": _same | {"min_p": "min_p", "repeat_penalty": "repetition_penalty"},
    }
)
_KNOWN: Final = frozenset(_COMMON) | {
    "min_p",
    "num_predict",
    "repeat_last_n",
    "repeat_penalty",
    "typical_p",
}
#: Values that leave the sampling as it is without the option.
_OFF: Final = MappingProxyType({"typical_p": 1})
#: mlx_lm.server stops after 512 tokens where no limit is given and has no word for "unlimited".
#: This is the context of the longest models in common use: an answer of that length ran away.
MLX_UNLIMITED: Final = 131_072


def translate_options(
    options: dict[str, Any], kind: EngineKind, *, open_ended: bool = True
) -> dict[str, Any]:
    """Return the request fields that say the same; `open_ended` if no limit means no limit.

    Raises `Untranslatable` for a value of the wrong type, in Ollama's words, and for an option
    that the engine has no field for.
    """
    fields: dict[str, Any] = {}
    for name, value in options.items():
        if name not in _KNOWN or value is None:
            continue
        checked = _checked(name, value)
        if name == "num_predict":
            _limit(checked, kind, fields)
        elif name == "repeat_last_n" and kind != "llamacpp":
            _window(checked, kind, fields)
        elif (field := _FIELDS[kind].get(name)) is not None:
            _sampling(field, checked, kind, fields)
        elif value != _OFF.get(name):
            raise Untranslatable(f"{ENGINE_NAMES[kind]} has no option {name}")
    if kind == "mlx" and open_ended:
        fields.setdefault("max_tokens", MLX_UNLIMITED)
    return fields


def _checked(name: str, value: Any) -> Any:
    # The words are those of Ollama's own check.
    if name == "stop":
        if not isinstance(value, list):
            raise Untranslatable('option "stop" must be of type array')
        if not all(isinstance(item, str) for item in value):
            raise Untranslatable('option "stop" must be of an array of strings')
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number:
        wanted = "integer" if name in _INTEGERS else "float32"
        raise Untranslatable(f'option "{name}" must be of type {wanted}')
    return int(value) if name in _INTEGERS else value


def _limit(tokens: int, kind: EngineKind, fields: dict[str, Any]) -> None:
    if tokens < 0:  # until the model ends by itself
        return
    if tokens == 0 and kind != "llamacpp":
        raise Untranslatable(f"{ENGINE_NAMES[kind]} cannot answer with num_predict 0")
    fields["max_tokens"] = tokens


def _window(tokens: int, kind: EngineKind, fields: dict[str, Any]) -> None:
    if kind == "vllm" and tokens < 0:  # it always looks at the whole context
        return
    if kind == "mlx" and tokens != 0:
        window = tokens if tokens > 0 else MLX_UNLIMITED
        for penalty in ("repetition", "presence", "frequency"):
            fields[f"{penalty}_context_size"] = window
        return
    raise Untranslatable(f"{ENGINE_NAMES[kind]} has no option repeat_last_n {tokens}")


def _sampling(field: str, value: Any, kind: EngineKind, fields: dict[str, Any]) -> None:
    if field == "seed" and value == -1:  # random, as without a seed
        return
    if field == "stop" and not value:
        return
    if field == "top_k" and kind != "llamacpp":
        value = max(value, 0)  # Ollama takes any negative number for "off"
    fields[field] = value
