"""Every fault at every byte of a small reply: the caller gets the truth, the pool gets the connection never back."""

import asyncio

import pytest

from hookline.transport import Timeouts, TransportError

LENGTH = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx: y\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\nt: v\r\n\r\n"
UNTIL_EOF = b"HTTP/1.1 200 OK\r\nx: y\r\n\r\nhello"
REPLIES = pytest.mark.parametrize("reply", [LENGTH, CHUNKED], ids=["length", "chunked"])
IMPATIENT = Timeouts(idle_s=0.02)


def body_within(reply: bytes, cut: int) -> bytes:
    """How much of the body the first `cut` bytes of the reply hold."""
    if reply is CHUNKED:
        start = reply.index(b"hel")
        second = reply.index(b"lo\r\n0")
        return reply[start : min(cut, start + 3)] + reply[second : min(max(cut, second), second + 2)]
    return reply[reply.index(b"\r\n\r\n") + 4 : max(cut, reply.index(b"\r\n\r\n") + 4)]


def has_head(reply: bytes, cut: int) -> bool:
    return cut >= reply.index(b"\r\n\r\n") + 4


async def cut_everywhere(reply, fault, pool, upstream, ask, outcome, first=0, **request):
    """(cut, outcome) for each proper prefix of the reply followed by the fault."""
    seen = []
    for cut in range(first, len(reply)):
        pending = asyncio.ensure_future(outcome(ask(pool, **request)))
        peer = await upstream.accept()
        await peer.receive_request()
        if cut:
            await peer.send(reply[:cut])
        fault(peer)
        seen.append((cut, await pending))
        assert pool.stats().open == 0, cut
    return seen


@REPLIES
@pytest.mark.parametrize("fault", ["close", "half_close"])
async def test_an_end_before_the_replys_end_is_a_reset_after_what_had_arrived(
    reply, fault, pool, upstream, ask, outcome
):
    seen = await cut_everywhere(reply, lambda peer: getattr(peer, fault)(), pool, upstream, ask, outcome)

    expected = [
        (cut, (200 if has_head(reply, cut) else 0, body_within(reply, cut), "reset")) for cut in range(len(reply))
    ]
    assert expected == seen


@REPLIES
async def test_a_reset_is_never_a_complete_reply(reply, pool, upstream, ask, outcome):
    """What had arrived may be lost with a reset: the kernel throws away what was not read."""
    for cut, (status, body, kind) in await cut_everywhere(
        reply, lambda peer: peer.reset(), pool, upstream, ask, outcome
    ):
        assert kind == "reset", cut
        assert status in (0, 200)
        assert body_within(reply, cut).startswith(body)


@REPLIES
async def test_a_stall_is_a_timeout_after_what_had_arrived(reply, pool, upstream, ask, outcome):
    seen = await cut_everywhere(reply, lambda peer: None, pool, upstream, ask, outcome, first=1, timeouts=IMPATIENT)

    expected = [
        (cut, (200 if has_head(reply, cut) else 0, body_within(reply, cut), "idle_timeout"))
        for cut in range(1, len(reply))
    ]
    assert expected == seen


@REPLIES
async def test_garbage_anywhere_never_passes_for_the_reply(reply, pool, upstream, ask, outcome):
    def spoil(peer):
        peer.sock.send(b"\x00\xff\r\r\n\x00 garbage \x00")
        peer.close()

    for cut, (_, body, kind) in await cut_everywhere(reply, spoil, pool, upstream, ask, outcome):
        in_plain_body = reply is LENGTH and has_head(reply, cut)
        in_chunk = reply is CHUNKED and reply[cut : cut + 1] in (b"e", b"l", b"o") and has_head(reply, cut)
        if in_plain_body:  # no framing to break: these bytes are the body
            assert (kind, len(body)) == ("", 5), cut
        elif not in_chunk:
            assert kind in ("garbage", "reset"), cut
        assert body != b"hello" or kind, cut


@pytest.mark.parametrize("fault", ["close", "half_close"])
async def test_a_body_that_ends_by_eof_is_complete_wherever_it_ends(fault, pool, upstream, ask, outcome):
    seen = await cut_everywhere(UNTIL_EOF, lambda peer: getattr(peer, fault)(), pool, upstream, ask, outcome)

    for cut, result in seen:
        if has_head(UNTIL_EOF, cut):
            assert (200, body_within(UNTIL_EOF, cut), "") == result, cut
        else:
            assert result == (0, b"", "reset"), cut


@pytest.mark.parametrize("reply", [LENGTH, CHUNKED, UNTIL_EOF], ids=["length", "chunked", "eof"])
async def test_a_reply_that_comes_byte_by_byte_is_the_same_reply(reply, pool, upstream, ask, outcome):
    pending = asyncio.ensure_future(outcome(ask(pool)))
    peer = await upstream.accept()
    await peer.receive_request()
    for position in range(len(reply)):
        await peer.send(reply[position : position + 1])
        await asyncio.sleep(0)
    peer.half_close()

    assert await pending == (200, b"hello", "")


async def test_read_raises_where_the_body_was_cut(pool, exchange):
    response, peer = await exchange(pool, LENGTH[:-2])
    peer.close()

    with pytest.raises(TransportError) as failed:
        await response.read()
    assert (failed.value.kind, failed.value.is_written) == ("reset", True)
    assert not response.is_complete
