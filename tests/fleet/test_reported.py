"""Reports as the router takes them over."""

from __future__ import annotations

import pytest

from herd.core.fleet import EngineReport, NodeReport, Replica
from herd.fleet.reported import MAX_ENGINES, MAX_REPLICAS, ReportError, as_seen_from_here
from herd.fleet.trust import Peer

NODE = "0" * 32
REMOTE = Peer(node=NODE, name="mac", address="192.168.1.9", local=False)
LOCAL = Peer(node=NODE, name="mac", address="192.168.1.2", local=True)


def seen(url: str, peer: Peer = REMOTE, advertise: str = "") -> str:
    engine = EngineReport(id="ollama-11434", kind="ollama", url=url)
    report = NodeReport(node=NODE, name="mac", engines=(engine,))
    return as_seen_from_here(report, peer, advertise).engines[0].url


@pytest.mark.parametrize(
    ("url", "peer", "advertise", "expected"),
    [
        ("http://0.0.0.0:8080", REMOTE, "", "http://192.168.1.9:8080"),
        ("http://0.0.0.0:8080/", REMOTE, "", "http://192.168.1.9:8080"),
        ("http://0.0.0.0:8080", REMOTE, "10.0.0.1", "http://10.0.0.1:8080"),
        ("http://0.0.0.0:9/engines/x", REMOTE, "fd00::1", "http://[fd00::1]:9/engines/x"),
        ("http://192.168.1.9:8080", REMOTE, "", "http://192.168.1.9:8080"),
        ("http://127.0.0.1:8080", LOCAL, "", "http://127.0.0.1:8080"),
    ],
)
def test_url_that_the_router_connects_to(
    url: str, peer: Peer, advertise: str, expected: str
) -> None:
    assert seen(url, peer, advertise) == expected


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8080",  # the router's own loopback, not the node's
        "http://localhost:8080",
        "http://192.168.1.1:80",
        "https://0.0.0.0:8080",
        "http://0.0.0.0",
        "http://0.0.0.0:99999",
        "http://0.0.0.0:80?x=1",
        "gopher://0.0.0.0:70",
        "",
    ],
)
def test_url_that_points_the_router_elsewhere_is_refused(url: str) -> None:
    with pytest.raises(ReportError):
        seen(url)


def test_report_is_bounded() -> None:
    engines = [
        EngineReport(id=f"vllm-{number}", kind="vllm", url="http://0.0.0.0:1")
        for number in range(MAX_ENGINES + 1)
    ]
    with pytest.raises(ReportError, match="engines"):
        as_seen_from_here(NodeReport(node=NODE, name="m", engines=tuple(engines)), REMOTE, "")


def test_models_of_an_engine_are_bounded() -> None:
    replicas = (Replica(model="m:latest", name="m"),) * (MAX_REPLICAS + 1)
    engine = EngineReport(id="e", kind="vllm", url="http://0.0.0.0:1", replicas=replicas)
    with pytest.raises(ReportError, match="models"):
        as_seen_from_here(NodeReport(node=NODE, name="m", engines=(engine,)), REMOTE, "")


def test_two_engines_with_one_id_are_refused() -> None:
    engine = EngineReport(id="e", kind="vllm", url="http://0.0.0.0:1")
    with pytest.raises(ReportError, match="one id"):
        as_seen_from_here(NodeReport(node=NODE, name="m", engines=(engine, engine)), REMOTE, "")
