"""A fleet in virtual time: clients, devices, their heartbeats, and a router that decides.

Theory of operation. Everything that will happen stands in one heap, ordered by time and then by
when it was planned. Engines tell when they will next have something to say; such an entry is void
if the engine has changed its mind since. Nothing calls back into what is just running: what a
router orders is done at once on the engine, and whatever follows from it comes as a later event,
be it at the same time. The same fleet, workload, router and disturbances give the same run.

The world knows everything and tells a router what a real one would hear: arrivals, first frames of
streams, ends of attempts, and each device's reports. Some policies are allowed to know more; they
look for themselves, at `sites` and at the turns.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from herd.core.fleet import Load, NodeReport
from herd.core.request import Failure, Result, Timings, Usage
from herd.sim import spec as engine
from herd.sim.disturbance import Disturbance
from herd.sim.engines import emulate
from herd.sim.fleets import Fleet
from herd.sim.records import IDLE, Attempt, Ending, Record, Run, Site
from herd.sim.reports import node_report
from herd.sim.spec import Job
from herd.sim.workloads import Arrival, Workload

#: Virtual seconds after which a run that does not end is broken off.
_END = 60 * 86400.0
#: What a device's processors do while its owner works on it, as a share.
_OWNED = 0.9


class Router(Protocol):
    """Decides where requests run. Every method is called at the time `world.now`."""

    #: Seconds between a device's heartbeats; None if it does not want any.
    heartbeat: float | None

    def attach(self, world: World) -> None:
        """Begin: the world and its sites stand, nothing has arrived."""

    def arrive(self, arrival: Arrival) -> None:
        """Take a request."""

    def first_frame(self, request: str, attempt: int) -> None:
        """Note that a streamed answer has begun."""

    def finished(self, request: str, attempt: int, result: Result) -> None:
        """Note that an attempt is done."""

    def failed(self, request: str, attempt: int, failure: Failure, *, began: bool) -> None:
        """Note that an attempt has failed; try again, or `refuse`, or `give_up`."""

    def reported(self, site: Site, report: NodeReport) -> None:
        """Note what a device says of itself: at the start and after changes."""

    def heard(self, site: Site, load: Load) -> None:
        """Note a heartbeat without changes."""

    def gone(self, site: Site, reason: str) -> None:
        """Note that a device's link has ended; its attempts fail after this."""

    def woken(self) -> None:
        """Note that the time last asked for by `world.wake` has come."""

    def load_ended(self, site: Site, model: str, error: str) -> None:
        """Note that a load ordered by `world.load` is over; `error` is empty if it went well."""


class World:
    """One run. `sites`, `now` and the six orders are for the router."""

    def __init__(
        self,
        fleet: Fleet,
        workload: Workload,
        router: Router,
        *,
        disturbances: Iterable[Disturbance] = (),
        latency: float = 0.0,
        cached_told: bool = True,
    ) -> None:
        self.fleet = fleet
        self.router = router
        self.now = 0.0
        self.sites = [Site(index, device) for index, device in enumerate(fleet.devices)]
        #: Open and ended requests by id.
        self.records: dict[str, Record] = {}
        self._workload = workload
        self._disturbances = tuple(disturbances)
        self._latency = latency
        self._cached_told = cached_told
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self._expected = workload.requests
        self._ended = 0
        self._wake: float | None = None
        self._loads = 0
        self._reloads = 0
        #: Loads that the router has ordered, by the id of their job.
        self._ordered: dict[str, tuple[Site, str]] = {}
        self._by_name = {site.name: site for site in self.sites}

    def run(self) -> Run:
        """Let everything happen; raises RuntimeError if the router forgets a request."""
        self.router.attach(self)
        self._plan_all()
        heap = self._heap
        while self._ended < self._expected and heap:
            at, _, do, arguments = heapq.heappop(heap)
            self.now = at
            do(*arguments)
            if at > _END:
                break
        if self._ended < self._expected:
            missing = [record.id for record in self.records.values() if record.ending is None]
            raise RuntimeError(f"the run does not end: {len(missing)} open, such as {missing[:3]}")
        return Run(
            fleet=self.fleet,
            records=list(self.records.values()),
            loads=self._loads,
            reloads=self._reloads,
            end=self.now,
        )

    def site(self, name: str) -> Site:
        """Return a device by its name."""
        return self._by_name[name]

    # Orders

    def send(
        self,
        request: str,
        site: Site,
        *,
        context: int | None = None,
        keep_alive: float | None = None,
        beside: bool = False,
    ) -> int:
        """Send a request to a device; return the attempt's number, from 1.

        `context` and `keep_alive` replace what the client asks of the engine, where the dialect
        has a place for them and the engine takes them. With `beside`, while another of its attempts
        is out: the first to answer wins.
        """
        record = self.records[request]
        if record.ending is not None or (record.attempt is not None) != beside or record.beside:
            raise RuntimeError(f"{request} is not waiting")
        record.attempts += 1
        record.dispatched = self.now
        record.site = site.index
        turn = record.arrival.turn
        known = turn.prefix if turn.cached_as is None else turn.cached_as
        told = turn.request.dialect == "ollama" and site.device.kind.engine == "ollama"
        job = Job(
            id=f"{request}#{record.attempts}",
            model=turn.request.model,
            prompt_tokens=turn.prompt_tokens,
            output_tokens=turn.output_tokens,
            prompt=known.hashes,
            produced=turn.produced,
            block=max(1, known.block),
            context=(context or turn.request.context) if told else None,
            keep_alive=keep_alive if told else None,
        )
        attempt = Attempt(record, record.attempts, site, job)
        if beside:
            record.beside = attempt
        else:
            record.attempt = attempt
        self._soon(self._submit, attempt)
        return record.attempts

    def abort(self, request: str, attempt: int, failure: Failure) -> None:
        """Break off an attempt; `failed` follows. One that is over already is not touched."""
        running = self.records[request].out(attempt)
        if running is not None:
            self._cut(running)
            self._plan(self.now, self._tell_failed, running, failure)

    def cancel(self, request: str, attempt: int) -> None:
        """Stop an attempt and tell nothing. One that is over already is not touched."""
        record = self.records[request]
        running = record.out(attempt)
        if running is not None:
            record.back(running)
            self._cut(running)

    def refuse(self, request: str) -> None:
        """End a request that gets no further attempt."""
        record = self.records[request]
        self._end(record, "failed" if record.attempts else "rejected")

    def load(
        self,
        site: Site,
        model: str,
        *,
        context: int | None = None,
        keep_alive: float | None = None,
    ) -> None:
        """Have a device load a model that no request asks for yet; `load_ended` follows."""
        self._order += 1
        job = Job(id=f"load#{self._order}", model=model, context=context, keep_alive=keep_alive)
        self._ordered[job.id] = site, model
        self._soon(self._load, site, job)

    def unload(self, site: Site, model: str) -> None:
        """Have a device let a model leave memory as soon as it is idle."""
        self._soon(self._unload, site, model)

    def wake(self, at: float) -> None:
        """Call `woken` at this time; replaces the time asked for before."""
        self._wake = at
        self._plan(max(at, self.now), self._woken, at)

    # Clients

    def _plan_all(self) -> None:
        for number, session in enumerate(self._workload.sessions):
            self._plan(session.start, self._arrive, number, 0)
        for number, disturbance in enumerate(self._disturbances):
            site = self._by_name[disturbance.device]
            self._plan(disturbance.at, self._disturb, disturbance, number, site)
            self._plan(disturbance.until, self._restore, disturbance, number, site)
        for site in self.sites:
            self._report(site)
        interval = self.router.heartbeat
        if interval is not None:
            for site in self.sites:
                # Devices do not beat in step.
                first = interval * (site.index + 1) / len(self.sites)
                self._plan(first, self._beat, site, interval)

    def _arrive(self, session: int, number: int) -> None:
        turn = self._workload.sessions[session].turns[number]
        arrival = Arrival(self.now, session, number, turn)
        self.records[turn.request.id] = Record(arrival)
        self.router.arrive(arrival)

    def _end(self, record: Record, ending: Ending) -> None:
        if record.ending is not None:
            raise RuntimeError(f"{record.id} ends twice")
        record.ending, record.ended = ending, self.now
        record.attempt = record.beside = None
        self._ended += 1
        session, number = record.arrival.session, record.arrival.number + 1
        turns = self._workload.sessions[session].turns
        if number < len(turns):
            self._plan(self.now + turns[number].think, self._arrive, session, number)

    # Engines

    def _submit(self, attempt: Attempt) -> None:
        if attempt.over:
            return
        site = attempt.site
        if not site.present:
            failure = Failure(kind="connect", message=f"{site.name} is not there", retryable=True)
            self._soon(self._tell_failed, attempt, failure)
            return
        site.attempts[attempt.job.id] = attempt
        site.engine.submit(attempt.job, self.now)
        self._retime(site)

    def _load(self, site: Site, job: Job) -> None:
        if not site.present:
            self._loaded(job.id, f"{site.name} is not there")
            return
        site.engine.submit(job, self.now)
        self._retime(site)

    def _loaded(self, job: str, error: str) -> None:
        site, model = self._ordered.pop(job)
        site.changed = True
        self._soon(self.router.load_ended, site, model, error)

    def _unload(self, site: Site, model: str) -> None:
        if site.present:
            site.engine.unload(model, self.now)
            self._retime(site)

    def _retime(self, site: Site) -> None:
        due = site.engine.next_due()
        if due != site.due:
            site.due = due
            if due is not None:
                self._plan(max(due, self.now), self._engine_due, site, due)

    def _engine_due(self, site: Site, due: float) -> None:
        if site.due != due:
            return
        site.due = None
        for event in site.engine.advance(self.now):
            self._happened(site, event)
        self._retime(site)

    def _happened(self, site: Site, event: engine.Event) -> None:
        if isinstance(event, engine.Loading):
            self._loads += 1
            site.changed = True
        elif isinstance(event, engine.Loaded | engine.Evicted):
            site.changed = True
            self._reloads += isinstance(event, engine.Evicted) and event.reason == "context"
        elif event.job in self._ordered:
            error = event.reason if isinstance(event, engine.Rejected) else ""
            self._loaded(event.job, error)
        elif (attempt := site.attempts.get(event.job)) is None:
            return
        elif isinstance(event, engine.Started):
            attempt.record.started, attempt.record.cached = event.at, event.cached
        elif isinstance(event, engine.FirstToken):
            self._soon(self._tell_first, attempt)
        elif isinstance(event, engine.Finished):
            del site.attempts[event.job]
            self._soon(self._tell_finished, attempt, event)
        else:
            del site.attempts[event.job]
            failure = Failure(kind="status", message=event.reason, status=503, retryable=True)
            self._soon(self._tell_failed, attempt, failure)

    def _cut(self, attempt: Attempt) -> None:
        attempt.over = True
        if attempt.site.attempts.pop(attempt.job.id, None) is not None:
            attempt.site.engine.cancel(attempt.job.id, self.now)
            self._retime(attempt.site)

    # What the router hears

    def _tell_first(self, attempt: Attempt) -> None:
        record = attempt.record
        if record.out(attempt.number) is not attempt or not record.arrival.request.stream:
            return
        attempt.began = True
        record.first = self.now
        self.router.first_frame(record.id, attempt.number)

    def _tell_finished(self, attempt: Attempt, done: engine.Finished) -> None:
        record = attempt.record
        if record.out(attempt.number) is not attempt:
            return
        record.site = attempt.site.index
        for other in (record.attempt, record.beside):
            if other is not None and other is not attempt:
                self._cut(other)
        self._end(record, "completed")
        result = _result(attempt, done, cached_told=self._cached_told)
        self.router.finished(record.id, attempt.number, result)

    def _tell_failed(self, attempt: Attempt, failure: Failure) -> None:
        record = attempt.record
        if record.out(attempt.number) is not attempt:
            return
        record.back(attempt)
        if attempt.began:
            self._end(record, "failed")
        self.router.failed(record.id, attempt.number, failure, began=attempt.began)

    def _beat(self, site: Site, interval: float) -> None:
        self._plan(self.now + interval, self._beat, site, interval)
        if not site.present:
            return
        if site.changed or site.device.kind.engine == "vllm":
            self._report(site)
        else:
            self.router.heard(site, site.load)

    def _report(self, site: Site) -> None:
        site.changed = False
        report = node_report(site.device, site.engine, site.load)
        if report != site.told:
            site.told = report
            self.router.reported(site, report)
        else:
            self.router.heard(site, site.load)

    def _woken(self, at: float) -> None:
        if self._wake == at:
            self._wake = None
            self.router.woken()

    # Disturbances

    def _disturb(self, disturbance: Disturbance, number: int, site: Site) -> None:
        if disturbance.kind == "leaves":
            self._leave(site)
            return
        site.speeds[number] = disturbance.speed
        if disturbance.kind == "owner":
            site.load, site.changed = Load(cpu=_OWNED), True
        self._throttle(site)

    def _restore(self, disturbance: Disturbance, number: int, site: Site) -> None:
        if disturbance.kind == "leaves":
            site.present = True
            site.engine = emulate(site.device.spec, now=self.now, resident=site.device.resident)
            site.told = None
            self._throttle(site)
            self._report(site)
            return
        site.speeds.pop(number, None)
        if disturbance.kind == "owner":
            site.load, site.changed = Load(cpu=IDLE), True
        self._throttle(site)

    def _throttle(self, site: Site) -> None:
        site.engine.throttle(min(site.speeds.values(), default=1.0), self.now)
        self._retime(site)

    def _leave(self, site: Site) -> None:
        if not site.present:
            return
        site.present = False
        site.due = None
        lost = list(site.attempts.values())
        site.attempts.clear()
        for job in [job for job, (where, _) in self._ordered.items() if where is site]:
            self._loaded(job, "the connection broke")
        self.router.gone(site, "its link ended")
        for attempt in lost:
            failure = Failure(kind="broken", message="the connection broke", retryable=True)
            self._plan(self.now, self._tell_failed, attempt, failure)

    # Time

    def _plan(self, at: float, do: Callable[..., None], *arguments: Any) -> None:
        self._order += 1
        heapq.heappush(self._heap, (at, self._order, do, arguments))

    def _soon(self, do: Callable[..., None], *arguments: Any) -> None:
        """Do it when the word of it has come over the network."""
        self._plan(self.now + self._latency, do, *arguments)


def _result(attempt: Attempt, done: engine.Finished, *, cached_told: bool) -> Result:
    """Return what the gateway would have read from the answer.

    Ollama tells durations in its own dialect alone; vLLM tells none.
    """
    request = attempt.record.arrival.request
    timed = request.dialect == "ollama" and attempt.site.device.kind.engine == "ollama"
    embedding = request.operation == "embedding"
    return Result(
        usage=Usage(
            prompt_tokens=done.prompt_tokens,
            completion_tokens=None if embedding else done.output_tokens,
            cached_tokens=done.cached_tokens if cached_told else None,
        ),
        timings=Timings(
            load=done.load,
            prefill=None if embedding else done.prefill,
            decode=None if embedding else done.decode,
        )
        if timed
        else Timings(),
        finish_reason="stop",
        frames=done.output_tokens,
    )


def run(
    fleet: Fleet,
    workload: Workload,
    router: Router,
    *,
    disturbances: Sequence[Disturbance] = (),
    latency: float = 0.0,
    cached_told: bool = True,
) -> Run:
    """Let one router serve one workload on one fleet."""
    world = World(
        fleet,
        workload,
        router,
        disturbances=disturbances,
        latency=latency,
        cached_told=cached_told,
    )
    return world.run()
