"""What the scheduler tells placement and the context plan, and asks of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from herd.core import inventory
from herd.core.actions import Action, Preload, Stay, Unload
from herd.core.contexts import ContextPlan, carries
from herd.core.demand import Demand
from herd.core.request import Request, Result
from herd.core.residents import Residents
from herd.core.state import NodeState, ReplicaState

#: Seconds between two looks at what is in memory.
PLAN_EVERY: Final = 5.0


class Keeper:
    """Demand, residents and contexts of a fleet. `plan` and `place` say which of them take part."""

    def __init__(
        self, pins: Mapping[str, Collection[str]], *, plan: bool = True, place: bool = True
    ) -> None:
        self.demand = Demand()
        self.contexts = ContextPlan()
        self.residents = Residents(self.demand, pins)
        self._plan = plan
        self._place = place

    def arrived(self, request: Request, now: float) -> None:
        """Count a request for a model that the fleet has."""
        self.demand.arrived(request.model, now)
        self.contexts.arrived(request, carries=carries(request))

    def finished(self, request: Request, result: Result, cached: float, now: float) -> None:
        """Learn what a completed request needed; `cached` where the engine does not tell it."""
        prompt, answer = result.usage.prompt_tokens, result.usage.completion_tokens or 0
        if prompt is None:
            return
        told = result.usage.cached_tokens
        fresh = max(0.0, prompt - (cached if told is None else told))
        self.demand.answered(request.model, fresh=fresh, answer=answer, now=now)
        self.contexts.finished(request, prompt, answer, now)

    def reported(self, node: NodeState) -> None:
        """Look at a node's newest report."""
        node.residents = self.residents if self._place else None
        if self._place or self._plan:
            node.contexts = self.contexts
            for replica in node.replicas.values():
                self.contexts.reported(replica)

    def stay(self, request: Request, replica: ReplicaState, now: float) -> Stay:
        """What an attempt is to say of the model's stay in memory."""
        context = None
        if replica.node.contexts is not None:
            context = self.contexts.context_for(request, replica, now, carries=carries(request))
            self.contexts.dispatched(replica, context)
        return Stay(
            context=context if self._plan else None,
            keep_alive=self.residents.keep_alive(replica.key, now) if self._place else None,
        )

    def look(
        self, nodes: Mapping[str, NodeState], waiting: Collection[str], now: float
    ) -> list[Action]:
        """Order loads and unloads; their replicas are noted as loading, or as gone."""
        devices = inventory.survey(nodes.values(), self.demand, self.contexts, waiting, now)
        orders = self.residents.plan(devices, now)
        if not orders:
            return []
        replicas = {key: each for node in nodes.values() for key, each in node.replicas.items()}
        found = inventory.actions(orders, replicas, self.residents, self.contexts, now)
        for action in found:
            if isinstance(action, Unload):
                replicas[action.target.replica].evicted()
            elif isinstance(action, Preload):
                replica = replicas[action.target.replica]
                replica.loading_until = now + replica.learning.rates.load
                self.contexts.dispatched(replica, action.stay.context)
        return found
