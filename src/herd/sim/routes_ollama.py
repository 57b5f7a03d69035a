"""The routes of an emulated Ollama."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web

from herd.core.fleet import Capability
from herd.core.names import canonical
from herd.sim import anthropic, catalogue, ollama, openai
from herd.sim.answering import Answering, Handler, guarded, reply
from herd.sim.ask import Ask, Shape
from herd.sim.catalogue import Catalogue, Entry
from herd.sim.gowords import Problem, decode, keep_alive
from herd.sim.spec import Event, Evicted, Finished
from herd.sim.text import embedding, tokenise, unit

#: Tokens that an embedding model puts around every text.
_TEXT_ENDS = 2


class OllamaRoutes:
    """What Ollama's API does, over one emulated engine."""

    def __init__(self, answering: Answering, *, version: str, gpu: bool) -> None:
        self._answering = answering
        self._version = version
        self._gpu = gpu
        self._catalogue = Catalogue(answering.spec.models)
        self._originals = {entry.spec.name: entry for entry in self._catalogue.entries()}
        #: The name by which each model in memory was loaded.
        self._loaded_as: dict[str, Entry] = {}
        answering.live.hear = self._hear

    def add_to(self, app: web.Application) -> None:
        """Register all routes."""
        get: list[tuple[str, Handler, bool]] = [
            ("/", self._root, True),
            ("/api/version", self._get_version, True),
            ("/api/tags", self._tags, True),
            ("/api/ps", self._ps, False),
            ("/v1/models", self._models, False),
            ("/v1/models/{model}", self._model, False),
        ]
        for path, handler, head in get:
            dialect = _refuse_openai if path.startswith("/v1") else _refuse
            app.router.add_get(path, guarded(handler, dialect), allow_head=head)
        post: list[tuple[str, Handler, Callable[[Problem], web.Response]]] = [
            ("/api/show", self._show, _refuse),
            ("/api/chat", self._chat, _refuse),
            ("/api/generate", self._generate, _refuse),
            ("/api/embed", self._embed, _refuse),
            ("/api/embeddings", self._embed_one, _refuse),
            ("/api/copy", self._copy, _refuse),
            ("/api/create", self._create, _refuse),
            ("/v1/chat/completions", self._openai_chat, _refuse_openai),
            ("/v1/completions", self._openai_completion, _refuse_openai),
            ("/v1/embeddings", self._openai_embeddings, _refuse_openai),
            ("/v1/messages", self._messages, _refuse_anthropic),
        ]
        for path, handler, refuse in post:
            app.router.add_post(path, guarded(handler, refuse))
        app.router.add_delete("/api/delete", guarded(self._delete, _refuse))
        app.router.add_head("/api/blobs/{digest}", guarded(self._blob, _refuse))

    # --- about the engine ---

    async def _root(self, _: web.Request) -> web.Response:
        return reply(b"Ollama is running", "text/plain; charset=utf-8")

    async def _get_version(self, _: web.Request) -> web.Response:
        return reply(b'{"version":"%b"}' % self._version.encode(), ollama.JSON)

    async def _tags(self, _: web.Request) -> web.Response:
        return reply(catalogue.tags(self._catalogue), ollama.JSON)

    async def _ps(self, _: web.Request) -> web.Response:
        self._answering.live.refresh()
        residents = [
            (self._loaded_as.get(each.model) or self._originals[each.model], each)
            for each in self._answering.engine.residents()
        ]
        now = self._answering.clock()
        return reply(catalogue.running(residents, now, gpu=self._gpu), ollama.JSON)

    async def _show(self, request: web.Request) -> web.Response:
        asked = decode(await request.read(), ollama.NamedRequest).either
        if not asked:
            raise Problem(400, "model is required")
        entry = self._catalogue.find(asked)
        if entry is None:
            raise Problem(404, f"model '{canonical(asked)}' not found")
        # A real model's facts and tensors always exceed what goes out in one piece.
        return reply(catalogue.show(entry), ollama.JSON, chunk_above=0)

    async def _models(self, _: web.Request) -> web.Response:
        return reply(catalogue.openai_models(self._catalogue), openai.JSON)

    async def _model(self, request: web.Request) -> web.Response:
        entry = self._find(request.match_info["model"])
        return reply(catalogue.openai_model(entry), openai.JSON)

    # --- the catalogue ---

    async def _copy(self, request: web.Request) -> web.Response:
        asked = decode(await request.read(), ollama.CopyRequest)
        self._catalogue.copy(asked.source, asked.destination, self._answering.clock())
        return web.Response()

    async def _delete(self, request: web.Request) -> web.Response:
        asked = decode(await request.read(), ollama.NamedRequest)
        entry = self._catalogue.delete(asked.either)
        if not self._catalogue.others(entry):
            self._answering.live.unload(entry.spec.name)
        return web.Response()

    async def _create(self, request: web.Request) -> web.Response:
        asked = decode(await request.read(), ollama.CreateRequest)
        name = asked.model or asked.name
        now = self._answering.clock()
        steps = self._catalogue.create(name, asked.from_, asked.system, now)
        if asked.stream is False:
            return reply(ollama.status(steps[-1]), openai.JSON)
        lines = b"".join(ollama.status(step) + b"\n" for step in steps)
        return reply(lines, ollama.NDJSON, chunk_above=0)

    async def _blob(self, request: web.Request) -> web.Response:
        raise Problem(404, f'blob "{request.match_info["digest"]}" not found')

    # --- Ollama's inference ---

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        asked = decode(await request.read(), ollama.ChatRequest)
        if not asked.model:
            raise Problem(400, "model is required")
        entry = self._find(asked.model)
        if not asked.messages and keep_alive(asked.keep_alive) == 0:
            return await self._load(entry, asked, chat=True)
        _need(entry, asked.model, "chat", tools=bool(asked.tools), think=bool(asked.think))
        if not asked.messages:
            return await self._load(entry, asked, chat=True)
        if any(message.images for message in asked.messages) and not _can(entry, "vision"):
            raise Problem(400, ollama.NO_IMAGES)
        ask = ollama.chat_ask(asked, self._answering.lengths)
        return await self._answer(request, ask, entry, ollama.Chat(ask))

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        asked = decode(await request.read(), ollama.GenerateRequest)
        entry = self._find(asked.model)
        # Before anything is said of what the model can do: models that only embed go like this too.
        if not asked.prompt and keep_alive(asked.keep_alive) == 0:
            return await self._load(entry, asked, chat=False)
        if asked.raw and (asked.template or asked.system or asked.context):
            raise Problem(400, ollama.RAW_MIX)
        _need(entry, asked.model, "generate", think=bool(asked.think))
        if asked.suffix and not _can(entry, "insert"):
            raise Problem(400, f"{_full(entry)} does not support insert")
        if not asked.prompt:
            return await self._load(entry, asked, chat=False)
        if asked.images and not _can(entry, "vision"):
            raise Problem(400, ollama.NO_IMAGES)
        ask = ollama.generate_ask(asked, self._answering.lengths)
        return await self._answer(request, ask, entry, ollama.Generate(ask, raw=asked.raw))

    async def _load(
        self, entry: Entry, asked: ollama.ChatRequest | ollama.GenerateRequest, *, chat: bool
    ) -> web.Response:
        stay = keep_alive(asked.keep_alive)
        unload = stay == 0
        if unload:
            self._answering.live.unload(entry.spec.name)
        else:
            self._loaded_as.setdefault(entry.spec.name, entry)
            context = ollama.context_option(asked.options)
            await self._answering.compute(entry.spec.name, 0, context=context, keep_alive=stay)
        now = self._answering.clock()
        return reply(ollama.loaded(asked.model, chat=chat, unload=unload, now=now), ollama.JSON)

    async def _embed(self, request: web.Request) -> web.Response:
        asked = decode(await request.read(), ollama.EmbedRequest)
        entry = self._find_embedder(asked.model)
        texts = _texts(asked.input)
        vectors, tokens = self._vectors(entry, texts, asked.dimensions)
        if asked.truncate is False and any(
            len(tokenise(text)) + _TEXT_ENDS > entry.spec.context_length for text in texts
        ):
            raise Problem(400, ollama.INPUT_TOO_LONG)
        done = await self._embedding(
            entry, tokens, ollama.context_option(asked.options), keep_alive(asked.keep_alive)
        )
        return reply(ollama.embedded(asked.model, vectors, done), ollama.JSON)

    async def _embed_one(self, request: web.Request) -> web.Response:
        asked = decode(await request.read(), ollama.EmbedRequest)
        entry = self._find_embedder(asked.model)
        vectors, tokens = self._vectors(entry, [asked.prompt] if asked.prompt else [], 0)
        await self._embedding(
            entry, tokens, ollama.context_option(asked.options), keep_alive(asked.keep_alive)
        )
        return reply(ollama.embedded_one(vectors[0] if vectors else []), ollama.JSON)

    # --- OpenAI's and Anthropic's ---

    async def _openai_chat(self, request: web.Request) -> web.StreamResponse:
        asked = decode(await request.read(), openai.ChatRequest)
        ask = openai.chat_ask(asked, self._answering.lengths)
        entry = self._find_asked(asked.model)
        _need(entry, asked.model, "chat", tools=bool(asked.tools))
        if openai.has_images(asked.messages or []) and not _can(entry, "vision"):
            raise Problem(400, ollama.NO_IMAGES)
        return await self._answer(request, ask, entry, openai.Chat(ask, self._answering.clock()))

    async def _openai_completion(self, request: web.Request) -> web.StreamResponse:
        asked = decode(await request.read(), openai.CompletionRequest)
        ask = openai.completion_ask(asked, self._answering.lengths)
        entry = self._find(asked.model)
        _need(entry, asked.model, "generate")
        shape = openai.Completion(ask, self._answering.clock())
        return await self._answer(request, ask, entry, shape)

    async def _openai_embeddings(self, request: web.Request) -> web.Response:
        asked = decode(await request.read(), openai.EmbeddingsRequest)
        if asked.input is None or asked.input == []:
            raise Problem(400, "invalid input", early=True)
        entry = self._find_embedder(asked.model)
        texts = [asked.input] if isinstance(asked.input, str) else _texts(asked.input)
        vectors, tokens = self._vectors(entry, texts, asked.dimensions)
        done = await self._embedding(entry, tokens, None, None)
        as_base64 = asked.encoding_format == "base64"
        body = openai.embeddings(asked.model, vectors, done, as_base64=as_base64)
        return reply(body, openai.JSON)

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        asked = decode(await request.read(), anthropic.MessagesRequest)
        ask = anthropic.messages_ask(asked, self._answering.lengths)
        entry = self._find_asked(asked.model)
        _need(entry, asked.model, "chat", tools=bool(asked.tools))
        estimate = anthropic.estimate_tokens(asked)
        shape = anthropic.Messages(ask, estimate, self._answering.clock())
        return await self._answer(request, ask, entry, shape)

    # --- small words ---

    def _find(self, name: str) -> Entry:
        entry = self._catalogue.find(name)
        if entry is None:
            raise Problem(404, f"model '{name}' not found")
        return entry

    def _find_asked(self, name: str) -> Entry:
        if not name:
            raise Problem(400, "model is required")
        return self._find(name)

    def _find_embedder(self, name: str) -> Entry:
        entry = self._catalogue.find(name)
        if entry is None:
            raise Problem(404, f'model "{name}" not found, try pulling it first')
        if not _can(entry, "embedding"):
            raise Problem(501, ollama.NO_EMBEDDINGS)
        return entry

    def _vectors(
        self, entry: Entry, texts: Sequence[str], dimensions: int
    ) -> tuple[list[list[float]], int]:
        """Return a vector for each text, cut to `dimensions` if that is not 0, and all tokens."""
        spec = entry.spec
        cut = dimensions or spec.embedding_length
        vectors = [unit(embedding(text, spec.embedding_length)[:cut]) for text in texts]
        counts = (min(len(tokenise(text)) + _TEXT_ENDS, spec.context_length) for text in texts)
        return vectors, sum(counts)

    async def _embedding(
        self, entry: Entry, tokens: int, context: int | None, stay: float | None
    ) -> Finished:
        self._loaded_as.setdefault(entry.spec.name, entry)
        return await self._answering.compute(
            entry.spec.name, tokens, context=context, keep_alive=stay
        )

    async def _answer(
        self, request: web.Request, ask: Ask, entry: Entry, shape: Shape
    ) -> web.StreamResponse:
        self._loaded_as.setdefault(entry.spec.name, entry)
        return await self._answering.answer(request, ask, entry.spec.name, shape)

    def _hear(self, event: Event) -> None:
        if isinstance(event, Evicted):
            self._loaded_as.pop(event.model, None)


def _texts(value: Any) -> list[str]:
    """Return the texts of an embedding request; an empty text is none."""
    if isinstance(value, str):
        return [value] if value else []
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return value
    raise Problem(400, "invalid input type")


def _can(entry: Entry, capability: Capability) -> bool:
    return capability in entry.spec.capabilities


def _full(entry: Entry) -> str:
    path = entry.name if "/" in entry.name else f"library/{entry.name}"
    return f"registry.ollama.ai/{path}"


def _need(entry: Entry, asked: str, verb: str, *, tools: bool = False, think: bool = False) -> None:
    """Raise `Problem` 400 if a model lacks what a request uses."""
    if not _can(entry, "completion"):
        raise Problem(400, f'"{asked}" does not support {verb}')
    if tools and not _can(entry, "tools"):
        raise Problem(400, f"{_full(entry)} does not support tools")
    if think and not _can(entry, "thinking"):
        raise Problem(400, f'"{asked}" does not support thinking')


def _refuse(problem: Problem) -> web.Response:
    return reply(ollama.error(problem.message), ollama.JSON, status=problem.status)


def _refuse_openai(problem: Problem) -> web.Response:
    return _refuse_as(openai.error(problem.status, problem.message), problem)


def _refuse_anthropic(problem: Problem) -> web.Response:
    return _refuse_as(anthropic.error(problem.status, problem.message), problem)


def _refuse_as(body: bytes, problem: Problem) -> web.Response:
    if problem.early:  # written before Ollama's translation of its own answers
        return reply(body, ollama.JSON, status=problem.status)
    return reply(body + b"\n", openai.JSON, status=problem.status)
