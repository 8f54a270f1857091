"""Cancelled at every stage: nothing stays open, nobody waits for ever, no answer reaches the wrong request."""

import asyncio
import gc
import weakref

import pytest

from hookline.transport import PoolStats
from hookline.transport.reply_reader import ReplyReader

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
EMPTY = PoolStats(open=0, idle=0, in_use=0, waiting=0)


async def cancel(task):
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_while_resolving(make_pool, ask):
    asked = asyncio.Event()

    async def never(host, port):
        asked.set()
        return await asyncio.get_running_loop().create_future()

    pool = make_pool(resolver=never)
    pending = asyncio.ensure_future(ask(pool))
    await asked.wait()

    await cancel(pending)

    assert pool.stats() == EMPTY


async def test_while_connecting_at_each_turn_of_the_loop(make_pool, upstream, ask):
    """From the first step until the request is written, whatever the loop is doing just then."""
    for turns in range(12):
        pool = make_pool()
        pending = asyncio.ensure_future(ask(pool))
        for _ in range(turns):
            await asyncio.sleep(0)
        await cancel(pending)
        await asyncio.sleep(0)
        assert pool.stats() == EMPTY, turns


async def test_before_the_reply_begins(pool, upstream, ask):
    pending = asyncio.ensure_future(ask(pool))
    peer = await upstream.accept()
    await peer.receive_request()

    await cancel(pending)

    assert await peer.is_closed_by_client()
    assert pool.stats() == EMPTY


async def test_within_the_head(pool, upstream, ask):
    pending = asyncio.ensure_future(ask(pool))
    peer = await upstream.accept()
    await peer.receive_request()
    await peer.send(OK[:20])
    await asyncio.sleep(0)

    await cancel(pending)

    assert await peer.receive() == b""
    assert pool.stats() == EMPTY


async def test_in_the_very_turn_in_which_the_reply_arrives(pool, upstream, ask, until):
    """The reply is complete and its connection idle again, only the caller does not want it any more."""
    pending = asyncio.ensure_future(ask(pool))
    peer = await upstream.accept()
    await peer.receive_request()
    await peer.send(OK)
    await until(lambda: pool.stats().idle == 1)

    await cancel(pending)

    assert PoolStats(open=1, idle=1, in_use=0, waiting=0) == pool.stats()


@pytest.mark.parametrize("how", ["read", "chunks", "arrived"])
async def test_while_waiting_for_the_body(pool, exchange, how):
    response, peer = await exchange(pool, OK[:-1])
    if how == "chunks":
        await anext(response.chunks())
    waits = {"read": response.read, "chunks": lambda: anext(response.chunks()), "arrived": lambda: response.arrived(60)}
    pending = asyncio.ensure_future(waits[how]())
    await asyncio.sleep(0)

    await cancel(pending)

    assert await peer.is_closed_by_client()
    assert pool.stats() == EMPTY


async def test_while_the_body_is_uploaded(pool, upstream, ask, until):
    stopped = asyncio.Event()

    async def endless():
        try:
            yield b"first"
            await asyncio.get_running_loop().create_future()
        finally:
            stopped.set()

    pending = asyncio.ensure_future(ask(pool, method=b"POST", body=endless()))
    peer = await upstream.accept()
    await peer.receive_until(b"first\r\n")

    await cancel(pending)

    assert stopped.is_set()
    assert await peer.is_closed_by_client()
    assert pool.stats() == EMPTY


async def test_while_the_upstream_does_not_read_the_upload(pool, upstream, ask, until):
    async def flood():
        while True:
            yield b"x" * 1_000_000

    pending = asyncio.ensure_future(ask(pool, method=b"POST", body=flood()))
    peer = await upstream.accept()
    await peer.receive_until(b"\r\n\r\n")
    for _ in range(20):
        await asyncio.sleep(0)

    await cancel(pending)

    assert pool.stats() == EMPTY


async def test_one_who_waits_leaves_the_queue(make_pool, upstream, ask, until):
    pool = make_pool(max_connections=1)
    busy = asyncio.ensure_future(ask(pool))
    peer = await upstream.accept()
    await peer.receive_request()
    waiting = asyncio.ensure_future(ask(pool))
    await until(lambda: pool.stats().waiting == 1)

    await cancel(waiting)

    assert pool.stats().waiting == 0
    await peer.send(OK)
    assert (await busy).status == 200
    assert PoolStats(open=1, idle=1, in_use=0, waiting=0) == pool.stats()


@pytest.mark.parametrize("end", ["kept", "closed"])
async def test_what_was_handed_to_one_who_is_cancelled_goes_to_the_next(make_pool, upstream, ask, until, end):
    """Cancelled after the connection (or the room for one) was assigned and before it could run: whoever got the reply
    wakes up first, in the turn of the loop in which the connection is handed on."""
    pool = make_pool(max_connections=1)

    async def get_reply_and_cancel():
        response = await ask(pool)
        unlucky.cancel()
        return response

    busy = asyncio.ensure_future(get_reply_and_cancel())
    peer = await upstream.accept()
    await peer.receive_request()
    unlucky = asyncio.ensure_future(ask(pool, target=b"/unlucky"))
    await until(lambda: pool.stats().waiting == 1)
    following = asyncio.ensure_future(ask(pool, target=b"/following"))
    await until(lambda: pool.stats().waiting == 2)

    await peer.send(OK if end == "kept" else OK.replace(b"OK\r\n", b"OK\r\nconnection: close\r\n"))
    successor = peer if end == "kept" else await upstream.accept()
    head, _ = await successor.receive_request()
    await successor.send(OK)

    assert head.startswith(b"GET /following ")
    assert ((await busy).status, (await following).status) == (200, 200)
    assert unlucky.cancelled()
    assert PoolStats(open=1, idle=1, in_use=0, waiting=0) == pool.stats()


async def test_a_reply_to_a_cancelled_request_never_answers_the_next_one(pool, upstream, ask):
    pending = asyncio.ensure_future(ask(pool, target=b"/old"))
    old = await upstream.accept()
    await old.receive_request()
    await cancel(pending)

    following = asyncio.ensure_future(ask(pool, target=b"/new"))
    new = await upstream.accept()
    head, _ = await new.receive_request()
    await new.send(OK.replace(b"ok", b"NO"))

    assert head.startswith(b"GET /new ")
    assert await (await following).read() == b"NO"


def count_readers() -> int:
    return sum(type(thing) is ReplyReader for thing in gc.get_objects())


@pytest.mark.parametrize("end", ["cancelled", "complete", "cut"])
async def test_a_connection_that_is_over_is_freed_at_once(pool, upstream, ask, until, end):
    """By reference counts alone: a cycle would keep every parser until the garbage collector comes round."""
    gc.collect()
    gc.disable()
    try:
        connections = weakref.WeakSet()
        readers_before = count_readers()

        async def remember():
            response = await ask(pool)
            connections.add(response.connection)
            await response.read()

        pending = asyncio.ensure_future(remember())
        peer = await upstream.accept()
        await peer.receive_request()
        await peer.send(OK[:-1])
        await until(lambda: len(connections) == 1)
        if end == "cancelled":
            pending.cancel()
        elif end == "complete":
            await peer.send(OK[-1:])
        peer.close()
        await asyncio.wait({pending})
        if end != "cancelled":
            pending.exception()
        del pending

        await until(lambda: not connections)
        assert count_readers() == readers_before
        assert pool.stats() == EMPTY
    finally:
        gc.enable()


async def test_a_thousand_cancelled_requests_leave_nothing_behind(make_pool, upstream, ask, until):
    """Cancelled at all moments of their life, queued ones too; afterwards the pool works as on its first day."""
    pool = make_pool(max_connections=50)

    async def answer(peer):
        while True:
            await peer.receive_request()
            await peer.send(OK[:30])
            await asyncio.sleep(0)
            await peer.send(OK[30:])

    upstream.serve(answer)
    tasks_before = len(asyncio.all_tasks())

    async def one():
        return await (await ask(pool)).read()

    for _ in range(5):
        requests = [asyncio.ensure_future(one()) for _ in range(200)]
        for number, request in enumerate(requests):
            if number % 4 == 0:
                await asyncio.sleep(0)
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
    await until(lambda: pool.stats().in_use == 0)

    assert (pool.stats().in_use, pool.stats().waiting) == (0, 0)
    assert pool.stats().open <= 50
    assert await asyncio.gather(*(one() for _ in range(100))) == [b"ok"] * 100
    await pool.aclose()
    await until(lambda: len(asyncio.all_tasks()) <= tasks_before)
    assert pool.stats() == EMPTY
