"""`python -m herd.sim`: one emulated engine as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import Annotated, cast, get_args

import typer

from herd.core.fleet import Capability
from herd.core.names import canonical
from herd.sim.server import EmulatedServer, EngineDialect
from herd.sim.spec import (
    OLLAMA_KEEP_ALIVE,
    OLLAMA_QUEUE,
    VLLM_CHUNK,
    VLLM_MARGINAL,
    Batching,
    EngineSpec,
    ModelSpec,
)

GIB = 2**30


def parse_model(text: str, *, context: int, kv_bytes: int) -> ModelSpec:
    """Read `name:tag=bytes` or `name:tag=bytes,capability,...`; raises `typer.BadParameter`."""
    name, _, rest = text.partition("=")
    size, *names = rest.split(",")
    unknown = set(names) - set(get_args(Capability))
    if unknown:
        raise typer.BadParameter(f"{text}: no such capability: {', '.join(sorted(unknown))}")
    try:
        weight = int(float(size))
    except ValueError as error:
        raise typer.BadParameter(f"{text}: expected name:tag=bytes") from error
    if not name or weight <= 0:
        raise typer.BadParameter(f"{text}: expected name:tag=bytes")
    return ModelSpec(
        name=canonical(name),
        weight_bytes=weight,
        context_length=context,
        kv_bytes_per_token=kv_bytes,
        capabilities=cast("tuple[Capability, ...]", tuple(names)) or ("completion",),
    )


def parse_lengths(text: str) -> tuple[int, int]:
    """Read `tokens` or `shortest:longest`; raises `typer.BadParameter`."""
    first, _, last = text.partition(":")
    try:
        lengths = int(first), int(last or first)
    except ValueError as error:
        raise typer.BadParameter(f"{text}: expected tokens or shortest:longest") from error
    if not 1 <= lengths[0] <= lengths[1]:
        raise typer.BadParameter(f"{text}: the shortest comes first and is at least 1")
    return lengths


def serve(
    model: Annotated[
        list[str], typer.Option(help="name:tag=bytes[,capability...]; may be given several times.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 0,
    dialect: Annotated[str, typer.Option(help="ollama, or openai for a vLLM.")] = "ollama",
    decode_rate: Annotated[float, typer.Option(help="Tokens/s of one answer alone.")] = 20.0,
    prefill_rate: Annotated[float, typer.Option(help="Tokens/s of prompts.")] = 500.0,
    load_rate: Annotated[float, typer.Option(help="Bytes/s of loading.")] = 1e9,
    memory: Annotated[float, typer.Option(help="Bytes of memory for models.")] = 16.0 * GIB,
    alpha: Annotated[
        float, typer.Option(help="Ollama: n answers at once decode at n^-alpha of the rate each.")
    ] = 0.5,
    marginal: Annotated[
        float, typer.Option(help="vLLM: what each further answer adds to a step, as a share.")
    ] = VLLM_MARGINAL,
    chunk: Annotated[int, typer.Option(help="vLLM: tokens of a prompt in a step.")] = VLLM_CHUNK,
    slots: Annotated[int, typer.Option(help="Answers of one model at once.")] = 4,
    queue: Annotated[int, typer.Option(help="Waiting requests before 503.")] = OLLAMA_QUEUE,
    keep_alive: Annotated[
        float, typer.Option(help="Seconds an idle model stays; negative for ever.")
    ] = OLLAMA_KEEP_ALIVE,
    context: Annotated[int, typer.Option(help="Context length of the models.")] = 8192,
    kv_bytes: Annotated[int, typer.Option(help="Bytes of memory per token of context.")] = 0,
    answer_tokens: Annotated[
        str, typer.Option(help="Length of answers: tokens, or shortest:longest.")
    ] = "16:128",
) -> None:
    """Serve one emulated engine until interrupted; the first line of output is its URL."""
    if dialect not in get_args(EngineDialect):
        raise typer.BadParameter("--dialect is ollama or openai")
    spec = EngineSpec(
        models=tuple(parse_model(text, context=context, kv_bytes=kv_bytes) for text in model),
        memory_bytes=int(memory),
        load_rate=load_rate,
        prefill_rate=prefill_rate,
        decode_rate=decode_rate,
        alpha=alpha,
        slots=slots,
        queue_limit=queue,
        keep_alive=keep_alive,
        default_context=context,
        batching=Batching(marginal=marginal, chunk=chunk) if dialect == "openai" else None,
    )
    server = EmulatedServer(
        spec,
        dialect=cast("EngineDialect", dialect),
        host=host,
        port=port,
        answer_tokens=parse_lengths(answer_tokens),
    )
    asyncio.run(_run(server))


async def _run(server: EmulatedServer) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError):  # Windows has Ctrl-C alone
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopped.set)
    async with server:
        typer.echo(server.url)
        await stopped.wait()


if __name__ == "__main__":
    typer.run(serve)
