"""A model of vLLM's engine: continuous batching over one pool of cache, in virtual time.

Theory of operation. One model is in memory from the start, and what memory it leaves is a pool of
cache blocks. Jobs wait in one line. Prompts are read one after another, as a budget of tokens for
each step makes it; the first of the line begins when no prompt is being read, fewer than `slots`
sequences run, and the pool has blocks for its whole prompt besides the pages found cached (vLLM's
`scheduler_reserve_full_isl`). Decoding takes further blocks. When none is free, the sequence that
began last is preempted: it loses its blocks, goes back to the front of the line, and later has
prompt and answer so far read anew, as far as they are no longer cached.

A step of n decoding sequences takes `fixed + n * each` seconds. A step that also reads c tokens of
a prompt takes `max(fixed, c / prefill_rate) + n * each`, since reading computes while decoding
waits for memory (Agrawal et al., Sarathi-Serve, OSDI 2024), and moves each sequence by one token.
So prompts slow answers down to a token for each chunk, and answers hardly slow prompts. A prompt
takes whole steps of equal chunks; that several short prompts may share a step is left out.

Steps are not played one by one. Prefill and decode are clocks of work done, whose pace follows from
what runs; when the pool will be full follows from how far each sequence is from its next block.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sized

from herd.sim.emulated import ROUNDING, Engine, earliest
from herd.sim.kvpool import KvPool, Pages, paginate
from herd.sim.spec import (
    EngineSpec,
    Finished,
    FirstToken,
    Job,
    Rejected,
    Resident,
    Started,
)
from herd.sim.workclock import WorkClock


class BatchingEngine(Engine):
    """An engine that batches. It serves the first model of its spec.

    Raises ValueError if the pool cannot hold one sequence of the whole context, as vLLM does.
    """

    def __init__(self, spec: EngineSpec, *, now: float = 0.0) -> None:
        super().__init__(spec, now)
        if spec.batching is None:
            raise ValueError("the spec is of an engine with slots")
        model = spec.models[0]
        self.model = model
        self.context = min(spec.default_context, model.context_length)
        self.block = spec.batching.block
        self._chunk = spec.batching.chunk
        self.pool = KvPool(spec.pool_blocks(model))
        if self._blocks(self.context) > self.pool.blocks:
            raise ValueError(f"{model.name}: the cache is too small for {self.context} tokens")
        #: Sequences that were preempted so far.
        self.preemptions = 0
        self._prefill_rate = model.prefill_rate or spec.prefill_rate
        self._decode_rate = model.decode_rate or spec.decode_rate
        self._each = spec.batching.marginal / self._decode_rate
        self._fixed = 1.0 / self._decode_rate - self._each
        self._work: dict[str, _Sequence] = {}
        self._line: OrderedDict[str, _Sequence] = OrderedDict()
        #: What runs, in the order in which it began, and which of it has its prompt read.
        self._batch: OrderedDict[str, _Sequence] = OrderedDict()
        self._reading: _Sequence | None = None
        #: Tokens of its prompt in each step.
        self._portion = 0.0
        self._prefill = WorkClock()
        self._decode = WorkClock()
        #: Blocks that all that runs will have in the end, and the reading of the decode clock at
        #: which the pool is full; None if something ends before that.
        self._committed = 0
        self._full_at: float | None = None

    @property
    def running(self) -> int:
        """Sequences in the batch, the one whose prompt is being read included."""
        return len(self._batch)

    @property
    def waiting(self) -> int:
        """Sequences in the line."""
        return len(self._line)

    @property
    def memory_used(self) -> int:
        """Bytes of weights and pool, which is taken as a whole at the start."""
        tokens = self.pool.blocks * self.block
        return self.model.memory(tokens, 1)

    @property
    def kv_usage(self) -> float:
        """Share of the pool that running sequences use."""
        self._grow()
        return self.pool.used / self.pool.blocks

    def submit(self, job: Job, now: float) -> None:
        """Take a job; what becomes of it is told by later events. Its id must be new."""
        if job.id in self._work:
            raise ValueError(f"job {job.id} is already here")
        self._run_until(now)
        if job.model != self.model.name:
            self._events.append(Rejected(self._now, job.id, "unknown_model"))
            return
        room = self.context - job.prompt_tokens
        if room < min(1, job.output_tokens):
            self._events.append(Rejected(self._now, job.id, "too_big"))
            return
        sequence = _Sequence(job, min(job.output_tokens, room), self._now, self.block)
        if job.only_loads:
            self._events.append(sequence.finished(self._now))
            return
        if self.waiting >= self.spec.queue_limit and (self._line or not self._admits(sequence)):
            self._events.append(Rejected(self._now, job.id, "queue_full"))
            return
        self._work[job.id] = self._line[job.id] = sequence
        self._admit()

    def cancel(self, job_id: str, now: float) -> bool:
        """Drop a job and free its blocks at once; False if it is not (or no longer) here."""
        self._run_until(now)
        sequence = self._work.pop(job_id, None)
        if sequence is None:
            return False
        if job_id in self._batch:
            self._leave(sequence)
        else:
            del self._line[job_id]
        self._admit()
        return True

    def unload(self, model: str, now: float) -> bool:  # noqa: ARG002 - as every engine
        """Let time pass; the model stays as long as the engine."""
        self._run_until(now)
        return False

    def tokens(self, job_id: str, now: float) -> int:
        """Tokens that a job has produced by now, up to the next event; 0 for one not here."""
        sequence = self._work.get(job_id)
        return 0 if sequence is None else self._produced(sequence, self._decode.reading(now))

    def residents(self) -> tuple[Resident, ...]:
        """Return the one model."""
        return (
            Resident(
                model=self.model.name,
                context=self.context,
                memory_bytes=self.memory_used,
                loading=False,
                running=self.running,
                waiting=self.waiting,
                expires=None,
                keep_alive=-1.0,
            ),
        )

    def holds(self, model: str) -> bool:
        """Whether it is the one model that is always there."""
        return model == self.model.name

    def shared(self, model: str, prompt: tuple[int, ...], block: int = 1) -> int:
        """Return how many leading blocks of a prompt are in the pool."""
        if model != self.model.name:
            return 0
        pages = paginate(prompt, block, self.block)
        return self.pool.found(pages.keys) * pages.tokens // block

    # --- time ---

    def _next(self) -> tuple[float | None, str]:
        return earliest(
            (self._decode.next_due(), "decoded"),
            (self._prefill.next_due(), "prefilled"),
            (None if self._full_at is None else self._decode.when(self._full_at), "full"),
        )

    def _move(self, now: float) -> None:
        self._now = now
        self._prefill.move(now)
        self._decode.move(now)

    def _fire(self, what: str) -> None:
        if what == "decoded":
            self._finish(self._work[self._decode.pop()])
        elif what == "prefilled":
            self._prefill.pop()
            self._read()
        else:
            self._make_room()
        self._admit()

    def _set_paces(self) -> None:
        if self._committed > self.pool.blocks:
            self._grow()
        decoding = len(self._decode)
        compute = self._portion / self._prefill_rate
        step = max(self._fixed, compute) + decoding * self._each
        self._decode.pace = self._speed / (self._decode_rate * step) if decoding else 0.0
        self._prefill.pace = self._speed * compute / step
        self._full_at = self._fullness()

    # --- the life of a sequence ---

    def _admits(self, sequence: _Sequence) -> bool:
        """Whether a sequence could begin if it were the first of the line."""
        if self._reading is not None or len(self._batch) >= self.spec.slots:
            return False
        self._grow()
        pages = sequence.pages.within(sequence.known - 1)
        pages = pages[: self.pool.found(pages)]
        need = self._blocks(sequence.known) - self._of(pages, sequence)
        return self.pool.fits(pages, need)

    def _admit(self) -> None:
        """Begin to read the prompt of the first of the line if that is possible."""
        if self._line and self._admits(next(iter(self._line.values()))):
            _, sequence = self._line.popitem(last=False)
            self._begin(sequence)
        self._set_paces()

    def _begin(self, sequence: _Sequence) -> None:
        pages = sequence.pages.within(sequence.known - 1)
        pages = pages[: self.pool.found(pages)]
        self.pool.refer(pages)
        sequence.held = list(pages)
        sequence.own = self._blocks(sequence.known) - self._of(pages, sequence)
        self.pool.take(sequence.own)
        self._committed += self._blocks(sequence.last)
        self._batch[sequence.job.id] = self._reading = sequence
        cached = len(pages) * sequence.pages.tokens
        fresh = max(1, sequence.known - cached)
        self._portion = fresh / math.ceil(fresh / self._chunk)
        self._prefill.add(sequence.job.id, fresh / self._prefill_rate)
        if sequence.started is None:
            sequence.started, sequence.cached = self._now, cached
            self._events.append(Started(self._now, sequence.job.id, cached))

    def _read(self) -> None:
        """A prompt is read, which yields a token; the others are decoded one by one."""
        sequence = self._reading
        if sequence is None:
            return
        self._reading, self._portion = None, 0.0
        self._keep(sequence, sequence.known)
        if sequence.prefilled is None:
            sequence.prefilled = self._now
            if sequence.output:
                self._events.append(FirstToken(self._now, sequence.job.id))
        if sequence.produced + 1 >= sequence.output:
            self._finish(sequence)
            return
        sequence.produced += 1
        sequence.decode_from = self._decode.reading(self._now)
        sequence.decoding = True
        left = sequence.output - sequence.produced
        self._decode.add(sequence.job.id, left / self._decode_rate)
        self._grow()

    def _finish(self, sequence: _Sequence) -> None:
        del self._work[sequence.job.id]
        self._events.append(sequence.finished(self._now))
        self._leave(sequence)

    def _leave(self, sequence: _Sequence) -> None:
        """Take a sequence out of the batch; what was computed of it stays cached."""
        job = sequence.job.id
        if sequence is self._reading:
            self._prefill.remove(job)
            self._reading, self._portion = None, 0.0
        else:
            if sequence.decoding and (need := min(self._missing(sequence), self.pool.room)) > 0:
                self.pool.take(need)
                sequence.own += need
            sequence.produced = self._produced(sequence, self._decode.reading(self._now))
            self._decode.remove(job)
            sequence.decoding = False
            self._keep(sequence, sequence.known - 1)
        del self._batch[job]
        self._committed -= self._blocks(sequence.last)
        self.pool.release(sequence.held)
        self.pool.give(sequence.own)
        sequence.held, sequence.own = [], 0

    def _produced(self, sequence: _Sequence, reading: float) -> int:
        if not sequence.decoding:
            return sequence.produced
        done = (reading - sequence.decode_from) * self._decode_rate
        return min(sequence.output, sequence.produced + int(done + ROUNDING))

    # --- the pool ---

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.block)

    def _of(self, pages: Sized, sequence: _Sequence) -> int:
        """Blocks of a sequence's pages."""
        return len(pages) * (sequence.pages.tokens // self.block)

    def _missing(self, sequence: _Sequence) -> int:
        """Blocks that a decoding sequence should have got since it was last looked at."""
        produced = self._produced(sequence, self._decode.reading(self._now))
        tokens = min(sequence.last, sequence.prompt + produced)
        return self._blocks(tokens) - sequence.own - self._of(sequence.held, sequence)

    def _keep(self, sequence: _Sequence, tokens: int) -> None:
        """Make the pages that are wholly computed known to others."""
        size = sequence.pages.tokens // self.block
        for key in sequence.pages.within(tokens)[len(sequence.held) :]:
            if sequence.own < size:
                break
            self.pool.keep(key, size)
            sequence.own -= size
            sequence.held.append(key)

    def _grow(self) -> None:
        """Give decoding sequences the blocks that they need by now; preempt where none is left."""
        for sequence in list(self._batch.values()):
            if sequence.decoding and (need := self._missing(sequence)) > 0:
                while need > self.pool.room and sequence.decoding:
                    self._preempt()
                if sequence.decoding:
                    self.pool.take(need)
                    sequence.own += need

    def _make_room(self) -> None:
        """The pool is full and a sequence needs a block."""
        before = self.preemptions
        self._grow()
        if self.preemptions == before:  # rounding hides the token that needs it
            self._preempt()

    def _preempt(self) -> None:
        """Send the sequence that began last back to the front of the line."""
        self.preemptions += 1
        sequence = next(reversed(self._batch.values()))
        self._leave(sequence)
        self._line[sequence.job.id] = sequence
        self._line.move_to_end(sequence.job.id, last=False)

    def _fullness(self) -> float | None:
        """Return the reading of the decode clock at which a block will be missing."""
        if self._committed <= self.pool.blocks or not len(self._decode):
            return None
        reading = self._decode.reading(self._now)
        least = math.inf
        gaps = []
        for sequence in self._batch.values():
            if sequence.decoding:
                done = (reading - sequence.decode_from) * self._decode_rate + sequence.produced
                least = min(least, sequence.output - done)
                held = sequence.own + self._of(sequence.held, sequence)
                gaps.append(max(0.0, held * self.block + 1 - sequence.prompt - done))
        gaps.sort()
        # All move together, so that each needs a block every `block` tokens from its first on.
        rounds, place = divmod(self.pool.room, len(gaps))
        tokens = gaps[place] + rounds * self.block
        return reading + tokens / self._decode_rate if tokens < least else None


class _Sequence:
    """A job on its way through the engine."""

    def __init__(self, job: Job, output: int, submitted: float, block: int) -> None:
        self.job = job
        self.prompt = job.prompt_tokens
        #: Tokens that it will generate within the context.
        self.output = output
        self.submitted = submitted
        self.pages: Pages = paginate(job.prompt + job.produced, job.block, block)
        self.started: float | None = None
        self.prefilled: float | None = None
        self.cached = 0
        #: Tokens produced before it last began to decode, the one that its prompt yielded included.
        self.produced = 0
        self.decoding = False
        self.decode_from = 0.0
        #: Pages that it refers to, and blocks of its own.
        self.held: list[int] = []
        self.own = 0

    @property
    def known(self) -> int:
        """Tokens of prompt and answer so far."""
        return self.prompt + self.produced

    @property
    def last(self) -> int:
        """Tokens that it will have in the cache in the end; the last one is never computed."""
        return self.prompt + max(0, self.output - 1)

    def finished(self, now: float) -> Finished:
        """Return the account of it, as done now; time after a preemption counts as decode."""
        started = now if self.started is None else self.started
        prefilled = now if self.prefilled is None else self.prefilled
        return Finished(
            at=now,
            job=self.job.id,
            prompt_tokens=self.prompt,
            cached_tokens=self.cached,
            output_tokens=self.output,
            load=0.0,
            queue=started - self.submitted,
            prefill=prefilled - started,
            decode=now - prefilled,
        )
