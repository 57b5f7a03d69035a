"""Runs `herd` and `herd-node` as processes of their own, for the demo, the benchmarks and tests."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

START_TIMEOUT = 20.0
STOP_TIMEOUT = 20.0


def free_port() -> int:
    """Return a port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(
    condition: Callable[[], bool], what: str, *, timeout: float = START_TIMEOUT, step: float = 0.05
) -> None:
    """Poll until the condition holds; raises `TimeoutError` that says what did not come."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come within {timeout:g} s")
        time.sleep(step)


class Process:
    """A process with a log file; stopped by SIGTERM, and by SIGKILL if that does not help."""

    def __init__(self, name: str, command: Sequence[str], *, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.log = folder / f"{name}.log"
        self._command = list(command)
        self._popen: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if not _ours(key)}
        environment["HERD_CONFIG"] = str(_empty_config(self.folder))
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def wait_ready(self) -> None:
        """Return when the process is of use; raises if it ends before."""

    @property
    def process(self) -> psutil.Process:
        """The running process, to be measured."""
        if self._popen is None:
            raise RuntimeError(f"{self.name} was not started")
        return psutil.Process(self._popen.pid)

    @property
    def ended(self) -> int | None:
        """Exit code, None while it runs."""
        return self._popen.poll() if self._popen is not None else None

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._popen is not None and self._popen.poll() is None:
            self._popen.kill()
            self._popen.wait()

    def stop(self, *, timeout: float = STOP_TIMEOUT) -> int | None:
        """Ask it to end and wait; returns its exit code, None if it had to be killed."""
        if self._popen is None or self._popen.poll() is not None:
            return self.ended
        self._popen.send_signal(signal.SIGTERM)
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def check(self) -> None:
        """Raise with the end of the log if the process has ended."""
        if self.ended is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self.name} ended with {self.ended}:\n{tail}")


class RouterProcess(Process):
    """`herd` on loopback, with everything that it keeps in `folder`."""

    def __init__(self, folder: Path, *options: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.data_dir = folder / "router"
        super().__init__(
            "router",
            [
                *(sys.executable, "-m", "herd.cli.router"),
                *("--host", "127.0.0.1", "--port", str(self.port)),
                *("--data-dir", str(self.data_dir), *options),
            ],
            folder=folder,
        )

    @property
    def url(self) -> str:
        """Where clients point."""
        return f"http://127.0.0.1:{self.port}"

    def wait_ready(self) -> None:
        """Return when it answers."""

        def answers() -> bool:
            self.check()
            try:
                return bool(self.get("/herd/v1/health"))
            except (urllib.error.URLError, OSError):
                return False

        wait_until(answers, "the router's first answer")

    def get(self, path: str) -> Any:
        """Fetch JSON from the router's own API."""
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:  # noqa: S310 - loopback
            return json.load(answer)

    def wait_for_replicas(self, model: str, count: int, *, timeout: float = START_TIMEOUT) -> None:
        """Return when so many reachable replicas of the model are in the fleet."""

        def there() -> bool:
            nodes = self.get("/herd/v1/fleet")["nodes"]
            found = [
                replica
                for node in nodes
                for engine in node["engines"]
                if engine["up"]
                for replica in engine["replicas"]
                if replica["model"] == model
            ]
            return len(found) >= count

        wait_until(there, f"{count} replicas of {model}", timeout=timeout)


class NodeProcess(Process):
    """`herd-node` linked to a router on loopback."""

    def __init__(self, folder: Path, name: str, router: str, *options: str) -> None:
        super().__init__(
            name,
            [
                *(sys.executable, "-m", "herd.cli.node"),
                *("--router", router, "--name", name, "--host", "127.0.0.1"),
                *("--door-port", str(free_port())),
                *("--data-dir", str(folder / name), *options),
            ],
            folder=folder,
        )


def _ours(key: str) -> bool:
    """Settings of whoever runs this must not leak into what is tested."""
    return key.startswith("HERD_") and key != "HERD_ENGINES"


def _empty_config(folder: Path) -> Path:
    path = folder / "empty.toml"
    path.touch()
    return path
