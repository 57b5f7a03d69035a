"""Declared engines: a URL with facts."""

from __future__ import annotations

import pytest

from herd.core.fleet import Hardware
from herd.engines.declared import DeclaredEngine, parse_engine_url


def test_all_facts_are_read() -> None:
    text = (
        "http://gpu-box:8000?memory=80GB&vram=64GiB&bandwidth=2TB/s&slots=64&power=300W"
        "&gpu=NVIDIA%20H100&chip=EPYC&name=The+Box&api_key=s%26k"
    )

    assert parse_engine_url(text) == DeclaredEngine(
        url="http://gpu-box:8000",
        name="The+Box",
        hardware=Hardware(
            memory_bytes=80 * 10**9,
            vram_bytes=64 * 2**30,
            bandwidth=2e12,
            power_watts=300,
            gpu="NVIDIA H100",
            chip="EPYC",
        ),
        slots=64,
        api_key="s&k",
    )


def test_a_url_alone_is_enough() -> None:
    declared = parse_engine_url("http://gpu-box:8000")

    assert declared == DeclaredEngine(url="http://gpu-box:8000", name="gpu-box")


@pytest.mark.parametrize(
    "text",
    ["http://Box:8000/v1", "http://box:8000/v1/", " http://box:8000/ ", "http://box:8000/?slots=2"],
)
def test_any_spelling_of_a_base_url_is_the_same(text: str) -> None:
    assert parse_engine_url(text).url == "http://box:8000"


@pytest.mark.parametrize(
    ("text", "node", "port"),
    [
        ("http://gpu-box:8000", "url:gpu-box:8000", 8000),
        ("http://gpu-box", "url:gpu-box:80", 80),
        ("https://GPU-box/ollama/", "url:gpu-box:443/ollama", 443),
        ("http://[::1]:8080", "url:[::1]:8080", 8080),
    ],
)
def test_the_node_is_the_address(text: str, node: str, port: int) -> None:
    declared = parse_engine_url(text)

    assert (declared.node, declared.port) == (node, port)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not the URL of an engine"),
        ("gpu-box:8000", "is not the URL of an engine"),
        ("ftp://gpu-box", "is not the URL of an engine"),
        ("http://:8000", "is not the URL of an engine"),
        ("http://box:port", "is not a URL"),
        ("http://box:99999", "is not a URL"),
        ("http://[::1", "is not a URL"),
        ("http://me:pw@box", "use api_key instead"),
        ("http://box#a", "after '#'"),
        ("http://box?ram=8GB", "'ram' is not known of an engine; known are api_key, "),
        ("http://box?memory=lots", "memory: 'lots' is not a size such as 80GB"),
        ("http://box?memory=", "'memory' has no value"),
        ("http://box?bandwidth=2TB/m", "bandwidth: '2TB/m' is not a rate"),
        ("http://box?power=1V", "power: '1V' is not a power"),
        ("http://box?slots=0", "slots: '0' is not a whole number from 1"),
        ("http://box?slots=1.5", "slots: '1.5' is not a whole number"),
        ("http://box?slots=99999", "slots: '99999' is not a whole number"),
        ("http://box?slots=1&slots=2", "'slots' is given twice"),
        ("http://box?api_key=a&api_key_env=B", "not both"),
    ],
)
def test_what_is_wrong_is_said(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why.replace("(", r"\(")):
        parse_engine_url(text)


def test_the_key_can_come_from_the_environment() -> None:
    declared = parse_engine_url("http://box?api_key_env=BOX_KEY", environ={"BOX_KEY": "sekret"})

    assert declared.api_key == "sekret"


def test_a_variable_that_is_not_set_is_an_error() -> None:
    with pytest.raises(ValueError, match="the environment has no variable 'BOX_KEY'"):
        parse_engine_url("http://box?api_key_env=BOX_KEY", environ={})


def test_nobody_gets_at_the_environment_unless_it_is_passed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BOX_KEY", "sekret")

    with pytest.raises(ValueError, match="only read from the router's own settings"):
        parse_engine_url("http://box?api_key_env=BOX_KEY")


def test_a_log_line_does_not_show_the_key() -> None:
    declared = parse_engine_url("http://box?api_key=sekret")

    assert "sekret" not in repr(declared)
    assert "sekret" not in f"{declared}"
