"""What a client asked, what was tried, and how it ended."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from herd.core.decision import Decision
from herd.core.fleet import Capability, EngineKind, ReplicaKey

Dialect = Literal["openai", "ollama", "anthropic"]
Operation = Literal["chat", "completion", "embedding"]
Ending = Literal["completed", "failed", "cancelled", "rejected"]
AttemptEnding = Literal["completed", "failed", "cancelled"]
#: Classes in which requests wait; a higher one goes first.
Priority = Literal["high", "normal", "low"]


class Request(Struct, frozen=True, kw_only=True):
    """One client's request, reduced to what routing needs. Its body stays in the gateway."""

    id: str
    dialect: Dialect
    operation: Operation
    #: Path it came in on, such as `/v1/chat/completions`.
    endpoint: str
    #: The name as the client wrote it, and its canonical form.
    asked: str
    model: str
    stream: bool = False
    #: What the model must be able to do.
    needs: frozenset[Capability] = frozenset()
    #: Kinds of engine that can answer this endpoint, natively or by translation.
    kinds: frozenset[EngineKind] = frozenset()
    #: Estimated from the length of the text; the engine's own count comes with the outcome.
    prompt_tokens: int = 0
    #: The client's limit on the answer; None where it set none.
    max_tokens: int | None = None
    #: Context that the client asks the engine to load with (Ollama's `num_ctx`).
    context: int | None = None
    #: Who asks: an address or the name of a key.
    client: str = ""
    #: Seconds that it may wait for a slot; None for the router's own limit.
    patience: float | None = None
    priority: Priority = "normal"
    #: Seconds after its arrival from which its answer is of no more use; None if it always is.
    deadline: float | None = None
    #: What the client calls its conversation, if it does; requests of one share their beginnings.
    session: str = ""


class Prefix(Struct, frozen=True):
    """A prompt as chained hashes of its leading blocks: equal hashes, equal text up to there."""

    hashes: tuple[int, ...] = ()
    #: Tokens in a block, as estimated; the last, incomplete block has no hash.
    block: int = 0


class Usage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens by the engine's own count; None where it did not say."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None

    @property
    def tokens(self) -> int | None:
        """Of prompt and answer together; None where the prompt's are not told."""
        prompt = self.prompt_tokens
        return None if prompt is None else prompt + (self.completion_tokens or 0)


class Timings(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Durations by the engine's own clock, in seconds; None where it did not say."""

    load: float | None = None
    prefill: float | None = None
    decode: float | None = None


class Result(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a completed attempt yielded, as far as the stream's ending told."""

    usage: Usage = Usage()
    timings: Timings = Timings()
    finish_reason: str = ""
    #: Bytes of answer that went to the client.
    bytes_out: int = 0
    frames: int = 0


FailureKind = Literal[
    "connect",  # no connection to the engine
    "status",  # the engine answered with an error status
    "broken",  # the connection broke, or the stream ended without its terminator
    "timeout",  # connect, first byte or idle limit passed
    "engine",  # the engine reported an error inside a stream
    "protocol",  # the engine's answer could not be understood
    "node_lost",  # the node went away while the attempt ran
]


class Failure(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why an attempt failed: the true cause, for the record, the log and the caller."""

    kind: FailureKind
    message: str
    #: Status that the engine answered with, if it did.
    status: int | None = None
    #: Another replica may do better. Never true of what the request itself causes.
    retryable: bool = False
    #: Seconds after which the engine wants to be asked again, if it said so.
    retry_after: float | None = None


RefusalKind = Literal[
    "unknown_model",
    "incapable",
    "context",
    "too_big",
    "unreachable",
    "queue_full",
    "expired",
    "engine_failed",
    "stopping",
]


class Refusal(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a request gets no (further) attempt."""

    kind: RefusalKind
    message: str
    #: Seconds after which asking again makes sense.
    retry_after: float | None = None
    #: What the last attempt failed with, where there was one.
    failure: Failure | None = None


class Attempt(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One try of a request on one replica. Times are absolute, in seconds."""

    number: int
    replica: ReplicaKey
    started: float
    first_frame: float | None = None
    ended: float | None = None
    ending: AttemptEnding | None = None
    failure: Failure | None = None
    #: Seconds that the decision predicted from its start to its end.
    predicted: float = 0.0
    #: What that would have been had the true numbers of tokens been known, and who would run
    #: beside it; 0 where it did not complete.
    hindsight: float = 0.0


class Transition(Struct, frozen=True):
    """A step of a request's story."""

    at: float
    state: str
    note: str = ""


class Outcome(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The one terminal record of a request. Times are absolute, in seconds."""

    request: Request
    ending: Ending
    arrived: float
    ended: float
    #: When the attempt that answered was dispatched, and when its first frame came.
    dispatched: float | None = None
    first_frame: float | None = None
    attempts: tuple[Attempt, ...] = ()
    #: The decision behind the last attempt.
    decision: Decision | None = None
    result: Result | None = None
    refusal: Refusal | None = None
    story: tuple[Transition, ...] = ()
