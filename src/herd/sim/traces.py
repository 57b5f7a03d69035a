"""Workloads that others have recorded, read and brought to the scale of a fleet at home.

Three public sets are understood: the Azure LLM inference traces (CSV with a time and two lengths),
Mooncake's (JSONL with lengths and the hashes of 512-token blocks of the prompt, so that shared
prefixes are known), and BurstGPT (CSV with seconds, the name of a model and lengths). They come
from data centres, so:

- Time is stretched evenly until the requests use the wanted share of the fleet's capacity. The
  pattern of bursts and pauses stays.
- Prompts are shortened by a factor, blocks along with them, so that what was shared stays shared.
  What is still longer than `LONGEST` is cut off at its end.
- Answers keep their length. Requests without an answer (failures in BurstGPT) are left out.
- Models are given by lot: to each conversation where the trace lets one be recognised, else to
  each request. BurstGPT names two, of which the larger stands for a larger one here.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Literal

import msgspec
from msgspec import Struct

from herd.core.request import Prefix, Request
from herd.sim.capacity import span
from herd.sim.fleets import Fleet
from herd.sim.workloads import LONGEST, Session, Turn, Workload

TraceName = Literal["azure", "mooncake", "burstgpt"]

#: Tokens of a block that Mooncake has hashed.
MOONCAKE_BLOCK = 512
#: Factors on prompts, for home fleets: Mooncake's are 10,000 tokens and more in the median.
PROMPT_SCALES: dict[TraceName, float] = {"azure": 1.0, "mooncake": 0.25, "burstgpt": 1.0}
#: Shares of requests by model, where the trace names none.
_MODELS = {"llama3.2:3b": 0.25, "llama3.1:8b": 0.4, "gemma3:12b": 0.2, "qwen2.5:32b": 0.15}
#: What BurstGPT's two models are here.
_NAMED = {"ChatGPT": "llama3.1:8b", "GPT-4": "qwen2.5:32b"}


class Row(Struct, frozen=True, kw_only=True):
    """A recorded request. Times in seconds from the trace's start."""

    at: float
    prompt_tokens: int
    output_tokens: int
    #: Name of the model, if the trace has one.
    model: str = ""
    #: Hashes of the prompt's leading blocks, each standing for all text up to its end.
    hashes: tuple[int, ...] = ()


class _MooncakeRow(Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


def read_azure(lines: Iterable[str]) -> list[Row]:
    """Read `TIMESTAMP,ContextTokens,GeneratedTokens`; raises ValueError on other columns."""
    rows = []
    start: datetime | None = None
    for line in _columns(lines, "TIMESTAMP", "ContextTokens", "GeneratedTokens"):
        # Seven decimals, of which datetime reads six.
        at = datetime.fromisoformat(line["TIMESTAMP"][:26])
        start = start or at
        rows.append(
            Row(
                at=(at - start).total_seconds(),
                prompt_tokens=int(line["ContextTokens"]),
                output_tokens=int(line["GeneratedTokens"]),
            )
        )
    return rows


def read_burstgpt(lines: Iterable[str]) -> list[Row]:
    """Read `Timestamp,Model,Request tokens,Response tokens,...`; raises ValueError on others."""
    wanted = ("Timestamp", "Model", "Request tokens", "Response tokens")
    return [
        Row(
            at=float(line["Timestamp"]),
            prompt_tokens=int(line["Request tokens"]),
            output_tokens=int(line["Response tokens"]),
            model=line["Model"],
        )
        for line in _columns(lines, *wanted)
        if int(line["Response tokens"]) > 0
    ]


def read_mooncake(lines: Iterable[str]) -> list[Row]:
    """Read JSONL with `timestamp` (ms), lengths and `hash_ids`; raises msgspec's DecodeError."""
    decode = msgspec.json.Decoder(_MooncakeRow).decode
    rows = []
    for line in lines:
        if not line.strip():
            continue
        read = decode(line)
        # The last, incomplete block has an id too, and is never found in a cache.
        complete = read.hash_ids[: read.input_length // MOONCAKE_BLOCK]
        rows.append(
            Row(
                at=read.timestamp / 1000.0,
                prompt_tokens=read.input_length,
                output_tokens=read.output_length,
                hashes=tuple(complete),
            )
        )
    return rows


_READERS = {"azure": read_azure, "mooncake": read_mooncake, "burstgpt": read_burstgpt}


def read(name: TraceName, lines: Iterable[str]) -> list[Row]:
    """Read a trace of that kind; raises ValueError, which msgspec's DecodeError is too."""
    return _READERS[name](lines)


def workload(
    name: TraceName,
    rows: Sequence[Row],
    fleet: Fleet,
    *,
    requests: int,
    load: float,
    seed: int,
) -> Workload:
    """Return a stretch of so many requests, from a random place, at `load` of the capacity."""
    draw = random.Random(f"{name}/{fleet.name}/{seed}")  # noqa: S311 - an experiment, no secret
    answered = sorted((row for row in rows if row.output_tokens > 0), key=lambda row: row.at)
    if not answered:
        raise ValueError("the trace has no answered requests")
    first = draw.randrange(max(1, len(answered) - requests + 1))
    chosen = answered[first : first + requests]
    writer = _Writer(draw, fleet, PROMPT_SCALES[name])
    turns = [writer.turn(row) for row in chosen]
    recorded = max(chosen[-1].at - chosen[0].at, 1e-3)
    stretch = span(fleet, turns) / load / recorded
    return Workload(
        name,
        tuple(
            Session((row.at - chosen[0].at) * stretch, (turn,))
            for row, turn in zip(chosen, turns, strict=True)
        ),
    )


class _Writer:
    """Turns recorded rows into turns of the simulation."""

    def __init__(self, draw: random.Random, fleet: Fleet, scale: float) -> None:
        self._draw = draw
        self._scale = scale
        self._models = {m: share for m, share in _MODELS.items() if m in fleet.models}
        if not self._models:
            raise ValueError(f"the fleet has none of the models asked for: {', '.join(_MODELS)}")
        self._known = frozenset(fleet.models)
        self._talks: dict[int, str] = {}
        self._seen: set[int] = set()
        self._requests = 0

    def turn(self, row: Row) -> Turn:
        """Write one request."""
        self._requests += 1
        block = round(MOONCAKE_BLOCK * self._scale) if row.hashes else 0
        prompt = max(1, min(LONGEST, round(row.prompt_tokens * self._scale)))
        hashes = row.hashes[: prompt // block] if block else ()
        model = self._model(row)
        known = 0
        while known < len(hashes) and hashes[known] in self._seen:
            known += 1
        self._seen.update(hashes)
        request = Request(
            id=f"t{self._requests}",
            dialect="openai",
            operation="chat",
            endpoint="/v1/chat/completions",
            asked=model,
            model=model,
            stream=True,
            needs=frozenset({"completion"}),
            kinds=frozenset({"ollama", "vllm"}),
            prompt_tokens=prompt,
        )
        return Turn(
            request=request,
            prefix=Prefix(hashes, block),
            think=0.0,
            prompt_tokens=prompt,
            output_tokens=row.output_tokens,
            shared=known * block,
        )

    def _model(self, row: Row) -> str:
        named = _NAMED.get(row.model, "")
        if named in self._known:
            return named
        # Mooncake's conversations differ in their first blocks, the very first is often shared.
        talk = row.hashes[min(2, len(row.hashes) - 1)] if row.hashes else -1
        if talk in self._talks:
            return self._talks[talk]
        model = self._draw.choices(list(self._models), list(self._models.values()))[0]
        if talk >= 0:
            self._talks[talk] = model
        return model


def _columns(lines: Iterable[str], *names: str) -> Iterable[dict[str, str]]:
    reader = csv.DictReader(lines)
    missing = [name for name in names if name not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(f"the trace lacks the columns {', '.join(missing)}")
    return reader
