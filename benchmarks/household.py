"""Three real devices of unequal speed on 127.0.0.1: llama-servers, each with its share of the CPU.

The kernel's CPU quota makes the machines of a home of the cores of one. Together they are granted
less than two cores, so that one device's work takes nothing from another's quota, and the router,
the agents and the clients have the rest.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from msgspec import Struct

from benchmarks.chats import Rates, Speeds
from devtools.engines import LlamaServer, llama_files
from devtools.gguf import drop_layers
from devtools.processes import NodeProcess, RouterProcess
from devtools.quota import CpuQuota
from herd.core import priors

#: SmolLM2-135M, and what its first half of layers is.
WHOLE: Final = "smollm2"
HALF: Final = "smollm2-half"
MODELS: Final = (WHOLE, HALF)
_LAYERS: Final = 30
_WHOLE_BYTES: Final = 98.4e6
SLOTS: Final = 2
#: Tokens per slot.
CONTEXT: Final = 2048
#: What the devices weigh beside whatever else this machine does, so that they have their quotas.
_WEIGHT: Final = 20
#: Threads of one engine wait for one another asleep. Spinning, they would burn the quota of the
#: thread that they wait for: with two models at work, a tenfold loss that no real device has.
_PATIENT: Final = {"OMP_WAIT_POLICY": "passive"}
#: Tokens of a trial: prompt and answer.
_TRIAL_WORDS: Final = 120
_TRIAL_OUTPUT: Final = 30
_ANSWER_LIMIT: Final = 120.0


class Device(Struct, frozen=True):
    """What one device is."""

    name: str
    threads: int
    #: Cores' worth of CPU time that the kernel grants it.
    cores: float


#: A fast machine with one thread, one with two that the kernel grants less, a throttled one.
DEVICES: Final = (
    Device("desk", 1, 0.8),
    Device("laptop", 2, 0.4),
    Device("attic", 1, 0.1),
)


class Household:
    """The devices' engines, started anew with empty caches; a context manager.

    Raises `QuotaUnavailable` or `EngineUnavailable` where this machine cannot have them.
    """

    def __init__(self, folder: Path, devices: Sequence[Device] = DEVICES) -> None:
        self.devices = devices
        self._folder = folder
        self._stack = ExitStack()
        self._engines: dict[str, LlamaServer] = {}

    def __enter__(self) -> Self:
        try:
            models = _models(self._folder)
            quotas = [self._add(device, models) for device in self.devices]
            with ThreadPoolExecutor() as pool:
                list(pool.map(_load, self._engines.values()))
            for device, quota in zip(self.devices, quotas, strict=True):
                quota.limit(device.cores)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def urls(self) -> dict[str, str]:
        """Where each device's engine listens."""
        return {name: engine.url for name, engine in self._engines.items()}

    def speeds(self) -> Speeds:
        """Measure every model on every device, by the engines' own count; all devices at once.

        Leaves something in their caches.
        """
        with ThreadPoolExecutor() as pool:
            return dict(zip(self._engines, pool.map(_speeds, self._engines.values()), strict=True))

    def herd(self, speeds: Speeds) -> HerdOver:
        """Return Herd over the devices, with nothing learned; a context manager.

        Of the speeds only the decoding of the whole model is told, as each device's bandwidth.
        """
        ports = {name: engine.port for name, engine in self._engines.items()}
        return HerdOver(self._folder, ports, speeds)

    def _add(self, device: Device, models: Path) -> CpuQuota:
        """Start an engine in a group that has no limit yet: loading is not what is measured."""
        quota = self._stack.enter_context(CpuQuota(device.name, weight=_WEIGHT))
        engine = LlamaServer(
            self._folder / f"{device.name}-engine.log",
            threads=device.threads,
            slots=SLOTS,
            context=CONTEXT,
            models_dir=models,
            extra=("--models-max", str(len(MODELS)), "--ignore-eos"),
            environment=_PATIENT,
        )
        self._engines[device.name] = self._stack.enter_context(engine)
        quota.add(engine.pid)
        return quota


class HerdOver:
    """A router and an agent for each device, all in new folders; a context manager.

    An agent reads the machine it runs on, which here is the same for all. What it would read on
    the machine that the device stands for is declared: memory of a bandwidth.
    """

    def __init__(self, folder: Path, ports: Mapping[str, int], speeds: Speeds) -> None:
        self._router = RouterProcess(folder, "--no-discovery")
        self._nodes = []
        for name, port in ports.items():
            config = folder / f"{name}.toml"
            bandwidth = speeds[name][WHOLE].decode * _WHOLE_BYTES / priors.EFFICIENCY
            config.write_text(
                f'[node]\nhardware = {{ chip = "{name}", bandwidth = {bandwidth} }}\n'
            )
            options = ("--no-scan", "--engine", str(port), "--config", str(config))
            self._nodes.append(NodeProcess(folder, name, self._router.url, *options))
        self._stack = ExitStack()

    @property
    def url(self) -> str:
        """Where clients point."""
        return self._router.url

    def get(self, path: str) -> Any:
        """Fetch JSON from the router's own API."""
        return self._router.get(path)

    def __enter__(self) -> Self:
        try:
            group = self._stack.enter_context(CpuQuota("herd", weight=_WEIGHT))
            for process in (self._router, *self._nodes):
                group.add(self._stack.enter_context(process).process.pid)
            for model in MODELS:
                self._router.wait_for_replicas(f"{model}:latest", len(self._nodes))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()


def _models(folder: Path) -> Path:
    """Return a folder with both models."""
    found = folder / "models"
    if not found.exists():
        whole = llama_files().model
        found.mkdir(parents=True)
        (found / f"{WHOLE}.gguf").symlink_to(whole)
        drop_layers(whole, found / f"{HALF}.gguf", keep=_LAYERS // 2)
    return found


def _load(engine: LlamaServer) -> None:
    for model in MODELS:
        _ask(engine, model, words=1, output=1)


def _speeds(engine: LlamaServer) -> dict[str, Rates]:
    found = {}
    for model in MODELS:
        timings = _ask(engine, model, words=_TRIAL_WORDS, output=_TRIAL_OUTPUT)["timings"]
        found[model] = Rates(timings["prompt_per_second"], timings["predicted_per_second"])
    return found


def _ask(engine: LlamaServer, model: str, *, words: int, output: int) -> dict[str, Any]:
    """Ask one engine; the first question to a model loads it."""
    message = {"role": "user", "content": "sea " * words}
    body = json.dumps({"model": model, "messages": [message], "n_predict": output}).encode()
    asked = urllib.request.Request(  # noqa: S310 - http, to ourselves
        f"{engine.url}/v1/chat/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=_ANSWER_LIMIT) as answer:  # noqa: S310 - as above
        found: dict[str, Any] = json.load(answer)
    return found
