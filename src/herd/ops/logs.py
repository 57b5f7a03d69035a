"""Logging: structured lines through structlog, for people on a terminal, as JSON elsewhere."""

from __future__ import annotations

import logging
import sys
from typing import Literal, TextIO

import structlog
from structlog.typing import Processor

Level = Literal["debug", "info", "warning", "error"]


def configure(level: Level = "info", *, stream: TextIO | None = None) -> None:
    """Set the process's logging up once, at its start. Logs go to stderr by default."""
    out = stream or sys.stderr
    terminal = out.isatty()
    number = getattr(logging, level.upper())
    stamp = "%H:%M:%S" if terminal else "iso"
    first: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt=stamp, utc=not terminal),
    ]
    last: list[Processor] = (
        # The default shows local variables, and with them prompts and keys.
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if terminal
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*first, *last],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    # Libraries (aiohttp, zeroconf) log through the standard library.
    handler = logging.StreamHandler(out)
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*first, structlog.stdlib.add_logger_name], processors=[strip, *last]
        )
    )
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[handler], force=True)


def logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """Return the logger of one part of the program, such as `relay`."""
    log: structlog.typing.FilteringBoundLogger = structlog.get_logger(part=name)
    return log
