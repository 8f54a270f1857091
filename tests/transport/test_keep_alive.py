"""When a connection is used again, and that answers are never mixed."""

import asyncio

import pytest

from hookline.transport import Timeouts, TransportError

HEAD = b"HTTP/1.1 200 OK\r\n"


def reply(body: bytes, extra: bytes = b"") -> bytes:
    return HEAD + extra + b"content-length: %d\r\n\r\n%b" % (len(body), body)


async def test_a_second_request_uses_the_same_connection(pool, exchange, ask, upstream):
    first, peer = await exchange(pool, reply(b"one"))
    assert await first.read() == b"one"
    assert (pool.stats().open, pool.stats().idle, pool.stats().in_use) == (1, 1, 0)

    pending = asyncio.ensure_future(ask(pool))
    await peer.receive_request()
    await peer.send(reply(b"two"))

    assert await (await pending).read() == b"two"
    assert len(upstream.peers) == 1


async def test_a_reply_stays_readable_while_its_connection_carries_the_next_one(pool, exchange, ask):
    first, peer = await exchange(pool, reply(b"one"))

    pending = asyncio.ensure_future(ask(pool))
    await peer.receive_request()
    await peer.send(reply(b"two"))
    second = await pending

    assert (await first.read(), await second.read()) == (b"one", b"two")


async def test_closing_a_complete_reply_leaves_the_connection_to_the_next_request(pool, exchange, ask):
    first, peer = await exchange(pool, reply(b"one"))
    pending = asyncio.ensure_future(ask(pool))
    await peer.receive_request()

    first.close()
    await peer.send(reply(b"two"))

    assert await (await pending).read() == b"two"


async def test_the_connection_used_last_is_taken_first(pool, upstream, ask):
    both = [asyncio.ensure_future(ask(pool)) for _ in range(2)]
    older, newer = await upstream.accept(), await upstream.accept()
    for peer in (older, newer):
        await peer.receive_request()
        await peer.send(reply(b""))
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.wait(both)
    assert pool.stats().idle == 2

    pending = asyncio.ensure_future(ask(pool))
    await newer.receive_request()
    await newer.send(reply(b"newer"))

    assert await (await pending).read() == b"newer"


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"connection: close\r\ncontent-length: 2\r\n\r\nok",
        HEAD + b"connection: x, Close\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ],
    ids=["close", "close-in-list", "http-1.0", "http-1.0-chunked"],
)
async def test_a_connection_that_may_not_be_kept_is_closed_after_its_reply(pool, exchange, answer):
    response, peer = await exchange(pool, answer)

    assert await response.read() == b"ok"
    assert await peer.is_closed_by_client()
    assert pool.stats().open == 0


async def test_an_http_1_0_upstream_that_says_keep_alive_is_kept(pool, exchange):
    await exchange(pool, b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok")

    assert pool.stats().idle == 1


STRAY = {
    "second reply": reply(b"evil"),
    "half a reply": b"HTTP/1.1 2",
    "one byte": b"x",
    "newline": b"\r\n",
    "lf": b"\n",
}
ENDS = {
    "length": reply(b"ok"),
    "length, ends in newline": reply(b"ok\r\n"),
    "no body": reply(b""),
    "chunks": HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "trailers": HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\na: b\r\n\r\n",
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "close": reply(b"ok", b"connection: close\r\n"),
}


@pytest.mark.parametrize("stray", STRAY.values(), ids=STRAY.keys())
@pytest.mark.parametrize("answer", ENDS.values(), ids=ENDS.keys())
async def test_bytes_beyond_a_replys_end_close_the_connection(pool, exchange, answer, stray):
    response, peer = await exchange(pool, answer + stray)

    assert (await response.read()).strip() in (b"ok", b"")
    assert await peer.receive() == b""
    assert pool.stats().open == 0


@pytest.mark.parametrize("body", [b"hello", b"hell\n", b"5\r\nhello\r\n0\r\n\r\n", b"0\r\n\r\n", b"5", b"\r\n"])
@pytest.mark.parametrize("framing", [b"content-length: 5", b"transfer-encoding: chunked"], ids=["length", "chunked"])
async def test_bytes_beyond_the_end_of_a_reply_to_head_close_the_connection(pool, exchange, framing, body):
    response, peer = await exchange(pool, HEAD + framing + b"\r\n\r\n" + body, method=b"HEAD")

    assert await response.read() == b""
    assert await peer.receive() == b""
    assert pool.stats().open == 0


@pytest.mark.parametrize("answer", ENDS.values(), ids=ENDS.keys())
async def test_no_end_of_a_reply_is_taken_for_stray_bytes_wherever_it_is_split(pool, upstream, ask, answer):
    if b"close" in answer:
        answer = answer.replace(b"connection: close\r\n", b"")
    splits = range(1, len(answer))
    arrived = asyncio.Event()

    async def send_in_two(peer):
        for split in splits:
            await peer.receive_request()
            await peer.send(answer[:split])
            arrived.set()
            await go_on.wait()
            go_on.clear()
            await peer.send(answer[split:])

    go_on = asyncio.Event()
    upstream.serve(send_in_two)
    for _ in splits:
        pending = asyncio.ensure_future(ask(pool))
        await arrived.wait()
        arrived.clear()
        await asyncio.sleep(0)
        go_on.set()
        await (await pending).read()

    assert len(upstream.peers) == 1


async def test_bytes_on_an_idle_connection_close_it(pool, exchange, ask, upstream):
    await exchange(pool, reply(b"one"))
    peer = upstream.peers[0]

    await peer.send(reply(b"evil"))
    assert await peer.receive() == b""

    assert pool.stats().open == 0
    second, _ = await exchange(pool, reply(b"two"))
    assert await second.read() == b"two"


@pytest.mark.parametrize("end", ["close", "reset", "half_close", "evil bytes"])
async def test_a_connection_that_died_while_idle_is_replaced_without_a_word(pool, exchange, upstream, end):
    """Nothing runs between the peer's act and the request: only the poll at the moment of use can see it."""
    await exchange(pool, reply(b"one"))
    peer = upstream.peers[0]

    if end == "evil bytes":
        peer.sock.send(reply(b"evil"))
    else:
        getattr(peer, end)()
    second, _ = await exchange(pool, reply(b"two"))

    assert await second.read() == b"two"
    assert len(upstream.peers) == 2


async def test_all_idle_connections_dead_at_once_cost_one_new_connection(pool, upstream, ask, exchange):
    requests = [asyncio.ensure_future(ask(pool)) for _ in range(5)]
    peers = [await upstream.accept() for _ in requests]
    for peer in peers:
        await peer.receive_request()
        await peer.send(reply(b""))
    await asyncio.gather(*requests)
    assert pool.stats().idle == 5

    for peer in peers:
        peer.close()
    response, _ = await exchange(pool, reply(b"new"))

    assert await response.read() == b"new"
    assert (pool.stats().open, pool.stats().idle) == (1, 1)


@pytest.mark.parametrize("end", ["close", "reset", "half_close"])
async def test_a_kept_connection_that_dies_after_the_request_was_written_is_an_error(
    pool, exchange, ask, end, upstream
):
    _, peer = await exchange(pool, reply(b"one"))

    pending = asyncio.ensure_future(ask(pool, method=b"POST", body=b"{}"))
    await peer.receive_request()
    getattr(peer, end)()

    with pytest.raises(TransportError) as failed:
        await pending
    assert (failed.value.kind, failed.value.is_written) == ("reset", True)
    assert len(upstream.peers) == 1
    assert pool.stats().open == 0


async def test_an_idle_connection_is_closed_when_its_time_is_over(make_pool, exchange):
    pool = make_pool(keepalive_s=0.02)
    _, peer = await exchange(pool, reply(b"one"))

    assert await peer.is_closed_by_client()
    assert pool.stats().open == 0


async def test_a_request_within_a_shorter_first_byte_limit_than_the_idle_time_still_times_out(make_pool, exchange, ask):
    """The timer of a kept connection was armed for a later moment than the new deadline."""
    pool = make_pool(keepalive_s=1000)
    await exchange(pool, reply(b"one"))

    with pytest.raises(TransportError) as failed:
        await ask(pool, timeouts=Timeouts(first_byte_s=0.02))

    assert failed.value.kind == "first_byte_timeout"
