"""The tape: written once, read by many, each from its beginning; and what it holds while nobody reads."""

from __future__ import annotations

import pytest

from hookline.tape import BEHIND_BYTES, Cut, Tape


async def rest_of(reader):
    return b"".join([chunk async for chunk in reader])


def written(*chunks, max_bytes=100):
    tape = Tape(max_bytes)
    for chunk in chunks:
        tape.feed(chunk)
    return tape


async def test_who_comes_after_some_chunks_reads_from_the_beginning_and_on():
    tape = written(b"a", b"", b"b")
    first = tape.read()
    tape.feed(b"c")
    second = tape.read()
    tape.feed(b"d")
    tape.end(True)

    assert await rest_of(first) == await rest_of(second) == b"abcd"
    assert tape.whole() == b"abcd"
    assert tape.size_bytes == 4


@pytest.mark.parametrize("is_read", [False, True])
def test_the_whole_is_what_was_written_whether_or_not_somebody_reads(is_read):
    tape = written(b"a", b"b")
    if is_read:
        tape.read()
    tape.feed(b"c")
    tape.end(True)
    tape.feed(b"after the end")

    assert tape.whole() == b"abc"
    assert tape.size_bytes == 3


@pytest.mark.parametrize("is_read", [False, True])
def test_beyond_its_bound_nobody_joins_and_the_beginning_is_gone(is_read):
    tape = written(b"12345", max_bytes=10)
    if is_read:
        tape.read()
    tape.feed(b"67890")
    assert tape.is_whole

    tape.feed(b"1")

    assert not tape.is_whole
    assert tape.whole() is None
    with pytest.raises(ValueError, match="beginning"):
        tape.read()


def test_a_tape_that_nobody_reads_holds_nothing_beyond_its_bound():
    tape = written(*[b"x" * 1000] * 50, max_bytes=10_000)

    assert tape.size_bytes == 50_000
    assert tape._unlinked == []


async def test_who_joined_in_time_reads_on_beyond_the_bound():
    tape = written(b"12345", max_bytes=10)
    reader = tape.read()
    tape.feed(b"678901")
    tape.feed(b"2")
    tape.end(False)

    assert await anext(reader) == b"123456789012"
    with pytest.raises(Cut):
        await anext(reader)


def test_the_distance_of_the_nearest_reader_counts_from_where_it_stands():
    tape = written(b"x" * 10, max_bytes=BEHIND_BYTES)
    assert tape.nearest_bytes == float("inf")

    tape.read()
    tape.feed(b"x" * 5)

    assert tape.nearest_bytes == 15
