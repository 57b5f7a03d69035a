"""One client's request in the gateway, and how it is put to an engine of a given kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from aiohttp import web
from msgspec import Struct

from herd.core.actions import Stay, Target
from herd.core.kinds import carries_context
from herd.core.request import Request, Result
from herd.gateway.endpoints import Endpoint
from herd.wire.meter import Filter, Meter, measure
from herd.wire.ollama_request import Untranslatable, translate_request
from herd.wire.ollama_response import translate_error, translate_response
from herd.wire.ollama_stream import StreamTranslator
from herd.wire.ollama_trivial import trivial_answer
from herd.wire.splice import replace_model
from herd.wire.stay import number, put_stay

#: Headers of the client that the engine gets to see. Never the credentials: they are for Herd.
_FORWARDED: Final = (
    "Accept",
    "User-Agent",
    "anthropic-version",
    "anthropic-beta",
    "traceparent",
    "tracestate",
    "X-Request-Id",
)


class Outbound(Struct, frozen=True, kw_only=True):
    """What goes to one engine, and how its answer comes back."""

    path: str
    body: bytes
    #: Makes the filter for a streamed answer, given the time of dispatch.
    filter: Callable[[float], Filter]
    #: Turns a whole answer into the client's, given the times of dispatch and now.
    whole: Callable[[bytes, float, float], tuple[bytes, Result]]
    #: Turns the body of an error status into the client's dialect.
    error: Callable[[int, bytes], bytes]
    #: Content type of a streamed answer; empty to keep the engine's.
    stream_type: str = ""
    whole_type: str = ""
    #: What the router has said of the model's stay in memory, beyond what the client said.
    stay: Stay = Stay()


class Exchange(Struct, kw_only=True):
    """A request on its way, with everything that a second attempt needs again."""

    endpoint: Endpoint
    request: Request
    inbound: web.Request
    body: bytes
    arrived: float
    #: The client wants the model to leave memory, and nothing else.
    unloads: bool = False
    #: The scheduler's word on how long a model stays goes before the client's.
    overrule: bool = False

    def headers(self) -> dict[str, str]:
        """Return what the engine is told of the client."""
        given = self.inbound.headers
        headers = {name: given[name] for name in _FORWARDED if name in given}
        headers["Content-Type"] = "application/json"
        headers["Accept-Encoding"] = "identity"
        return headers

    def query(self) -> str:
        """Return the query string as it came, with its question mark."""
        query = self.inbound.raw_path.partition("?")[2]
        return f"?{query}" if query else ""

    def trivial(self, target: Target, now: float) -> bytes | None:
        """Return the answer where the engine need not be asked; raises `Untranslatable`."""
        if target.kind in self.endpoint.native:
            return None
        return trivial_answer(self.endpoint.path, self.body, kind=target.kind, now=now)

    def outbound(self, target: Target, stay: Stay) -> Outbound:
        """Put the request to an engine; raises `Untranslatable` where that cannot be done.

        What `stay` says goes into the request if that can carry it.
        """
        if target.kind in self.endpoint.native:
            return self._untouched(target, stay)
        return self._translated(target)

    def _untouched(self, target: Target, stay: Stay) -> Outbound:
        body, form, said = self.body, self.endpoint.form, Stay()
        if not self.unloads and carries_context(target.kind, self.endpoint.path):
            body, said = put_stay(body, stay, overrule=self.overrule)
        if target.kind != "ollama" and target.model != self.request.asked:
            # Ollama knows all spellings of a name; other engines know theirs alone.
            try:
                body = replace_model(body, target.model)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise Untranslatable(f"the request cannot be read: {error}") from error
        return Outbound(
            path=self.endpoint.path + self.query(),
            body=body,
            filter=lambda _: Meter(form),
            whole=lambda answer, _started, _now: (answer, measure(form, answer)),
            error=_keep,
            stay=said,
        )

    def _translated(self, target: Target) -> Outbound:
        path = self.endpoint.path
        capabilities = frozenset(target.capabilities)
        translated = translate_request(
            path, self.body, kind=target.kind, model=target.model, capabilities=capabilities
        )
        return Outbound(
            path=translated.path,
            body=translated.body,
            filter=lambda started: StreamTranslator(translated, started=started),
            whole=lambda answer, started, at: translate_response(
                translated, answer, started=started, now=at
            ),
            error=translate_error,
            stream_type="application/x-ndjson",
            whole_type="application/json; charset=utf-8",
        )


def _keep(_status: int, body: bytes) -> bytes:
    return body


def attempt_headers(
    exchange: Exchange, target: Target, *, attempt: int, dispatched: float, stay: Stay
) -> dict[str, str]:
    """Return the headers that tell who answers, and what the request was made to say."""
    headers = {
        "Herd-Request-Id": exchange.request.id,
        "Herd-Node": target.node_name,
        "Herd-Engine": target.replica.engine,
        "Herd-Model": target.model,
        "Herd-Attempts": str(attempt),
        "Herd-Waited": f"{dispatched - exchange.arrived:.3f}",
    }
    if stay.context is not None:
        headers["Herd-Context"] = str(stay.context)
    if stay.keep_alive is not None:
        headers["Herd-Keep-Alive"] = number(stay.keep_alive).decode()
    return headers
