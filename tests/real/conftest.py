"""Whatever is tested here needs llama-server."""

from __future__ import annotations

import pytest

from devtools.engines import EngineUnavailable, llama_files


@pytest.fixture(scope="session")
def llama() -> None:
    """Install llama-server if it is missing; skip where it cannot be had."""
    try:
        llama_files()
    except EngineUnavailable as error:
        pytest.skip(str(error))
