"""What all tests of engine adapters need."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from herd.engines.http import Http


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    """A client for asking engines."""
    async with Http(timeout=1.0) as client:
        yield client
