"""Bodies that are sent while they are made, and answers that do not wait for them."""

import asyncio

import pytest

from hookline.transport import Timeouts, TransportError

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
REFUSED = b"HTTP/1.1 413 Too Large\r\ncontent-length: 5\r\n\r\nlarge"


async def pieces(*items):
    for item in items:
        yield item


async def flood():
    while True:
        yield b"x" * 100_000


async def stalled():
    yield b"first"
    await asyncio.get_running_loop().create_future()


async def test_an_iterator_goes_out_in_chunks(pool, upstream, ask):
    pending = asyncio.ensure_future(ask(pool, method=b"POST", body=pieces(b"one", b"", b"x" * 20)))
    peer = await upstream.accept()
    head, body = await peer.receive_request()
    await peer.send(OK)

    assert b"transfer-encoding: chunked\r\n" in head
    assert b"content-length" not in head
    assert body == b"3\r\none\r\n14\r\n" + b"x" * 20 + b"\r\n0\r\n\r\n"
    assert (await pending).status == 200
    assert pool.stats().idle == 1


async def test_an_iterator_of_known_length_goes_out_plain(pool, upstream, ask):
    pending = asyncio.ensure_future(ask(pool, method=b"POST", body=pieces(b"one", b"two"), content_length=6))
    peer = await upstream.accept()
    head, body = await peer.receive_request()
    await peer.send(OK)

    assert b"content-length: 6\r\n" in head
    assert body == b"onetwo"
    assert (await pending).status == 200


async def test_each_piece_leaves_before_the_next_is_made(pool, upstream, ask):
    go_on = asyncio.Event()

    async def in_step():
        yield b"one"
        await go_on.wait()
        yield b"two"

    pending = asyncio.ensure_future(ask(pool, method=b"POST", body=in_step()))
    peer = await upstream.accept()
    await peer.receive_until(b"one\r\n")
    go_on.set()
    await peer.receive_until(b"two\r\n0\r\n\r\n")
    await peer.send(OK)

    assert (await pending).status == 200


@pytest.mark.parametrize(
    ("items", "message"), [((b"one", b"two"), "longer than its announced 5"), ((b"one",), "ended after 3 of its")]
)
async def test_a_body_of_another_length_than_announced_is_an_error(pool, ask, items, message):
    with pytest.raises(ValueError, match=message):
        await ask(pool, method=b"POST", body=pieces(*items), content_length=5)

    assert pool.stats().open == 0


async def test_what_the_iterator_raises_reaches_the_caller_and_closes_the_connection(pool, upstream, ask):
    async def broken():
        yield b"one"
        raise LookupError("the client went away")

    pending = asyncio.ensure_future(ask(pool, method=b"POST", body=broken()))
    peer = await upstream.accept()

    with pytest.raises(LookupError):
        await pending
    with pytest.raises(EOFError):
        await peer.receive_request()
    assert pool.stats().open == 0


async def test_an_upstream_that_does_not_read_stops_the_iterator(pool, upstream, ask):
    made = 0

    async def counted():
        nonlocal made
        async for piece in flood():
            made += len(piece)
            yield piece

    pending = asyncio.ensure_future(ask(pool, method=b"POST", body=counted()))
    peer = await upstream.accept()
    before = -1
    while before != made:
        before = made
        for _ in range(200):
            await asyncio.sleep(0)

    assert made < 50_000_000  # a few MB of kernel buffers, and then nothing more
    await peer.send(REFUSED)
    assert (await pending).status == 413


async def test_a_large_upload_arrives_whole_at_an_upstream_that_takes_its_time(pool, upstream, ask):
    """More than all buffers hold: the pump is paused and goes on, again and again."""
    body = pieces(*[b"x" * 100_000] * 200)
    pending = asyncio.ensure_future(ask(pool, method=b"POST", body=body, content_length=20_000_000))
    peer = await upstream.accept()
    for _ in range(200):
        await asyncio.sleep(0)
    _, received = await peer.receive_request()
    await peer.send(OK)

    assert received == b"x" * 20_000_000
    assert (await pending).status == 200
    assert pool.stats().idle == 1


@pytest.mark.parametrize("body", [flood, stalled], ids=["flood", "stalled client"])
async def test_a_refusal_before_the_body_is_sent_is_returned_and_the_connection_closed(pool, upstream, ask, body):
    pending = asyncio.ensure_future(ask(pool, method=b"POST", body=body()))
    peer = await upstream.accept()
    await peer.receive_until(b"\r\n\r\n")

    await peer.send(REFUSED)
    response = await pending

    assert (response.status, await response.read()) == (413, b"large")
    assert pool.stats().open == 0


async def test_the_head_of_a_refusal_is_enough_to_stop_the_upload(pool, upstream, ask):
    pending = asyncio.ensure_future(ask(pool, method=b"POST", body=stalled()))
    peer = await upstream.accept()
    await peer.receive_until(b"first\r\n")

    await peer.send(REFUSED[:-2])
    response = await pending
    await peer.send(REFUSED[-2:])

    assert (response.status, await response.read()) == (413, b"large")
    assert pool.stats().open == 0


async def test_a_success_that_begins_early_does_not_cut_the_upload(pool, upstream, ask):
    go_on = asyncio.Event()

    async def slow():
        yield b"one"
        await go_on.wait()
        yield b"two"

    pending = asyncio.ensure_future(ask(pool, method=b"POST", body=slow()))
    peer = await upstream.accept()
    await peer.receive_until(b"one\r\n")
    await peer.send(OK[:-1])
    go_on.set()
    await peer.receive_until(b"two\r\n0\r\n\r\n")
    await peer.send(OK[-1:])

    assert await (await pending).read() == b"ok"
    assert pool.stats().idle == 1


async def test_a_complete_reply_before_a_large_body_is_written_ends_the_connection(pool, upstream, ask):
    pending = asyncio.ensure_future(ask(pool, method=b"POST", body=b"x" * 30_000_000))
    peer = await upstream.accept()
    await peer.receive_until(b"\r\n\r\n")

    await peer.send(REFUSED)
    response = await pending

    assert (response.status, await response.read()) == (413, b"large")
    assert pool.stats().open == 0


async def test_an_upstream_that_dies_during_the_upload_is_a_reset(pool, upstream, ask):
    pending = asyncio.ensure_future(ask(pool, method=b"POST", body=flood()))
    peer = await upstream.accept()
    await peer.receive_until(b"\r\n\r\n")

    peer.reset()

    with pytest.raises(TransportError) as failed:
        await pending
    assert (failed.value.kind, failed.value.is_written) == ("reset", True)
    assert pool.stats().open == 0


async def test_an_upload_whose_client_is_slow_is_not_the_upstreams_timeout(pool, upstream, ask):
    async def slow():
        yield b"one"
        await asyncio.sleep(0.15)
        yield b"two"

    limits = Timeouts(first_byte_s=0.05, write_s=0.05, idle_s=0.05)
    pending = asyncio.ensure_future(ask(pool, method=b"POST", body=slow(), timeouts=limits))
    peer = await upstream.accept()
    await peer.receive_request()
    await peer.send(OK)

    assert (await pending).status == 200


async def test_after_the_upload_the_upstream_has_first_byte_s(pool, upstream, ask):
    limits = Timeouts(first_byte_s=0.05, write_s=1000)
    pending = asyncio.ensure_future(ask(pool, method=b"POST", body=pieces(b"one"), timeouts=limits))
    peer = await upstream.accept()
    await peer.receive_request()

    with pytest.raises(TransportError) as failed:
        await pending
    assert failed.value.kind == "first_byte_timeout"


async def test_a_reply_that_begins_early_does_not_start_the_clock_while_the_client_uploads(pool, upstream, ask):
    async def slow():
        yield b"one"
        await head_sent.wait()
        await asyncio.sleep(0.15)
        yield b"two"

    head_sent = asyncio.Event()
    limits = Timeouts(first_byte_s=0.05, idle_s=0.05)
    pending = asyncio.ensure_future(ask(pool, method=b"POST", body=slow(), timeouts=limits))
    peer = await upstream.accept()
    await peer.receive_until(b"one\r\n")
    await peer.send(OK[:-1])
    head_sent.set()
    await peer.receive_until(b"0\r\n\r\n")
    await peer.send(OK[-1:])

    assert await (await pending).read() == b"ok"


async def test_an_upstream_that_answers_but_does_not_read_is_a_write_timeout(pool, upstream, ask):
    limits = Timeouts(write_s=0.05)
    pending = asyncio.ensure_future(ask(pool, method=b"POST", body=flood(), timeouts=limits))
    peer = await upstream.accept()
    await peer.receive_until(b"\r\n\r\n")

    await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    with pytest.raises(TransportError) as failed:
        await pending
    assert failed.value.kind == "write_timeout"
