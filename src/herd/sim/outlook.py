"""What a device is going to do, by all that is true of it and of the requests on it."""

from __future__ import annotations

from herd.sim.fleets import alone
from herd.sim.push import load_time, model_at, warm
from herd.sim.records import Attempt, Site
from herd.sim.workloads import Turn


class Outlook:
    """A device as the requests that run, and those planned since, will leave it.

    It holds until something begins or ends on the device.
    """

    def __init__(self, site: Site, now: float) -> None:
        self.site = site
        self._running = len(site.attempts)
        #: When each slot that is taken is free, by model, soonest first.
        self._busy: dict[str, list[float]] = {}
        for attempt in site.attempts.values():
            end = now + self._left(attempt, now)
            self._busy.setdefault(attempt.job.model, []).append(end)
        for ends in self._busy.values():
            ends.sort()

    def cost(self, turn: Turn, now: float) -> float:
        """Seconds until the turn would be done, and those it would cost the ones that run."""
        wait = self._wait(turn, now)
        # Whoever waits for a slot takes the place of the one that leaves it.
        beside = self._running if wait <= 0.0 else max(0, self._running - 1)
        own = self._own(turn, beside)
        harm = 0.0
        if beside and wait <= 0.0:
            lefts = (max(0.0, end - now) for ends in self._busy.values() for end in ends)
            harm = self._share(beside + 1) / self._share(beside) - 1.0
            harm *= sum(min(left, own) for left in lefts)
        return wait + own + harm

    def take(self, turn: Turn, now: float) -> bool:
        """Give the turn its place; return whether it is free now."""
        wait = self._wait(turn, now)
        beside = self._running if wait <= 0.0 else max(0, self._running - 1)
        own = self._own(turn, beside)
        busy = self._busy.setdefault(turn.request.model, [])
        if len(busy) >= self.site.device.spec.slots:
            del busy[0]
        busy.append(now + wait + own)
        busy.sort()
        if wait > 0.0:
            return False
        self._running += 1
        return True

    def _wait(self, turn: Turn, now: float) -> float:
        """Seconds until a slot is free, or until memory for the model is."""
        model = turn.request.model
        busy = self._busy.get(model, [])
        if len(busy) >= self.site.device.spec.slots:
            return max(0.0, busy[0] - now)
        if busy or warm(self.site, model):
            return 0.0
        short = self._short(model)
        ends: list[tuple[float, int]] = []
        for name, size in self._residents():
            if theirs := self._busy.get(name):
                ends.append((max(theirs), size))
            else:
                short -= size
        wait = 0.0
        for end, size in sorted(ends):
            if short <= 0.0:
                break
            wait, short = max(0.0, end - now), short - size
        return wait

    def _own(self, turn: Turn, beside: int) -> float:
        """Seconds of load, what evicting others costs, prefill and decode."""
        site = self.site
        model = model_at(site, turn.request.model)
        cached = self._cached(turn, model.name)
        fresh = max(1, turn.prompt_tokens - cached)
        prefill = alone(site.device, model, fresh, 0.0)
        decode = alone(site.device, model, 0.0, turn.output_tokens)
        load = 0.0
        if model.name not in self._busy:
            load = load_time(site, model.name)
            if load > 0.0:
                load += self._reloads(model.name)
        return load + prefill + self._share(beside + 1) * decode

    def _cached(self, turn: Turn, model: str) -> int:
        prefix = turn.prefix
        return self.site.engine.shared(model, prefix.hashes, max(1, prefix.block)) * prefix.block

    def _reloads(self, model: str) -> float:
        """Seconds of loading again what has to leave."""
        short, seconds = self._short(model), 0.0
        for name, size in self._residents():
            if short <= 0.0:
                break
            seconds += model_at(self.site, name).weight_bytes / self.site.device.spec.load_rate
            short -= size
        return seconds

    def _short(self, model: str) -> int:
        spec = self.site.device.spec
        need = model_at(self.site, model).memory(spec.default_context, spec.slots)
        return self.site.engine.memory_used + need - spec.memory_bytes

    def _residents(self) -> list[tuple[str, int]]:
        return [(each.model, each.memory_bytes) for each in self.site.engine.residents()]

    def _share(self, running: int) -> float:
        return 1.0 / self.site.device.spec.share(running)

    def _left(self, attempt: Attempt, now: float) -> float:
        """Seconds until an attempt ends, at the present concurrency."""
        site, job, record = self.site, attempt.job, attempt.record
        model = model_at(site, job.model)
        share = self._share(self._running)
        done = site.engine.tokens(job.id, now)
        if done:
            return share * alone(site.device, model, 0.0, job.output_tokens - done + 1)
        decode = share * alone(site.device, model, 0.0, job.output_tokens)
        prefill = alone(site.device, model, max(1, job.prompt_tokens - record.cached), 0.0)
        if record.started is None or record.started < (record.dispatched or 0.0):
            return model.weight_bytes / site.device.spec.load_rate + prefill + decode
        return max(0.0, prefill - (now - record.started)) + decode
