"""Answers are read alike however their bytes are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.framing import Answer

SIZED = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 11\r\n\r\nhello world"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nhello \r\n5\r\nwo\r\nd\r\n0\r\n\r\n"
)


@pytest.mark.parametrize(("text", "body"), [(SIZED, b"hello world"), (CHUNKED, b"hello wo\r\nd")])
@given(cuts=st.lists(st.integers(1, 90), max_size=6))
def test_cuts_do_not_matter(text: bytes, body: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(cut for cut in set(cuts) if cut < len(text)), len(text)]
    answer = Answer()
    got = b""
    for start, end in itertools.pairwise(edges):
        assert not answer.done
        got += answer.feed(text[start:end])
    assert answer.done
    assert answer.status == 200
    assert got == body


def test_an_answer_whose_end_nobody_can_tell_is_refused() -> None:
    with pytest.raises(ValueError, match="without length"):
        Answer().feed(b"HTTP/1.1 200 OK\r\n\r\n")
