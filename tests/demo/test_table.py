"""What the demo's tables say of outcomes."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from demo.questions import Question, Reply
from demo.table import Row, answers_table, most_telling, signals_table, summary
from herd.core.decision import Decision, Estimate, Exclusion, Signals
from herd.core.fleet import ReplicaKey
from herd.core.request import Attempt, Outcome, Request, Result, Usage

NAMES = {"a": "attic", "b": "study"}


def key(node: str) -> ReplicaKey:
    return ReplicaKey(node, "engine", "tiny:1b")


def decision(chosen: str, **signals: Signals) -> Decision:
    estimates = [
        Estimate(replica=key(node), signals=found, total=found.total)
        for node, found in signals.items()
    ]
    return Decision(
        at=1.0, chosen=key(chosen), estimates=tuple(estimates), reason="it is the fastest"
    )


def row(
    text: str = "Why?", *, node: str = "attic", waited: float = 0.0, why: Decision | None = None
) -> Row:
    """A question that was answered in two seconds; one was predicted."""
    request = Request(
        id="req_1", dialect="openai", operation="chat", endpoint="/v1", asked="m", model="m"
    )
    start = 10.0 + waited
    outcome = Outcome(
        request=request,
        ending="completed",
        arrived=10.0,
        ended=start + 2.0,
        dispatched=start,
        attempts=(
            Attempt(number=1, replica=key("a"), started=start, ended=start + 2.0, predicted=1.0),
        ),
        decision=why,
        result=Result(usage=Usage(completion_tokens=17)),
    )
    reply = Reply(request="req_1", node=node, text="Because.", first=0.25)
    return Row(Question(text, "m", "openai", stream=True), reply, asked=True, outcome=outcome)


def shown(table: Table, width: int = 100) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def line_with(text: str, lines: list[str]) -> list[str]:
    (line,) = [line for line in lines if text in line]
    return line.split()


def test_answered_question_is_a_line_with_its_figures() -> None:
    lines = shown(answers_table([row(waited=1.5)]))

    assert line_with("Why?", lines) == [
        "Why?",
        "openai",
        "stream",
        "attic",
        "1.50",
        "0.25",
        "17",
        "1.00",
        "2.00",
    ]


def test_every_question_stays_one_line_on_a_narrow_terminal() -> None:
    rows = [row("A question that is far too long for a terminal that is this narrow")] * 3
    lines = [line for line in shown(answers_table(rows), width=80) if "attic" in line]

    assert len(lines) == 3
    assert all(line.endswith("2.00") and "…" in line for line in lines)


def test_failed_question_is_marked() -> None:
    failed = Row(Question("Why?", "m", "ollama", stream=False), asked=True, error="no such model")

    assert line_with("Why?", shown(answers_table([failed]))) == ["Why?", "ollama", "failed"]


def test_signals_of_all_candidates_are_shown_best_first_and_the_chosen_one_marked() -> None:
    why = decision("b", a=Signals(queue=2.0, speed=1.0), b=Signals(residency=0.5, speed=1.25))
    lines = shown(signals_table(why, NAMES))

    assert line_with("study", lines) == [
        ">",
        "study",
        "0.50",
        "-",
        "-",
        "1.25",
        "-",
        "-",
        "-",
        "1.75",
    ]
    assert line_with("attic", lines) == ["attic", "-", "-", "2.00", "1.00", "-", "-", "-", "3.00"]
    assert lines.index(next(line for line in lines if "study" in line)) < len(lines) - 2


def test_candidate_that_cannot_serve_is_shown_as_such() -> None:
    excluded = Estimate(replica=key("a"), excluded=Exclusion("too_big", "too big"))
    why = Decision(at=1.0, chosen=key("b"), estimates=(excluded,), reason="")

    assert line_with("attic", shown(signals_table(why, NAMES))) == ["attic", "cannot"]


def test_summary_counts_nodes_waits_and_errors_of_prediction() -> None:
    failed = Row(Question("Why?", "m", "ollama", stream=False), asked=True, error="broken")
    lines = summary([row(), row(waited=1.5), row(node="study"), failed])

    assert lines[0] == "3 of 4 answered: attic 2, study 1."
    assert lines[1].startswith("1 waited in the router for a free slot, up to 1.5 s")
    assert "50% off" in lines[2]


def test_most_telling_decision_weighed_most_kinds_of_signals() -> None:
    plain = row("plain", why=decision("a", a=Signals(speed=1.0), b=Signals(speed=9.0)))
    rich = row("rich", why=decision("a", a=Signals(speed=1.0), b=Signals(residency=1.0)))

    assert most_telling([plain, rich, plain]) is rich


@pytest.mark.parametrize("rows", [[], [row()]])
def test_without_decisions_there_is_nothing_to_tell(rows: list[Row]) -> None:
    assert most_telling(rows) is None
