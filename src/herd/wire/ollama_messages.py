"""Ollama's chat history as OpenAI's: roles, images, thoughts, tool calls and their results."""

from __future__ import annotations

import binascii
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from herd.core.fleet import EngineKind
from herd.wire.ollama_options import Untranslatable


class CalledFunction(Struct):
    """A function that the model called earlier; arguments are an object here."""

    name: str = ""
    arguments: dict[str, Raw] | None = None


class ToolCall(Struct):
    """A tool call in the history."""

    function: CalledFunction
    id: str | None = None


class Message(Struct):
    """One message as Ollama's clients write it; roles in any case, images in base64."""

    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


#: First bytes of the image formats that vision models are given.
_IMAGE_STARTS: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
)


class History:
    """Translates one conversation, in order; what it called earlier gives results their ids."""

    def __init__(self, kind: EngineKind) -> None:
        self._thoughts = "reasoning" if kind == "vllm" else "reasoning_content"
        self._made = 0
        #: Calls without a result so far: id and function.
        self._open: list[tuple[str, str]] = []

    def translate(self, message: Message) -> dict[str, Any]:
        """Return the message in OpenAI's shape; raises `Untranslatable` for a bad image."""
        role = message.role.lower()
        made: dict[str, Any] = {"role": role, "content": _content(message)}
        if message.thinking:
            made[self._thoughts] = message.thinking
        if message.tool_calls:
            made["tool_calls"] = [self._call(call) for call in message.tool_calls]
        if role == "tool":
            made["tool_call_id"] = self._answered(message)
            if message.tool_name:
                made["name"] = message.tool_name
        return made

    def _call(self, call: ToolCall) -> dict[str, Any]:
        identity = call.id or self._new_id()
        self._open.append((identity, call.function.name))
        arguments = msgspec.json.encode(call.function.arguments or {}).decode()
        return {
            "id": identity,
            "type": "function",
            "function": {"name": call.function.name, "arguments": arguments},
        }

    def _answered(self, message: Message) -> str:
        """The id of the call that this answers: as given, else by the tool's name, or in order."""
        open_calls = self._open
        if message.tool_call_id:
            self._open = [entry for entry in open_calls if entry[0] != message.tool_call_id]
            return message.tool_call_id
        if not open_calls:
            return self._new_id()
        named = [entry for entry in open_calls if entry[1] == message.tool_name]
        chosen = (named or open_calls)[0]
        open_calls.remove(chosen)
        return chosen[0]

    def _new_id(self) -> str:
        # Nine letters and digits: Mistral's chat templates refuse ids of any other form.
        self._made += 1
        return f"call{self._made:05d}"


def image_part(image: str) -> dict[str, Any]:
    """Return the content part for an image in base64; raises `Untranslatable` if it is not one."""
    text = image.replace("\r", "").replace("\n", "")
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise Untranslatable(f"illegal base64 data in an image: {error}") from error
    return {"type": "image_url", "image_url": {"url": f"data:{_mime(data)};base64,{text}"}}


def _content(message: Message) -> str | list[dict[str, Any]]:
    text = message.content or ""
    if not message.images:
        return text
    parts = [image_part(image) for image in message.images]
    return [{"type": "text", "text": text}, *parts] if text else parts


def _mime(data: bytes) -> str:
    for start, mime in _IMAGE_STARTS:
        if data.startswith(start):
            return mime
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    raise Untranslatable("an image is not PNG, JPEG, GIF, BMP or WebP")
