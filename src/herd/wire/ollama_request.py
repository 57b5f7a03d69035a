"""Requests in Ollama's dialect for engines that speak only OpenAI's.

Nothing that would change the answer is dropped silently: what the engine has no words for raises
`Untranslatable`. Left out are `keep_alive` and the load-time options, which mean nothing to an
engine with a fixed load; `truncate` and `shift`, because such an engine refuses a prompt that is
too long instead of cutting it; and a `think` of true where the engine knows only thinking.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
from msgspec import Raw, Struct

from herd.core.fleet import EngineKind
from herd.core.names import canonical
from herd.wire.ollama_messages import History, Message, image_part
from herd.wire.ollama_options import ENGINE_NAMES, Untranslatable, translate_options
from herd.wire.openai_answer import is_given

__all__ = ["Endpoint", "Translated", "Untranslatable", "translate_request"]

Endpoint = Literal["/api/chat", "/api/generate", "/api/embed", "/api/embeddings"]
#: What `/api` takes for `top_logprobs`.
_MOST_LOGPROBS: Final = 20
_LEVELS: Final = ("high", "medium", "low", "max")


class Translated(Struct, frozen=True, kw_only=True):
    """A request as the engine gets it, and what translating its answer back needs."""

    endpoint: Endpoint
    #: Path on the engine.
    path: str
    body: bytes
    stream: bool
    #: The model's name as the client wrote it; every line of the answer repeats it.
    asked: str
    logprobs: bool = False
    top_logprobs: int = 0
    #: How many texts are to be embedded.
    inputs: int = 1
    #: Length to which embeddings are cut; 0 leaves them whole.
    dimensions: int = 0


class _Asked(Struct):
    model: str
    stream: bool | None = None
    format: Raw = Raw()
    options: dict[str, Any] | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    debug_render_only: bool | None = msgspec.field(name="_debug_render_only", default=None)


class _Chat(_Asked):
    messages: list[Message] | None = None
    tools: list[Raw] | None = None


class _Generate(_Asked):
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool | None = None
    images: list[str] | None = None


class _Embed(Struct):
    model: str
    input: Raw = Raw()
    truncate: bool | None = None
    dimensions: int | None = None


class _Embeddings(Struct):
    model: str
    prompt: str | None = None


_chat: Final = msgspec.json.Decoder(_Chat)
_generate: Final = msgspec.json.Decoder(_Generate)
_embed: Final = msgspec.json.Decoder(_Embed)
_embeddings: Final = msgspec.json.Decoder(_Embeddings)
_texts: Final = msgspec.json.Decoder(str | list[str])
_schema: Final = msgspec.json.Decoder(dict[str, Raw])


def translate_request(
    endpoint: str, body: bytes, *, kind: EngineKind, model: str, capabilities: frozenset[str]
) -> Translated:
    """Translate a request on `endpoint` for an engine of `kind` that calls the model `model`.

    `body` is a JSON object with a `model`. `capabilities` are what the model can do there. Raises
    `Untranslatable` with a text for the caller (a 400). A request with nothing to answer (no
    messages, no prompt, no input) is not for an engine: see `ollama_trivial`.
    """
    target = _Target(kind, model, capabilities)
    try:
        match endpoint:
            case "/api/chat":
                return _translate_chat(_chat.decode(body), target)
            case "/api/generate":
                return _translate_generate(_generate.decode(body), target)
            case "/api/embed":
                return _translate_embed(_embed.decode(body), target)
            case "/api/embeddings":
                return _translate_embeddings(_embeddings.decode(body), target)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Untranslatable(f"the request is not as {endpoint} takes it: {error}") from error
    raise ValueError(f"{endpoint} is not an endpoint that is translated")


class _Target(Struct, frozen=True):
    kind: EngineKind
    model: str
    capabilities: frozenset[str]

    @property
    def name(self) -> str:
        return ENGINE_NAMES[self.kind]


def _translate_chat(asked: _Chat, target: _Target) -> Translated:
    messages = asked.messages or []
    if not messages:
        raise Untranslatable("there are no messages to answer")
    if "completion" not in target.capabilities:
        raise Untranslatable(f'"{asked.model}" does not support chat')
    if any(message.images for message in messages):
        _require("vision", asked.model, target)
    fields: dict[str, Any] = {}
    if asked.tools:
        # vLLM refuses tools by itself, in words that say which of its switches is missing.
        if target.kind != "vllm":
            _require("tools", asked.model, target)
        fields["tools"] = asked.tools
    history = History(target.kind)
    made = [history.translate(message) for message in messages]
    return _chat_completion("/api/chat", asked, made, fields, target)


def _translate_generate(asked: _Generate, target: _Target) -> Translated:
    if asked.raw and (asked.template or asked.system or asked.context):
        raise Untranslatable("raw mode does not support template, system, or context")
    if asked.suffix:
        raise Untranslatable(f"{_full_name(asked.model)} does not support insert")
    if asked.context:
        raise Untranslatable(f"{target.name} cannot continue from a context; use /api/chat")
    if asked.template:
        raise Untranslatable(f"{target.name} cannot use another template than the model's own")
    if not asked.prompt:
        raise Untranslatable("there is no prompt to answer")
    if "completion" not in target.capabilities:
        raise Untranslatable(f'"{asked.model}" does not support generate')
    if asked.raw:
        return _completion(asked, target)
    if asked.images:
        _require("vision", asked.model, target)
    content: Any = asked.prompt
    if asked.images:
        images = [image_part(image) for image in asked.images]
        content = [{"type": "text", "text": asked.prompt}, *images]
    messages = [{"role": "system", "content": asked.system}] if asked.system else []
    messages.append({"role": "user", "content": content})
    return _chat_completion("/api/generate", asked, messages, {}, target)


def _chat_completion(
    endpoint: Endpoint,
    asked: _Asked,
    messages: list[dict[str, Any]],
    fields: dict[str, Any],
    target: _Target,
) -> Translated:
    fields = {"messages": messages} | fields | _thinking(asked, target)
    response_format = _response_format(asked.format, target)
    if response_format is not None:
        fields["response_format"] = response_format
    if asked.logprobs:
        fields |= {"logprobs": True, "top_logprobs": _rivals(asked, target)}
    return _finish(endpoint, "/v1/chat/completions", asked, fields, target)


def _completion(asked: _Generate, target: _Target) -> Translated:
    """Raw mode: the prompt goes to the model as it is, so `think` has nothing to change."""
    if asked.images:
        raise Untranslatable(f"{target.name} takes no images in raw mode")
    fields: dict[str, Any] = {"prompt": asked.prompt}
    response_format = _response_format(asked.format, target)
    if response_format is not None:
        fields |= _raw_format(response_format, target)
    if asked.logprobs:
        if target.kind != "llamacpp":
            raise Untranslatable(f"{target.name} cannot give logprobs in raw mode as Ollama does")
        fields["logprobs"] = _rivals(asked, target)
    return _finish("/api/generate", "/v1/completions", asked, fields, target)


def _finish(
    endpoint: Endpoint, path: str, asked: _Asked, fields: dict[str, Any], target: _Target
) -> Translated:
    if not 0 <= (asked.top_logprobs or 0) <= _MOST_LOGPROBS:
        raise Untranslatable(f"top_logprobs must be between 0 and {_MOST_LOGPROBS}")
    if asked.debug_render_only:
        raise Untranslatable(f"{target.name} cannot show the rendered prompt")
    stream = asked.stream is not False
    body: dict[str, Any] = {"model": target.model} | fields | {"stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    body |= translate_options(asked.options or {}, target.kind)
    return Translated(
        endpoint=endpoint,
        path=path,
        body=msgspec.json.encode(body),
        stream=stream,
        asked=asked.model,
        logprobs=bool(asked.logprobs),
        top_logprobs=asked.top_logprobs or 0,
    )


def _translate_embed(asked: _Embed, target: _Target) -> Translated:
    try:
        given = _texts.decode(asked.input) if is_given(asked.input) else ""
    except msgspec.DecodeError as error:
        raise Untranslatable("invalid input type") from error
    texts = [given] if isinstance(given, str) else given
    if texts in ([], [""]):
        raise Untranslatable("there is no input to embed")
    fields: dict[str, Any] = {"input": texts}
    if target.kind == "vllm" and asked.truncate is not False:
        fields["truncate_prompt_tokens"] = -1  # to the longest that the model takes
    dimensions = max(asked.dimensions or 0, 0)
    return _embedding("/api/embed", asked.model, fields, dimensions, target)


def _translate_embeddings(asked: _Embeddings, target: _Target) -> Translated:
    if not asked.prompt:
        raise Untranslatable("there is no prompt to embed")
    return _embedding("/api/embeddings", asked.model, {"input": [asked.prompt]}, 0, target)


def _embedding(
    endpoint: Endpoint, asked: str, fields: dict[str, Any], dimensions: int, target: _Target
) -> Translated:
    if target.kind == "mlx":
        raise Untranslatable("MLX does not serve embeddings")
    body = {"model": target.model} | fields | {"encoding_format": "float"}
    return Translated(
        endpoint=endpoint,
        path="/v1/embeddings",
        body=msgspec.json.encode(body),
        stream=False,
        asked=asked,
        inputs=len(fields["input"]),
        dimensions=dimensions,
    )


def _thinking(asked: _Asked, target: _Target) -> dict[str, Any]:
    think = asked.think
    if isinstance(think, str) and think not in _LEVELS:
        raise Untranslatable(
            f'invalid think value: "{think}"'
            ' (must be "high", "medium", "low", "max", true, or false)'
        )
    if "thinking" not in target.capabilities:
        if think:
            raise Untranslatable(f'"{asked.model}" does not support thinking')
        return {}
    if think is None:
        return {}
    if target.kind == "lmstudio":  # its chat endpoint takes a switch or level and ignores it
        if think is True:
            return {}
        raise Untranslatable(f"LM Studio cannot set think to {msgspec.json.encode(think).decode()}")
    switches: dict[str, Any] = {"enable_thinking": bool(think)}
    if not isinstance(think, str):
        return {"chat_template_kwargs": switches}
    if target.kind == "vllm":
        return {"chat_template_kwargs": switches, "reasoning_effort": think}
    return {"chat_template_kwargs": switches | {"reasoning_effort": think}}


def _response_format(given: Raw, target: _Target) -> dict[str, Any] | None:
    text = bytes(given)
    if text in (b"", b"null", b'""'):
        return None
    is_schema = text.startswith(b"{")
    if not is_schema and text != b'"json"':
        quoted = msgspec.json.encode(text.decode()).decode()
        raise Untranslatable(
            f'invalid format: {quoted}; expected "json" or a valid JSON Schema object'
        )
    if target.kind == "mlx":  # it takes the field and ignores it
        raise Untranslatable("MLX cannot hold an answer to a format")
    if not is_schema and target.kind == "vllm":
        return {"type": "json_object"}
    # The same said by a schema: LM Studio refuses json_object, and llama.cpp's holds to nothing.
    schema = _schema.decode(text) if is_schema else {"type": Raw(b'"object"')}
    return {
        "type": "json_schema",
        "json_schema": {"name": "schema", "strict": True, "schema": schema},
    }


def _raw_format(response_format: dict[str, Any], target: _Target) -> dict[str, Any]:
    """The same constraint for `/v1/completions`, which llama.cpp and vLLM can hold."""
    if target.kind == "vllm":
        return {"response_format": response_format}
    if target.kind == "llamacpp":
        return {"json_schema": response_format["json_schema"]["schema"]}
    raise Untranslatable(f"{target.name} cannot hold an answer to a format in raw mode")


def _rivals(asked: _Asked, target: _Target) -> int:
    wanted = asked.top_logprobs or 0
    if target.kind in ("lmstudio", "mlx"):  # no logprobs at all; none in streams, none with text
        raise Untranslatable(f"{target.name} cannot give logprobs as Ollama does")
    return max(wanted, 1) if target.kind == "llamacpp" else wanted


def _require(capability: str, asked: str, target: _Target) -> None:
    if capability not in target.capabilities:
        raise Untranslatable(f"{_full_name(asked)} does not support {capability}")


def _full_name(asked: str) -> str:
    """The name as Ollama writes it in errors, with the registry and namespace that it implies."""
    name = canonical(asked)
    parts = ("registry.ollama.ai", "library")[: max(0, 2 - name.count("/"))]
    return "/".join((*parts, name))
