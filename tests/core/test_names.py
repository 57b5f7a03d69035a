"""Every spelling of a model's name that people and engines use, and the one form that counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.core.names import canonical


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("llama3", "llama3:latest"),
        ("llama3:latest", "llama3:latest"),
        ("llama3:8b", "llama3:8b"),
        ("Llama3:8B", "llama3:8b"),
        ("  llama3:8b\n", "llama3:8b"),
        ("library/llama3", "llama3:latest"),
        ("registry.ollama.ai/library/llama3:8b", "llama3:8b"),
        ("registry.ollama.ai/someone/llama3", "someone/llama3:latest"),
        ("someone/llama3:q4_0", "someone/llama3:q4_0"),
        ("hf.co/someone/Model-GGUF:Q4_K_M", "hf.co/someone/model-gguf:q4_k_m"),
        ("hf.co/someone/Model-GGUF", "hf.co/someone/model-gguf:latest"),
        ("localhost:5000/llama3", "localhost:5000/llama3:latest"),
        ("localhost:5000/llama3:8b", "localhost:5000/llama3:8b"),
        ("Qwen/Qwen3-8B", "qwen/qwen3-8b:latest"),
        ("/models/Qwen3-8B", "qwen3-8b:latest"),
        ("/models/Qwen3-8B/", "qwen3-8b:latest"),
        ("./models/qwen3-8b-q4.gguf", "qwen3-8b-q4:latest"),
        ("~/models/Qwen3-8B", "qwen3-8b:latest"),
        ("C:\\models\\Qwen3-8B", "qwen3-8b:latest"),
        ("C:/models/Qwen3-8B.gguf", "qwen3-8b:latest"),
        (".\\models\\Qwen3-8B.gguf", "qwen3-8b:latest"),
        ("", ""),
        ("   ", ""),
        ("/", ""),
        ("library/", ""),
    ],
)
def test_spellings(written: str, meant: str) -> None:
    assert canonical(written) == meant


@given(st.text(alphabet="aA1/:.-\\~ ", max_size=20))
def test_the_canonical_form_of_the_canonical_form_has_a_tag(text: str) -> None:
    form = canonical(text)
    assert form == "" or ":" in form
    assert form == form.lower()
