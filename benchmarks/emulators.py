"""Emulated engines over HTTP, all of a fleet in one process of their own.

Run as `python -m benchmarks.emulators FILE`; the file is the JSON of a list of `Emulated`.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
from msgspec import Struct

from benchmarks.backend import listening
from benchmarks.script import ANSWER_TOKENS
from devtools.processes import Process, free_port, wait_until
from herd.sim.fleets import Device, Fleet
from herd.sim.server import EmulatedServer, EngineDialect
from herd.sim.spec import EngineSpec


class Emulated(Struct, frozen=True):
    """One engine and where it listens."""

    spec: EngineSpec
    dialect: EngineDialect
    port: int


class EmulatorsProcess(Process):
    """The engines of a fleet, on free ports of loopback."""

    def __init__(self, folder: Path, fleet: Fleet) -> None:
        self._fleet = fleet
        self._engines = [_emulated(device) for device in fleet.devices]
        file = folder / "engines.json"
        file.write_bytes(msgspec.json.encode(self._engines))
        command = [sys.executable, "-m", "benchmarks.emulators", str(file)]
        super().__init__("emulators", command, folder=folder)

    @property
    def ports(self) -> list[int]:
        """Where the devices' engines listen, in the order of the fleet."""
        return [engine.port for engine in self._engines]

    def wait_ready(self) -> None:
        """Return when all of them listen."""

        def listen() -> bool:
            self.check()
            return all(map(listening, self.ports))

        wait_until(listen, "the emulated engines")


def _emulated(device: Device) -> Emulated:
    dialect: EngineDialect = "ollama" if device.spec.batching is None else "openai"
    return Emulated(device.spec, dialect, free_port())


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until a signal."""
    (file,) = sys.argv[1:] if argv is None else argv
    engines = msgspec.json.decode(Path(file).read_bytes(), type=list[Emulated])
    asyncio.run(_serve(engines))


async def _serve(engines: Sequence[Emulated]) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with AsyncExitStack() as stack:
        for engine in engines:
            server = EmulatedServer(
                engine.spec,
                dialect=engine.dialect,
                port=engine.port,
                answer_tokens=ANSWER_TOKENS,
            )
            await stack.enter_async_context(server)
        await stopped.wait()


if __name__ == "__main__":
    main()
