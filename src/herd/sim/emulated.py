"""What every emulated engine is to those who drive it: jobs in, events out, time as an argument."""

from __future__ import annotations

from abc import ABC, abstractmethod

from herd.sim.spec import EngineSpec, Event, Job, Resident

#: Share of a token that rounding may hide from `tokens`.
ROUNDING = 1e-6


class Engine(ABC):
    """One engine. Every method takes the present time, which must never go back.

    Subclasses say what is due next and what it does; `_run_until` lets it happen in order.
    """

    def __init__(self, spec: EngineSpec, now: float) -> None:
        self.spec = spec
        self._now = now
        self._speed = 1.0
        self._events: list[Event] = []

    @property
    @abstractmethod
    def running(self) -> int:
        """Jobs that are being computed."""

    @property
    @abstractmethod
    def waiting(self) -> int:
        """Jobs that are not yet."""

    @property
    @abstractmethod
    def memory_used(self) -> int:
        """Bytes that models hold, their caches included."""

    @abstractmethod
    def submit(self, job: Job, now: float) -> None:
        """Take a job; what becomes of it is told by later events. Its id must be new."""

    @abstractmethod
    def cancel(self, job_id: str, now: float) -> bool:
        """Drop a job and free its place at once; False if it is not (or no longer) here."""

    @abstractmethod
    def holds(self, model: str) -> bool:
        """Whether a model is in memory or on its way there."""

    @abstractmethod
    def unload(self, model: str, now: float) -> bool:
        """Let a model leave memory as soon as it is idle; False if that cannot be."""

    def throttle(self, speed: float, now: float) -> None:
        """Run prefill and decode at this share of their rates from now on, as heat makes it."""
        if speed <= 0:
            raise ValueError("speed must be positive")
        self._run_until(now)
        self._speed = speed
        self._set_paces()

    def advance(self, now: float) -> list[Event]:
        """Let time pass; return what happened since the last call, in order."""
        self._run_until(now)
        events, self._events = self._events, []
        return events

    def next_due(self) -> float | None:
        """When `advance` will next have something to tell; None while nothing is under way."""
        return self._now if self._events else self._next()[0]

    @abstractmethod
    def tokens(self, job_id: str, now: float) -> int:
        """Tokens that a job has produced by now, up to the next event; 0 for one not here."""

    @abstractmethod
    def residents(self) -> tuple[Resident, ...]:
        """Return the models in memory and on their way there."""

    @abstractmethod
    def shared(self, model: str, prompt: tuple[int, ...], block: int = 1) -> int:
        """Return how many leading blocks of a prompt a job that starts now would find cached."""

    def _run_until(self, now: float) -> None:
        if now < self._now:
            raise ValueError(f"time goes back from {self._now} to {now}")
        while True:
            due, what = self._next()
            if due is None or due > now:
                break
            self._move(max(due, self._now))
            self._fire(what)
        self._move(now)

    @abstractmethod
    def _next(self) -> tuple[float | None, str]:
        """Return the next thing due and its kind; of several at once a finished job comes first."""

    @abstractmethod
    def _move(self, now: float) -> None:
        """Let time pass in which nothing happens."""

    @abstractmethod
    def _fire(self, what: str) -> None:
        """Do what is due."""

    @abstractmethod
    def _set_paces(self) -> None:
        """Set how fast work is done, after the number of jobs or the speed has changed."""


def earliest(*candidates: tuple[float | None, str]) -> tuple[float | None, str]:
    """Return the earliest of things due, of equal ones the one that is named first."""
    best: float | None = None
    what = ""
    for due, kind in candidates:
        if due is not None and (best is None or due < best):
            best, what = due, kind
    return best, what
