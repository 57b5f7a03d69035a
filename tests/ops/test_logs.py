"""Log lines: for people on a terminal, JSON elsewhere, ours and the libraries' alike."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from herd.ops import logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Logging as it was, once the test is over: it belongs to the process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_elsewhere_than_on_a_terminal_every_line_is_json() -> None:
    out = io.StringIO()
    logs.configure(stream=out)
    logs.logger("relay").info("attempt failed", node="mac", attempt=1)
    (line,) = lines(out)
    stamp = line.pop("timestamp")
    assert stamp.endswith("Z")
    assert line == {
        "event": "attempt failed",
        "part": "relay",
        "level": "info",
        "node": "mac",
        "attempt": 1,
    }


def test_on_a_terminal_lines_are_for_people() -> None:
    out = Terminal()
    logs.configure(stream=out)
    logs.logger("relay").info("attempt failed", node="mac")
    assert "attempt failed" in out.getvalue()
    assert not out.getvalue().startswith("{")


@pytest.mark.parametrize(
    ("level", "said"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_levels(level: logs.Level, said: list[str]) -> None:
    out = io.StringIO()
    logs.configure(level, stream=out)
    log = logs.logger("x")
    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)("hello")
    assert [line["level"] for line in lines(out)] == said


def test_what_libraries_log_is_json_too_from_warnings_on() -> None:
    out = io.StringIO()
    logs.configure("debug", stream=out)
    logging.getLogger("aiohttp.server").info("chatter")
    logging.getLogger("aiohttp.server").warning("trouble with %s", "a client")
    (line,) = lines(out)
    assert line["event"] == "trouble with a client"
    assert (line["logger"], line["level"]) == ("aiohttp.server", "warning")


def test_what_libraries_log_is_for_people_on_a_terminal() -> None:
    out = Terminal()
    logs.configure(stream=out)
    logging.getLogger("zeroconf").warning("trouble")
    assert "trouble" in out.getvalue()
    assert not out.getvalue().startswith("{")


#: Not where it would stand in a traceback's line of source.
SECRET = "hunter2"


def fail_with(secret: str) -> None:
    prompt = secret
    raise RuntimeError(f"broke on {len(prompt)} letters")


@pytest.mark.parametrize("out", [io.StringIO(), Terminal()], ids=["json", "terminal"])
def test_a_traceback_is_told_and_no_local_variable_with_it(out: io.StringIO) -> None:
    """Local variables hold prompts and keys."""
    logs.configure(stream=out)
    for log in (logs.logger("x"), logging.getLogger("aiohttp.server")):
        try:
            fail_with(SECRET)
        except RuntimeError:
            log.exception("internal error")
    assert out.getvalue().count("broke on 7 letters") == 2
    assert out.getvalue().count("in fail_with") == 2
    assert SECRET not in out.getvalue()


def test_a_value_that_json_has_no_form_for_does_not_stop_the_line() -> None:
    out = io.StringIO()
    logs.configure(stream=out)
    logs.logger("x").info("odd", value=object())
    (line,) = lines(out)
    assert "object" in line["value"]


def test_configuring_again_takes_the_place_of_what_was() -> None:
    first, second = io.StringIO(), io.StringIO()
    logs.configure(stream=first)
    logs.configure(stream=second)
    logs.logger("x").info("hello")
    logging.getLogger("x").error("hello")
    assert first.getvalue() == ""
    assert len(lines(second)) == 2


def test_logs_go_to_stderr_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    logs.logger("x").info("hello")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "hello" in captured.err
