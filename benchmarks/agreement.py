"""Does the simulator tell what happens? The real router with emulated engines, beside it.

Run as `python -m benchmarks.agreement`, or `make bench-agreement`. A fleet of the simulator's, its
clocks set faster, is emulated over HTTP: `herd` as a process, the engines in another, and clients
that send the same sessions in real time that the simulator then plays in virtual time, with the
same scheduler, the same engines and the same requests. What is compared is how long they took.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec
import psutil
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from benchmarks import report
from benchmarks.cpu import CpuMeter, ahead
from benchmarks.emulators import EmulatorsProcess
from benchmarks.script import Script, write
from benchmarks.sessions import play
from devtools.processes import RouterProcess, wait_until
from herd.sim.devices import DeviceKind
from herd.sim.fleets import FLEETS, Device, Fleet, fleet
from herd.sim.herd_router import HerdRouter
from herd.sim.results import Interval, bootstrap_ratio, quantile
from herd.sim.workloads import WORKS, Workload, WorkName, generate
from herd.sim.world import run

#: Fleets and workloads that are compared unless told otherwise.
SCENES: Final[tuple[tuple[str, WorkName], ...]] = (
    ("five", "chat"),
    ("five", "rag"),
    ("five", "mix"),
    ("vllm", "agents"),
)
LOAD: Final = 0.75
#: Requests whose outcomes the router gives at once.
_PAGE: Final = 500


class Scale(Struct, frozen=True, kw_only=True):
    """How much is played."""

    requests: int = 200
    #: Seconds that the simulated run shall take; clocks are set after that.
    seconds: float = 75.0
    #: Run before other processes; for a machine that is busy.
    ahead: bool = False


class Side(Struct, frozen=True, kw_only=True):
    """What one of the two made of a script. Seconds."""

    mean: float
    p95: float
    first_p50: float
    first_p95: float
    #: Requests that were not completed.
    lost: int
    #: Share of requests by device.
    shares: dict[str, float]


class Pair(Struct, frozen=True, kw_only=True):
    """One script, played twice."""

    fleet: str
    work: str
    seed: int
    #: How much faster than life.
    speed: float
    requests: int
    real: Side
    simulated: Side
    #: Share of a core that each process used: more than 0.8 or so, and it is what was measured.
    cores: dict[str, float]
    #: Seconds by which the latest request was sent late.
    late: float

    @property
    def moved(self) -> float:
        """Share of requests that would have to change their device to make the shares equal."""
        devices = self.real.shares.keys() | self.simulated.shares.keys()
        pairs = (
            (self.real.shares.get(name, 0.0), self.simulated.shares.get(name, 0.0))
            for name in devices
        )
        return sum(abs(one - other) for one, other in pairs) / 2


def pair(name: str, work: WorkName, *, seed: int, scale: Scale) -> Pair:
    """Play a workload in virtual and in real time."""
    slow = fleet(name, seed)
    workload = generate(work, slow, requests=scale.requests, load=LOAD, seed=seed)
    length = run(slow, workload, HerdRouter(), cached_told=False).end
    speed = max(1.0, length / scale.seconds)
    devices = faster(slow, speed)
    script = write(workload, speed=speed, seed=seed)
    simulated = _simulate(devices, script.workload)
    with ahead(wanted=scale.ahead):
        real, cores, late = _really(devices, script)
    return Pair(
        fleet=name,
        work=work,
        seed=seed,
        speed=speed,
        requests=workload.requests,
        real=real,
        simulated=simulated,
        cores=cores,
        late=late,
    )


def faster(slow: Fleet, speed: float) -> Fleet:
    """Return a fleet whose devices do everything so many times as fast.

    Where an engine tells the bytes of its models, all bytes are divided instead of the bytes per
    second multiplied: what the router believes before it has learned comes from both, and some of
    it from constants that cannot be declared, such as the rate of a load.
    """
    return Fleet(slow.name, tuple(_faster(device, speed) for device in slow.devices))


def _faster(device: Device, speed: float) -> Device:
    told = device.spec.batching is None
    less, more = (speed, 1.0) if told else (1.0, speed)
    spec, kind = device.spec, device.kind
    models = tuple(
        msgspec.structs.replace(
            model,
            weight_bytes=round(model.weight_bytes / less),
            kv_bytes_per_token=round(model.kv_bytes_per_token / less),
            prefill_rate=model.prefill_rate * speed,
            decode_rate=model.decode_rate * speed,
        )
        for model in spec.models
    )
    return Device(
        device.name,
        msgspec.structs.replace(
            kind,
            # A URL's owner declares no system and no cores.
            system="",
            cores=0,
            memory_bytes=round(kind.memory_bytes / less),
            bandwidth=kind.bandwidth * more,
        ),
        msgspec.structs.replace(
            spec,
            models=models,
            memory_bytes=round(spec.memory_bytes / less),
            load_rate=spec.load_rate * more,
            prefill_rate=spec.prefill_rate * speed,
            decode_rate=spec.decode_rate * speed,
        ),
    )


def _simulate(devices: Fleet, workload: Workload) -> Side:
    done = run(devices, workload, HerdRouter(), cached_told=False)
    completed = [record for record in done.records if record.ending == "completed"]
    firsts = [r.first - r.arrival.at for r in completed if r.first is not None]
    sites = Counter(devices.devices[record.site or 0].name for record in completed)
    lost = len(done.records) - len(completed)
    return _side([r.completion for r in completed], firsts, sites, lost=lost)


def _really(devices: Fleet, script: Script) -> tuple[Side, dict[str, float], float]:
    with tempfile.TemporaryDirectory(prefix="herd-agreement-") as place, ExitStack() as stack:
        folder = Path(place)
        engines = stack.enter_context(EmulatorsProcess(folder, devices))
        named = list(zip(devices.devices, engines.ports, strict=True))
        options = [part for each in named for part in ("--engine", engine_url(*each))]
        router = stack.enter_context(RouterProcess(folder, "--no-discovery", *options))
        _wait_for(router, devices)
        meters = {
            "router": CpuMeter(router.process),
            "engines": CpuMeter(engines.process),
            "clients": CpuMeter(psutil.Process()),
        }
        before = {name: meter.seconds() for name, meter in meters.items()}
        answers, seconds = asyncio.run(play(router.url, script))
        cores = {name: (meter.seconds() - before[name]) / seconds for name, meter in meters.items()}
        names = {f"url:127.0.0.1:{port}": device.name for device, port in named}
        sites = Counter(names[node] for node in _nodes(router, len(answers)))
    good = [each for each in answers if each.good]
    times = [each.ended - each.sent for each in good]
    firsts = [each.first - each.sent for each in good if each.first is not None]
    side = _side(times, firsts, sites, lost=len(answers) - len(good))
    return side, cores, max(each.late for each in answers)


def engine_url(device: Device, port: int) -> str:
    """Declare a device to the router as what the simulator's reports say it is."""
    kind: DeviceKind = device.kind
    facts = {
        "name": device.name,
        "slots": f"{device.spec.slots}",
        "chip": kind.chip.replace(" ", "%20"),
        "memory": f"{kind.memory_bytes}",
        "bandwidth": f"{kind.bandwidth:.0f}",
    }
    if kind.gpu:
        facts |= {"gpu": kind.gpu.replace(" ", "%20"), "vram": f"{kind.vram_bytes}"}
    query = "&".join(f"{key}={value}" for key, value in facts.items())
    return f"http://127.0.0.1:{port}?{query}"


def _wait_for(router: RouterProcess, devices: Fleet) -> None:
    expected = sum(len(device.spec.models) for device in devices.devices)

    def there() -> bool:
        nodes = router.get("/herd/v1/fleet")["nodes"]
        engines = [engine for node in nodes for engine in node["engines"] if engine["up"]]
        return sum(len(engine["replicas"]) for engine in engines) == expected

    wait_until(there, f"{expected} replicas")


def _nodes(router: RouterProcess, count: int) -> list[str]:
    """Return the nodes on which completed requests ran, when all of them have been recorded."""
    rows: list[dict[str, str]] = []

    def written() -> bool:
        rows.clear()
        query = f"limit={_PAGE}"
        while True:
            page = router.get(f"/herd/v1/requests?{query}")
            rows.extend(page["requests"])
            if page["next"] is None:
                return len(rows) >= count
            query = f"limit={_PAGE}&before={page['next']}"

    wait_until(written, f"the records of {count} requests")
    return [row["node"] for row in rows if row["ending"] == "completed"]


def _side(
    times: Sequence[float], firsts: Sequence[float], sites: Counter[str], *, lost: int
) -> Side:
    times, firsts = sorted(times), sorted(firsts)
    return Side(
        mean=statistics.fmean(times),
        p95=quantile(times, 0.95),
        first_p50=quantile(firsts, 0.5),
        first_p95=quantile(firsts, 0.95),
        lost=lost,
        shares={name: count / len(times) for name, count in sites.items()},
    )


# --- what came of it ---


def ratio(pairs: Sequence[Pair]) -> Interval:
    """Return real by simulated mean completion, over seeds, with its interval."""
    return bootstrap_ratio(
        [each.real.mean for each in pairs], [each.simulated.mean for each in pairs]
    )


def table(pairs: Sequence[Pair]) -> Table:
    """Show every run, and after the runs of a scene their common ratio."""
    shown = Table(title="real by simulated; seconds of real and simulated runs")
    for name in ("fleet, work", "seed", "speed"):
        shown.add_column(name, no_wrap=True)
    columns = ("mean", "ratio", "p95", "first p50", "first p95", "moved", "lost", "cores", "late")
    for name in columns:
        shown.add_column(name, justify="right", no_wrap=True)
    scenes = dict.fromkeys((each.fleet, each.work) for each in pairs)
    for scene in scenes:
        chosen = [each for each in pairs if (each.fleet, each.work) == scene]
        for each in chosen:
            shown.add_row(", ".join(scene), f"{each.seed}", f"{each.speed:.1f}", *_cells(each))
        common = ratio(chosen)
        span = f"{common.mean:.3f} ({common.low:.3f} to {common.high:.3f})"
        shown.add_row(", ".join(scene), "all", "", "", span, style="bold", end_section=True)
    return shown


def _cells(each: Pair) -> list[str]:
    real, simulated = each.real, each.simulated

    def both(field: str) -> str:
        return f"{getattr(real, field):.2f} / {getattr(simulated, field):.2f}"

    return [
        both("mean"),
        f"{real.mean / simulated.mean:.3f}",
        both("p95"),
        both("first_p50"),
        both("first_p95"),
        f"{each.moved:.0%}",
        f"{real.lost} / {simulated.lost}",
        " ".join(f"{share:.2f}" for share in each.cores.values()),
        f"{each.late * 1000:.0f} ms",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Play everything and report."""
    arguments = _arguments(argv)
    console = Console(width=None if Console().is_terminal else 160)
    scale = Scale(requests=arguments.requests, seconds=arguments.seconds, ahead=arguments.ahead)
    scenes = [_scene(each) for each in arguments.scenes] or SCENES
    pairs: list[Pair] = []
    for name, work in scenes:
        for seed in range(1, arguments.seeds + 1):
            found = pair(name, work, seed=seed, scale=scale)
            pairs.append(found)
            share = found.real.mean / found.simulated.mean
            console.print(f"{name}, {work}, seed {seed}: {share:.3f}", highlight=False)
            if arguments.json is not None:
                whole = {"machine": report.machine(), "pairs": pairs}
                arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(whole)))
    console.print(table(pairs))
    console.print("cores: of the router, the engines and the clients")


def _scene(text: str) -> tuple[str, WorkName]:
    name, _, work = text.partition("/")
    found = next((each for each in WORKS if each == work), None)
    if name not in FLEETS or found is None:
        raise SystemExit(f"{text}: expected one of {', '.join(FLEETS)} / {', '.join(WORKS)}")
    return name, found


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="repeats of each scene; 3")
    parser.add_argument("--requests", type=int, default=Scale().requests, help="of each run; 200")
    parser.add_argument("--seconds", type=float, default=Scale().seconds, help="of each run; 75")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument(
        "--ahead", action="store_true", help="run before other processes (Linux, root)"
    )
    names = " ".join("/".join(scene) for scene in SCENES)
    parser.add_argument(
        "--scenes", nargs="+", default=[], metavar="FLEET/WORK", help=f"what to play; {names}"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
