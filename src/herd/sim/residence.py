"""The memory of an emulated device: models in it, their slots, who must leave for whom."""

from __future__ import annotations

from collections.abc import Iterator

from herd.sim.spec import ModelSpec, Resident


class Slot:
    """A place for one running job, with the last prompt still in its cache."""

    def __init__(self) -> None:
        self.busy = False
        self.used = 0.0
        self._cache: tuple[int, ...] = ()

    def shared(self, prompt: tuple[int, ...]) -> int:
        """Return how many leading blocks of a prompt are in the cache."""
        cache = self._cache
        if not cache or not prompt or cache[0] != prompt[0]:
            return 0
        low, high = 1, min(len(cache), len(prompt))
        while low < high:  # comparing slices is C, comparing blocks one by one would be Python
            middle = (low + high + 1) // 2
            if cache[low:middle] == prompt[low:middle]:
                low = middle
            else:
                high = middle - 1
        return low

    def take(self, prompt: tuple[int, ...]) -> None:
        """Begin a job: its prompt replaces what the cache held."""
        self.busy = True
        self._cache = prompt

    def keep(self, context: tuple[int, ...]) -> None:
        """Remember prompt and answer for the conversation's next turn."""
        self._cache = context

    def release(self, now: float) -> None:
        """Be free again."""
        self.busy = False
        self.used = now


class Replica:
    """A model in memory, or on its way there."""

    def __init__(
        self, model: ModelSpec, context: int, slots: int, *, now: float, keep_alive: float
    ) -> None:
        self.model = model
        self.context = context
        self.memory_bytes = model.memory(context, slots)
        self.slots = [Slot() for _ in range(slots)]
        self.loading = True
        self.running = 0
        #: End of its last job, or of its loading.
        self.used = now
        self.keep_alive = keep_alive
        #: It must make room: jobs that came after this one are not for it any more.
        self.last_arrival: int | None = None

    def ready(self, context: int) -> bool:
        """Whether a job that wants this context could run without a load."""
        return not self.loading and self.context == context

    def admits(self, arrival: int) -> bool:
        """Whether the job of that number may still start before the model makes room."""
        return self.last_arrival is None or arrival <= self.last_arrival

    def free_slot(self, prompt: tuple[int, ...]) -> Slot | None:
        """Return the free slot that shares most with the prompt, else the longest unused."""
        best: Slot | None = None
        rank = (-1, 0.0)  # below any slot's
        for slot in self.slots:
            if not slot.busy:
                mine = (slot.shared(prompt), -slot.used)
                if mine > rank:
                    best, rank = slot, mine
        return best

    @property
    def expires(self) -> float | None:
        """When it leaves if nobody asks for it; None while busy, or for ever."""
        if self.loading or self.running or self.keep_alive < 0:
            return None
        return self.used + self.keep_alive

    def snapshot(self, waiting: int) -> Resident:
        """Return what an engine tells about it."""
        return Resident(
            model=self.model.name,
            context=self.context,
            memory_bytes=self.memory_bytes,
            loading=self.loading,
            running=self.running,
            waiting=waiting,
            expires=self.expires,
            keep_alive=self.keep_alive,
        )


class Memory:
    """All replicas of a device, within its bytes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.used = 0
        self._replicas: dict[str, Replica] = {}

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._replicas.values())

    def __getitem__(self, model: str) -> Replica:
        return self._replicas[model]

    def get(self, model: str) -> Replica | None:
        """Return the replica of a model, or None."""
        return self._replicas.get(model)

    def place(
        self, model: ModelSpec, context: int, slots: int, *, now: float, keep_alive: float
    ) -> Replica:
        """Take memory for a model; raises ValueError if there is not enough."""
        replica = Replica(model, context, slots, now=now, keep_alive=keep_alive)
        if self.used + replica.memory_bytes > self.size:
            raise ValueError(f"{model.name} does not fit into memory")
        self.used += replica.memory_bytes
        self._replicas[model.name] = replica
        return replica

    def remove(self, replica: Replica) -> None:
        """Give the memory of a replica back."""
        del self._replicas[replica.model.name]
        self.used -= replica.memory_bytes

    def make_room(self, need: int, arrivals: int) -> list[Replica] | None:
        """Return the idle models to evict so that `need` bytes are free.

        None if that is not possible yet: then the busy ones that will have to go take none of the
        jobs that come after the present number of arrivals.
        """
        free = self.size - self.used
        victims: list[Replica] = []
        for replica in self._by_use(busy=False):
            if free >= need:
                break
            victims.append(replica)
            free += replica.memory_bytes
        if free >= need:
            return victims
        for replica in self._by_use(busy=True):
            if free >= need:
                break
            if replica.last_arrival is None:
                replica.last_arrival = arrivals
            free += replica.memory_bytes
        return None

    def reopened(self) -> list[Replica]:
        """Lift every `make_room` restriction; return the replicas that had one."""
        closed = [replica for replica in self if replica.last_arrival is not None]
        for replica in closed:
            replica.last_arrival = None
        return closed

    def next_expiry(self) -> float | None:
        """When the first idle model has stayed its time."""
        return min((at for each in self if (at := each.expires) is not None), default=None)

    def first_expired(self) -> Replica:
        """Return the model that `next_expiry` speaks of."""
        expiring = [(at, each) for each in self if (at := each.expires) is not None]
        return min(expiring, key=lambda pair: pair[0])[1]

    def _by_use(self, *, busy: bool) -> list[Replica]:
        chosen = [each for each in self if not each.loading and bool(each.running) == busy]
        return sorted(chosen, key=lambda each: each.used)
