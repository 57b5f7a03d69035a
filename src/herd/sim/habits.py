"""Clients whose settings differ: each names the context that it was set up with, or none.

Ollama reloads a model whenever a request names another context than it is loaded with, so such
clients throw one another's models out of memory, unless the router names one context for all.
"""

from __future__ import annotations

import random

from msgspec import structs

from herd.sim.workloads import Session, Turn, Workload

#: What clients name as `num_ctx`: nothing; a chat front end's small default; one that its owner
#: has set for long chats; an agent that was told to be generous. Examples, equally frequent.
CONTEXTS = (None, 2048, 8192, 32768)


def with_contexts(workload: Workload, *, seed: int) -> Workload:
    """Return the same requests, with each client's habit in those whose dialect has a place."""
    return Workload(
        f"{workload.name}+contexts",
        tuple(
            Session(session.start, tuple(_named(turn, seed) for turn in session.turns))
            for session in workload.sessions
        ),
    )


def _named(turn: Turn, seed: int) -> Turn:
    request = turn.request
    if request.dialect != "ollama":
        return turn
    draw = random.Random(f"habit/{seed}/{request.client}")  # noqa: S311 - an experiment, no secret
    request = structs.replace(request, context=draw.choice(CONTEXTS))
    return structs.replace(turn, request=request)
