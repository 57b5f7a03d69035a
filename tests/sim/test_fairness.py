"""What a person waits beside a script, in virtual time."""

from __future__ import annotations

import pytest

from herd.core.request import Prefix, Request
from herd.sim.fleets import Fleet, fleet
from herd.sim.herd_router import HerdRouter
from herd.sim.records import Record
from herd.sim.workloads import Session, Turn, Workload
from herd.sim.world import World

CHAT = "llama3.1:8b"
#: Tokens of every answer.
ANSWER = 200


def ask(name: str, client: str, at: float, *, model: str = CHAT) -> Session:
    request = Request(
        id=name,
        dialect="ollama",
        operation="chat",
        endpoint="/api/chat",
        asked=model,
        model=model,
        stream=True,
        needs=frozenset({"completion"}),
        kinds=frozenset({"ollama"}),
        prompt_tokens=300,
        client=client,
        patience=1e6,
    )
    turn = Turn(
        request=request, prefix=Prefix(), think=0.0, prompt_tokens=300, output_tokens=ANSWER
    )
    return Session(at, (turn,))


def play(devices: Fleet, *sessions: Session) -> dict[str, Record]:
    work = Workload("fair", tuple(sorted(sessions, key=lambda session: session.start)))
    run = World(devices, work, HerdRouter()).run()
    assert all(record.ending == "completed" for record in run.records)
    return {record.id: record for record in run.records}


def service(record: Record) -> float:
    assert record.ended is not None
    assert record.started is not None
    return record.ended - record.started


@pytest.mark.parametrize("name", ["one", "two", "five"])
def test_a_person_waits_two_service_times_at_most_beside_a_script_of_500(name: str) -> None:
    devices = fleet(name, 1)
    script = [ask(f"script{number}", "script", 0.001 * number) for number in range(500)]
    # Long after the model was loaded, in the middle of the script's work.
    people = [ask(f"person{number}", f"person{number}", 100.0 + 60.0 * number) for number in (0, 1)]

    found = play(devices, *script, *people)

    longest = max(service(record) for record in found.values() if record.started)
    for number in (0, 1):
        person = found[f"person{number}"]
        assert person.started is not None
        waited = person.started - person.arrival.at
        assert waited <= 2.0 * longest
        # And it was a wait, beside hundreds: the script went on being served.
        assert sum((other.started or 0.0) > person.started for other in found.values()) > 100


def test_two_scripts_share_a_device_by_halves() -> None:
    one = [ask(f"one{number}", "one", 0.0) for number in range(60)]
    other = [ask(f"other{number}", "other", 1.0) for number in range(60)]

    found = play(fleet("one", 1), *one, *other)

    ended = sorted(found.values(), key=lambda record: record.ended or 0.0)
    half = [record.arrival.request.client for record in ended[:60]]
    assert abs(half.count("one") - half.count("other")) <= 4
