"""How often each model is asked for, learned at the scales of minutes, hours and the week.

Three averages of each model's arrivals: over minutes, over hours, and for each hour of the week.
What is expected next starts at the shortest and returns to the longest, each at its own pace (a
cascade of mean-reverting rates): a burst says much of the next minute and little of the next hour.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from msgspec import Struct, field

from herd.core.priors import ANSWER_TOKENS, Rates

#: Time constants of the two running averages, in seconds. The shorter is about the pause after
#: which a person has gone to do something else, the longer about half a working day.
MINUTES = 300.0
HOURS = 3.0 * 3600.0
#: Time constant of how much work a request is.
WORK = 24.0 * 3600.0
#: Nothing that was seen for less time than this is taken for a lasting rate.
SEEN_LEAST = 900.0
#: Time constant of the pauses between requests, in seconds, and their buckets: powers of two of a
#: second, up to half a year.
PAUSES = 86400.0
PAUSE_BUCKETS = 24
#: Hours in a week, and the weight of the newest week in its hour's mean.
WEEK = 168
WEEK_WEIGHT = 0.3
#: Models that are remembered; beyond that the one not asked for longest is forgotten.
MODELS_MOST = 1000
#: Tokens of a prompt of which nothing is known: as many as of an answer.
PROMPT_TOKENS = ANSWER_TOKENS

_HOUR = 3600.0


class ModelDemand(Struct):
    """What is known of one model, constant in size. Plain values, so that it can be stored."""

    #: First and last arrival.
    since: float
    last: float
    #: Arrivals, decayed over minutes and over hours, and visits over hours, all as of `last`. A
    #: visit is a run of arrivals without a pause as long as `MINUTES`.
    minutes: float = 0.0
    hours: float = 0.0
    visits: float = 0.0
    #: Pauses between arrivals, decayed, by their length: below 1 s, 2 s, 4 s and so on.
    pauses: list[float] = field(default_factory=lambda: [0.0] * PAUSE_BUCKETS)
    #: Prompts' uncached tokens, answers' tokens and their number, decayed, as of `worked`.
    prompts: float = 0.0
    answers: float = 0.0
    works: float = 0.0
    worked: float = 0.0
    #: The hour, counted from 1970, that is under way, and its arrivals.
    hour: int = 0
    here: float = 0.0
    #: Mean arrivals in each hour of the week, and how many such hours are behind it.
    week: list[float] = field(default_factory=lambda: [0.0] * WEEK)
    weeks: list[int] = field(default_factory=lambda: [0] * WEEK)

    def arrived(self, now: float) -> None:
        """Count one arrival."""
        pause = now - self.last
        self._close(now)
        self.minutes = self.minutes * math.exp(-pause / MINUTES) + 1.0
        decay = math.exp(-pause / HOURS)
        self.visits = self.visits * decay + (pause > MINUTES or self.hours == 0.0)
        if self.hours:
            fade = math.exp(-pause / PAUSES)
            self.pauses = [count * fade for count in self.pauses]
            self.pauses[min(PAUSE_BUCKETS - 1, int(pause).bit_length())] += 1.0
        self.hours = self.hours * decay + 1.0
        self.here += 1.0
        self.last = now

    def answered(self, fresh: float, answer: float, now: float) -> None:
        """Count the work of one request: uncached tokens of its prompt, tokens of its answer."""
        decay = math.exp(-max(0.0, now - self.worked) / WORK)
        self.prompts = self.prompts * decay + fresh
        self.answers = self.answers * decay + answer
        self.works = self.works * decay + 1.0
        self.worked = now

    def expected(self, now: float, seconds: float) -> float:
        """Requests in the next so many seconds."""
        self._close(now)
        pause = max(0.0, now - self.last)
        minutes = self.minutes * math.exp(-pause / MINUTES) / MINUTES
        hours = self._hourly(now)
        usual, usual_now = self._usual(now, seconds, hours)
        found = (
            usual
            + (hours - usual_now) * HOURS * -math.expm1(-seconds / HOURS)
            + (minutes - hours) * MINUTES * -math.expm1(-seconds / MINUTES)
        )
        return max(0.0, found)

    def chance(self, now: float, seconds: float) -> float:
        """Probability of at least one request in the next so many seconds.

        As often as pauses ended so soon that had already lasted as long as the present one. The
        fewer of those there were, the more it is as if new visits began at random.
        """
        visit = max(1.0, self.hours / self.visits) if self.visits > 0.0 else 1.0
        begins = -math.expm1(-self.expected(now, seconds) / visit)
        pause = max(0.0, now - self.last)
        lasted, last = self._longer(pause), self._longer(pause + seconds)
        return (lasted - last + begins) / (lasted + 1.0)

    def work(self, rates: Rates) -> float:
        """Seconds that a usual request takes alone on a replica with these rates."""
        # One unknown request counts beside those that are known.
        count = self.works + 1.0
        prompt = (self.prompts + PROMPT_TOKENS) / count
        answer = (self.answers + ANSWER_TOKENS) / count
        return rates.overhead + prompt / rates.prefill + answer / rates.decode

    def _longer(self, pause: float) -> float:
        """How many pauses were longer; within a bucket they are taken to be spread evenly."""
        place = int(pause).bit_length()
        if place >= PAUSE_BUCKETS:
            return 0.0
        end = 2.0**place
        start = end / 2.0 if place else 0.0
        inside = self.pauses[place] * (end - pause) / (end - start)
        return inside + math.fsum(self.pauses[place + 1 :])

    def _hourly(self, now: float) -> float:
        """Arrivals per second over the last hours, as far as they have been watched."""
        watched = max(SEEN_LEAST, now - self.since)
        decayed = self.hours * math.exp(-max(0.0, now - self.last) / HOURS)
        return decayed / (HOURS * -math.expm1(-watched / HOURS))

    def _usual(self, now: float, seconds: float, hours: float) -> tuple[float, float]:
        """Requests that are usual for the hours ahead, and their rate now.

        An hour of the week of which nothing is known is taken to be as the last hours were.
        """
        total, at, first = 0.0, now, -1.0
        end = now + seconds
        # Whole weeks are all the same; nobody plans so far ahead that it matters.
        for _ in range(WEEK):
            slot = int(at // _HOUR) % WEEK
            trust = self.weeks[slot] / (self.weeks[slot] + 1.0)
            rate = trust * self.week[slot] / _HOUR + (1.0 - trust) * hours
            first = rate if first < 0.0 else first
            until = min(end, (at // _HOUR + 1.0) * _HOUR)
            total += rate * (until - at)
            at = until
            if at >= end:
                break
        return total, max(0.0, first)

    def _close(self, now: float) -> None:
        """Put the hours that are over into their places in the week."""
        hour = int(now // _HOUR)
        # Of a longer silence the last week's hours are enough to say that nobody asked.
        for closed in range(max(self.hour, hour - WEEK), hour):
            slot = closed % WEEK
            count = self.here if closed == self.hour else 0.0
            self.weeks[slot] += 1
            self.week[slot] += (count - self.week[slot]) * max(WEEK_WEIGHT, 1.0 / self.weeks[slot])
        if hour > self.hour:
            self.hour, self.here = hour, 0.0


class Demand:
    """The demand for all models, bounded in their number."""

    def __init__(self, known: dict[str, ModelDemand] | None = None) -> None:
        #: By model, the longest unasked first. It may be stored, and handed in again.
        self.models: OrderedDict[str, ModelDemand] = OrderedDict(known or {})

    def arrived(self, model: str, now: float) -> None:
        """Count a request for a model. Count only names that the fleet has."""
        found = self.models.get(model)
        if found is None:
            found = self.models[model] = ModelDemand(
                since=now, last=now, worked=now, hour=int(now // _HOUR)
            )
            if len(self.models) > MODELS_MOST:
                self.models.popitem(last=False)
        self.models.move_to_end(model)
        found.arrived(now)

    def answered(self, model: str, *, fresh: float, answer: float, now: float) -> None:
        """Learn how much work a request was: uncached tokens of its prompt, tokens of its answer.

        Nothing is learned of a model that nobody has asked for.
        """
        found = self.models.get(model)
        if found is not None:
            found.answered(fresh, answer, now)

    def expected(self, model: str, now: float, seconds: float) -> float:
        """Requests for the model in the next so many seconds."""
        found = self.models.get(model)
        return found.expected(now, seconds) if found is not None else 0.0

    def chance(self, model: str, now: float, seconds: float) -> float:
        """Probability that somebody asks for the model in the next so many seconds."""
        found = self.models.get(model)
        return found.chance(now, seconds) if found is not None else 0.0

    def work(self, model: str, rates: Rates) -> float:
        """Seconds that a usual request for the model takes alone on a replica with these rates."""
        found = self.models.get(model) or ModelDemand(since=0.0, last=0.0)
        return found.work(rates)
