"""Engines without an agent, as their owner declares them: a URL with facts in its query."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

import msgspec
from msgspec import Struct

from herd.core.fleet import Hardware
from herd.engines import quantities

_PORTS: Final = {"http": 80, "https": 443}
_HARDWARE: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "memory": ("memory_bytes", quantities.size),
    "vram": ("vram_bytes", quantities.size),
    "bandwidth": ("bandwidth", quantities.rate),
    "power": ("power_watts", quantities.watts),
    "gpu": ("gpu", str),
    "chip": ("chip", str),
}
_OWN_KEYS: Final = ("name", "slots", "api_key", "api_key_env")
_MAX_SLOTS: Final = 4096


class DeclaredEngine(Struct, frozen=True, kw_only=True):
    """An engine at a URL, and what its owner says of the machine under it."""

    #: Without query and trailing slash.
    url: str
    #: What people call it.
    name: str
    hardware: Hardware = Hardware()
    #: Requests at once, where the engine does not tell or the owner knows better.
    slots: int | None = None
    #: The key that the engine asks for; empty if it asks for none.
    api_key: str = ""

    def __repr__(self) -> str:
        """Return it without the key: this goes into logs."""
        key = "..." if self.api_key else ""
        return f"DeclaredEngine(url={self.url!r}, name={self.name!r}, api_key={key!r})"

    @property
    def port(self) -> int:
        """Port that the engine listens on."""
        parts = urlsplit(self.url)
        return parts.port or _PORTS[parts.scheme]

    @property
    def node(self) -> str:
        """Identity of the node that it stands for, such as `url:gpu-box:8000`."""
        parts = urlsplit(self.url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"url:{host}:{self.port}{parts.path}"


def parse_engine_url(text: str, *, environ: Mapping[str, str] | None = None) -> DeclaredEngine:
    """Read `http://gpu-box:8000?memory=80GB&bandwidth=2TB/s&slots=64&power=300W&gpu=H100`.

    Keys: memory, vram, bandwidth, power, gpu, chip (the device), name, slots, and `api_key` or
    `api_key_env`, the name of an environment variable that holds it. A `/v1` at the end of the
    path is dropped, as clients of OpenAI's API are used to write it. Raises `ValueError` with a
    sentence that says what is wrong.

    `api_key_env` is refused without an `environ`. Pass one for the owner's own settings only:
    whoever sends such a URL over the network could otherwise have any variable of this process
    sent to a place of their choice.
    """
    try:
        parts = urlsplit(text.strip())
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"{text!r} is not a URL: {error}") from None
    _check_address(parts, text)
    facts = _facts(parts.query)
    url = f"{parts.scheme}://{parts.netloc.lower()}{parts.path}".rstrip("/").removesuffix("/v1")
    hardware = {
        _HARDWARE[key][0]: _value(key, facts[key], _HARDWARE[key][1])
        for key in facts.keys() & _HARDWARE.keys()
    }
    return DeclaredEngine(
        url=url,
        name=facts.get("name") or parts.hostname or "",
        hardware=msgspec.structs.replace(Hardware(), **hardware),
        slots=_value("slots", facts["slots"], _slots) if "slots" in facts else None,
        api_key=_api_key(facts, environ),
    )


def _check_address(parts: SplitResult, text: str) -> None:
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError(f"{text!r} is not the URL of an engine, such as http://gpu-box:8000")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"the URL of {parts.hostname} has a user name in it; use api_key instead")
    if parts.fragment:
        raise ValueError(f"{text!r} has a part after '#', which means nothing here")


def _facts(query: str) -> dict[str, str]:
    facts: dict[str, str] = {}
    # A '+' stands for itself: this is typed by people, who do not mean a space by it.
    for key, value in parse_qsl(query.replace("+", "%2B"), keep_blank_values=True):
        if key not in _HARDWARE and key not in _OWN_KEYS:
            known = ", ".join(sorted([*_HARDWARE, *_OWN_KEYS]))
            raise ValueError(f"{key!r} is not known of an engine; known are {known}")
        if key in facts:
            raise ValueError(f"{key!r} is given twice")
        if not value:
            raise ValueError(f"{key!r} has no value")
        facts[key] = value
    return facts


def _value(key: str, text: str, read: Callable[[str], Any]) -> Any:
    try:
        return read(text)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def _slots(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MAX_SLOTS:
        raise ValueError(f"{text!r} is not a whole number from 1 to {_MAX_SLOTS}")
    return int(text)


def _api_key(facts: Mapping[str, str], environ: Mapping[str, str] | None) -> str:
    variable = facts.get("api_key_env")
    if variable is None:
        return facts.get("api_key", "")
    if "api_key" in facts:
        raise ValueError("give either api_key or api_key_env, not both")
    if environ is None:
        raise ValueError("api_key_env is only read from the router's own settings")
    if not environ.get(variable):
        raise ValueError(f"api_key_env: the environment has no variable {variable!r}")
    return environ[variable]
