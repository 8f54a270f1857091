"""Each stage has its limit, and progress resets only its own."""

import asyncio
import socket

import pytest

from hookline.transport import Timeouts, TransportError

HEAD = b"HTTP/1.1 200 OK\r\n"


async def failure(request):
    with pytest.raises(TransportError) as failed:
        await request
    return failed.value.kind, failed.value.is_written


async def test_no_connection_in_time_is_a_connect_timeout(make_pool, ask):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.socket() as first:
        first.connect(full.getsockname())  # fills the queue: the kernel answers nobody else
        second = socket.socket()
        second.setblocking(False)
        second.connect_ex(full.getsockname())
        pool = make_pool(port=full.getsockname()[1])

        assert await failure(ask(pool, timeouts=Timeouts(connect_s=0.05))) == ("connect_timeout", False)
        second.close()
    assert pool.stats().open == 0


async def test_a_name_that_does_not_resolve_in_time_is_a_connect_timeout(make_pool, ask):
    async def never(host, port):
        return await asyncio.get_running_loop().create_future()

    pool = make_pool(resolver=never)

    assert await failure(ask(pool, timeouts=Timeouts(connect_s=0.02))) == ("connect_timeout", False)


async def test_no_byte_of_a_reply_in_time_is_a_first_byte_timeout(pool, upstream, ask):
    limits = Timeouts(first_byte_s=0.05, idle_s=1000)

    assert await failure(ask(pool, timeouts=limits)) == ("first_byte_timeout", True)
    assert pool.stats().open == 0


async def test_an_interim_reply_is_no_first_byte(pool, upstream, ask):
    """Symptom: after a 102 or 103 the upstream had `idle_s` to think, as if its reply had begun."""
    for interim in (
        b"HTTP/1.1 103 Early Hints\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n",
    ):
        pending = asyncio.ensure_future(failure(ask(pool, timeouts=Timeouts(first_byte_s=0.2, idle_s=0.01))))
        peer = await upstream.accept()
        await peer.receive_request()
        await peer.send(interim)

        assert await pending == ("first_byte_timeout", True)


async def test_a_head_that_stalls_behind_an_interim_reply_is_an_idle_timeout(pool, upstream, ask):
    pending = asyncio.ensure_future(failure(ask(pool, timeouts=Timeouts(first_byte_s=3600, idle_s=0.02))))
    peer = await upstream.accept()
    await peer.receive_request()
    await peer.send(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 2")

    assert await pending == ("idle_timeout", True)


async def test_a_stall_within_the_head_is_an_idle_timeout(pool, exchange):
    limits = Timeouts(first_byte_s=1000, idle_s=0.05)

    assert await failure(exchange(pool, HEAD, timeouts=limits)) == ("idle_timeout", True)


async def test_a_stall_within_the_body_is_an_idle_timeout_after_what_came(pool, exchange):
    response, _ = await exchange(
        pool, HEAD + b"content-length: 10\r\n\r\nhello", timeouts=Timeouts(first_byte_s=1000, idle_s=0.05)
    )

    chunks = response.chunks()
    assert await anext(chunks) == b"hello"
    assert await failure(anext(chunks)) == ("idle_timeout", True)
    assert pool.stats().open == 0


async def test_a_slow_but_steady_reply_outlives_the_limit_of_a_single_wait(pool, exchange):
    """The deadline moves with each arrival: the whole takes longer than idle_s."""
    response, peer = await exchange(pool, HEAD + b"content-length: 30\r\n\r\n", timeouts=Timeouts(idle_s=0.5))

    async def drip():
        for _ in range(30):
            await asyncio.sleep(0.025)
            await peer.send(b"x")

    dripping = asyncio.ensure_future(drip())
    assert await response.read() == b"x" * 30
    await dripping


async def test_an_upstream_that_does_not_read_the_request_is_a_write_timeout(pool, upstream, ask):
    limits = Timeouts(first_byte_s=1000, write_s=0.05)

    assert await failure(ask(pool, method=b"POST", body=b"x" * 50_000_000, timeouts=limits)) == ("write_timeout", True)
    assert pool.stats().open == 0


async def test_an_upstream_that_reads_slowly_is_no_write_timeout(pool, upstream, ask):
    """The whole takes longer than write_s, but something is taken all the time."""
    body = b"x" * 20_000_000
    limits = Timeouts(first_byte_s=1000, write_s=0.4)

    pending = asyncio.ensure_future(ask(pool, method=b"POST", body=body, timeouts=limits))
    peer = await upstream.accept()
    await peer.receive_until(b"\r\n\r\n")
    received = len(peer.received)
    for pause_at in range(0, len(body) + 1, 1_000_000):
        while received < pause_at:
            received += len(await peer.receive())
        await asyncio.sleep(0.03)
    await peer.send(HEAD + b"content-length: 0\r\n\r\n")

    assert (await pending).status == 200


async def test_waiting_for_a_connection_has_its_limit(make_pool, upstream, ask):
    pool = make_pool(max_connections=1)
    busy = asyncio.ensure_future(ask(pool))
    peer = await upstream.accept()

    assert await failure(ask(pool, timeouts=Timeouts(pool_s=0.02))) == ("pool_timeout", False)

    assert pool.stats().waiting == 0
    await peer.send(HEAD + b"content-length: 0\r\n\r\n")
    assert (await busy).status == 200


async def test_a_caller_that_does_not_take_the_body_is_not_the_upstreams_fault(pool, exchange):
    """Reading is paused for longer than idle_s; the upstream has more to send all the time."""
    large = b"x" * 8_000_000
    response, peer = await exchange(
        pool, HEAD + b"content-length: %d\r\n\r\n" % len(large), timeouts=Timeouts(idle_s=0.05)
    )
    sending = asyncio.ensure_future(peer.send(large))

    await asyncio.sleep(0.2)
    received = 0
    async for chunk in response.chunks():
        received += len(chunk)

    assert len(large) == received
    await sending


async def test_a_head_alone_is_no_first_byte_of_the_answer(pool, upstream, ask):
    """Symptom: an upstream that sends its head at once and then thinks had `idle_s` in place of `first_byte_s` to begin."""
    pending = asyncio.ensure_future(ask(pool, timeouts=Timeouts(first_byte_s=0.05, idle_s=1000)))
    peer = await upstream.accept()
    await peer.receive_request()
    await peer.send(HEAD + b"transfer-encoding: chunked\r\n\r\n")
    response = await pending

    with pytest.raises(TransportError, match=r"did not begin to answer within 0\.05 s") as failed:
        await response.read()
    assert failed.value.kind == "first_byte_timeout"


async def test_a_reply_that_drips_past_its_total_time_is_cut(pool, upstream, ask, until):
    pending = asyncio.ensure_future(ask(pool, timeouts=Timeouts(total_s=0.1, idle_s=1000)))
    peer = await upstream.accept()
    await peer.receive_request()
    await peer.send(HEAD + b"transfer-encoding: chunked\r\n\r\n")
    response = await pending

    async def drip():
        while True:
            await peer.send(b"1\r\nx\r\n")
            await asyncio.sleep(0.01)

    dripping = asyncio.ensure_future(drip())
    with pytest.raises(TransportError, match=r"did not end its reply within 0\.1 s") as failed:
        await response.read()
    dripping.cancel()
    assert failed.value.kind == "total_timeout"


async def test_a_reply_slower_than_its_minimum_is_cut_and_a_faster_one_is_not(pool, upstream, ask):
    for min_bytes_per_s, window_s, expected in ((1_000_000.0, 0.03, "throughput_timeout"), (1.0, 0.1, "")):
        limits = Timeouts(min_bytes_per_s=min_bytes_per_s, throughput_window_s=window_s, idle_s=1000)
        pending = asyncio.ensure_future(ask(pool, timeouts=limits))
        peer = await upstream.accept()
        await peer.receive_request()
        await peer.send(HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
        response = await pending
        kind, pieces = "", 0
        try:
            async for _ in response.chunks():
                pieces += 1
                if pieces == 30:
                    await peer.send(b"0\r\n\r\n")
                else:
                    await asyncio.sleep(0.01)
                    await peer.send(b"1\r\nx\r\n")
        except TransportError as error:
            kind = error.kind
        assert kind == expected
        peer.close()


async def test_the_minimum_counts_from_the_first_byte_of_the_body(pool, upstream, ask):
    """Symptom: the head counted as a beginning, so that an upstream that thinks was found too slow before `first_byte_s`."""
    limits = Timeouts(first_byte_s=0.2, min_bytes_per_s=1_000, throughput_window_s=0.02, idle_s=1000)
    pending = asyncio.ensure_future(ask(pool, timeouts=limits))
    peer = await upstream.accept()
    await peer.receive_request()
    await peer.send(HEAD + b"transfer-encoding: chunked\r\n\r\n")
    response = await pending

    with pytest.raises(TransportError) as failed:
        await response.read()
    assert failed.value.kind == "first_byte_timeout"


async def test_what_watched_an_exchange_ends_with_it(pool, upstream, ask):
    """The next exchange of a kept connection must not be cut by the total time of the one before."""
    pending = asyncio.ensure_future(
        ask(pool, timeouts=Timeouts(total_s=0.05, min_bytes_per_s=1, throughput_window_s=0.02))
    )
    peer = await upstream.accept()
    await peer.receive_request()
    await peer.send(HEAD + b"content-length: 2\r\n\r\nok")
    assert await (await pending).read() == b"ok"

    pending = asyncio.ensure_future(ask(pool))
    await peer.receive_request()
    await asyncio.sleep(0.1)
    await peer.send(HEAD + b"content-length: 2\r\n\r\nok")
    assert await (await pending).read() == b"ok"
