"""A model of Ollama's engine: pure, deterministic, driven by events and an explicit time.

Theory of operation. Jobs of one model wait in one line; the first of the line gets the next free
slot. A model that is not in memory is loaded for the whole line; loads happen one at a time, in
the order in which they were wanted. A load that needs memory evicts idle models, the longest
unused first. Where that is not enough it waits, and the busy models that have to make room take
none of the jobs that came later, so that no load starves.

Running jobs share the device as fluids. With n of them running, one decodes at the rate
`decode_rate * n ** -alpha`, and p prefills at the same time get a p-th of the prefill rate each.
Both are kept as clocks of work done: a clock's pace follows n (or p), and a job is due at a
reading of the clock that is fixed when it begins. So a change of concurrency costs nothing per
job, and an event costs O(log running).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from herd.sim.emulated import ROUNDING, Engine, earliest
from herd.sim.residence import Memory, Replica, Slot
from herd.sim.spec import (
    EngineSpec,
    Evicted,
    Finished,
    FirstToken,
    Job,
    Loaded,
    Loading,
    ModelSpec,
    Rejected,
    Resident,
    Started,
)
from herd.sim.workclock import WorkClock


class EmulatedEngine(Engine):
    """An engine with slots, as Ollama's and llama.cpp's are.

    `resident` models are in memory from the start, with the engine's default context.
    """

    def __init__(self, spec: EngineSpec, *, now: float = 0.0, resident: Iterable[str] = ()) -> None:
        super().__init__(spec, now)
        self._models = {model.name: model for model in spec.models}
        self._memory = Memory(spec.memory_bytes)
        self._lines: dict[str, OrderedDict[str, _Work]] = {}
        self._work: dict[str, _Work] = {}
        self._arrivals = 0
        self._running = 0
        self._prefill = WorkClock()
        self._decode = WorkClock()
        #: Models whose line waits for a load, in the order in which they asked.
        self._wanted: dict[str, None] = {}
        self._loading: Replica | None = None
        self._loaded_at = 0.0
        for name in resident:
            model = self._models[name]
            context = self._context(model, None)
            replica = self._memory.place(
                model, context, spec.slots, now=now, keep_alive=spec.keep_alive
            )
            replica.loading = False

    @property
    def running(self) -> int:
        """Jobs that have a slot."""
        return self._running

    @property
    def waiting(self) -> int:
        """Jobs that have none yet."""
        return len(self._work) - self._running

    @property
    def memory_used(self) -> int:
        """Bytes that models in memory and the one being loaded hold."""
        return self._memory.used

    def submit(self, job: Job, now: float) -> None:
        """Take a job; what becomes of it is told by later events. Its id must be new."""
        if job.id in self._work:
            raise ValueError(f"job {job.id} is already here")
        self._run_until(now)
        model = self._models.get(job.model)
        if model is None:
            self._events.append(Rejected(self._now, job.id, "unknown_model"))
            return
        context = self._context(model, job.context)
        if model.memory(context, self.spec.slots) > self.spec.memory_bytes:
            self._events.append(Rejected(self._now, job.id, "too_big"))
            return
        replica = self._memory.get(job.model)
        self._arrivals += 1
        work = _Work(job, model, context, self._arrivals, self._now)
        if job.only_loads and replica is not None and replica.ready(context):
            self._touch(replica, job)
            self._events.append(work.finished(self._now))
            return
        if self.waiting >= self.spec.queue_limit and self._would_wait(work, replica):
            self._events.append(Rejected(self._now, job.id, "queue_full"))
            return
        self._work[job.id] = work
        self._line(job.model)[job.id] = work
        self._serve(job.model)

    def cancel(self, job_id: str, now: float) -> bool:
        """Drop a job and free its slot at once; False if it is not (or no longer) here."""
        self._run_until(now)
        work = self._work.get(job_id)
        if work is None:
            return False
        if work.slot is None:
            self._withdraw(work)
        else:
            (self._decode if work.decoding else self._prefill).remove(job_id)
            self._leave_slot(work)
        return True

    def unload(self, model: str, now: float) -> bool:
        """Let a model leave memory as soon as it is idle; False if it is not there."""
        self._run_until(now)
        replica = self._memory.get(model)
        if replica is None:
            return False
        replica.keep_alive = 0.0
        if not replica.loading and not replica.running and not self._lines.get(model):
            self._evict(replica, "unloaded")
            self._settle_memory()
        return True

    def tokens(self, job_id: str, now: float) -> int:
        """Tokens that a job has produced by now, up to the next event; 0 for one not here."""
        work = self._work.get(job_id)
        if work is None or not work.decoding:
            return 0
        done = (self._decode.reading(now) - work.decode_from) * work.decode_rate
        return min(work.job.output_tokens, 1 + int(done + ROUNDING))

    def residents(self) -> tuple[Resident, ...]:
        """Return the models in memory and on their way there."""
        return tuple(
            replica.snapshot(len(self._lines.get(replica.model.name, ())))
            for replica in self._memory
        )

    def holds(self, model: str) -> bool:
        """Whether a model is in memory or on its way there."""
        return self._memory.get(model) is not None

    def shared(self, model: str, prompt: tuple[int, ...], block: int = 1) -> int:  # noqa: ARG002 - as every engine
        """Return how many leading blocks of a prompt a free slot of the model has in its cache."""
        replica = self._memory.get(model)
        slot = replica.free_slot(prompt) if replica is not None else None
        return slot.shared(prompt) if slot is not None else 0

    # --- time ---

    def _next(self) -> tuple[float | None, str]:
        return earliest(
            (self._decode.next_due(), "decoded"),
            (self._prefill.next_due(), "prefilled"),
            (self._loaded_at if self._loading else None, "loaded"),
            (self._memory.next_expiry(), "expired"),
        )

    def _move(self, now: float) -> None:
        self._now = now
        self._prefill.move(now)
        self._decode.move(now)

    def _fire(self, what: str) -> None:
        if what == "decoded":
            self._finish(self._work[self._decode.pop()])
        elif what == "prefilled":
            self._prefilled(self._work[self._prefill.pop()])
        elif what == "loaded":
            self._loaded()
        else:
            self._evict(self._memory.first_expired(), "expired")
            self._settle_memory()

    def _set_paces(self) -> None:
        prefilling = len(self._prefill)
        self._prefill.pace = self._speed / prefilling if prefilling else 0.0
        self._decode.pace = self._speed * self.spec.share(self._running)

    # --- the life of a job ---

    def _serve(self, model: str) -> None:
        """Give free slots to the first of the line; want a load where it needs one."""
        line = self._lines.get(model)
        while line:
            work = next(iter(line.values()))
            replica = self._memory.get(model)
            if replica is None:
                self._wanted.setdefault(model)
                break
            if replica.loading or not replica.admits(work.arrival):
                break
            if replica.context != work.context:
                if replica.running:
                    break
                self._evict(replica, "context")
                continue
            if work.job.only_loads:
                self._withdraw(work, served=True)
                self._touch(replica, work.job)
                self._events.append(work.finished(self._now))
                continue
            slot = replica.free_slot(work.job.prompt)
            if slot is None:
                break
            self._start(work, replica, slot)
        self._settle_memory()

    def _start(self, work: _Work, replica: Replica, slot: Slot) -> None:
        del self._lines[replica.model.name][work.job.id]
        work.cached = min(slot.shared(work.job.prompt) * work.job.block, work.prompt_tokens - 1)
        work.cached = max(0, work.cached)
        work.slot = slot
        work.started = self._now
        slot.take(work.job.prompt)
        replica.running += 1
        self._running += 1
        rate = work.model.prefill_rate or self.spec.prefill_rate
        self._prefill.add(work.job.id, (work.prompt_tokens - work.cached) / rate)
        self._set_paces()
        self._events.append(Started(self._now, work.job.id, work.cached))

    def _prefilled(self, work: _Work) -> None:
        work.prefilled = self._now
        self._set_paces()
        if not work.job.output_tokens:
            self._finish(work)
            return
        self._events.append(FirstToken(self._now, work.job.id))
        work.decoding = True
        work.decode_from = self._decode.reading(self._now)
        work.decode_rate = work.model.decode_rate or self.spec.decode_rate
        # The pass over the prompt yields the first token; the others are decoded one by one.
        self._decode.add(work.job.id, (work.job.output_tokens - 1) / work.decode_rate)

    def _finish(self, work: _Work) -> None:
        if work.slot is not None:
            work.slot.keep(work.job.prompt + work.job.produced)
        self._events.append(work.finished(self._now))
        self._leave_slot(work)

    def _leave_slot(self, work: _Work) -> None:
        replica = self._memory[work.model.name]
        if work.slot is not None:
            work.slot.release(self._now)
            work.slot = None
        del self._work[work.job.id]
        replica.running -= 1
        self._running -= 1
        self._set_paces()
        self._touch(replica, work.job)
        self._serve(work.model.name)

    def _withdraw(self, work: _Work, *, served: bool = False) -> None:
        """Take a waiting job out of its line; a load that nobody waits for is not begun."""
        model = work.model.name
        line = self._lines[model]
        first = next(iter(line)) == work.job.id
        del line[work.job.id]
        del self._work[work.job.id]
        if not line:
            self._wanted.pop(model, None)
        if not served:
            if first:
                self._serve(model)
            self._settle_memory()

    # --- memory ---

    def _settle_memory(self) -> None:
        """Begin the load that is first in line, if it fits or can be made to fit."""
        while self._loading is None and self._wanted:
            name = next(iter(self._wanted))
            first = next(iter(self._lines[name].values()))
            victims = self._memory.make_room(
                first.model.memory(first.context, self.spec.slots), self._arrivals
            )
            if victims is None:
                return
            for victim in victims:
                self._evict(victim, "memory")
            del self._wanted[name]
            self._begin_load(first)
        if self._loading is None:
            self._reopen()

    def _begin_load(self, work: _Work) -> None:
        keep_alive = self.spec.keep_alive
        self._loading = self._memory.place(
            work.model, work.context, self.spec.slots, now=self._now, keep_alive=keep_alive
        )
        self._loaded_at = self._now + work.model.weight_bytes / self.spec.load_rate
        self._events.append(Loading(self._now, work.model.name))
        self._reopen()

    def _loaded(self) -> None:
        replica = self._loading
        if replica is None:
            return
        self._loading = None
        replica.loading = False
        replica.used = self._now
        self._events.append(Loaded(self._now, replica.model.name))
        line = self._line(replica.model.name)
        for work in line.values():
            work.loaded = self._now
        for work in [work for work in line.values() if work.loads_only(replica.context)]:
            self._withdraw(work, served=True)
            self._touch(replica, work.job)
            self._events.append(work.finished(self._now))
        self._serve(replica.model.name)

    def _evict(self, replica: Replica, reason: str) -> None:
        self._memory.remove(replica)
        self._events.append(Evicted(self._now, replica.model.name, reason))
        if self._lines.get(replica.model.name):
            self._wanted.setdefault(replica.model.name)

    def _reopen(self) -> None:
        """Let models that had to make room for a load take new jobs again."""
        for replica in self._memory.reopened():
            self._serve(replica.model.name)

    def _touch(self, replica: Replica, job: Job) -> None:
        """Note the end of a job: from here the model's time to stay counts anew."""
        replica.used = self._now
        replica.keep_alive = self.spec.keep_alive if job.keep_alive is None else job.keep_alive

    # --- small words ---

    def _would_wait(self, work: _Work, replica: Replica | None) -> bool:
        return (
            replica is None
            or not replica.ready(work.context)
            or not replica.admits(work.arrival)
            or bool(self._lines.get(work.job.model))
            or replica.free_slot(()) is None
        )

    def _line(self, model: str) -> OrderedDict[str, _Work]:
        return self._lines.setdefault(model, OrderedDict())

    def _context(self, model: ModelSpec, asked: int | None) -> int:
        return max(1, min(asked or self.spec.default_context, model.context_length))


class _Work:
    """A job on its way through the engine."""

    def __init__(
        self, job: Job, model: ModelSpec, context: int, arrival: int, submitted: float
    ) -> None:
        self.job = job
        self.model = model
        self.context = context
        self.arrival = arrival
        self.submitted = submitted
        #: A prompt that is longer than the context is cut to it.
        self.prompt_tokens = min(job.prompt_tokens, context)
        self.loaded = submitted
        self.started: float | None = None
        self.prefilled: float | None = None
        self.cached = 0
        self.slot: Slot | None = None
        self.decoding = False
        self.decode_from = 0.0
        self.decode_rate = 0.0

    def loads_only(self, context: int) -> bool:
        """Whether having the model in memory with this context is all that it asks."""
        return self.job.only_loads and self.context == context

    def finished(self, now: float) -> Finished:
        """Return the account of it, as done now."""
        started = now if self.started is None else self.started
        prefilled = now if self.prefilled is None else self.prefilled
        return Finished(
            at=now,
            job=self.job.id,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached,
            output_tokens=self.job.output_tokens,
            load=self.loaded - self.submitted,
            queue=started - self.loaded,
            prefill=prefilled - started,
            decode=now - prefilled,
        )
