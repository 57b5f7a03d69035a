"""Logging: structured lines through structlog, for people on a terminal, as JSON elsewhere."""

from __future__ import annotations

import logging
import sys
from typing import Literal, TextIO

import structlog

Level = Literal["debug", "info", "warning", "error"]


def configure(level: Level = "info", *, stream: TextIO | None = None) -> None:
    """Set the process's logging up once, at its start. Logs go to stderr by default."""
    out = stream or sys.stderr
    terminal = out.isatty()
    number = getattr(logging, level.upper())
    stamp = "%H:%M:%S" if terminal else "iso"
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt=stamp, utc=not terminal),
            structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    # Libraries (aiohttp, zeroconf) log through the standard library.
    logging.basicConfig(level=max(number, logging.WARNING), stream=out, force=True)


def logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """Return the logger of one part of the program, such as `relay`."""
    log: structlog.typing.FilteringBoundLogger = structlog.get_logger(part=name)
    return log
