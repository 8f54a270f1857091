"""How many connections there may be, who waits, in which order, and how it ends."""

import asyncio

import pytest

from hookline.transport import HttpPool, PoolStats, Timeouts, TransportError

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CLOSE = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"


async def start_waiting(pool, ask, until, count):
    """`count` requests that wait for a connection, in order; their targets are /0, /1, ..."""
    pending = []
    for number in range(count):
        before = pool.stats().waiting
        pending.append(asyncio.ensure_future(ask(pool, target=b"/%d" % number)))
        await until(lambda before=before: pool.stats().waiting == before + 1)
    return pending


async def test_there_are_never_more_connections_than_allowed(make_pool, upstream, ask):
    pool = make_pool(max_connections=3)
    live = most = 0

    async def answer(peer):
        nonlocal live, most
        live += 1
        most = max(most, live)
        try:
            while True:
                await peer.receive_request()
                await asyncio.sleep(0)
                await peer.send(OK)
        finally:
            live -= 1

    upstream.serve(answer)

    async def one():
        assert await (await ask(pool)).read() == b"ok"

    await asyncio.gather(*(one() for _ in range(200)))

    assert most == 3
    assert PoolStats(open=3, idle=3, in_use=0, waiting=0) == pool.stats()


async def test_those_who_wait_are_served_in_order_on_the_connection_that_becomes_free(make_pool, upstream, ask, until):
    pool = make_pool(max_connections=1)
    first = asyncio.ensure_future(ask(pool, target=b"/first"))
    peer = await upstream.accept()
    await peer.receive_request()
    waiting = await start_waiting(pool, ask, until, 3)
    assert PoolStats(open=1, idle=0, in_use=1, waiting=3) == pool.stats()

    order = []
    await peer.send(OK)
    for _ in range(3):
        head, _ = await peer.receive_request()
        order.append(head.split(b" ")[1])
        await peer.send(OK)
    await asyncio.gather(first, *waiting)

    assert order == [b"/0", b"/1", b"/2"]
    assert len(upstream.peers) == 1


async def test_a_connection_that_is_closed_makes_room_for_one_who_waits(make_pool, upstream, ask, until):
    pool = make_pool(max_connections=1)
    first = asyncio.ensure_future(ask(pool))
    peer = await upstream.accept()
    await peer.receive_request()
    (second,) = await start_waiting(pool, ask, until, 1)

    await peer.send(CLOSE)
    successor = await upstream.accept()
    await successor.receive_request()
    await successor.send(OK)

    assert ((await first).status, (await second).status) == (200, 200)
    assert PoolStats(open=1, idle=1, in_use=0, waiting=0) == pool.stats()


async def test_a_failed_dial_makes_room_for_one_who_waits(make_pool, upstream, ask, until):
    go_on = asyncio.Event()
    asked = 0

    async def fail_once(host, port):
        nonlocal asked
        asked += 1
        if asked == 1:
            await go_on.wait()
            raise OSError("no such name")
        return [(2, ("127.0.0.1", upstream.port))]

    pool = make_pool(max_connections=1, resolver=fail_once)
    first = asyncio.ensure_future(ask(pool))
    await until(lambda: asked == 1)
    (second,) = await start_waiting(pool, ask, until, 1)

    go_on.set()
    peer = await upstream.accept()
    await peer.receive_request()
    await peer.send(OK)

    with pytest.raises(TransportError, match="no such name"):
        await first
    assert (await second).status == 200


async def test_a_connection_that_dies_on_its_way_to_one_who_waits_is_replaced(make_pool, upstream, ask, until):
    """The peer closes between the end of the reply and the moment its successor writes."""
    pool = make_pool(max_connections=1)
    first = asyncio.ensure_future(ask(pool))
    peer = await upstream.accept()
    await peer.receive_request()
    (second,) = await start_waiting(pool, ask, until, 1)

    peer.sock.send(OK)
    peer.close()
    successor = await upstream.accept()
    await successor.receive_request()
    await successor.send(OK)

    assert ((await first).status, (await second).status) == (200, 200)
    assert pool.stats().open == 1


async def test_the_queue_is_bounded(make_pool, upstream, ask, until):
    pool = make_pool(max_connections=1, max_waiters=2)
    busy = asyncio.ensure_future(ask(pool))
    waiting = await start_waiting(pool, ask, until, 2)

    with pytest.raises(TransportError, match="wait already") as refused:
        await ask(pool)

    assert (refused.value.kind, refused.value.is_written) == ("pool_timeout", False)
    for pending in (busy, *waiting):
        pending.cancel()
    await asyncio.gather(busy, *waiting, return_exceptions=True)
    assert PoolStats(open=0, idle=0, in_use=0, waiting=0) == pool.stats()


async def test_one_who_gave_up_waiting_is_passed_over(make_pool, upstream, ask, until):
    pool = make_pool(max_connections=1)
    busy = asyncio.ensure_future(ask(pool))
    peer = await upstream.accept()
    await peer.receive_request()
    impatient = asyncio.ensure_future(ask(pool, target=b"/impatient", timeouts=Timeouts(pool_s=0.01)))
    await until(lambda: pool.stats().waiting == 1)
    (patient,) = await start_waiting(pool, ask, until, 1)

    with pytest.raises(TransportError):
        await impatient
    await peer.send(OK)
    head, _ = await peer.receive_request()
    await peer.send(OK)

    assert head.startswith(b"GET /0 ")
    assert ((await busy).status, (await patient).status) == (200, 200)


async def test_closing_the_pool_fails_those_who_wait_and_those_who_read(make_pool, upstream, ask, exchange, until):
    pool = make_pool(max_connections=1)
    reading, peer = await exchange(pool, OK.replace(b": 2", b": 20"))
    (waiting,) = await start_waiting(pool, ask, until, 1)

    await pool.aclose()

    with pytest.raises(TransportError, match="is closed"):
        await waiting
    with pytest.raises(TransportError):
        await reading.read()
    assert await peer.is_closed_by_client()
    assert PoolStats(open=0, idle=0, in_use=0, waiting=0) == pool.stats()


async def test_a_closed_pool_dials_no_more(make_pool, exchange, ask):
    pool = make_pool()
    await exchange(pool, OK)
    await pool.aclose()
    await pool.aclose()

    with pytest.raises(TransportError, match="is closed") as refused:
        await ask(pool)

    assert (refused.value.kind, refused.value.is_written) == ("connect", False)


async def test_closing_the_pool_while_it_dials_fails_the_dial(make_pool, upstream, ask):
    dialling, go_on = asyncio.Event(), asyncio.Event()

    async def slow(host, port):
        dialling.set()
        await go_on.wait()
        return [(2, ("127.0.0.1", upstream.port))]

    pool = make_pool(resolver=slow)
    pending = asyncio.ensure_future(ask(pool))
    await dialling.wait()

    await pool.aclose()
    go_on.set()

    with pytest.raises(TransportError, match="is closed"):
        await pending
    assert pool.stats().open == 0


@pytest.mark.parametrize("scheme", ["ftp", "", "HTTP"])
def test_other_schemes_are_refused(scheme):
    with pytest.raises(ValueError, match="not http or https"):
        HttpPool(scheme, "127.0.0.1")


async def test_a_pool_that_two_close_at_once_is_closed_for_both(make_pool, exchange):
    pool = make_pool()
    await exchange(pool, OK)

    await asyncio.gather(pool.aclose(), pool.aclose())

    assert pool.stats().open == 0
