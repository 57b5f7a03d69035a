"""A LAN of our own: hosts in network namespaces, joined by a bridge in a namespace of its own.

Nothing touches the machine's own interfaces: every link is made inside the bridge's namespace and
its other end moves straight into a host's.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest


class Host:
    """One machine on the LAN: a network namespace with a loopback and one interface, `eth0`."""

    def __init__(self, namespace: str, address: str, home: Path) -> None:
        self.namespace = namespace
        self.address = address
        self.home = home
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, label: str, *command: str) -> Path:
        """Run a Python module or script on this host; returns the file that its output goes to."""
        output = self.home / f"{label}.out"
        with output.open("wb") as file, (self.home / f"{label}.err").open("wb") as errors:
            process = subprocess.Popen(
                [*self._inside(), sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=errors,
                env=self._environment(),
                start_new_session=True,
            )
        self._processes.append(process)
        return output

    def run(self, *command: str, within: float) -> str:
        """Run Python with these arguments on this host and return what it prints."""
        done = subprocess.run(
            [*self._inside(), sys.executable, *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=within,
            env=self._environment(),
        )
        if done.returncode:
            # Only the last complaint is of interest: most are of a fleet that is still starting.
            (self.home / "run.err").write_text(done.stderr)
            return ""
        return done.stdout

    def move_to(self, address: str) -> None:
        """Give the host's interface another address in place of the one it has."""
        ip("-n", self.namespace, "address", "del", f"{self.address}/24", "dev", "eth0")
        ip("-n", self.namespace, "address", "add", f"{address}/24", "dev", "eth0")
        self.address = address

    def unplug(self) -> None:
        """Take the host's only address away."""
        ip("-n", self.namespace, "address", "del", f"{self.address}/24", "dev", "eth0")

    def plug(self) -> None:
        """Give it back."""
        ip("-n", self.namespace, "address", "add", f"{self.address}/24", "dev", "eth0")

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def logs(self) -> str:
        """Everything that the host's processes wrote, for a failing test's message."""
        written = sorted([*self.home.glob("*.out"), *self.home.glob("*.err")])
        return "\n".join(
            f"== {self.namespace} {path.name}\n{path.read_text(errors='replace')}"
            for path in written
        )

    def _inside(self) -> list[str]:
        return ["ip", "netns", "exec", self.namespace]

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HERD_")}
        return kept | {
            "HERD_DATA_DIR": str(self.home / "data"),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "HOME": str(self.home),
            "PYTHONUNBUFFERED": "1",
        }


class Lan:
    """The hosts of one test, and a way to wait for what they do."""

    def __init__(self, router: Host, nodes: tuple[Host, Host]) -> None:
        self.router = router
        self.nodes = nodes

    def until(self, condition: Callable[[], object], *, within: float, what: str) -> float:
        """Wait until the condition holds; returns the seconds it took."""
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > within:
                logs = "\n".join(host.logs() for host in (self.router, *self.nodes))
                pytest.fail(f"{what} did not happen within {within:g} s\n{logs}")
            time.sleep(0.1)
        return time.monotonic() - started


def ip(*arguments: str) -> None:
    """Run iproute2's `ip`; its complaint becomes the error's text."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    """Three hosts, 10.77.0.1 to 10.77.0.3, on one bridge."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs Linux, root and iproute2")
    run = f"herd-{os.getpid()}-{secrets.token_hex(3)}"
    with ExitStack() as stack:
        try:
            bridge = _namespace(f"{run}-bridge", stack)
            ip("-n", bridge, "link", "add", "br0", "type", "bridge")
        except OSError as error:
            pytest.skip(f"network namespaces do not work here: {error}")
        ip("-n", bridge, "link", "set", "br0", "up")
        hosts = [_host(run, bridge, number, tmp_path, stack) for number in (1, 2, 3)]
        yield Lan(hosts[0], (hosts[1], hosts[2]))


def _host(run: str, bridge: str, number: int, home: Path, stack: ExitStack) -> Host:
    namespace = _namespace(f"{run}-{number}", stack)
    host = Host(namespace, f"10.77.0.{number}", home / str(number))
    host.home.mkdir()
    stack.callback(host.stop)
    port = f"port{number}"
    peer = ("peer", "name", "eth0", "netns", namespace)
    ip("-n", bridge, "link", "add", port, "type", "veth", *peer)
    ip("-n", bridge, "link", "set", port, "master", "br0", "up")
    ip("-n", namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
    ip("-n", namespace, "link", "set", "eth0", "up")
    return host


def _namespace(name: str, stack: ExitStack) -> str:
    ip("netns", "add", name)
    stack.callback(ip, "netns", "del", name)
    ip("-n", name, "link", "set", "lo", "up")
    return name
