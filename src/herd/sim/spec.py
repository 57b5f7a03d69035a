"""Emulated engines in words: what one has and can do, the jobs it gets and what becomes of them.

Sizes are bytes, rates per second, times seconds. The rates are inputs of an experiment: whoever
describes an engine says where they come from.
"""

from __future__ import annotations

from msgspec import Struct

from herd.core.fleet import Capability

#: Ollama's default for `OLLAMA_MAX_QUEUE` and for `OLLAMA_KEEP_ALIVE`.
OLLAMA_QUEUE = 512
OLLAMA_KEEP_ALIVE = 300.0


class ModelSpec(Struct, frozen=True, kw_only=True):
    """A model that lies on the emulated engine's disk."""

    #: Canonical name, `family:tag`.
    name: str
    weight_bytes: int
    #: 64 hexadecimal digits; empty means that it is derived from the name.
    digest: str = ""
    context_length: int = 8192
    embedding_length: int = 768
    capabilities: tuple[Capability, ...] = ("completion",)
    family: str = "llama"
    parameter_size: str = "1.0B"
    parameters: int = 1_000_000_000
    quantization: str = "Q4_K_M"
    #: Memory for one token of context of one slot, and what is needed besides weights and context.
    kv_bytes_per_token: int = 0
    overhead_bytes: int = 0
    #: Tokens/s of this model where it differs from the engine's rate; 0 means that it does not.
    prefill_rate: float = 0.0
    decode_rate: float = 0.0
    #: When it came to this disk, in seconds since 1970.
    modified: float = 0.0

    def memory(self, context: int, slots: int) -> int:
        """Bytes it holds when loaded with `context` tokens for each of `slots`."""
        return self.weight_bytes + self.overhead_bytes + self.kv_bytes_per_token * context * slots


class EngineSpec(Struct, frozen=True, kw_only=True):
    """An engine on its device."""

    models: tuple[ModelSpec, ...]
    memory_bytes: int
    #: Bytes/s of weights from the disk into memory.
    load_rate: float
    #: Tokens/s of prefill, shared by all prompts that are being read at the same time.
    prefill_rate: float
    #: Tokens/s of one answer while nothing else runs.
    decode_rate: float
    #: With n requests running each decodes at `decode_rate * n ** -alpha`: 0 costs nothing,
    #: 1 shares one answer's rate. Continuous batching on a GPU is near 0, a CPU nearer to 1.
    alpha: float = 0.5
    #: Requests of one model that run at once.
    slots: int = 1
    #: Waiting jobs beyond which new ones are rejected.
    queue_limit: int = OLLAMA_QUEUE
    #: Seconds that an idle model stays; negative for ever.
    keep_alive: float = OLLAMA_KEEP_ALIVE
    #: Context that a model is loaded with when the job does not say.
    default_context: int = 4096


class Job(Struct, frozen=True, kw_only=True):
    """What an engine is asked to compute. Without prompt and output it only loads the model."""

    id: str
    model: str
    prompt_tokens: int = 0
    #: Tokens it will generate; 0 for an embedding.
    output_tokens: int = 0
    #: The prompt as hashes of its leading blocks of `block` tokens (token ids if that is 1), and
    #: those that the answer appends; equal leading hashes are found in a slot's cache.
    prompt: tuple[int, ...] = ()
    produced: tuple[int, ...] = ()
    block: int = 1
    #: Context to load the model with; None for the engine's default.
    context: int | None = None
    #: Seconds the model stays after this job; negative for ever, None for the engine's own.
    keep_alive: float | None = None

    @property
    def only_loads(self) -> bool:
        """Whether it is done as soon as the model is in memory."""
        return not self.prompt_tokens and not self.output_tokens


class Loading(Struct, frozen=True):
    """The engine began to load a model."""

    at: float
    model: str


class Loaded(Struct, frozen=True):
    """A model is in memory, able to serve."""

    at: float
    model: str


class Evicted(Struct, frozen=True):
    """A model left memory: `memory`, `expired`, `context` (to be reloaded) or `unloaded`."""

    at: float
    model: str
    reason: str


class Started(Struct, frozen=True):
    """A job got its slot; `cached` tokens of its prompt need no prefill."""

    at: float
    job: str
    cached: int


class FirstToken(Struct, frozen=True):
    """Prefill is over and the first token out."""

    at: float
    job: str


class Finished(Struct, frozen=True, kw_only=True):
    """A job is done; where its time went."""

    at: float
    job: str
    #: Tokens of the prompt as far as it fits the context, and those of them found in the cache.
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    #: Seconds until the model was in memory, then until a slot was free, prefill, decode.
    load: float
    queue: float
    prefill: float
    decode: float


class Rejected(Struct, frozen=True):
    """A job is not taken: `unknown_model`, `queue_full` or `too_big` for the device's memory."""

    at: float
    job: str
    reason: str


Event = Loading | Loaded | Evicted | Started | FirstToken | Finished | Rejected


class Resident(Struct, frozen=True, kw_only=True):
    """A model in memory, or on its way there."""

    model: str
    context: int
    memory_bytes: int
    loading: bool
    running: int
    waiting: int
    #: When it will leave if nobody asks for it; None while it is busy or stays for ever.
    expires: float | None
    #: Seconds that it stays after its last job; negative for ever.
    keep_alive: float
