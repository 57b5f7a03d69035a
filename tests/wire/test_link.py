"""Messages between agent and router: there and back, newer and older, and rubbish."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.core.fleet import EngineReport, Hardware, Load, NodeReport, Replica
from herd.wire.link import (
    MAX_FRAME,
    PROTOCOL,
    Ack,
    Beat,
    FromAgent,
    FromRouter,
    Hello,
    Leaving,
    Rejected,
    Released,
    Report,
    Welcome,
    decode_from_agent,
    decode_from_router,
    encode,
)

HELLO = Hello(
    protocol=PROTOCOL, node="n", name="mac", version="1", door_port=11436, door_token="t" * 32
)
REPLICA = Replica(
    model="m:latest",
    name="m",
    residency="loading",
    size=6_000_000_000,
    capabilities=("completion", "vision"),
    listing=b'{"name":"m"}',
)
REPORT = NodeReport(
    node="n",
    name="mac",
    hardware=Hardware(system="Linux", bandwidth=1e12),
    load=Load(cpu=0.5, memory_available=5),
    engines=(
        EngineReport(id="e", kind="ollama", url="http://n:1", replicas=(REPLICA,), running=0),
        EngineReport(id="f", kind="vllm", url="http://n:2", up=False, error="refused"),
    ),
)


@pytest.mark.parametrize(
    "message", [HELLO, Report(REPORT), Beat(Load()), Beat(Load(cpu=1.0)), Leaving("sleep")]
)
def test_what_an_agent_says_arrives(message: FromAgent) -> None:
    assert decode_from_agent(encode(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        Welcome(protocol=PROTOCOL, router="r", version="1", fleet="home"),
        Rejected("because"),
        Ack(),
        Released(),
    ],
)
def test_what_a_router_says_arrives(message: FromRouter) -> None:
    assert decode_from_router(encode(message)) == message


def test_what_is_unknown_stays_unknown() -> None:
    """None and zero mean something else, and both survive."""
    (ollama, vllm) = REPORT.engines
    arrived = decode_from_agent(encode(Report(REPORT)))
    assert isinstance(arrived, Report)
    assert [engine.running for engine in arrived.report.engines] == [0, None]
    assert (ollama.running, vllm.running) == (0, None)


def test_fields_of_a_newer_peer_are_ignored() -> None:
    newer = {"type": "beat", "load": {"cpu": 0.25, "fan": 3}, "mood": ["good"]}
    assert decode_from_agent(msgspec.msgpack.encode(newer)) == Beat(Load(cpu=0.25))


def test_fields_that_an_older_peer_lacks_have_their_defaults() -> None:
    older = {"type": "welcome", "protocol": PROTOCOL, "router": "r", "version": "0"}
    welcome = decode_from_router(msgspec.msgpack.encode(older))
    assert isinstance(welcome, Welcome)
    assert welcome.fleet == ""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"{}",
        encode(Ack())[:-1],
        msgspec.msgpack.encode({"type": "unheard of"}),
        msgspec.msgpack.encode({"no": "type"}),
        msgspec.msgpack.encode(["beat"]),
        msgspec.msgpack.encode({"type": "beat", "load": {"cpu": "much"}}),
        msgspec.msgpack.encode({"type": "hello", "protocol": 1}),
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_from_agent(data)
    with pytest.raises(msgspec.DecodeError):
        decode_from_router(data)


def test_neither_side_takes_its_own_words_from_the_other() -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_from_agent(encode(Welcome(protocol=PROTOCOL, router="r", version="1")))
    with pytest.raises(msgspec.DecodeError):
        decode_from_router(encode(HELLO))


@given(st.binary(max_size=100))
def test_rubbish_is_refused_or_understood(data: bytes) -> None:
    for decode in (decode_from_agent, decode_from_router):
        with contextlib.suppress(msgspec.DecodeError):
            decode(data)


def test_a_report_of_a_thousand_models_fits_a_frame() -> None:
    row = b'{"name":"registry.example/someone/a-model-with-a-long-name:q4_K_M"}' * 6
    replicas = tuple(
        msgspec.structs.replace(REPLICA, model=f"model-{number}:latest", listing=row)
        for number in range(1000)
    )
    engine = EngineReport(id="e", kind="ollama", url="http://n:1", replicas=replicas)
    report = msgspec.structs.replace(REPORT, engines=(engine,))
    assert len(encode(Report(report))) < 1_000_000 < MAX_FRAME
