"""SSE framing: no byte lost, no event cut, whatever the pieces."""

import itertools
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hookline.transport import SseEvent, SseSplitter, parse_event, serialize_event

pieces_of_streams = st.sampled_from(
    [
        b"data: x",
        b"data:y",
        b": comment",
        b"event: e",
        b"id: 1",
        b"\n",
        b"\r\n",
        b"\r",
        b"\n\n",
        b"\r\n\r\n",
        b"\xef\xbb\xbf",
    ]
)
streams = st.lists(st.one_of(pieces_of_streams, st.binary(max_size=5)), max_size=30).map(b"".join)


def split_simply(stream: bytes) -> tuple[list[bytes], bytes]:
    """The same rules, written as plainly as possible: lines first, then events. A CR at the very end is undecided."""
    blocks, block, rest = [], b"", stream
    while match := re.match(rb"([^\r\n]*)(\r\n|\n|\r(?=[^\n]))", rest, re.DOTALL):
        block += match[0]
        rest = rest[match.end() :]
        if not match[1]:
            blocks.append(block)
            block = b""
    return blocks, block + rest


def split(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    splitter = SseSplitter()
    blocks = [block for piece in pieces for block in splitter.feed(piece)]
    return blocks, splitter.tail


@settings(deadline=None)  # a busy machine is no defect
@given(streams, st.lists(st.integers(0, 80), max_size=12))
@example(b"data: x\r\n\r\ndata: y\r\n\r\n", [8, 9, 10])
@example(b"data: x\r\rdata: y\n\r\n", [8, 9, 17])
@example(b"\n\n\r\n\r\r\n", [1, 3, 4, 5])
def test_any_split_of_any_stream_gives_the_same_events_and_loses_no_byte(stream, cuts):
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    blocks, tail = split([stream[start:end] for start, end in itertools.pairwise(edges)])

    assert (blocks, tail) == split_simply(stream)
    assert b"".join(blocks) + tail == stream


@settings(deadline=None)
@given(streams)
def test_byte_by_byte_is_the_same_as_at_once(stream):
    assert split([stream]) == split([stream[i : i + 1] for i in range(len(stream))])


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
def test_each_block_keeps_the_blank_line_that_ends_it(line_end):
    first, second = f"data: 1{line_end}{line_end}".encode(), f": ping{line_end}event: e{line_end}{line_end}".encode()

    blocks, tail = split([first + second + b"data: unfinished"])

    assert [first, second] == blocks
    assert tail == b"data: unfinished"


def test_an_event_is_there_with_its_last_byte():
    splitter = SseSplitter()

    assert splitter.feed(b"data: x\n") == []
    assert splitter.feed(b"\n") == [b"data: x\n\n"]
    assert splitter.tail == b""


def test_a_cr_at_the_end_of_a_piece_waits_for_what_follows():
    splitter = SseSplitter()

    assert splitter.feed(b"data: x\r\n\r") == []
    assert splitter.tail == b"data: x\r\n\r"
    assert splitter.feed(b"\n") == [b"data: x\r\n\r\n"]


def test_multi_byte_characters_pass_unharmed_wherever_they_are_cut():
    stream = "data: äöü €🦊\n\n".encode()

    for cut in range(len(stream)):
        assert ([stream], b"") == split([stream[:cut], stream[cut:]])


@pytest.mark.timeout(30)
def test_a_giant_event_in_small_pieces_takes_time_in_proportion_to_its_size():
    """Each piece looked at once is a tenth of a second; each piece joined to all before it is a minute."""
    splitter, piece = SseSplitter(), b"x" * 1024
    for _ in range(32_768):
        assert splitter.feed(piece) == []

    assert [len(block) for block in splitter.feed(b"\n\n")] == [32 * 1024 * 1024 + 2]


@pytest.mark.parametrize(
    ("block", "event"),
    [
        (b"data: x\n\n", SseEvent(None, b"x", None, False)),
        (b"data:x\r\n\r\n", SseEvent(None, b"x", None, False)),
        (b"data:  x\r\r", SseEvent(None, b" x", None, False)),
        (b"data: 1\ndata: 2\ndata\n\n", SseEvent(None, b"1\n2\n", None, False)),
        (b"event: error\ndata: {}\nid: 7\n\n", SseEvent("error", b"{}", "7", False)),
        (b"event: done\n\n", SseEvent("done", b"", None, False)),
        (b": keep-alive\n\n", SseEvent(None, b"", None, True)),
        (b"retry: 10\n\n", SseEvent(None, b"", None, True)),
        (b"\n", SseEvent(None, b"", None, True)),
        (b"\xef\xbb\xbfdata: x\n\n", SseEvent(None, b"x", None, False)),
        (b"id: a\x00b\ndata: x\n\n", SseEvent(None, b"x", None, False)),
        (b"datax: y\nunknown: z\n\n", SseEvent(None, b"", None, True)),
        (b"data: a: b\n\n", SseEvent(None, b"a: b", None, False)),
        (b"data: cut in the mid", SseEvent(None, b"cut in the mid", None, False)),
    ],
)
def test_a_block_is_read_by_the_rules_of_the_standard(block, event):
    assert event == parse_event(block)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_no_block_makes_the_parser_raise(block):
    parse_event(block)


text = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=10)


@settings(deadline=None)
@given(st.binary(max_size=60), st.one_of(st.none(), text), st.one_of(st.none(), text))
def test_what_is_written_is_read_back(data, event, event_id):
    block = serialize_event(data, event=event, id=event_id)

    parsed = parse_event(block)

    assert ([block], b"") == split([block])
    assert re.sub(rb"\r\n?", b"\n", data) == parsed.data
    assert (event, event_id) == (parsed.event, parsed.id)


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\n\ndata: evil"])
def test_a_line_end_in_a_name_is_refused(name):
    with pytest.raises(ValueError, match="line end"):
        serialize_event(b"x", event=name)
