"""What the kinds of engine can be told."""

from __future__ import annotations

import pytest

from herd.core.fleet import EngineKind
from herd.core.kinds import carries_context
from herd.gateway.endpoints import ENDPOINTS


def test_ollamas_own_endpoints_carry_a_context() -> None:
    carrying = {path for path in ENDPOINTS if carries_context("ollama", path)}
    assert carrying == {path for path in ENDPOINTS if path.startswith("/api/")}


@pytest.mark.parametrize("kind", ["llamacpp", "vllm", "lmstudio", "mlx"])
def test_no_other_engine_takes_one_from_a_request(kind: EngineKind) -> None:
    assert not any(carries_context(kind, path) for path in ENDPOINTS)
