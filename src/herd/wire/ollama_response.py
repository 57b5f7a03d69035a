"""Whole answers of engines that speak OpenAI's dialect, as Ollama would have given them."""

from __future__ import annotations

import math

import msgspec

from herd.core.request import Result, Usage
from herd.wire import openai_answer as openai
from herd.wire.ollama_answer import (
    Ending,
    Part,
    ToolCall,
    answer_line,
    done_reason,
    error_line,
    logprobs_of,
    measure,
    tool_call,
)
from herd.wire.ollama_request import Translated

#: How far a length may be from 1 to count as 1: what sums of 32-bit floats lose.
_UNIT = 1e-6


class BadAnswer(Exception):
    """The engine's answer cannot be understood, or is an error under a good status."""


def translate_response(
    translated: Translated, body: bytes, *, started: float, now: float
) -> tuple[bytes, Result]:
    """Return the answer in Ollama's dialect and what the engine reported of it.

    `started` is when the request went to the engine, `now` when its answer was there, in unix
    seconds. Raises `BadAnswer`.
    """
    try:
        if translated.path == "/v1/embeddings":
            made, result = _embeddings(translated, body, started=started, now=now)
        else:
            made, result = _answer(translated, body, started=started, now=now)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadAnswer(f"the engine's answer is not as it should be: {error}") from error
    except ValueError as error:
        raise BadAnswer(str(error)) from error
    return made, msgspec.structs.replace(result, bytes_out=len(made), frames=1)


def translate_error(status: int, body: bytes) -> bytes:
    """Return an engine's error body in Ollama's shape; one that says nothing gets the status."""
    return error_line(openai.error_text(body) or f"the engine answered with status {status}")


def _answer(
    translated: Translated, body: bytes, *, started: float, now: float
) -> tuple[bytes, Result]:
    answer = openai.answers.decode(body)
    if openai.is_given(answer.error):
        raise ValueError(openai.error_text(bytes(answer.error)))
    if not answer.choices:
        raise ValueError("the engine's answer holds no choice")
    choice = answer.choices[0]
    if choice.finish_reason is None:
        raise ValueError("the engine's answer does not say how it ended")
    result = openai.result_of(answer.usage, answer.timings, choice.finish_reason)
    metrics = measure(result, started=started, first=None, now=now)
    piece = choice.piece
    tokens = openai.token_logprobs(choice) if translated.logprobs else []
    part = Part(
        text=piece.content or "",
        thinking=piece.thinking,
        tool_calls=_tool_calls(piece.tool_calls or []),
        logprobs=logprobs_of(tokens, translated.top_logprobs),
    )
    ending = Ending(reason=done_reason(choice.finish_reason), metrics=metrics)
    return answer_line(translated.endpoint, translated.asked, now, part, ending), result


def _tool_calls(calls: list[openai.CallPart]) -> list[ToolCall] | None:
    made = []
    for position, call in enumerate(calls):
        function = call.function or openai.FunctionPart()
        arguments = openai.arguments_text(function)
        index = position if call.index is None else call.index
        made.append(tool_call(index, call.id or "", function.name or "", arguments))
    return made or None


def _embeddings(
    translated: Translated, body: bytes, *, started: float, now: float
) -> tuple[bytes, Result]:
    answer = openai.embeddings.decode(body)
    vectors = [vector.embedding for vector in sorted(answer.data, key=lambda each: each.index)]
    if len(vectors) != translated.inputs:
        raise ValueError(f"the engine sent {len(vectors)} embeddings for {translated.inputs} texts")
    usage = answer.usage or openai.Usage()
    result = Result(usage=Usage(prompt_tokens=usage.prompt_tokens))
    if translated.endpoint == "/api/embeddings":
        return msgspec.json.encode({"embedding": vectors[0]}), result
    made = {
        "model": translated.asked,
        "embeddings": [_unit(vector, translated.dimensions) for vector in vectors],
        "total_duration": round(max(now - started, 0.0) * 1e9),
        "load_duration": 0,
    }
    if usage.prompt_tokens is not None:
        made["prompt_eval_count"] = usage.prompt_tokens
    return msgspec.json.encode(made), result


def _unit(vector: list[float], dimensions: int) -> list[float]:
    """Cut to `dimensions` (0: not at all) and scale to length 1; a vector of zeros stays."""
    cut = vector[:dimensions] if dimensions else vector
    length = math.hypot(*cut)
    if length == 0 or abs(length - 1) <= _UNIT:
        return cut
    return [value / length for value in cut]
