"""The reply parser against everything: it never hangs, and raises nothing but TransportError.

No sockets here; the reader is fed directly. What a reply means is tested in test_replies.py."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from hookline.transport import TransportError
from hookline.transport.reply_reader import ReplyReader

FRAGMENTS = [
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.0 200 OK\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"content-length: 5\r\n",
    b"content-length: 0\r\n",
    b"transfer-encoding: chunked\r\n",
    b"connection: close\r\n",
    b"connection: keep-alive\r\n",
    b"x: y\r\n",
    b"\r\n",
    b"\n",
    b"\r",
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"0\r\n",
    b"hello",
    b"\x00",
    b"\xff",
]
streams = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=8)), max_size=14).map(b"".join)
splits = st.lists(st.integers(min_value=1, max_value=40), max_size=30)


def cut(stream: bytes, sizes: list[int]) -> list[bytes]:
    pieces, start = [], 0
    for size in sizes:
        if start >= len(stream):
            break
        pieces.append(stream[start : start + size])
        start += size
    if start < len(stream):
        pieces.append(stream[start:])
    return pieces


def read(pieces: list[bytes], *, is_head_request: bool = False) -> tuple:
    """(status, headers, body, is_complete or "garbage") after the pieces and the end of the connection."""
    reader = ReplyReader()
    reader.start(is_head_request=is_head_request)
    body = b""
    try:
        for piece in pieces:
            reader.feed(piece)
            body += b"".join(reader.parts)
            reader.parts.clear()
            if reader.is_complete:
                break
        else:
            reader.end()
    except TransportError as error:
        return error.kind
    assert reader.status == 0 or 200 <= reader.status <= 999
    assert not (is_head_request and body)
    return reader.status, reader.headers, body, reader.is_complete


@settings(deadline=None)  # a busy machine is no defect
@given(streams, splits, st.booleans())
@example(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhelloHTTP", [10], False)
def test_any_bytes_in_any_pieces_give_a_reply_or_a_transport_error(stream, sizes, is_head_request):
    read(cut(stream, sizes), is_head_request=is_head_request)


@settings(deadline=None)
@given(streams, splits)
def test_where_the_bytes_are_split_changes_nothing_in_a_complete_reply(stream, sizes):
    whole = read([stream])

    if whole != "garbage" and whole[3]:
        assert whole == read(cut(stream, sizes))


token = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12).map(lambda name: b"x-" + name.encode())
value = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=30).map(str.encode)


@settings(deadline=None)
@given(
    status=st.integers(200, 599).filter(lambda status: status not in (204, 304)),
    headers=st.lists(st.tuples(token, value), max_size=10),
    body=st.binary(max_size=200),
    chunk_sizes=st.one_of(st.none(), st.lists(st.integers(1, 50), max_size=10)),
    sizes=splits,
)
def test_a_well_formed_reply_is_read_back_exactly(status, headers, body, chunk_sizes, sizes):
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    if chunk_sizes is None:
        stream = b"HTTP/1.1 %d OK\r\n%bcontent-length: %d\r\n\r\n%b" % (status, lines, len(body), body)
        framing = (b"content-length", b"%d" % len(body))
    else:
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in cut(body, chunk_sizes))
        stream = b"HTTP/1.1 %d OK\r\n%btransfer-encoding: chunked\r\n\r\n%b0\r\n\r\n" % (status, lines, chunks)
        framing = (b"transfer-encoding", b"chunked")

    assert (status, [*headers, framing], body, True) == read(cut(stream, sizes))


@settings(deadline=None)
@given(st.integers(0, 3), splits)
def test_one_reader_reads_reply_after_reply(count, sizes):
    reader = ReplyReader()
    for number in range(count + 1):
        body = b"%d" % number * (number + 1)
        reader.start(is_head_request=False)
        seen = b""
        for piece in cut(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body), sizes):
            reader.feed(piece)
            seen += b"".join(reader.parts)
            reader.parts.clear()
        assert (body, True, True) == (seen, reader.is_complete, reader.can_reuse)
