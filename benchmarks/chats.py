"""Chat sessions for small real models: who asks what, when, and how long the answers are.

A session's first turn comes at its start, each further one when the turn before has been answered
and its person has thought: closed loop within a session, open loop between them. A turn is asked
with the whole conversation, the answers as the engine gave them, so that a prefix that is still
cached saves work. The true length of an answer is known to the engine alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

#: Words that are one token each, the space before them included; about four bytes a token, as
#: English prose has with its longer words, names and marks.
_TEXT: Final = (
    "the and of to in is it for on with as was at be this have from or by one had not but what all "
    "were when we there can an your which their said if do will each about how up out them then "
    "she many some so these would other into has more her two like him see time could no make than "
    "first been its who now people my made over did down only way find use may water long little "
    "very after words called just where most know get through back much before go good new write "
    "our used me man too any day same right look think also around came come work three word must "
    "because does part even place well such here take why help put years different away again off"
)
WORDS: Final = tuple(_TEXT.split())
#: Tokens that the chat template adds to a message.
TEMPLATE: Final = 5
#: A conversation's longest, which leaves room in a slot's context.
LONGEST: Final = 1300
#: How many people there are; each has a model, habits and a system prompt of its own.
PEOPLE: Final = 12
#: Turns that a session has at most.
TURNS: Final = 6
#: Seconds of reading and typing. People take longer, small models are faster than large ones.
THINK: Final = 2.5


class Turn(Struct, frozen=True, kw_only=True):
    """One question and the length of its answer."""

    text: str
    #: Tokens of the question and of the answer.
    fresh: int
    output: int
    #: Seconds from the end of the turn before.
    think: float


class Session(Struct, frozen=True, kw_only=True):
    """One conversation."""

    #: Seconds from the beginning of the run.
    start: float
    person: str
    model: str
    system: str
    turns: tuple[Turn, ...]


class Rates(Struct, frozen=True):
    """Tokens per second of one model on one device, for one request alone."""

    prefill: float
    decode: float


#: By device, then by model.
Speeds = Mapping[str, Mapping[str, Rates]]


def sessions(
    speeds: Speeds,
    models: Mapping[str, float],
    *,
    seconds: float,
    load: float,
    seed: int,
    turns: int = TURNS,
) -> list[Session]:
    """Return sessions that start within `seconds` and are `load` (0 to 1) of the fleet's capacity.

    `models` gives each model's share of the people. Work counts a conversation's prefix as cached,
    and no request as slowed down by another.
    """
    draw = random.Random(f"chats/{seed}")  # noqa: S311 - an experiment, no secret
    people = _people(draw, models)
    found: list[Session] = []
    while span(speeds, found) < load * seconds:
        person = draw.choice(people)
        found.append(_session(draw, person, draw.uniform(0.0, seconds), turns))
    return sorted(found, key=lambda session: session.start)


def span(speeds: Speeds, found: list[Session]) -> float:
    """Return how many seconds all devices together need for the sessions' work."""
    if not found:
        return 0.0
    alone = [sum(_work(rates, session) for session in found) for rates in speeds.values()]
    return 1.0 / sum(1.0 / seconds for seconds in alone)


class _Person(Struct, frozen=True):
    name: str
    model: str
    system: str
    verbosity: float


def _people(draw: random.Random, models: Mapping[str, float]) -> list[_Person]:
    """Give the models out by their shares, not by lot."""
    names: list[str] = []
    for model, share in models.items():
        names += [model] * round(PEOPLE * share)
    return [
        _Person(
            f"person-{number}",
            model,
            _text(draw, _lognormal(draw, 100, 0.4, 20, 300)),
            draw.lognormvariate(0.0, 0.4),
        )
        for number, model in enumerate(names, 1)
    ]


def _session(draw: random.Random, person: _Person, start: float, most: int) -> Session:
    tokens = len(person.system.split()) + TEMPLATE
    turns: list[Turn] = []
    for number in range(_lognormal(draw, 3, 0.6, 1, most)):
        fresh = _lognormal(draw, 25, 0.9, 3, 250)
        output = _lognormal(draw, 40 * person.verbosity, 0.8, 4, 240)
        tokens += fresh + output + 2 * TEMPLATE
        if tokens > LONGEST:
            break
        think = draw.lognormvariate(math.log(THINK), 0.7) if number else 0.0
        turns.append(Turn(text=_text(draw, fresh), fresh=fresh, output=output, think=think))
    return Session(
        start=start,
        person=person.name,
        model=person.model,
        system=person.system,
        turns=tuple(turns),
    )


def _work(rates: Mapping[str, Rates], session: Session) -> float:
    """Seconds of a session on one device that has nothing else to do."""
    rate = rates[session.model]
    prompt = len(session.system.split()) + TEMPLATE
    prompt += sum(turn.fresh + TEMPLATE for turn in session.turns)
    return prompt / rate.prefill + sum(turn.output for turn in session.turns) / rate.decode


def _lognormal(draw: random.Random, median: float, spread: float, least: float, most: float) -> int:
    return round(min(most, max(least, draw.lognormvariate(math.log(median), spread))))


def _text(draw: random.Random, tokens: int) -> str:
    return " ".join(draw.choices(WORDS, k=tokens))
