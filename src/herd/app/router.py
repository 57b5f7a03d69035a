"""A router process: its parts put together, started, and stopped in good order."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web

from herd import __version__
from herd.app import process
from herd.app.process import Stop
from herd.core import events as ev
from herd.core.actions import Target
from herd.core.names import canonical
from herd.core.request import Outcome
from herd.core.scheduler import Policy, Scheduler
from herd.engines.declared import parse_engine_url
from herd.engines.upstream import AiohttpUpstream
from herd.fleet.discovery import Announcer, interface_addresses
from herd.fleet.driver import Driver
from herd.fleet.links import Links
from herd.fleet.loading import Loading
from herd.fleet.probing import UrlNodes
from herd.gateway import application
from herd.gateway.catalogue import Catalogue
from herd.gateway.inference import Inference
from herd.gateway.models import ModelsApi
from herd.gateway.own import OwnApi
from herd.gateway.recent import Recent
from herd.gateway.relay import Limits, Relay
from herd.ops.clock import unix_clock
from herd.ops.logs import logger
from herd.ops.settings import RouterSettings, SettingsError
from herd.store.retention import Retention
from herd.store.store import Store
from herd.web.live import LivePage
from herd.wire.link import DOOR_HEADER, DOOR_PREFIX


def serve(settings: RouterSettings, say: Callable[[str], None]) -> None:
    """Run a router until a signal stops it. Raises `SettingsError` or `OSError` at a bad start."""
    process.run(partial(run_router, settings, say))


async def run_router(settings: RouterSettings, say: Callable[[str], None], stop: Stop) -> None:
    """Run a router until `stop` is asked for; raises like `serve`."""
    async with AsyncExitStack() as stack:
        router = Router(settings)
        await router.start(stack)
        for line in banner(settings, router.port, discovery=router.announced):
            say(line)
        await stop.asked.wait()
        say("Stopping: running requests may end. Ctrl-C again to stop at once.")
        await router.drain(stop)
    say("Stopped.")


class Router:
    """All parts of a router. `start` leaves everything to be closed on the given stack."""

    def __init__(self, settings: RouterSettings) -> None:
        self.settings = settings
        self.port = settings.port
        self.announced = False
        self._clock = unix_clock()
        self._log = logger("router")
        self.recent = Recent()
        self.driver: Driver
        self.engines: UrlNodes
        self._links: Links

    async def start(self, stack: AsyncExitStack) -> None:
        """Open the store, listen, and look for nodes."""
        settings, clock = self.settings, self._clock
        store = await asyncio.to_thread(self._open_store, settings.data_dir)
        stack.push_async_callback(asyncio.to_thread, store.close)

        def record(outcome: Outcome) -> None:
            self.recent.add(outcome)
            store.put(outcome)

        policy = Policy(
            max_waiting=settings.max_waiting,
            patience=settings.patience,
            max_attempts=settings.max_attempts,
            context_plan=settings.context_plan,
            placement=settings.placement,
            pins={canonical(model): nodes for model, nodes in settings.pins.items()},
        )
        scheduler = Scheduler(policy)
        loading = Loading(
            lambda event: self.driver.feed(event),  # noqa: PLW0108 - there is no driver yet
            credentials=self._credentials,
            timeout=settings.first_byte_timeout,
        )
        self.driver = Driver(
            scheduler, clock, record=record, release=self._release, load=loading.order
        )
        stack.callback(self.driver.close)
        stack.push_async_callback(loading.close)
        identity = await asyncio.to_thread(router_id, settings.data_dir)
        self._links = Links(
            self.driver.feed, router=identity, version=__version__, fleet=settings.fleet
        )
        self.engines = UrlNodes(lambda report: self.driver.feed(ev.NodeReported(report)))
        stack.push_async_callback(self.engines.close)
        self._declare()
        upstream = AiohttpUpstream(connect_timeout=settings.connect_timeout)
        stack.push_async_callback(upstream.close)
        limits = Limits(
            first_byte=settings.first_byte_timeout,
            idle=settings.idle_timeout,
            client=settings.client_timeout,
        )
        relay = Relay(upstream, clock, limits, credentials=self._credentials)
        stack.callback(relay.close)
        live = LivePage(self.driver, self.recent, clock)
        stack.push_async_callback(live.close)
        app = application.build(
            [
                *Inference(
                    self.driver, relay, clock, overrule=settings.keep_alive == "herd"
                ).routes(),
                *Catalogue(scheduler, relay, clock).routes(),
                *OwnApi(self.driver, self.engines, store, self.recent).routes(),
                *ModelsApi(self.driver, loading.order).routes(),
                *live.routes(),
            ],
            link=self._links.serve,
            max_body=settings.max_body,
        )
        await self._listen(app, stack)
        # After the listener, so that it stops first: links are open requests of the listener.
        stack.push_async_callback(self._links.close)
        await self._announce(identity, stack)

    async def drain(self, stop: Stop) -> None:
        """Refuse what comes, wait for what runs, but not for longer than the settings say."""
        self.driver.feed(ev.Stopping())
        waits = [
            asyncio.ensure_future(self.driver.drained()),
            asyncio.ensure_future(stop.insisted.wait()),
        ]
        await asyncio.wait(
            waits, timeout=self.settings.drain_timeout, return_when=asyncio.FIRST_COMPLETED
        )
        for wait in waits:
            wait.cancel()
        if self.driver.open:
            self._log.warning("requests still run and are cut off", count=self.driver.open)

    def _open_store(self, data_dir: Path) -> Store:
        return Store.open(
            data_dir / "herd.db",
            clock=self._clock,
            retention=Retention(keep_days=self.settings.keep_days),
            on_problem=lambda problem: self._log.error("store", problem=problem),
        )

    def _declare(self) -> None:
        for text in self.settings.engines:
            try:
                self.engines.add(parse_engine_url(text, environ=os.environ))
            except ValueError as error:
                raise SettingsError(f"engine {text!r}: {error}") from error

    def _release(self, node: str) -> None:
        self._links.release(node)

    def _credentials(self, target: Target) -> Mapping[str, str]:
        """What to show at a target: its door's token, or its engine's key."""
        node = target.replica.node
        if urlsplit(target.url).path.startswith(DOOR_PREFIX):
            return {DOOR_HEADER: self._links.door_token(node) or ""}
        declared = self.engines.declared(node)
        if declared is not None and declared.api_key:
            return {"Authorization": f"Bearer {declared.api_key}"}
        return {}

    async def _listen(self, app: web.Application, stack: AsyncExitStack) -> None:
        settings = self.settings
        # A client that hangs up cancels its handler, which frees the engine. At the end there is
        # nothing to wait for: what ran has ended, or is to be cut off.
        runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, settings.host, settings.port, backlog=1024)
        try:
            await site.start()
        except OSError as error:
            raise OSError(
                f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}"
            ) from error
        self.port = runner.addresses[0][1]

    async def _announce(self, identity: str, stack: AsyncExitStack) -> None:
        settings = self.settings
        if not settings.discovery or _is_loopback(settings.host):
            return
        everywhere = settings.host in {"", "0.0.0.0", "::"}  # noqa: S104 - a comparison
        announcer = Announcer(
            router=identity,
            port=self.port,
            version=__version__,
            fleet=settings.fleet,
            interfaces=() if everywhere else (settings.host,),
        )
        announcer.start()
        stack.push_async_callback(announcer.close)
        self.announced = True


def banner(settings: RouterSettings, port: int, *, discovery: bool) -> list[str]:
    """Return what a person needs to know of a router that has started."""
    if _is_loopback(settings.host):
        addresses = [settings.host]
    elif settings.host in {"", "0.0.0.0", "::"}:  # noqa: S104 - a comparison
        addresses = [*interface_addresses(), "127.0.0.1"]
    else:
        addresses = [settings.host]
    urls = [f"http://{address}:{port}" for address in addresses]
    lines = [f"Herd {__version__} is listening on {', '.join(urls)}"]
    lines.append(f"  Dashboard       {urls[0]}/dashboard/")
    lines.append(f"  OpenAI clients  {urls[0]}/v1")
    lines.append(f"  Ollama clients  {urls[0]}")
    lines.append(f"  Anthropic       {urls[0]}")
    if discovery:
        lines.append("  Add a machine   run `herd-node` on it; it finds this router by itself")
        lines.append(f"                  (or `herd-node --router {urls[0]}` where mDNS is blocked)")
    else:
        lines.append(f"  Add a machine   run `herd-node --router {urls[0]}` on it")
    return lines


def router_id(data_dir: Path) -> str:
    """Return the router's identity, made at its first start and kept from then on."""
    path = data_dir / "router-id"
    try:
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        text = ""
    if not text:
        text = secrets.token_hex(16)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".new")
        draft.write_text(text + "\n", encoding="ascii")
        draft.replace(path)
    return text


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
