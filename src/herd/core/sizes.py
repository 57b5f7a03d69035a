"""What a model's name tells of its size: parameters, those that a token uses, bytes of each.

Names follow habits, not a standard: `qwen3:30b-a3b-q4_K_M` has 30 billion parameters, of which 3
are active, at about 4.85 bits. What the name does not say is None, never guessed here.
"""

from __future__ import annotations

import re

#: Total and active parameters by the models' own cards, for mixtures of experts whose name does
#: not tell and for embedders, which tell nothing. The first entry that the name begins with counts.
_KNOWN: tuple[tuple[str, float, float], ...] = (
    ("gpt-oss:20b", 20.9e9, 3.6e9),
    ("gpt-oss:120b", 116.8e9, 5.1e9),
    ("gpt-oss-20b", 20.9e9, 3.6e9),
    ("gpt-oss-120b", 116.8e9, 5.1e9),
    ("gpt-oss", 20.9e9, 3.6e9),
    ("mixtral:8x22b", 140.6e9, 39.1e9),
    ("mixtral", 46.7e9, 12.9e9),
    ("dolphin-mixtral:8x22b", 140.6e9, 39.1e9),
    ("dolphin-mixtral", 46.7e9, 12.9e9),
    ("deepseek-r1:671b", 671e9, 37e9),
    ("deepseek-v3", 671e9, 37e9),
    ("deepseek-v2:236b", 236e9, 21e9),
    ("deepseek-v2", 15.7e9, 2.4e9),
    ("deepseek-coder-v2:236b", 236e9, 21e9),
    ("deepseek-coder-v2", 15.7e9, 2.4e9),
    ("llama4:maverick", 400e9, 17e9),
    ("llama4:128x17b", 400e9, 17e9),
    ("llama4", 109e9, 17e9),
    ("qwen3:235b", 235e9, 22e9),
    ("qwen3-coder:480b", 480e9, 35e9),
    ("qwen3:30b", 30.5e9, 3.3e9),
    ("qwen3-coder-next", 80e9, 3e9),
    ("qwen3-coder", 30.5e9, 3.3e9),
    ("qwen3-next", 80e9, 3e9),
    ("glm-4.5-air", 106e9, 12e9),
    ("kimi-k2", 1000e9, 32e9),
    ("granite3-moe:1b", 1.3e9, 0.4e9),
    ("granite3-moe", 3.4e9, 0.8e9),
    ("phi3.5-moe", 41.9e9, 6.6e9),
    ("olmoe", 6.9e9, 1.3e9),
    ("nomic-embed-text", 137e6, 137e6),
    ("mxbai-embed-large", 334e6, 334e6),
    ("bge-m3", 567e6, 567e6),
    ("bge-large", 334e6, 334e6),
    ("all-minilm", 23e6, 23e6),
    ("snowflake-arctic-embed2", 567e6, 567e6),
    ("snowflake-arctic-embed", 334e6, 334e6),
    ("embeddinggemma", 308e6, 308e6),
)

#: Bits for each parameter, scales included: llama.cpp's table of quantisations (tools/quantize),
#: for Llama 3.1 8B; 4-bit formats of others with one 16-bit scale and bias for 64 or 128 weights.
_BITS: tuple[tuple[str, float], ...] = (
    ("q2_k", 3.16),
    ("q3_k", 4.0),
    ("q4_0", 4.66),
    ("q4_1", 5.12),
    ("q4_k_s", 4.67),
    ("q4_k", 4.89),
    ("q5_k", 5.70),
    ("q5_0", 5.57),
    ("q5_1", 6.03),
    ("q6_k", 6.56),
    ("q8_0", 8.5),
    ("iq2", 2.7),
    ("iq3", 3.7),
    ("iq4", 4.5),
    ("mxfp4", 4.25),
    ("nvfp4", 4.5),
    ("awq", 4.25),
    ("gptq", 4.25),
    ("int4", 4.25),
    ("w4a16", 4.25),
    ("4bit", 4.5),
    ("6bit", 6.5),
    ("8bit", 8.5),
    ("fp8", 8.0),
    ("int8", 8.0),
    ("w8a8", 8.0),
    ("bf16", 16.0),
    ("fp16", 16.0),
    ("f16", 16.0),
    ("fp32", 32.0),
    ("f32", 32.0),
)

_SCALE = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_NUMBER = r"(\d+(?:\.\d+)?)"
_EXPERTS = re.compile(rf"(?<![a-z0-9.])(\d+)x{_NUMBER}b(?![a-z0-9])")
_ACTIVE = re.compile(rf"(?<![a-z0-9])a{_NUMBER}([mb])(?![a-z0-9])")
#: `7b`, `1.5b`, `e4b`; never the `b` of a word or `8bit`.
_TOTAL = re.compile(rf"(?<![a-z0-9.])e?{_NUMBER}([mbt])(?![a-z0-9])")
#: Of 8 experts of Mixtral's kind two are used, and a quarter of the model is shared by all.
_EXPERTS_TOTAL = 46.7 / 56
_EXPERTS_ACTIVE = 12.9 / 46.7


def parameters(model: str) -> tuple[float, float] | None:
    """Return total and active parameters as far as a canonical name tells; None if it does not."""
    name = _bare(model)
    for start, total, active in _KNOWN:
        if name.startswith(start):
            return total, active
    if experts := _EXPERTS.search(name):
        total = int(experts[1]) * float(experts[2]) * 1e9 * _EXPERTS_TOTAL
        return total, total * _EXPERTS_ACTIVE
    if whole := _TOTAL.search(name):
        total = float(whole[1]) * _SCALE[whole[2]]
        part = _ACTIVE.search(name)
        active = float(part[1]) * _SCALE[part[2]] if part else total
        return total, min(total, active)
    return None


def bytes_per_parameter(model: str) -> float | None:
    """Return the bytes of a weight by the quantisation in a model's name; None if it has none."""
    name = _bare(model)
    for mark, bits in _BITS:
        if re.search(rf"(?<![a-z0-9]){mark}(?![a-z0-9])", name):
            return bits / 8.0
    return None


def _bare(model: str) -> str:
    """Return the name without its registry and namespace."""
    return model.lower().rpartition("/")[2]
