"""Who asks and how urgently, from the client's headers to the record, and not to the engine."""

from __future__ import annotations

import pytest

from devtools.testbed import Testbed
from herd.wire.caller import fingerprint
from tests.gateway.bodies import body, each_dialect, each_endpoint, error_text

PATH = "/v1/chat/completions"
WISHES = {
    "Herd-Priority": "low",
    "Herd-Deadline": "20.5",
    "Herd-Session": "s-1",
    "Herd-Client": "anna",
}


@each_endpoint
async def test_wishes_are_recorded_and_stay_with_the_router(bed: Testbed, path: str) -> None:
    engine = await bed.add()
    answer = await bed.ask(path, body(path, stream=False), headers=WISHES)
    assert answer.status == 200
    request = (await bed.only_outcome()).request
    assert (request.priority, request.deadline) == ("low", 20.5)
    assert (request.session, request.client) == ("s-1", "anna@127.0.0.1")
    [traffic] = engine.tap.on(path)
    assert [name for name in traffic.request.headers if name.lower().startswith("herd-")] == []


async def test_fields_of_the_body_count_where_no_header_does(bed: Testbed) -> None:
    await bed.add()
    await bed.ask(PATH, body(PATH, service_tier="flex", prompt_cache_key="s-2"))
    request = (await bed.only_outcome()).request
    assert (request.priority, request.deadline, request.session) == ("low", None, "s-2")


async def test_a_key_is_recorded_as_its_fingerprint(bed: Testbed) -> None:
    await bed.add()
    await bed.ask(PATH, body(PATH), headers={"Authorization": "Bearer sk-secret"})
    request = (await bed.only_outcome()).request
    assert request.client == f"{fingerprint('sk-secret')}@127.0.0.1"


@each_dialect
@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Herd-Priority", "urgent"),
        ("Herd-Deadline", "-1"),
        ("Herd-Session", "x" * 200),
        ("Herd-Client", ""),
    ],
)
async def test_a_wish_that_means_nothing_is_refused_in_the_callers_dialect(
    bed: Testbed, path: str, header: str, value: str
) -> None:
    await bed.add()
    answer = await bed.ask(path, body(path), headers={header: value})
    assert answer.status == 400
    assert error_text(path, answer.json()).startswith(f"{header} must ")
    assert bed.router.recent.total == 0
