"""What an agent is told when it may not join; who may is tested with the links."""

from __future__ import annotations

import pytest

from herd.fleet.trust import protocol_mismatch
from herd.wire.link import PROTOCOL


@pytest.mark.parametrize(
    ("protocol", "program"), [(PROTOCOL - 1, "update herd-node"), (PROTOCOL + 1, "update herd")]
)
def test_the_older_side_is_the_one_to_update(protocol: int, program: str) -> None:
    reason = protocol_mismatch(protocol, "1.2").reason

    assert reason.endswith(program)
    assert "version 1.2" in reason
