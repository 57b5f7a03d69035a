"""The scheduler itself as one of the routers to compare: it hears and does what it would."""

from __future__ import annotations

from herd.core import actions as do
from herd.core import events as ev
from herd.core.fleet import Load, NodeReport, ReplicaKey
from herd.core.request import Failure, Outcome, Result
from herd.core.scheduler import Policy, Scheduler
from herd.sim.records import Site
from herd.sim.workloads import Arrival
from herd.sim.world import World

#: Seconds between an agent's heartbeats, and between its looks at the engines.
HEARTBEAT = 2.0


class HerdRouter:
    """Feeds a scheduler with the world's events and carries its actions out."""

    heartbeat: float | None = HEARTBEAT

    def __init__(self, policy: Policy | None = None) -> None:
        self.scheduler = Scheduler(policy)
        #: What the scheduler wants to be recorded, in its order.
        self.outcomes: list[Outcome] = []
        self._world: World | None = None

    @property
    def world(self) -> World:
        """The world that it is attached to; raises RuntimeError before that."""
        if self._world is None:
            raise RuntimeError("not attached to a world")
        return self._world

    def attach(self, world: World) -> None:
        """Begin."""
        self._world = world

    def arrive(self, arrival: Arrival) -> None:
        """Take a request."""
        self._feed(ev.RequestArrived(arrival.request, arrival.turn.prefix))

    def first_frame(self, request: str, attempt: int) -> None:
        """Pass it on."""
        self._feed(ev.FirstFrame(request, attempt))

    def finished(self, request: str, attempt: int, result: Result) -> None:
        """Pass it on."""
        self._feed(ev.Finished(request, attempt, result))

    def failed(self, request: str, attempt: int, failure: Failure, *, began: bool) -> None:
        """Pass it on."""
        self._feed(ev.Failed(request, attempt, failure, began))

    def reported(self, site: Site, report: NodeReport) -> None:  # noqa: ARG002 - a router's method
        """Pass it on."""
        self._feed(ev.NodeReported(report))

    def heard(self, site: Site, load: Load) -> None:
        """Pass it on."""
        self._feed(ev.NodeHeard(site.name, load))

    def gone(self, site: Site, reason: str) -> None:
        """Pass it on."""
        self._feed(ev.NodeGone(site.name, reason))

    def woken(self) -> None:
        """Pass it on."""
        self._feed(ev.TimerDue())

    def load_ended(self, site: Site, model: str, error: str) -> None:
        """Pass it on."""
        replica = ReplicaKey(site.name, site.device.engine, model)
        self._feed(ev.PreloadEnded(replica, error))

    def _feed(self, event: ev.Event) -> None:
        world = self.world
        for action in self.scheduler.handle(event, world.now):
            match action:
                case do.Dispatch(request=request, target=target, stay=stay, beside=beside):
                    site = world.site(target.replica.node)
                    world.send(
                        request,
                        site,
                        context=stay.context,
                        keep_alive=stay.keep_alive,
                        beside=beside,
                    )
                case do.Preload() | do.Unload():
                    self._order(action)
                case do.Abort(request=request, attempt=attempt, failure=failure):
                    world.abort(request, attempt, failure)
                case do.Cancel(request=request, attempt=attempt):
                    world.cancel(request, attempt)
                case do.SetTimer(at=at):
                    world.wake(at)
                case do.Record(outcome=outcome):
                    self.outcomes.append(outcome)
                    if world.records[outcome.request.id].ending is None:
                        world.refuse(outcome.request.id)
                case do.Hold() | do.Refuse() | do.Release():
                    pass  # a refusal is followed by its record

    def _order(self, order: do.Preload | do.Unload) -> None:
        site, model = self.world.site(order.target.replica.node), order.target.model
        if isinstance(order, do.Unload):
            self.world.unload(site, model)
        else:
            stay = order.stay
            self.world.load(site, model, context=stay.context, keep_alive=stay.keep_alive)
