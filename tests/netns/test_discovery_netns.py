"""Router and nodes on a LAN of their own: they find each other, also when addresses change."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.netns

ANNOUNCE = """
import asyncio
from herd.fleet.discovery import Announcer

async def main():
    server = await asyncio.start_server(lambda r, w: w.close(), "0.0.0.0", 11435)
    announcer = Announcer(router="a" * 32, port=11435, version="1", fleet="attic")
    announcer.start()
    while True:
        print(",".join(announcer.addresses) or "-", flush=True)
        await asyncio.sleep(0.1)

asyncio.run(main())
"""
FIND = """
import asyncio, sys
from herd.fleet.discovery import Finder

found = asyncio.run(Finder(fleet="attic").find(float(sys.argv[1])))
print(*(router.url for router in found))
"""
ASK = """
import json, sys, urllib.request

body = {"model": sys.argv[2], "stream": False, "messages": [{"role": "user", "content": "hi"}]}
request = urllib.request.Request(sys.argv[1] + "/api/chat", data=json.dumps(body).encode())
with urllib.request.urlopen(request, timeout=5) as answer:
    print(json.load(answer)["message"]["content"])
"""


def last_line(path: Path) -> str:
    lines = path.read_text().split()
    return lines[-1] if lines else ""


def test_finder_finds_an_announcer_on_another_host(lan: Any) -> None:
    lan.router.start("announcer", "-c", ANNOUNCE)

    found = lan.nodes[0].run("-c", FIND, "8", within=20)

    assert found.strip() == "http://10.77.0.1:11435"


def test_announcer_follows_its_host_to_another_address(lan: Any) -> None:
    output = lan.router.start("announcer", "-c", ANNOUNCE)
    lan.until(lambda: last_line(output) == "10.77.0.1", within=10, what="the first announcement")
    lan.router.move_to("10.77.0.99")
    lan.until(lambda: last_line(output) == "10.77.0.99", within=8, what="the second announcement")

    found = lan.nodes[0].run("-c", FIND, "8", within=20)

    assert found.strip() == "http://10.77.0.99:11435"


def test_announcer_waits_for_a_network_that_is_not_there_yet(lan: Any) -> None:
    lan.router.unplug()
    output = lan.router.start("announcer", "-c", ANNOUNCE)
    lan.until(lambda: last_line(output) == "-", within=10, what="the start without a network")
    lan.router.plug()
    lan.until(lambda: last_line(output) == "10.77.0.1", within=8, what="the announcement")

    assert lan.nodes[0].run("-c", FIND, "8", within=20).strip() == "http://10.77.0.1:11435"


def test_finder_without_a_network_finds_nothing_and_does_not_fail(lan: Any) -> None:
    lan.nodes[0].unplug()

    assert lan.nodes[0].run("-c", FIND, "1", within=20) == "\n"


def start_fleet(lan: Any) -> list[Path]:
    """Start the router and two nodes without a single argument; returns the nodes' outputs."""
    for number, node in enumerate(lan.nodes):
        model = ("--model", f"model{number}:1b=1000000")
        quick = ("--decode-rate", "1000", "--answer-tokens", "8")
        node.start("engine", "-m", "herd.sim", "--port", "11434", *model, *quick)
    lan.router.start("herd", "-m", "herd.cli.router")
    return [node.start("herd-node", "-m", "herd.cli.node") for node in lan.nodes]


def answered(host: Any, url: str, number: int) -> bool:
    return bool(host.run("-c", ASK, url, f"model{number}:1b", within=20).strip())


def test_two_commands_make_a_fleet_within_seconds(lan: Any) -> None:
    started = time.monotonic()
    start_fleet(lan)
    for number in (0, 1):
        left = 10.0 - (time.monotonic() - started)
        lan.until(
            lambda number=number: answered(lan.router, "http://127.0.0.1:11435", number),
            within=left,
            what=f"an answer of node {number}",
        )


def test_fleet_survives_a_new_address_of_its_router(lan: Any) -> None:
    outputs = start_fleet(lan)
    for number in (0, 1):
        lan.until(
            lambda number=number: answered(lan.nodes[1], "http://10.77.0.1:11435", number),
            within=20,
            what=f"an answer of node {number}",
        )
    moved = time.monotonic()
    lan.router.move_to("10.77.0.99")

    def back() -> bool:
        return all("Joined the router at http://10.77.0.99" in path.read_text() for path in outputs)

    lan.until(back, within=15, what="both nodes' return")
    for number in (0, 1):
        lan.until(
            lambda number=number: answered(lan.nodes[1], "http://10.77.0.99:11435", number),
            within=15.0 - (time.monotonic() - moved),
            what=f"an answer of node {number} by the new address",
        )


def test_fleet_survives_a_new_address_of_a_node(lan: Any) -> None:
    outputs = start_fleet(lan)
    lan.until(
        lambda: answered(lan.router, "http://127.0.0.1:11435", 0), within=20, what="an answer"
    )
    joined = outputs[0].read_text().count("Joined")
    lan.nodes[0].move_to("10.77.0.98")
    lan.until(lambda: outputs[0].read_text().count("Joined") > joined, within=15, what="the return")
    lan.until(
        lambda: answered(lan.router, "http://127.0.0.1:11435", 0),
        within=10,
        what="an answer from the node's new address",
    )
