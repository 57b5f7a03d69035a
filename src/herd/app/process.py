"""What both processes share: the fastest event loop there is, and stopping by signal."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress


class Stop:
    """The owner's wish to stop: once in good order, twice at once."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.insisted = asyncio.Event()

    def ask(self) -> None:
        """Ask once more."""
        (self.insisted if self.asked.is_set() else self.asked).set()


def run(main: Callable[[Stop], Coroutine[None, None, None]]) -> None:
    """Run a process's main coroutine; SIGINT and SIGTERM ask it to stop."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_with_signals(main))


async def _with_signals(main: Callable[[Stop], Coroutine[None, None, None]]) -> None:
    stop = Stop()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Windows has no signal handlers on its loop; Ctrl-C there ends the process at once.
        with suppress(NotImplementedError):
            loop.add_signal_handler(number, stop.ask)
    await main(stop)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop  # noqa: PLC0415 - Windows and PyPy have none
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
