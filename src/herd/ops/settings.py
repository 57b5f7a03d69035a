"""Settings: defaults < `herd.toml` < `HERD_*` environment < flags. Every value knows its source.

Nothing needs to be set. A file is read if it exists; an unknown key or a wrong type is an error
that names the file and the key, because a misspelt setting that is silently ignored costs hours.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import platformdirs
from msgspec import Struct

from herd.core.fleet import Hardware

APP = "herd"
ROUTER_PORT = 11435
DOOR_PORT = 11436
#: Settings that are JSON objects where they stand in the environment.
_OBJECTS = frozenset({"slots", "hardware", "pins"})


def default_data_dir() -> Path:
    """Where state lives that must survive a restart."""
    return Path(platformdirs.user_data_dir(APP, appauthor=False))


def default_config_file() -> Path:
    """The settings file that is read if it exists."""
    return Path(platformdirs.user_config_dir(APP, appauthor=False)) / "herd.toml"


class RouterSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[router]` in herd.toml, `HERD_ROUTER_<NAME>` in the environment. Times are seconds."""

    host: str = "0.0.0.0"  # noqa: S104 - a router that nobody on the LAN can reach routes nothing
    port: int = ROUTER_PORT
    #: Announce on the LAN by mDNS. Off by itself where `host` is loopback.
    discovery: bool = True
    #: Name that tells fleets on one LAN apart.
    fleet: str = ""
    #: URLs of engines that have no agent, with what is declared of them in the query.
    engines: tuple[str, ...] = ()
    data_dir: Path = msgspec.field(default_factory=default_data_dir)
    #: Requests that may wait for a slot before new ones are refused.
    max_waiting: int = 1000
    #: A request waits this long for a slot before it is refused.
    patience: float = 600.0
    #: Tries of one request on different replicas before the client is told.
    max_attempts: int = 3
    connect_timeout: float = 5.0
    #: From dispatch to the first byte; a cold load of a big model takes minutes.
    first_byte_timeout: float = 600.0
    #: Between two chunks of a stream that has begun.
    idle_timeout: float = 120.0
    #: For a client that does not read.
    client_timeout: float = 300.0
    #: Running requests may take this long when the router stops.
    drain_timeout: float = 30.0
    #: Largest request body that is accepted, in bytes.
    max_body: int = 256 * 1024 * 1024
    #: Load models and unload them ahead of requests, by demand.
    placement: bool = True
    #: Models that are to stay in memory, each with the nodes on which, by name or id.
    pins: dict[str, tuple[str, ...]] = {}
    #: Load a model with one context for all its requests: `num_ctx` may be set in a request.
    context_plan: bool = True
    #: Whose `keep_alive` goes first where both the client and placement have one.
    keep_alive: Literal["client", "herd"] = "client"
    keep_days: float = 90.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class NodeSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[node]` in herd.toml, `HERD_NODE_<NAME>` in the environment. Times are seconds."""

    #: URL of the router; empty to find it by mDNS.
    router: str = ""
    #: What people call this node; empty for the host's name.
    name: str = ""
    #: Further ports or URLs on this machine at which an engine may listen.
    engines: tuple[str, ...] = ()
    #: Ask the usual ports of all engines too.
    scan: bool = True
    #: `auto` lets the router connect to engines that listen beyond loopback themselves.
    door: Literal["auto", "always"] = "auto"
    door_host: str = "0.0.0.0"  # noqa: S104 - the router is on another machine
    door_port: int = DOOR_PORT
    #: Address at which the router reaches this node, where it is not the one it dials from.
    advertise: str = ""
    fleet: str = ""
    data_dir: Path = msgspec.field(default_factory=default_data_dir)
    drain_timeout: float = 600.0
    #: Requests that an engine runs at once, by engine id or kind, where it does not say.
    slots: dict[str, int] = {}
    #: What is known of this machine and cannot be read from it, such as its memory bandwidth.
    hardware: Hardware = Hardware()
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class SettingsError(Exception):
    """A setting is wrong; the text names where it stands and what it should be."""


S = TypeVar("S", RouterSettings, NodeSettings)


def load_router(
    flags: Mapping[str, Any], *, env: Mapping[str, str] | None = None, file: Path | None = None
) -> RouterSettings:
    """Merge all sources for `herd`; flags that are None count as not given."""
    return _load(RouterSettings, "router", flags, env, file)


def load_node(
    flags: Mapping[str, Any], *, env: Mapping[str, str] | None = None, file: Path | None = None
) -> NodeSettings:
    """Merge all sources for `herd-node`; flags that are None count as not given."""
    return _load(NodeSettings, "node", flags, env, file)


def _load(
    kind: type[S],
    section: str,
    flags: Mapping[str, Any],
    env: Mapping[str, str] | None,
    file: Path | None,
) -> S:
    environment: Mapping[str, str] = os.environ if env is None else env
    sources: list[tuple[str, dict[str, Any]]] = [
        _from_file(section, file, environment),
        ("the environment", _from_environment(kind, section, environment)),
        ("the command line", {name: value for name, value in flags.items() if value is not None}),
    ]
    merged: dict[str, Any] = {}
    for source, values in sources:
        merged |= values
        try:
            # The environment has only strings: not strict means that numbers are read from them.
            msgspec.convert(merged, kind, strict=False, dec_hook=_decode)
            _check_hardware(merged.get("hardware"))
        except msgspec.ValidationError as error:
            raise SettingsError(f"setting in {source}: {error}") from error
    return msgspec.convert(merged, kind, strict=False, dec_hook=_decode)


def _decode(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value).expanduser()
    raise NotImplementedError(kind)


def _check_hardware(declared: Any) -> None:
    """Refuse misspelt keys, which `Hardware` itself lets pass, as newer agents may have more."""
    known = {field.name for field in msgspec.structs.fields(Hardware)}
    unknown = set(declared) - known if isinstance(declared, dict) else set()
    if unknown:
        raise msgspec.ValidationError(
            f"Object contains unknown field `{min(unknown)}` - at `$.hardware`"
        )


def _from_file(
    section: str, file: Path | None, environment: Mapping[str, str]
) -> tuple[str, dict[str, Any]]:
    path = file or Path(environment.get("HERD_CONFIG", "") or default_config_file())
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if file is not None or environment.get("HERD_CONFIG"):
            raise SettingsError(f"there is no settings file {path}") from None
        return str(path), {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error
    unknown = set(document) - {"router", "node"}
    if unknown:
        raise SettingsError(f"{path}: unknown section {min(unknown)!r}")
    values = document.get(section, {})
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: {section!r} must be a section, [{section}]")
    return str(path), values


def _from_environment(
    kind: type[Struct], section: str, environment: Mapping[str, str]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        name = f"HERD_{section}_{field.name}".upper()
        text = environment.get(name)
        if text is None and field.name == "data_dir":
            text = environment.get("HERD_DATA_DIR")
        if text is None:
            continue
        if field.name == "engines":
            values[field.name] = [part for part in text.replace(",", " ").split() if part]
        elif field.name in _OBJECTS:
            try:
                values[field.name] = msgspec.json.decode(text)
            except msgspec.DecodeError as error:
                raise SettingsError(f"{name} in the environment: {error}") from error
        else:
            values[field.name] = text
    return values
