"""Slow and oversized clients: each limit says what it is, and a refusal is seen by who caused it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import orjson
import pytest

from hookline.call import Call
from hookline.errors import Unauthenticated
from hookline.reply import Reply
from hookline.surfaces.settings import FrontSettings

MIB = 1 << 20


def code_of(body: bytes) -> str:
    return str(orjson.loads(body)["error"]["code"])


async def test_head_that_does_not_end_is_408(open_door):
    door = await open_door(limits=FrontSettings(header_timeout_s=0.05))
    client = await door.connect()

    await client.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\n")
    reply = await client.read_reply()

    assert (reply.status, code_of(reply.body), reply.headers["connection"]) == (408, "request_timeout", "close")
    assert await client.is_closed()


async def test_head_timeout_covers_the_whole_head_not_each_byte(open_door):
    door = await open_door(limits=FrontSettings(header_timeout_s=0.1))
    client = await door.connect()
    reading = asyncio.ensure_future(client.read_reply())

    for byte in b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-slow: " + b"y" * 10_000:
        client.writer.write(bytes([byte]))
        await asyncio.wait({reading}, timeout=0.01)
        if reading.done():
            break

    assert (await reading).status == 408


async def test_head_that_trickles_in_behind_a_running_call_is_408_in_its_turn(open_door):
    gate = asyncio.Event()

    async def answer(call: Call) -> Reply:
        await gate.wait()
        return Reply(200)

    door = await open_door(answer, limits=FrontSettings(header_timeout_s=0.05))
    client = await door.connect()
    await client.send(b"GET /v1/x HTTP/1.1\r\nhost: x\r\n\r\n")
    await door.pipeline.is_running.wait()
    await client.send(b"GET /v1/y HTTP/1.1\r\n")
    gate.set()

    replies = [await client.read_reply(), await client.read_reply()]

    assert [reply.status for reply in replies] == [200, 408]


async def test_idle_connection_is_closed_without_a_word(open_door):
    door = await open_door(limits=FrontSettings(keepalive_timeout_s=0.05))
    silent, used = await door.connect(), await door.connect()

    reply = await used.ask(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")

    assert reply.status == 200
    assert await silent.is_closed()
    assert await used.is_closed()


async def test_empty_lines_between_requests_do_not_begin_a_head(open_door):
    door = await open_door(limits=FrontSettings(header_timeout_s=0.02, keepalive_timeout_s=0.3))
    client = await door.connect()

    await client.send(b"\r\n")

    assert await client.is_closed()  # as an idle connection: no 408


async def test_body_that_stops_arriving_is_408(open_door):
    door = await open_door(limits=FrontSettings(body_idle_timeout_s=0.05))
    client = await door.connect()

    await client.send(b'POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"a"')
    reply = await client.read_reply()

    assert (reply.status, code_of(reply.body), reply.headers["connection"]) == (408, "request_timeout", "close")


async def test_slow_body_that_keeps_arriving_is_served(open_door):
    door = await open_door(limits=FrontSettings(body_idle_timeout_s=0.4))
    client = await door.connect()
    body = b'{"input":"0123456789"}'

    await client.send(b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body))
    await door.pipeline.is_running.wait()
    for byte in body:
        await client.send(bytes([byte]))
        await asyncio.sleep(0.03)  # the client's own pace: 22 bytes take longer than the idle timeout
    reply = await client.read_reply()

    assert (reply.status, door.pipeline.calls[0].body) == (200, body)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n" + b"".join(b"x-%d: %b\r\n" % (n, b"a" * 500) for n in range(80)) + b"\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n" + b"".join(b"x-%d: 1\r\n" % n for n in range(200)) + b"\r\n",
    ],
    ids=["line", "header", "all headers together", "number of headers"],
)
@pytest.mark.parametrize("piece_bytes", [1 << 20, 1000])
async def test_head_over_the_limit_is_431(open_door, head, piece_bytes):
    door = await open_door()
    client = await door.connect()

    for at in range(0, len(head), piece_bytes):
        await client.send(head[at : at + piece_bytes])
    reply = await client.read_reply()

    assert (reply.status, code_of(reply.body)) == (431, "request_head_too_large")


async def test_head_below_the_limit_is_served(open_door):
    door = await open_door()

    reply = await door.ask(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 30_000 + b"\r\n\r\n")

    assert reply.status == 200


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_body_over_the_limit_is_413_and_the_client_that_sends_it_whole_sees_that(open_door, framing):
    door = await open_door(limits=FrontSettings(max_body_bytes=MIB))
    body = b"x" * (12 * MIB)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    if framing == "length":
        data = head + b"content-length: %d\r\n\r\n" % len(body) + body
    else:
        data = head + b"transfer-encoding: chunked\r\n\r\n%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"

    def send_everything_then_read() -> bytes:
        with socket.create_connection(("127.0.0.1", door.port)) as client:
            client.sendall(data)
            received = b""
            while piece := client.recv(65_536):
                received += piece
            return received

    received = await asyncio.to_thread(send_everything_then_read)

    assert received.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"request_too_large"' in received
    assert b"\r\nconnection: close\r\n" in received


async def test_refusal_before_the_body_was_read_reaches_a_client_that_is_still_sending(open_door):
    def check(call: Call) -> None:
        raise Unauthenticated("no key was shown")

    door = await open_door(check=check)
    client = await door.connect()

    await client.send(b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 50000000\r\n\r\n" + b"x" * 1000)
    reply = await client.read_reply()
    for _ in range(20):
        await client.send(b"x" * MIB)

    assert (reply.status, reply.headers["connection"]) == (401, "close")
    assert await client.is_closed()


async def test_lingering_after_a_refusal_ends(open_door):
    door = await open_door(limits=FrontSettings(max_body_bytes=10, linger_s=0.05))
    client = await door.connect()

    reply = await client.ask(b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n")
    while door.front.connection_count:
        await client.send(b"x")
        await asyncio.sleep(0)

    assert reply.status == 413


async def test_client_that_waits_to_continue_is_asked_after_authentication(open_door):
    door = await open_door()
    client = await door.connect()
    head = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nexpect: 100-Continue\r\n\r\n"

    await client.send(head)
    interim = await client.read_reply()
    await client.send(b"{}")
    reply = await client.read_reply()

    assert [interim.status, reply.status] == [100, 200]
    assert interim.headers == {}


async def test_client_that_waits_to_continue_is_refused_without_being_asked(open_door):
    def check(call: Call) -> None:
        raise Unauthenticated("no key was shown")

    door = await open_door(check=check)

    reply = await door.ask(
        b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n"
    )

    assert (reply.status, reply.headers["connection"]) == (401, "close")


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield b"x" * 65_536
        await asyncio.sleep(0)


async def test_reader_that_stalls_is_cut_and_its_call_ends(open_door):
    produced = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal produced
        async for chunk in endless():
            produced += len(chunk)
            yield chunk

    async def answer(call: Call) -> Reply:
        return Reply(200, {}, body())

    door = await open_door(answer, limits=FrontSettings(write_timeout_s=0.1))
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", door.port))
        await loop.sock_sendall(client, b"GET /v1/x HTTP/1.1\r\nhost: x\r\n\r\n")
        await door.pipeline.has_ended.wait()

    assert door.pipeline.ended == ["client_gone"]
    assert produced < 16 * MIB  # ours and the kernel's buffers, not the whole stream


async def test_slow_reader_that_makes_progress_is_not_cut(open_door):
    chunk = b"x" * 65_536

    async def body() -> AsyncIterator[bytes]:
        for _ in range(80):
            yield chunk

    async def answer(call: Call) -> Reply:
        return Reply(200, {}, body())

    door = await open_door(answer, limits=FrontSettings(write_timeout_s=0.2))
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", door.port))
        await loop.sock_sendall(client, b"GET /v1/x HTTP/1.0\r\n\r\n")
        received = 0
        while piece := await loop.sock_recv(client, 32_768):
            received += len(piece)
            await asyncio.sleep(
                0.01
            )  # the client's own pace: our buffer stands still for longer than the write timeout

    assert received > 80 * 65_536
    assert door.pipeline.ended == ["ok"]


async def test_reader_of_a_whole_reply_that_stalls_is_cut(open_door):
    async def answer(call: Call) -> Reply:
        return Reply(200, {}, b"x" * (32 * MIB))

    door = await open_door(answer, limits=FrontSettings(write_timeout_s=0.1))
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", door.port))
        await loop.sock_sendall(client, b"GET /v1/x HTTP/1.1\r\nhost: x\r\n\r\n")
        await door.pipeline.has_ended.wait()

    assert door.pipeline.ended == ["client_gone"]


async def test_client_that_pipelines_without_end_is_not_read_ahead_without_bound(open_door):
    gate = asyncio.Event()

    async def answer(call: Call) -> Reply:
        await gate.wait()
        return Reply(200)

    door = await open_door(answer)
    with socket.socket() as client:
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", door.port))
        one = b"GET /v1/x HTTP/1.1\r\nhost: x\r\n\r\n"
        flood = asyncio.ensure_future(loop.sock_sendall(client, one * 4_000_000))
        await door.pipeline.is_running.wait()
        (connection,) = door.front.connections
        while not connection._buffer_paused:  # noqa: ASYNC110
            await asyncio.sleep(0)
        waiting = len(connection._messages)
        flood.cancel()
        await asyncio.wait({flood})

    assert waiting <= 40
    gate.set()
