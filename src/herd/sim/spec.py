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
#: vLLM's default for `--block-size` on CUDA, and for `--max-num-batched-tokens` of its server on
#: GPUs of less than 70 GiB (8192 on larger ones).
VLLM_BLOCK = 16
VLLM_CHUNK = 2048
#: What each further sequence adds to a step, as a share of a step of one: eight at once gave 6.6
#: times the tokens of one, (8 / 6.6 - 1) / 7, in a sweep of vLLM 0.23 with Llama 3.1 8B on an A100
#: 40GB (johnmusgrave.com, 1,024 tokens in, 128 out). A sweep of vLLM 0.21 on an H100
#: (yobitelcomm.github.io/bench) gives 0.006 from 1 to 4 and 0.046 from 1 to 16 by its time per
#: output token. All include some reading of prompts.
VLLM_MARGINAL = 0.03


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


class Batching(Struct, frozen=True, kw_only=True):
    """Continuous batching over one pool of cache, as vLLM does it."""

    #: Tokens of a block of the pool.
    block: int = VLLM_BLOCK
    #: Most tokens of a prompt that one step reads.
    chunk: int = VLLM_CHUNK
    #: A step for n sequences takes `1 + marginal * (n - 1)` times as long as for one.
    marginal: float = VLLM_MARGINAL


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
    #: An engine that batches serves its first model alone, with `slots` sequences at most and a
    #: pool of cache in all the memory that the weights leave; `alpha` and `keep_alive` are not
    #: for it. None is an engine with slots.
    batching: Batching | None = None

    def share(self, running: int) -> float:
        """Share of its rate alone at which each of so many decodes; 1 for none."""
        others = max(0, running - 1)
        if self.batching is not None:
            return 1.0 / (1.0 + self.batching.marginal * others)
        return float((others + 1) ** -self.alpha)

    @property
    def together(self) -> float:
        """How many times the rate of one answer all slots of a model decode at."""
        return self.slots * self.share(self.slots)

    def pool_blocks(self, model: ModelSpec) -> int:
        """Blocks of cache that an engine that batches has for a model; raises ValueError if not.

        A model whose context costs nothing has room for every sequence.
        """
        if self.batching is None:
            raise ValueError("an engine with slots has no pool")
        block = self.batching.block
        if not model.kv_bytes_per_token:
            context = min(self.default_context, model.context_length)
            return self.slots * -(-context // block)
        left = self.memory_bytes - model.weight_bytes - model.overhead_bytes
        return max(0, left // (model.kv_bytes_per_token * block))


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
    """A job is not taken: `unknown_model`, `queue_full` or `too_big`.

    It is too big for the device's memory, or, where an engine batches, for the context.
    """

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
