"""A node process: its parts put together, started, and stopped in good order."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial

from herd import __version__
from herd.app import process
from herd.app.process import Stop
from herd.engines.http import Http
from herd.fleet.discovery import Finder
from herd.node.agent import Agent, Node
from herd.node.door import Door
from herd.node.engines import Engines, candidate_ports
from herd.node.hardware import read_hardware
from herd.node.identity import claimed, default_name, node_id
from herd.node.tasks import first_to_end
from herd.node.whereabouts import RouterSearch
from herd.ops.settings import NodeSettings, SettingsError


def serve(settings: NodeSettings, say: Callable[[str], None]) -> None:
    """Run a node until a signal stops it.

    Raises `SettingsError`, `IdentityError` or `OSError` if it cannot start.
    """
    process.run(partial(run_node, settings, say))


async def run_node(settings: NodeSettings, say: Callable[[str], None], stop: Stop) -> None:
    """Run a node until `stop` is asked for; raises like `serve`."""
    try:
        ports = candidate_ports(settings.engines, scan=settings.scan)
        search = RouterSearch(
            url=settings.router,
            fleet=settings.fleet,
            data_dir=settings.data_dir,
            finder=Finder(fleet=settings.fleet),
        )
    except ValueError as error:
        raise SettingsError(str(error)) from error
    async with AsyncExitStack() as stack:
        stack.enter_context(claimed(settings.data_dir))
        http = await stack.enter_async_context(Http())
        engines = Engines(http, ports=ports, slots=settings.slots)
        door = Door(engines.local)
        stack.push_async_callback(door.close)
        await door.open(settings.door_host, settings.door_port)
        node = Node(
            node=node_id(settings.data_dir),
            name=settings.name or default_name(),
            version=__version__,
            hardware=await read_hardware(settings.hardware),
        )
        agent = Agent(node, settings, engines=engines, door=door, search=search, say=say)
        await first_to_end(agent.run(), _until_stopped(agent, stop))
    say("Stopped.")


async def _until_stopped(agent: Agent, stop: Stop) -> None:
    async def go() -> None:
        await stop.asked.wait()
        await agent.leave("stopped by its owner")

    async def go_now() -> None:
        await stop.insisted.wait()

    await first_to_end(go(), go_now())
