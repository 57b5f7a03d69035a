from __future__ import annotations

import json
from typing import Any

import pytest

from herd.core.fleet import EngineKind
from herd.wire.ollama_request import Translated, Untranslatable, translate_request

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQVR4nGP8z8DAwMDEwMDAwMAAAA0dAQOj8NHuAAAAAElFTkSuQmCC"
MESSAGES = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
SCHEMA = {"type": "object", "properties": {"b": {}, "a": {}}}
ABLE = frozenset({"completion", "tools", "vision", "thinking"})
KINDS: tuple[EngineKind, ...] = ("llamacpp", "vllm", "lmstudio", "mlx")


def ask(
    endpoint: str,
    kind: EngineKind = "llamacpp",
    capabilities: frozenset[str] = ABLE,
    **fields: Any,
) -> Translated:
    body = json.dumps({"model": "Asked:Tag"} | fields).encode()
    return translate_request(endpoint, body, kind=kind, model="its-name", capabilities=capabilities)


def chat(kind: EngineKind = "llamacpp", **fields: Any) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(ask("/api/chat", kind, messages=MESSAGES, **fields).body)
    return made


def refusal(endpoint: str, kind: EngineKind = "llamacpp", **fields: Any) -> str:
    with pytest.raises(Untranslatable) as raised:
        ask(endpoint, kind, **fields)
    return str(raised.value)


def test_a_chat_streams_unless_told_otherwise() -> None:
    made = ask("/api/chat", messages=MESSAGES)

    assert made.path == "/v1/chat/completions"
    assert made.stream
    assert made.asked == "Asked:Tag"
    assert json.loads(made.body) == {
        "model": "its-name",
        "messages": MESSAGES,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_whole_answer_asks_for_no_stream() -> None:
    made = ask("/api/chat", messages=MESSAGES, stream=False)

    assert not made.stream
    assert json.loads(made.body)["stream"] is False
    assert "stream_options" not in json.loads(made.body)


def test_options_and_a_limit_are_carried_over() -> None:
    made = chat(options={"temperature": 0, "num_predict": 6, "num_ctx": 4096}, keep_alive="5m")

    assert (made["temperature"], made["max_tokens"]) == (0, 6)
    assert "keep_alive" not in made


def test_tools_are_passed_on() -> None:
    assert chat(tools=TOOLS)["tools"] == TOOLS


def test_no_tools_are_no_field() -> None:
    assert "tools" not in chat(tools=[])


@pytest.mark.parametrize("kind", ["llamacpp", "lmstudio", "mlx"])
def test_tools_need_a_model_that_uses_them(kind: EngineKind) -> None:
    message = refusal(
        "/api/chat", kind, messages=MESSAGES, tools=TOOLS, capabilities=frozenset({"completion"})
    )

    assert message == "registry.ollama.ai/library/asked:tag does not support tools"


def test_vllm_refuses_tools_by_itself() -> None:
    made = ask("/api/chat", "vllm", frozenset({"completion"}), messages=MESSAGES, tools=TOOLS)

    assert json.loads(made.body)["tools"] == TOOLS


@pytest.mark.parametrize("endpoint", ["/api/chat", "/api/generate"])
def test_images_need_a_model_that_sees(endpoint: str) -> None:
    message = refusal(
        endpoint,
        messages=[{"role": "user", "content": "?", "images": [PNG]}],
        prompt="?",
        images=[PNG],
        capabilities=frozenset({"completion"}),
    )

    assert message.endswith("asked:tag does not support vision")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("m", "registry.ollama.ai/library/m:latest"),
        ("me/m:1b", "registry.ollama.ai/me/m:1b"),
        ("host.example/me/m", "host.example/me/m:latest"),
    ],
)
def test_refusals_name_the_model_in_full(model: str, name: str) -> None:
    message = refusal("/api/generate", model=model, prompt="def f(", suffix="return")

    assert message == f"{name} does not support insert"


@pytest.mark.parametrize(
    ("endpoint", "fields", "verb"),
    [("/api/chat", {"messages": MESSAGES}, "chat"), ("/api/generate", {"prompt": "a"}, "generate")],
)
def test_an_embedding_model_does_not_talk(endpoint: str, fields: dict[str, Any], verb: str) -> None:
    message = refusal(endpoint, capabilities=frozenset({"embedding"}), **fields)

    assert message == f'"Asked:Tag" does not support {verb}'


@pytest.mark.parametrize(
    ("kind", "think", "fields"),
    [
        ("llamacpp", True, {"chat_template_kwargs": {"enable_thinking": True}}),
        ("mlx", False, {"chat_template_kwargs": {"enable_thinking": False}}),
        (
            "llamacpp",
            "low",
            {"chat_template_kwargs": {"enable_thinking": True, "reasoning_effort": "low"}},
        ),
        (
            "vllm",
            "high",
            {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "high"},
        ),
        ("lmstudio", True, {}),
        ("vllm", None, {}),
    ],
)
def test_think_is_put_as_the_engine_takes_it(
    kind: EngineKind, think: object, fields: dict[str, Any]
) -> None:
    plain = chat(kind)

    assert chat(kind, think=think) == plain | fields


@pytest.mark.parametrize(("think", "word"), [(False, "false"), ("low", '"low"')])
def test_lm_studio_cannot_steer_thinking(think: object, word: str) -> None:
    message = refusal("/api/chat", "lmstudio", messages=MESSAGES, think=think)

    assert message == f"LM Studio cannot set think to {word}"


def test_thinking_needs_a_model_that_thinks() -> None:
    message = refusal(
        "/api/chat", messages=MESSAGES, think=True, capabilities=frozenset({"completion"})
    )

    assert message == '"Asked:Tag" does not support thinking'


def test_not_thinking_is_no_matter_to_a_model_that_does_not() -> None:
    made = ask("/api/chat", "llamacpp", frozenset({"completion"}), messages=MESSAGES, think=False)

    assert "chat_template_kwargs" not in json.loads(made.body)


def test_an_unknown_level_of_thinking_is_refused() -> None:
    message = refusal("/api/chat", messages=MESSAGES, think="deep")

    assert message == (
        'invalid think value: "deep" (must be "high", "medium", "low", "max", true, or false)'
    )


@pytest.mark.parametrize("kind", ["llamacpp", "vllm", "lmstudio"])
def test_a_schema_keeps_the_order_of_its_fields(kind: EngineKind) -> None:
    made = chat(kind, format=SCHEMA)["response_format"]

    assert made["type"] == "json_schema"
    assert json.dumps(made["json_schema"]["schema"]) == json.dumps(SCHEMA)


def test_vllm_knows_json_without_a_schema() -> None:
    assert chat("vllm", format="json")["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize("kind", ["llamacpp", "lmstudio"])
def test_elsewhere_json_is_the_schema_of_any_object(kind: EngineKind) -> None:
    made = chat(kind, format="json")["response_format"]

    assert made["json_schema"]["schema"] == {"type": "object"}


@pytest.mark.parametrize("given", [None, ""])
def test_an_empty_format_is_none(given: str | None) -> None:
    assert "response_format" not in chat("mlx", format=given)


def test_mlx_does_not_hold_to_a_format() -> None:
    message = refusal("/api/chat", "mlx", messages=MESSAGES, format="json")

    assert message == "MLX cannot hold an answer to a format"


@pytest.mark.parametrize(("given", "quoted"), [("xml", '"\\"xml\\""'), ([1], '"[1]"')])
def test_another_format_is_refused_in_ollamas_words(given: object, quoted: str) -> None:
    message = refusal("/api/chat", messages=MESSAGES, format=given)

    assert message == f'invalid format: {quoted}; expected "json" or a valid JSON Schema object'


@pytest.mark.parametrize(
    ("kind", "given", "sent"), [("llamacpp", 0, 1), ("llamacpp", 3, 3), ("vllm", 0, 0)]
)
def test_logprobs_are_asked_for(kind: EngineKind, given: int, sent: int) -> None:
    made = ask("/api/chat", kind, messages=MESSAGES, logprobs=True, top_logprobs=given)

    assert (made.logprobs, made.top_logprobs) == (True, given)
    assert json.loads(made.body)["top_logprobs"] == sent


@pytest.mark.parametrize("kind", ["lmstudio", "mlx"])
def test_engines_without_logprobs_refuse_them(kind: EngineKind) -> None:
    assert "logprobs" in refusal("/api/chat", kind, messages=MESSAGES, logprobs=True)


@pytest.mark.parametrize("wanted", [-1, 21])
def test_rivals_have_a_range(wanted: int) -> None:
    message = refusal("/api/chat", messages=MESSAGES, top_logprobs=wanted)

    assert message == "top_logprobs must be between 0 and 20"


def test_a_prompt_becomes_a_chat() -> None:
    made = ask("/api/generate", prompt="hi", system="be brief", context=[], suffix="")

    assert (made.endpoint, made.path) == ("/api/generate", "/v1/chat/completions")
    assert json.loads(made.body)["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
    ]


def test_a_prompt_may_have_images() -> None:
    made = json.loads(ask("/api/generate", prompt="hi", images=[PNG]).body)

    assert [part["type"] for part in made["messages"][0]["content"]] == ["text", "image_url"]


def test_a_raw_prompt_goes_to_the_model_as_it_is() -> None:
    made = ask("/api/generate", prompt="hi", raw=True, options={"num_predict": 3})

    assert made.path == "/v1/completions"
    assert json.loads(made.body) == {
        "model": "its-name",
        "prompt": "hi",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 3,
    }


@pytest.mark.parametrize(
    ("kind", "given", "fields"),
    [
        ("llamacpp", "json", {"json_schema": {"type": "object"}}),
        ("llamacpp", SCHEMA, {"json_schema": SCHEMA}),
        ("vllm", "json", {"response_format": {"type": "json_object"}}),
        ("llamacpp", None, {}),
    ],
)
def test_a_raw_prompt_may_have_a_format(
    kind: EngineKind, given: object, fields: dict[str, Any]
) -> None:
    plain = json.loads(ask("/api/generate", kind, prompt="a", raw=True).body)
    made = json.loads(ask("/api/generate", kind, prompt="a", raw=True, format=given).body)

    assert made == plain | fields


def test_a_raw_prompt_may_ask_for_logprobs() -> None:
    made = ask("/api/generate", prompt="a", raw=True, logprobs=True)

    assert json.loads(made.body)["logprobs"] == 1


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("vllm", {"logprobs": True}, "vLLM cannot give logprobs in raw mode as Ollama does"),
        ("lmstudio", {"format": "json"}, "LM Studio cannot hold an answer to a format in raw mode"),
        ("llamacpp", {"images": [PNG]}, "llama.cpp takes no images in raw mode"),
        ("vllm", {"system": "a"}, "raw mode does not support template, system, or context"),
        ("vllm", {"context": [1]}, "raw mode does not support template, system, or context"),
        ("vllm", {"template": "a"}, "raw mode does not support template, system, or context"),
    ],
)
def test_what_raw_mode_cannot_have(kind: EngineKind, fields: dict[str, Any], message: str) -> None:
    assert refusal("/api/generate", kind, prompt="a", raw=True, **fields) == message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"context": [1, 2]}, "cannot continue from a context; use /api/chat"),
        ({"template": "{{ .Prompt }}"}, "cannot use another template than the model's own"),
        ({"suffix": "return"}, "does not support insert"),
        ({"_debug_render_only": True}, "cannot show the rendered prompt"),
    ],
)
def test_what_no_engine_can_be_told(kind: EngineKind, fields: dict[str, Any], message: str) -> None:
    assert refusal("/api/generate", kind, prompt="a", **fields).endswith(message)


@pytest.mark.parametrize(
    ("given", "count"), [("a cat", 1), (["a cat", "a dog"], 2), (["", "a"], 2)]
)
def test_texts_to_embed(given: object, count: int) -> None:
    made = ask("/api/embed", input=given, dimensions=64)

    assert (made.path, made.stream, made.inputs, made.dimensions) == (
        "/v1/embeddings",
        False,
        count,
        64,
    )
    assert json.loads(made.body) == {
        "model": "its-name",
        "input": [given] if isinstance(given, str) else given,
        "encoding_format": "float",
    }


@pytest.mark.parametrize(("truncate", "sent"), [(None, -1), (True, -1), (False, None)])
def test_vllm_is_told_to_cut_what_is_too_long(truncate: bool | None, sent: int | None) -> None:
    made = json.loads(ask("/api/embed", "vllm", input="a", truncate=truncate).body)

    assert made.get("truncate_prompt_tokens") == sent


@pytest.mark.parametrize("given", [1, {"a": 1}, [1], [["a"]]])
def test_anything_but_texts_is_refused_in_ollamas_words(given: object) -> None:
    assert refusal("/api/embed", input=given) == "invalid input type"


def test_the_older_embeddings() -> None:
    made = ask("/api/embeddings", prompt="a cat")

    assert made.inputs == 1
    assert json.loads(made.body)["input"] == ["a cat"]


def test_mlx_embeds_nothing() -> None:
    assert refusal("/api/embed", "mlx", input="a") == "MLX does not serve embeddings"


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        ("/api/chat", {}),
        ("/api/chat", {"messages": []}),
        ("/api/generate", {"prompt": ""}),
        ("/api/embed", {}),
        ("/api/embed", {"input": []}),
        ("/api/embeddings", {"prompt": None}),
    ],
)
def test_a_request_for_nothing_is_not_for_an_engine(endpoint: str, fields: dict[str, Any]) -> None:
    assert refusal(endpoint, **fields).startswith("there ")


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        ("/api/chat", {"messages": "hi"}),
        ("/api/chat", {"messages": [{"content": "no role"}]}),
        ("/api/chat", {"messages": [{"role": "user", "content": [1]}]}),
        ("/api/chat", {"messages": MESSAGES, "tools": {}}),
        ("/api/chat", {"messages": MESSAGES, "options": []}),
        ("/api/chat", {"messages": MESSAGES, "stream": "yes"}),
        ("/api/chat", {"messages": MESSAGES, "think": 1}),
        ("/api/generate", {"prompt": 1}),
        ("/api/embed", {"input": "a", "dimensions": "many"}),
    ],
)
def test_wrong_types_are_refused_with_their_place(endpoint: str, fields: dict[str, Any]) -> None:
    message = refusal(endpoint, **fields)

    assert message.startswith(f"the request is not as {endpoint} takes it: ")
    assert "$." in message


def test_text_that_is_not_utf_8_is_refused() -> None:
    body = b'{"model":"m","prompt":"\xff"}'

    with pytest.raises(Untranslatable, match="not as /api/generate takes it"):
        translate_request("/api/generate", body, kind="vllm", model="m", capabilities=ABLE)


def test_another_endpoint_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="/api/tags"):
        ask("/api/tags")
