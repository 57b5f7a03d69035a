from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from herd.core.request import Outcome, Result, Usage
from herd.store import outcomes
from herd.store.outcomes import Summary
from herd.store.reader import Reader, Total
from herd.store.schema import StoreError, connect_writer
from herd.store.writer import Pace, Writer

Make = Callable[..., Outcome]
Keep = Callable[..., None]


@pytest.fixture
def reader(prepared: Path) -> Iterator[Reader]:
    with contextlib.closing(Reader(prepared)) as reader:
        yield reader


@pytest.fixture
def keep(prepared: Path) -> Keep:
    """Write outcomes at once."""

    def write(*kept: Outcome) -> None:
        with contextlib.closing(connect_writer(prepared)) as connection:
            outcomes.insert(connection, map(outcomes.to_row, kept))

    return write


def _ids(page: list[Summary]) -> list[str]:
    return [summary.id for summary in page]


def test_get_returns_the_outcome_that_was_put(reader: Reader, keep: Keep, make: Make) -> None:
    keep(*(made := [make(1), make(2, ending="failed"), make(3, ending="rejected")]))

    assert [reader.get(f"r{n}") for n in (1, 2, 3)] == made


def test_get_of_an_unknown_request_is_none(reader: Reader) -> None:
    assert reader.get("r1") is None


def test_since_returns_what_ended_from_then_on_as_it_arrived(
    reader: Reader, keep: Keep, make: Make
) -> None:
    made = [make(1), make(2, ending="failed"), make(3)]
    keep(*reversed(made))

    assert reader.since(made[0].ended) == made
    assert reader.since(made[1].ended) == made[1:]
    assert reader.since(made[2].ended + 1.0) == []


def test_recent_is_newest_first_and_has_every_column(
    reader: Reader, keep: Keep, make: Make
) -> None:
    keep(make(1), make(2, ending="rejected"))

    newest, oldest = reader.recent(10)

    assert oldest == Summary(
        seq=1,
        id="r1",
        arrived=1.0,
        ended=3.0,
        ending="completed",
        dialect="openai",
        operation="chat",
        endpoint="/v1/chat/completions",
        model="llama3.2:3b",
        asked="LLAMA3.2:3B",
        client="10.0.0.7",
        stream=True,
        node="mini",
        engine="ollama-11434",
        attempts=1,
        retries=0,
        dispatched=1.5,
        first_frame=2.0,
        waited=0.5,
        prompt_tokens=310,
        completion_tokens=40,
        cached_tokens=200,
        finish_reason="stop",
        predicted=1.25,
        error="",
    )
    assert (newest.id, newest.error) == ("r2", "1000 requests wait already")
    assert (newest.node, newest.dispatched, newest.prompt_tokens) == ("", None, None)


def test_pages_have_every_outcome_once_though_new_ones_come(
    reader: Reader, keep: Keep, make: Make
) -> None:
    keep(*(make(n) for n in range(25)))
    seen: list[str] = []
    page = reader.recent(10)
    while page:
        seen += _ids(page)
        keep(make(100 + len(seen)))
        page = reader.recent(10, before=page[-1].seq)

    assert seen == [f"r{n}" for n in reversed(range(25))]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_page_of_nothing_is_empty(reader: Reader, keep: Keep, make: Make, limit: int) -> None:
    keep(make(1))

    assert reader.recent(limit) == []


def test_recent_filters_by_each_column_and_by_all_at_once(
    reader: Reader, keep: Keep, make: Make
) -> None:
    keep(
        make(1),
        make(2, model="qwen3:8b"),
        make(3, node="studio"),
        make(4, ending="failed"),
        make(5, client="laptop"),
        make(6, model="qwen3:8b", node="studio", ending="failed", client="laptop"),
    )

    assert _ids(reader.recent(10, model="qwen3:8b")) == ["r6", "r2"]
    assert _ids(reader.recent(10, node="studio")) == ["r6", "r3"]
    assert _ids(reader.recent(10, ending="failed")) == ["r6", "r4"]
    assert _ids(reader.recent(10, client="laptop")) == ["r6", "r5"]
    both = reader.recent(10, model="qwen3:8b", node="studio", ending="failed", client="laptop")
    assert _ids(both) == ["r6"]
    assert _ids(reader.recent(10, before=6, model="qwen3:8b")) == ["r2"]


def test_a_filter_is_a_value_and_never_sql(reader: Reader, keep: Keep, make: Make) -> None:
    keep(make(1), make(2, model="x' OR 1=1 --"))

    assert _ids(reader.recent(10, model="x' OR 1=1 --")) == ["r2"]


def test_counts_have_every_ending_from_a_time_on(reader: Reader, keep: Keep, make: Make) -> None:
    keep(make(1), make(10), make(11), make(12, ending="failed"), make(13, ending="rejected"))

    assert reader.counts(since=12.0) == {
        "completed": 2,
        "failed": 1,
        "cancelled": 0,
        "rejected": 1,
    }


def test_totals_are_by_model_and_node_from_a_time_on(
    reader: Reader, keep: Keep, make: Make
) -> None:
    keep(
        make(1),
        make(10),
        make(11, ended=17.0),
        make(12, ending="failed"),
        make(13, node="studio"),
        make(14, ending="rejected"),
    )

    assert reader.totals(since=12.0) == [
        Total(
            model="llama3.2:3b",
            node="",
            requests=1,
            failures=0,
            prompt_tokens=0,
            completion_tokens=0,
            mean_wait=2.0,
            mean_duration=None,
        ),
        Total(
            model="llama3.2:3b",
            node="mini",
            requests=3,
            failures=1,
            prompt_tokens=620,
            completion_tokens=80,
            mean_wait=0.5,
            mean_duration=4.0,
        ),
        Total(
            model="llama3.2:3b",
            node="studio",
            requests=1,
            failures=0,
            prompt_tokens=310,
            completion_tokens=40,
            mean_wait=0.5,
            mean_duration=2.0,
        ),
    ]


def test_absurd_counts_do_not_break_the_totals(reader: Reader, keep: Keep, make: Make) -> None:
    absurd = Result(usage=Usage(prompt_tokens=2**70, completion_tokens=1))
    keep(make(1, result=absurd), make(2, result=absurd))

    (total,) = reader.totals(since=0.0)

    assert (total.prompt_tokens, total.completion_tokens) == (2**63 - 1, 2)


@pytest.mark.parametrize(
    ("given", "index"),
    [
        ({"model": "m"}, "outcomes_by_model"),
        ({"node": "n"}, "outcomes_by_node"),
        ({"ending": "failed"}, "outcomes_by_ending"),
        ({"client": "c"}, "outcomes_by_client"),
    ],
)
def test_a_filtered_page_is_found_by_an_index_and_not_sorted(
    reader: Reader, prepared: Path, given: dict[str, str], index: str
) -> None:
    asked: list[str] = []
    with contextlib.closing(connect_writer(prepared)) as connection:
        reader._idle.append(connection)
        connection.set_trace_callback(asked.append)
        reader.recent(10, before=100, **given)  # type: ignore[arg-type]
        connection.set_trace_callback(None)
        steps = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {asked[0]}")]
        reader._idle.clear()

    assert len(steps) == 1
    assert f"USING INDEX {index}" in steps[0]


def test_a_spoilt_row_is_an_error_that_says_so(
    reader: Reader, prepared: Path, keep: Keep, make: Make
) -> None:
    keep(make(1))
    with contextlib.closing(connect_writer(prepared)) as connection:
        connection.execute("UPDATE outcomes SET ending = 'eaten', record = '{}'")

    with pytest.raises(StoreError, match="row of the store cannot be read"):
        reader.recent(1)
    with pytest.raises(StoreError, match="record of an outcome cannot be read"):
        reader.get("r1")


def test_a_missing_file_is_an_error_that_names_it(path: Path) -> None:
    with pytest.raises(StoreError, match=r"herd\.db cannot be used: unable to open"):
        Reader(path).recent(1)


def test_reading_goes_on_while_another_process_writes(
    reader: Reader, prepared: Path, keep: Keep, make: Make
) -> None:
    keep(make(1))
    with contextlib.closing(sqlite3.connect(prepared, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("DELETE FROM outcomes")

        assert reader.get("r1") == make(1)


def test_a_closed_reader_says_so(reader: Reader) -> None:
    reader.recent(1)
    reader.close()

    with pytest.raises(StoreError, match="is closed"):
        reader.recent(1)


def test_many_threads_read_whole_outcomes_while_one_writes(prepared: Path, make: Make) -> None:
    writer = Writer(prepared, pace=Pace(interval=0.001, batch=7), clock=lambda: 0.0)
    reader = Reader(prepared)
    ended = threading.Event()
    faults: list[str] = []
    reads = [0, 0, 0]

    def read(which: int) -> None:
        while not ended.is_set():
            page = reader.recent(50)
            sequence = [summary.seq for summary in page]
            if sequence != sorted(sequence, reverse=True):
                faults.append(f"not in order: {sequence}")
            if page and reader.get(page[0].id) != make(int(page[0].id[1:])):
                faults.append(f"{page[0].id} is not what was put")
            if reader.counts(0.0)["completed"] < len(page):
                faults.append("fewer than seen before")
            reads[which] += 1

    threads = [threading.Thread(target=read, args=(which,)) for which in range(3)]
    for thread in threads:
        thread.start()
    for n in range(2000):
        writer.put(make(n))
    flushed = writer.flush(30)
    ended.set()
    for thread in threads:
        thread.join(10)

    assert flushed
    assert faults == []
    assert all(reads)
    assert reader.counts(0.0)["completed"] == 2000
    reader.close()
    writer.close()


def test_only_a_few_connections_stay_open_after_many_at_once(reader: Reader) -> None:
    with contextlib.ExitStack() as stack:
        at_once = {id(stack.enter_context(reader._connection())) for _ in range(10)}

    assert len(at_once) == 10
    assert len(reader._idle) == 4


def test_a_question_takes_a_connection_that_is_open(reader: Reader) -> None:
    for _ in range(5):
        reader.recent(1)

    assert len(reader._idle) == 1


def test_a_connection_in_use_is_closed_when_its_question_is_answered(reader: Reader) -> None:
    with reader._connection() as connection:
        reader.close()
        assert connection.execute("SELECT 1").fetchone() == (1,)

    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_closing_leaves_no_file_open_whichever_threads_asked(
    reader: Reader, prepared: Path
) -> None:
    threads = [threading.Thread(target=reader.recent, args=(1,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _open_files(prepared) > 0

    reader.close()

    assert _open_files(prepared) == 0


def _open_files(path: Path) -> int:
    targets = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            targets.append(str(descriptor.readlink()))
    return targets.count(str(path))
