"""What this machine is and how busy it is, as far as it tells."""

from __future__ import annotations

import asyncio
import contextlib
import platform
import shutil
import sys
import time
from pathlib import Path

import msgspec
import psutil
from msgspec import Struct

from herd.core.fleet import Hardware, Load
from herd.ops.logs import logger

#: nvidia-smi wakes a sleeping GPU, which takes up to three seconds.
COMMAND_TIMEOUT = 10.0
#: Seconds; a share of the CPU over less than this is noise.
SHORTEST_READING = 1.0
_MIB = 1024 * 1024

_log = logger("hardware")


class Gpu(Struct, frozen=True):
    """The GPUs of one machine as one: the name of the first and the memory of all."""

    name: str = ""
    vram_bytes: int = 0


class LoadSensor:
    """Reads how busy the machine is; each reading covers the time since the one before."""

    def __init__(self) -> None:
        # The first reading has no time to cover and is always 0.
        psutil.cpu_percent(interval=None)
        self._read_at = time.monotonic()
        self._cpu: float | None = None

    def read(self) -> Load:
        """Return the present load; the share of the CPU is None for the first second."""
        now = time.monotonic()
        if now - self._read_at >= SHORTEST_READING:
            self._read_at = now
            self._cpu = psutil.cpu_percent(interval=None) / 100.0
        return Load(cpu=self._cpu, memory_available=psutil.virtual_memory().available)


async def read_hardware(declared: Hardware = Hardware()) -> Hardware:  # noqa: B008 - frozen
    """Read this machine; what the owner declared stands."""
    gpu = await _nvidia()
    read = Hardware(
        system=platform.system(),
        chip=await _chip(),
        cores=psutil.cpu_count(logical=False) or psutil.cpu_count() or 0,
        memory_bytes=psutil.virtual_memory().total,
        gpu=gpu.name,
        vram_bytes=gpu.vram_bytes,
    )
    return override(read, declared)


def override(read: Hardware, declared: Hardware) -> Hardware:
    """Replace what was read by whatever is declared."""
    return msgspec.structs.replace(
        read, **{name: value for name, value in msgspec.structs.asdict(declared).items() if value}
    )


def chip_from_cpuinfo(text: str) -> str:
    """Return the chip's name from Linux's /proc/cpuinfo; empty if it gives none.

    x86 calls it `model name`; ARM boards name the board as `Model`, older ones as `Hardware`.
    """
    rows = (line.partition(":") for line in text.splitlines())
    values = {key.strip(): value.strip() for key, _, value in rows if value.strip()}
    return values.get("model name") or values.get("Model") or values.get("Hardware") or ""


def gpu_from_csv(text: str) -> Gpu:
    """Read `nvidia-smi --query-gpu=name,memory.total --format=csv,noheader,nounits` (MiB).

    Cards that share the system's memory say `[N/A]` instead of a number.
    """
    rows = [line.rpartition(",") for line in text.splitlines() if "," in line]
    if not rows:
        return Gpu()
    sizes = [size.strip() for _, _, size in rows]
    name = rows[0][0].strip()
    return Gpu(
        name=f"{len(rows)} x {name}" if len(rows) > 1 else name,
        vram_bytes=sum(int(size) * _MIB for size in sizes if size.isdecimal()),
    )


async def _chip() -> str:
    if sys.platform == "darwin":
        return (await _output("sysctl", "-n", "machdep.cpu.brand_string")).strip()
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")  # noqa: ASYNC240 - procfs never waits for a disk
            return chip_from_cpuinfo(text) or platform.machine()
    return platform.processor() or platform.machine()


async def _nvidia() -> Gpu:
    return gpu_from_csv(
        await _output(
            "nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"
        )
    )


async def _output(command: str, *arguments: str) -> str:
    """Return what a command prints; empty if it is missing, fails or takes too long."""
    program = shutil.which(command)
    if program is None:
        return ""
    process = await asyncio.create_subprocess_exec(
        program,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT):
            output, _ = await process.communicate()
    except TimeoutError:
        _log.warning("a command does not end", command=command, seconds=COMMAND_TIMEOUT)
        return ""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return output.decode(errors="replace") if process.returncode == 0 else ""
