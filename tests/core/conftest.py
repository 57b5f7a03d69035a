"""What tests of the scheduler share."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.core.playbook")

from tests.core.playbook import Play  # noqa: E402 - after its asserts are made to explain themselves


@pytest.fixture
def play() -> Play:
    """An empty fleet with the limits that are the default."""
    return Play()
