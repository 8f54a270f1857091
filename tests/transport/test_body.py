"""Reading a body: whole, in pieces, slowly, not at all."""

import asyncio

import pytest

from hookline.transport import BodyTooLarge, TransportError

HEAD = b"HTTP/1.1 200 OK\r\n"
LARGE = b"x" * 8_000_000


def chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


async def test_pieces_come_as_they_arrive(pool, exchange):
    response, peer = await exchange(pool, HEAD + b"transfer-encoding: chunked\r\n\r\n")

    chunks = response.chunks()
    for piece in (b"one", b"two", b"three"):
        await peer.send(chunk(piece))
        assert piece == await anext(chunks)
    await peer.send(b"0\r\n\r\n")

    with pytest.raises(StopAsyncIteration):
        await anext(chunks)
    assert response.is_complete


async def test_what_arrived_together_is_one_piece(pool, exchange):
    reply = HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunk(b"one") + chunk(b"two") + b"0\r\n\r\n"

    response, _ = await exchange(pool, reply)

    assert [piece async for piece in response.chunks()] == [b"onetwo"]


async def test_the_rest_can_be_read_after_some_pieces(pool, exchange):
    response, peer = await exchange(pool, HEAD + b"content-length: 10\r\n\r\nhello")
    assert await anext(response.chunks()) == b"hello"

    await peer.send(b"world")

    assert await response.read() == b"world"
    assert await response.read() == b""


async def test_a_reader_that_stalls_holds_bounded_memory(pool, exchange):
    response, peer = await exchange(pool, HEAD + b"content-length: %d\r\n\r\n" % len(LARGE))
    sent = 0
    peer.sock.setblocking(False)
    stalled_turns = 0
    while stalled_turns < 200:  # until nobody takes any more
        try:
            sent += peer.sock.send(LARGE[sent : sent + 65536])
            stalled_turns = 0
        except BlockingIOError:
            stalled_turns += 1
        await asyncio.sleep(0)

    # What is held here is one read beyond the mark at most; the rest of `sent` sits in the kernel.
    assert len(response.buffered() or b"") <= 256 * 1024 + 256 * 1024
    assert sent < len(LARGE)

    rest = asyncio.ensure_future(peer.send(LARGE[sent:]))
    received = 0
    async for piece in response.chunks():
        received += len(piece)
    assert len(LARGE) == received
    await rest


async def test_reading_whole_after_a_stall_gets_everything(pool, exchange):
    response, peer = await exchange(pool, HEAD + b"content-length: %d\r\n\r\n" % len(LARGE))
    sending = asyncio.ensure_future(peer.send(LARGE))
    for _ in range(200):
        await asyncio.sleep(0)

    assert await response.read() == LARGE
    await sending


async def test_the_pause_ends_when_the_reader_takes_what_is_there(pool, exchange):
    """Back-pressure twice in one body: paused, resumed, paused again, resumed."""
    response, peer = await exchange(pool, HEAD + b"content-length: %d\r\n\r\n" % len(LARGE))
    sending = asyncio.ensure_future(peer.send(LARGE))

    received = 0
    async for piece in response.chunks():
        received += len(piece)
        for _ in range(20):
            await asyncio.sleep(0)

    assert len(LARGE) == received
    await sending


async def test_a_body_above_the_callers_limit_is_refused_before_it_is_held(pool, exchange):
    response, peer = await exchange(pool, HEAD + b"content-length: %d\r\n\r\n" % len(LARGE))
    sending = asyncio.ensure_future(peer.send(LARGE))

    with pytest.raises(BodyTooLarge) as refused:
        await response.read(max_bytes=100_000)

    assert (refused.value.limit_bytes, refused.value.kind) == (100_000, "garbage")
    assert pool.stats().open == 0
    await asyncio.gather(sending, return_exceptions=True)


@pytest.mark.parametrize(("limit", "is_allowed"), [(5, True), (4, False), (0, False)])
async def test_the_limit_counts_for_a_body_that_is_there_already(pool, exchange, limit, is_allowed):
    response, _ = await exchange(pool, HEAD + b"content-length: 5\r\n\r\nhello")

    if is_allowed:
        assert await response.read(max_bytes=limit) == b"hello"
    else:
        with pytest.raises(BodyTooLarge):
            await response.read(max_bytes=limit)


async def test_buffered_shows_without_taking(pool, exchange):
    response, peer = await exchange(pool, HEAD + b"content-length: 10\r\n\r\n")
    assert response.buffered() is None

    await peer.send(b"hello")
    assert await response.arrived(10)
    assert response.buffered() == b"hello"
    await peer.send(b"world")
    assert await response.arrived(10)

    assert response.buffered() == b"helloworld"
    assert await response.read() == b"helloworld"
    assert response.buffered() is None


async def test_arrived_gives_up_without_harm(pool, exchange):
    response, peer = await exchange(pool, HEAD + b"content-length: 5\r\n\r\n")

    assert not await response.arrived(0.01)
    await peer.send(b"hello")

    assert await response.read() == b"hello"


async def test_arrived_is_true_at_the_end_of_the_body(pool, exchange):
    response, peer = await exchange(pool, HEAD + b"content-length: 5\r\n\r\nhell")
    peer.close()

    assert await response.arrived(10)
    assert await response.arrived(10)

    assert response.buffered() == b"hell"
    with pytest.raises(TransportError):
        await response.read()


async def test_abandoning_a_reply_closes_its_connection(pool, exchange):
    response, peer = await exchange(pool, HEAD + b"content-length: 5\r\n\r\nhell")

    response.close()
    await response.aclose()

    assert await peer.is_closed_by_client()
    assert pool.stats().open == 0
    with pytest.raises(TransportError, match="we closed the connection"):
        await response.read()


async def test_leaving_the_iteration_and_closing_closes_the_connection(pool, exchange):
    response, peer = await exchange(pool, HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunk(b"one"))

    async for _ in response.chunks():
        break
    response.close()

    assert await peer.is_closed_by_client()


async def test_two_thousand_small_pieces_arrive_complete_and_in_order(pool, exchange):
    response, peer = await exchange(pool, HEAD + b"transfer-encoding: chunked\r\n\r\n")

    async def send():
        for number in range(2000):
            await peer.send(chunk(b"%d," % number))
        await peer.send(b"0\r\n\r\n")

    sending = asyncio.ensure_future(send())
    body = b"".join([piece async for piece in response.chunks()])

    assert b"".join(b"%d," % number for number in range(2000)) == body
    await sending


async def test_forwarded_pieces_are_handed_over_in_the_turn_that_read_them(pool, exchange):
    response, peer = await exchange(pool, HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunk(b"zero"))
    taken, came = [], asyncio.Event()

    def take(piece):
        taken.append(piece)
        came.set()
        return True

    forwarding = asyncio.ensure_future(response.forward(take))
    for piece in (b"one", b"two"):
        came.clear()
        await peer.send(chunk(piece))
        await came.wait()
        assert not forwarding.done()
    await peer.send(chunk(b"three") + b"0\r\n\r\n")
    await forwarding

    assert b"".join(taken) == b"zeroonetwothree"
    assert [piece async for piece in response.chunks()] == []
    assert response.is_complete


async def test_forwarding_ends_when_asked_and_the_rest_is_iterated(pool, exchange):
    response, peer = await exchange(pool, HEAD + b"transfer-encoding: chunked\r\n\r\n")
    taken = []
    forwarding = asyncio.ensure_future(response.forward(lambda piece: taken.append(piece) or False))
    await asyncio.sleep(0)

    await peer.send(chunk(b"one"))
    await forwarding
    await peer.send(chunk(b"two") + b"0\r\n\r\n")

    assert taken == [b"one"]
    assert b"".join([piece async for piece in response.chunks()]) == b"two"


async def test_a_body_that_breaks_while_it_is_forwarded_raises_after_its_pieces(pool, exchange):
    response, peer = await exchange(pool, HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunk(b"one"))
    taken = []
    forwarding = asyncio.ensure_future(response.forward(lambda piece: taken.append(piece) or True))

    peer.close()
    await forwarding

    with pytest.raises(TransportError, match="before the end of its reply"):
        await anext(response.chunks())
    assert taken == [b"one"]


async def test_cancelling_a_forward_closes_the_connection(pool, exchange):
    response, peer = await exchange(pool, HEAD + b"transfer-encoding: chunked\r\n\r\n")
    forwarding = asyncio.ensure_future(response.forward(lambda piece: True))
    await asyncio.sleep(0)

    forwarding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await forwarding

    assert await peer.is_closed_by_client()
