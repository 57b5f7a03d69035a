"""Model names as people write them, and the one canonical form that Herd compares."""

from __future__ import annotations

_REGISTRY_PREFIXES = ("registry.ollama.ai/", "library/")


def canonical(name: str) -> str:
    """Return `family:tag` for any spelling of a model's name.

    Ollama's rules (case does not matter, the default tag is `latest`, its own registry and the
    `library/` namespace may be left out) extended to engines that name a model by its folder:
    `/models/Qwen3-8B` is `qwen3-8b:latest`. An empty name stays empty.
    """
    text = name.strip().lower()
    if text.startswith(("/", "./", ".\\", "~")) or text[1:3] in {":\\", ":/"}:
        text = text.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
        text = text.removesuffix(".gguf")
    for prefix in _REGISTRY_PREFIXES:
        text = text.removeprefix(prefix)
    if not text:
        return ""
    _, _, last = text.rpartition("/")
    return text if ":" in last else f"{text}:latest"
