"""Answers are expected to be as long as those like them were."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.core import lengths, priors
from herd.core.lengths import AnswerLengths
from herd.core.request import Operation, Request


def request(
    model: str = "m:latest",
    client: str = "ann",
    *,
    operation: Operation = "chat",
    limit: int | None = None,
) -> Request:
    return Request(
        id="a",
        dialect="openai",
        operation=operation,
        endpoint="/v1/chat/completions",
        asked=model,
        model=model,
        client=client,
        max_tokens=limit,
    )


def taught(*tokens: int) -> AnswerLengths:
    known = AnswerLengths()
    for each in tokens:
        known.add(request(), each, 0.0)
    return known


def test_answers_are_expected_to_be_as_long_as_they_were() -> None:
    assert AnswerLengths().expect(request()) == pytest.approx(priors.ANSWER_TOKENS)
    assert taught(*[100, 200, 300] * 30).expect(request()) == pytest.approx(200.0, rel=0.03)


def test_each_client_has_its_own_habits_and_a_new_one_those_of_all() -> None:
    known = AnswerLengths()
    for _ in range(100):
        known.add(request(client="terse"), 20, 0.0)
        known.add(request(client="long"), 800, 0.0)
    assert known.expect(request(client="terse")) == pytest.approx(20.0, rel=0.8)
    assert known.expect(request(client="long")) == pytest.approx(800.0, rel=0.1)
    assert known.expect(request(client="new")) == pytest.approx(410.0, rel=0.1)
    assert known.expect(request(model="new")) == pytest.approx(410.0, rel=0.1)


def test_one_answer_does_not_make_a_habit() -> None:
    known = taught(*[100] * 50)
    known.add(request(client="bob"), 2000, 0.0)
    assert 200.0 < known.expect(request(client="bob")) < 1000.0


def test_lengths_are_kept_apart_by_operation() -> None:
    known = taught(*[10] * 20)
    expected = known.expect(request(operation="completion"))
    assert expected == pytest.approx(priors.ANSWER_TOKENS)


def test_a_clients_limit_bounds_what_is_expected() -> None:
    assert AnswerLengths().expect(request(limit=16)) == pytest.approx(16.0)
    assert AnswerLengths().expect(request(limit=10**400)) == pytest.approx(priors.ANSWER_TOKENS)
    # Half are cut off at the limit.
    known = taught(*[50, 1000] * 50)
    assert known.expect(request(limit=100)) == pytest.approx(75.0, rel=0.05)
    assert known.quantile(request(limit=100), 0.9) == 100.0
    assert known.remaining(request(limit=100), 60) == 40.0


def test_an_embedding_has_no_answer_and_anything_else_at_least_a_token() -> None:
    embedding = request(operation="embedding")
    known = taught(*[0] * 100)
    assert known.expect(embedding) == known.quantile(embedding, 0.9) == 0.0
    assert known.remaining(embedding, 0) == 0.0
    assert known.expect(request()) >= 1.0
    assert known.remaining(request(), 1) >= 1.0


def test_quantiles_of_a_lognormal() -> None:
    chance = random.Random(2)
    known = taught(*(round(chance.lognormvariate(math.log(200), 0.8)) for _ in range(3000)))
    for share, wanted in ((0.1, 72.0), (0.5, 200.0), (0.9, 557.0)):
        assert known.quantile(request(), share) == pytest.approx(wanted, rel=0.15)


def test_what_remains_is_the_mean_of_those_that_are_longer() -> None:
    chance = random.Random(2)
    drawn = [round(chance.lognormvariate(math.log(200), 0.8)) for _ in range(3000)]
    known = taught(*drawn)
    for produced in (0, 200, 600):
        longer = [each - produced for each in drawn if each > produced]
        assert known.remaining(request(), produced) == pytest.approx(
            statistics.fmean(longer), rel=0.15
        )


def test_one_longer_than_all_is_expected_to_go_on_a_while() -> None:
    assert taught(*[100] * 1000).remaining(request(), 100_000) == pytest.approx(25_000.0)


def test_old_answers_are_forgotten_by_time() -> None:
    known = taught(*[100] * 100)
    for _ in range(20):
        known.add(request(), 1000, 10 * lengths.HALF_LIFE)
    assert known.expect(request()) > 900.0


def test_a_change_elsewhere_is_noticed_by_a_client_with_few_answers() -> None:
    known = taught(*[100] * 100)
    known.add(request(client="bob"), 100, 0.0)
    before = known.expect(request(client="bob"))
    for _ in range(100):
        known.add(request(client="ann"), 1000, 0.0)
    assert known.expect(request(client="bob")) > 2 * before


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 100_000)), max_size=60),
    st.integers(1, 5000),
    st.floats(0.0, 1.0),
)
def test_whatever_came_the_answers_make_sense(
    seen: list[tuple[int, int]], limit: int, share: float
) -> None:
    known = AnswerLengths()
    for number, tokens in seen:
        known.add(request(client=str(number)), tokens, 0.0)
    for client in ("0", "none"):
        asked, limited = request(client=client), request(client=client, limit=limit)
        assert 1.0 <= known.expect(limited) <= max(limit, 1.0) + 1e-6
        assert known.expect(limited) <= known.expect(asked) * 1.001 + 1e-6
        assert known.quantile(asked, share) <= known.quantile(asked, min(1.0, share + 0.1))
        assert known.remaining(asked, limit) > 0.0


def test_it_does_not_grow_with_clients_and_survives() -> None:
    known = AnswerLengths()
    for number in range(lengths.SKETCHES + 50):
        known.add(request(client=str(number)), 100 + number % 7, float(number))
    states = known.state()
    assert len(states) == lengths.SKETCHES
    again = AnswerLengths()
    again.restore(states, float(lengths.SKETCHES + 49))
    for client in ("2040", "1"):
        asked = request(client=client)
        assert again.expect(asked) == pytest.approx(known.expect(asked), rel=1e-9)
