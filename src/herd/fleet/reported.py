"""What an agent reports, checked and put into the router's terms."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit, urlunsplit

import msgspec

from herd.core.fleet import EngineReport, NodeReport
from herd.fleet.discovery import is_loopback
from herd.fleet.trust import Peer

#: Engines that one node may have, and models that one engine may list.
MAX_ENGINES = 64
MAX_REPLICAS = 5000
#: In an engine's URL: "the address that my link comes from".
HERE = "0.0.0.0"  # noqa: S104 - a placeholder in a URL, nothing binds it


class ReportError(Exception):
    """A report says what its node cannot know or must not claim; the text says what."""


def as_seen_from_here(report: NodeReport, peer: Peer, advertise: str) -> NodeReport:
    """Return the report with URLs that the router can connect to; raises `ReportError`."""
    if report.node != peer.node:
        raise ReportError("reports for another node than itself")
    if len(report.engines) > MAX_ENGINES:
        raise ReportError(f"reports more than {MAX_ENGINES} engines")
    if len({engine.id for engine in report.engines}) != len(report.engines):
        raise ReportError("reports two engines with one id")
    engines = tuple(_engine(engine, peer, advertise) for engine in report.engines)
    return msgspec.structs.replace(report, engines=engines, name=peer.name)


def _engine(engine: EngineReport, peer: Peer, advertise: str) -> EngineReport:
    if len(engine.replicas) > MAX_REPLICAS:
        raise ReportError(f"reports more than {MAX_REPLICAS} models on {engine.id}")
    return msgspec.structs.replace(engine, url=_reachable(engine.url, peer, advertise))


def _reachable(url: str, peer: Peer, advertise: str) -> str:
    """Put the node's address in place of `HERE`; no node may point the router elsewhere."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ReportError(f"reports an engine at {url!r}, which is no URL") from error
    if parts.scheme != "http" or port is None or parts.query or parts.fragment:
        raise ReportError(f"reports an engine at {url!r}, which is no plain http URL with a port")
    if host == HERE:
        return _with_host(parts, advertise or peer.address, port)
    if host == peer.address or (peer.local and is_loopback(host)):
        return url.rstrip("/")
    raise ReportError(f"reports an engine at {host}, which is not the address of its own machine")


def _with_host(parts: SplitResult, host: str, port: int) -> str:
    bracketed = f"[{host}]" if ":" in host else host
    return urlunsplit(("http", f"{bracketed}:{port}", parts.path.rstrip("/"), "", ""))
