"""Whom Ollama refuses: foreign `Host` headers when bound to loopback, and foreign origins."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")
_LOCAL_ORIGINS = frozenset({"localhost", "127.0.0.1", "0.0.0.0"})  # noqa: S104 - nothing is bound
_APP_SCHEMES = frozenset({"app", "file", "tauri", "vscode-webview", "vscode-file"})


def refused(host: str, origin: str | None) -> bool:
    """Whether a loopback-bound Ollama answers 403 to a request with these headers."""
    return not _local(host) or not (origin is None or _known(origin))


def _local(host: str) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name in {"", "localhost"} or name.endswith(_LOCAL_SUFFIXES)
    return address.is_private or address.is_loopback


def _known(origin: str) -> bool:
    parts = urlsplit(origin)
    return parts.scheme in _APP_SCHEMES or (
        parts.scheme in {"http", "https"} and parts.hostname in _LOCAL_ORIGINS
    )
