"""Who may change the fleet: whoever sits at the router's machine, and no page in their browser."""

from __future__ import annotations

import pytest
from aiohttp.test_utils import make_mocked_request

from herd.gateway import owner


def refusal(remote: str | None, **headers: str) -> str:
    request = make_mocked_request("POST", "/herd/v1/engines", headers=headers)
    return owner.refusal(request.clone(remote=remote or ""))


@pytest.mark.parametrize("host", ["127.0.0.1:11435", "localhost", "localhost:1", "[::1]:11435"])
@pytest.mark.parametrize("remote", ["127.0.0.1", "::1", "127.8.8.8"])
def test_the_owner_may(remote: str, host: str) -> None:
    assert refusal(remote, Host=host) == ""


@pytest.mark.parametrize("remote", ["192.168.1.7", "10.0.0.1", "fe80::1", "8.8.8.8", "", "unix"])
def test_the_network_may_not(remote: str) -> None:
    assert "from the router's own machine only" in refusal(remote, Host="127.0.0.1")


@pytest.mark.parametrize(
    "host",
    ["evil.example", "192.168.1.7:11435", "127.0.0.1.evil.example", "localhost.evil", "", "["],
)
def test_a_name_that_was_bent_to_this_machine_may_not(host: str) -> None:
    """DNS rebinding: the connection is from loopback, the name is the attacker's."""
    assert refusal("127.0.0.1", Host=host)


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:3000"])
def test_a_page_may_not(origin: str) -> None:
    assert "another origin" in refusal("127.0.0.1", Host="127.0.0.1", Origin=origin)
