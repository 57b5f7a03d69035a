"""Who may change the fleet: the one place where the owner is told from a guest.

For now the owner is whoever sits at the router's machine: a connection from loopback that names
the router by a loopback address, so that neither the LAN nor a web page in the owner's browser
(which cannot choose its `Host`, nor send JSON across origins unasked) can use it. Keys and
sessions take the place of this rule here.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from aiohttp import web


def refusal(request: web.Request) -> str:
    """Why the request may not change the fleet; empty if it may."""
    if not _is_loopback(request.remote or ""):
        return "the fleet can be changed from the router's own machine only"
    try:
        host = urlsplit(f"//{request.host}").hostname or ""
    except ValueError:
        host = request.host
    if host != "localhost" and not _is_loopback(host):
        return f"the fleet cannot be changed under the name {host!r}"
    if request.headers.get("Origin"):
        return "the fleet cannot be changed by a page of another origin"
    return ""


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
