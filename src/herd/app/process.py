"""What both processes share: the fastest event loop, stopping by signal, and enough open files."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Final

#: Open files to ask for, the most first: macOS gives no more than 10,240 (its OPEN_MAX).
_OPEN_FILES: Final = (65_536, 10_240)


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
    raise_file_limit()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_with_signals(main))


def raise_file_limit() -> None:
    """Raise the soft limit of open files, as far as the hard one lets us.

    Each stream takes two, to the client and to the engine, and a process begins with 1,024 on
    Linux and with 256 on macOS. Windows has no such limit.
    """
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415 - not there on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in _OPEN_FILES:
        if hard != resource.RLIM_INFINITY:
            wanted = min(wanted, hard)  # noqa: PLW2901 - the same wish, cut back
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            return
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return


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
