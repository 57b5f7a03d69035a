"""All engine adapters, and which of them fits a server."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from msgspec import Struct

from herd.core.fleet import EngineKind
from herd.engines.adapter import Adapter, ModelLoader
from herd.engines.http import ROUTER_HEADER, EngineError, Http
from herd.engines.llamacpp import LlamaCpp
from herd.engines.lmstudio import LmStudio
from herd.engines.mlx import Mlx
from herd.engines.ollama import Ollama
from herd.engines.vllm import Vllm

#: In the order in which they are tried. Each knows its own engine by signs that no other gives,
#: so the order is one of cost: the most common engine first.
ADAPTERS: Final[tuple[Adapter, ...]] = (Ollama(), LlamaCpp(), LmStudio(), Vllm(), Mlx())


#: Kinds of engine that load models and let them go when they are told. vLLM has its one model
#: from its start; MLX takes whatever a request names and cannot be told anything.
LOADERS: Final[Mapping[EngineKind, ModelLoader]] = MappingProxyType(
    {each.kind: each for each in (Ollama(), LlamaCpp(), LmStudio())}
)


def controls(kind: EngineKind) -> Mapping[str, type[Struct]]:
    """Return the paths on which this kind of engine is told what to load, each with its body."""
    return LOADERS[kind].controls if kind in LOADERS else {}


def adapter(kind: EngineKind) -> Adapter:
    """Return the adapter of this kind of engine."""
    return next(each for each in ADAPTERS if each.kind == kind)


async def detect(http: Http, url: str) -> Adapter | None:
    """Return the adapter that fits the server at `url`; None if nothing answers or none fits."""
    if await http.peek(f"{url}/") is None:  # spares a dead server five more questions
        return None
    for each in ADAPTERS:
        if await each.detect(http, url):
            return each
    return None


async def why_undetected(http: Http, url: str) -> str:
    """Return in one sentence why no adapter fits the server at `url`."""
    try:
        answer = await http.get(f"{url}/")
    except EngineError as error:
        return str(error)
    if ROUTER_HEADER in answer.headers:
        return f"{url} is a Herd router, not an engine"
    return f"{url} answers, but not like any engine that Herd knows"


def kinds_for(path: str) -> frozenset[EngineKind]:
    """Return the kinds of engine that serve this inference path themselves."""
    return frozenset(each.kind for each in ADAPTERS if path in each.paths)


def kind_by_port(port: int) -> EngineKind:
    """Return the kind of engine that listens on this port by default; Ollama for any other."""
    return next((each.kind for each in ADAPTERS if port in each.ports), "ollama")
