"""What the owner reads."""

from __future__ import annotations

import msgspec

from herd.core.fleet import EngineReport, Hardware, Replica
from herd.node.telling import engine_changes, machine, not_found

OLLAMA = EngineReport(
    id="ollama-11434",
    kind="ollama",
    url="http://127.0.0.1:11434",
    version="0.33.0",
    replicas=(
        Replica(model="llama3:latest", name="llama3:latest"),
        Replica(model="qwen3:8b", name="qwen3:8b"),
    ),
)
DOWN = msgspec.structs.replace(OLLAMA, up=False, error="connection refused", replicas=())


def test_machine_is_introduced_by_what_is_known() -> None:
    known = Hardware(chip="Apple M4", cores=10, memory_bytes=32 * 1024**3)

    assert machine("mac", known) == "This is node mac: Apple M4, 10 cores, 32 GiB memory."


def test_gpu_is_named_with_its_memory() -> None:
    known = Hardware(memory_bytes=1024**3, gpu="RTX", vram_bytes=24 * 1024**3)

    assert machine("pc", known) == "This is node pc: 1 GiB memory, RTX with 24 GiB."


def test_found_engine_is_told_with_its_models() -> None:
    assert engine_changes((), (OLLAMA,)) == [
        "Found Ollama 0.33.0 on port 11434 with 2 models: llama3:latest, qwen3:8b."
    ]


def test_what_stays_the_same_is_not_told_again() -> None:
    busier = msgspec.structs.replace(OLLAMA, running=3)

    assert engine_changes((OLLAMA,), (busier,)) == []
    assert engine_changes((DOWN,), (DOWN,)) == []


def test_engine_that_goes_down_and_comes_back() -> None:
    (down,) = engine_changes((OLLAMA,), (DOWN,))
    (back,) = engine_changes((DOWN,), (OLLAMA,))
    (gone,) = engine_changes((DOWN,), ())

    assert down.endswith("is down: connection refused")
    assert "is back with 2 models" in back
    assert gone.endswith("is gone.")


def test_changed_models_are_told_and_a_long_list_is_cut() -> None:
    many = tuple(Replica(model=f"m{number}:1", name="") for number in range(10))
    (line,) = engine_changes((OLLAMA,), (msgspec.structs.replace(OLLAMA, replicas=many),))

    assert "now has 10 models: m0:1" in line
    assert line.endswith("m7:1 and 2 more.")


def test_missing_router_is_explained_by_what_is_known() -> None:
    assert "10.0.0.1" in not_found("http://10.0.0.1:11435", (), "refused")
    assert "firewall" in not_found("", ("http://10.0.0.1:11435",), "")
    assert "--router" in not_found("", (), "")
    assert "other fleet" in not_found("", (), "other fleet")
