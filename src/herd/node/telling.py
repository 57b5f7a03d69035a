"""What the agent tells its owner, in plain words; pure text from what changed."""

from __future__ import annotations

from urllib.parse import urlsplit

from herd.core.fleet import EngineKind, EngineReport, Hardware

_NAMES: dict[EngineKind, str] = {
    "ollama": "Ollama",
    "llamacpp": "llama.cpp",
    "vllm": "vLLM",
    "lmstudio": "LM Studio",
    "mlx": "MLX",
}
_GIB = 1024**3
#: Models that are named before "and so many more".
_MOST_NAMED = 8

NO_ENGINE = (
    "No inference engine found on this machine. Start one (for example: ollama serve), or say "
    "where it listens with --engine PORT. It will be noticed when it comes."
)


def machine(name: str, hardware: Hardware) -> str:
    """Introduce this node."""
    parts = [hardware.chip, f"{hardware.cores} cores" if hardware.cores else ""]
    parts.append(f"{hardware.memory_bytes / _GIB:.0f} GiB memory")
    if hardware.gpu:
        vram = f" with {hardware.vram_bytes / _GIB:.0f} GiB" if hardware.vram_bytes else ""
        parts.append(hardware.gpu + vram)
    return f"This is node {name}: {', '.join(part for part in parts if part)}."


def engine_changes(before: tuple[EngineReport, ...], after: tuple[EngineReport, ...]) -> list[str]:
    """Say what came, changed and went between two looks."""
    old = {engine.id: engine for engine in before}
    lines = [line for engine in after if (line := _engine_change(old.pop(engine.id, None), engine))]
    lines += [f"{_title(engine)} is gone." for engine in old.values()]
    return lines


def not_found(given: str, unreachable: tuple[str, ...], cause: str) -> str:
    """Explain why there is no router yet, with what to do about it."""
    if given:
        return f"No link to the router {given}: {cause or 'it does not answer'}. Still trying."
    if unreachable:
        return (
            f"A router announces itself at {', '.join(unreachable)} but does not accept "
            "connections there. A firewall on its machine may block the port. Still trying."
        )
    if cause:
        return f"No link to a router: {cause}. Still looking."
    return (
        "No router found on this network yet. Is herd running on one of its machines? If it is, "
        "this network may not pass on mDNS: give its address with --router URL. Still looking."
    )


def _engine_change(before: EngineReport | None, after: EngineReport) -> str:
    if not after.up:
        cause = after.error or "it does not answer"
        return f"{_title(after)} is down: {cause}" if before is None or before.up else ""
    if before is None:
        return f"Found {_title(after)} with {_models(after)}."
    if not before.up:
        return f"{_title(after)} is back with {_models(after)}."
    if {r.model for r in before.replicas} != {r.model for r in after.replicas}:
        return f"{_title(after)} now has {_models(after)}."
    return ""


def _title(engine: EngineReport) -> str:
    _, _, port = engine.id.rpartition("-")
    where = port if port.isdecimal() else str(urlsplit(engine.url).port)
    version = f" {engine.version}" if engine.version else ""
    return f"{_NAMES[engine.kind]}{version} on port {where}"


def _models(engine: EngineReport) -> str:
    names = [replica.model for replica in engine.replicas]
    if not names:
        return "no models"
    more = len(names) - _MOST_NAMED
    listed = ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"{len(names)} model{'s' if len(names) > 1 else ''}: {listed}"
