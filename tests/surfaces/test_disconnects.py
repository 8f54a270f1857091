"""The client goes: wherever the request is, its call is told, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
from collections.abc import AsyncIterator

import pytest

from hookline.call import Call
from hookline.reply import Reply

CALL = b"GET /v1/x HTTP/1.1\r\nhost: x\r\n\r\n"


async def never(call: Call) -> Reply:
    await asyncio.Event().wait()
    return Reply(200)


async def gone(door) -> None:
    """Wait until the front has forgotten every connection."""
    while door.front.connection_count:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def hang_up(client) -> None:
    client.hang_up()


def half_close(client) -> None:
    client.writer.write_eof()


ways_to_go = pytest.mark.parametrize("go", [hang_up, half_close])


@ways_to_go
@pytest.mark.parametrize("sent", [b"", b"GET /v1/x HT", b"GET /v1/x HTTP/1.1\r\nhost: x\r\n"])
async def test_before_the_head_is_complete_there_is_no_call(open_door, go, sent):
    door = await open_door()
    client = await door.connect()

    await client.send(sent)
    go(client)
    await gone(door)

    assert door.pipeline.calls == []


@ways_to_go
async def test_in_the_middle_of_the_body_the_call_ends(open_door, go):
    door = await open_door()
    client = await door.connect()

    await client.send(b'POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"a')
    await door.pipeline.is_running.wait()
    go(client)
    await gone(door)

    assert door.pipeline.ended == ["client_gone"]


@ways_to_go
async def test_while_the_upstream_thinks_the_call_ends(open_door, go):
    door = await open_door(never)
    client = await door.connect()

    await client.send(CALL)
    await door.pipeline.is_running.wait()
    go(client)
    await gone(door)

    assert door.pipeline.ended == ["client_gone"]


@ways_to_go
async def test_in_the_middle_of_a_stream_the_call_ends(open_door, go):
    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await asyncio.Event().wait()

    async def answer(call: Call) -> Reply:
        return Reply(200, {}, body())

    door = await open_door(answer)
    client = await door.connect()

    await client.send(CALL)
    await client.reader.readuntil(b"first\r\n")
    go(client)
    await gone(door)

    assert door.pipeline.ended == ["client_gone"]


@ways_to_go
async def test_behind_requests_it_sent_ahead_the_call_ends_and_those_never_begin(open_door, go):
    door = await open_door(never)
    client = await door.connect()

    await client.send(CALL * 3)
    await door.pipeline.is_running.wait()
    go(client)
    await gone(door)

    assert door.pipeline.ended == ["client_gone"]


@pytest.mark.parametrize(
    "flood", [CALL * 200_000, b"POST /v1/y HTTP/1.1\r\nhost: x\r\ncontent-length: 9999999\r\n\r\n" + b"y" * 4_000_000]
)
async def test_reset_behind_bytes_nobody_reads_ends_the_call(open_door, flood):
    door = await open_door(never)
    client = await door.connect()

    await client.send(CALL)
    await door.pipeline.is_running.wait()
    client.writer.write(flood)
    (connection,) = door.front.connections
    while not (connection._buffer_paused or connection._reading_paused):  # noqa: ASYNC110
        await asyncio.sleep(0)
    linger_off = struct.pack("ii", 1, 0)  # a reset overtakes what is still on its way; an orderly end can't
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_off)
    client.hang_up()
    await gone(door)

    assert door.pipeline.ended == ["client_gone"]


async def test_call_that_drains_is_not_cancelled(open_door):
    gate = asyncio.Event()
    told = asyncio.Event()

    async def answer(call: Call) -> Reply:
        call.client_closed = told.set  # what the pipeline does for on_disconnect = "drain"
        await gate.wait()
        return Reply(200)

    door = await open_door(answer)
    client = await door.connect()

    await client.send(CALL)
    await door.pipeline.is_running.wait()
    client.hang_up()
    await told.wait()
    assert door.front.connection_count == 1
    gate.set()
    await gone(door)

    assert door.pipeline.ended == ["client_gone"]  # by `deliver`, which found nobody


async def test_body_that_breaks_leaves_what_it_yielded_and_no_clean_end(open_door):
    async def body() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        yield b'data: {"error":{}}\n\n'
        raise RuntimeError("upstream lost")

    async def answer(call: Call) -> Reply:
        return Reply(200, {"content-type": "text/event-stream"}, body())

    door = await open_door(answer)
    client = await door.connect()

    reply = await client.ask(CALL)

    assert (reply.body, reply.is_whole) == (b'data: 1\n\ndata: {"error":{}}\n\n', False)
    assert door.pipeline.ended == ["cut: upstream lost"]


async def test_http_1_0_client_sees_a_reset_where_a_close_would_look_complete(open_door):
    async def body() -> AsyncIterator[bytes]:
        yield b"half"
        raise RuntimeError("upstream lost")

    async def answer(call: Call) -> Reply:
        return Reply(200, {"content-type": "audio/mpeg"}, body())

    door = await open_door(answer)
    client = await door.connect()
    await client.send(b"GET /v1/x HTTP/1.0\r\n\r\n")

    with pytest.raises(ConnectionResetError):
        await client.reader.read()


async def test_many_clients_that_go_leave_no_tasks_and_no_connections(open_door):
    door = await open_door(never)
    before = len(asyncio.all_tasks())

    for _ in range(30):
        clients = [await door.connect() for _ in range(10)]
        for number, client in enumerate(clients):
            await client.send(CALL[: number * 5])
        await clients[0].send(CALL)
        for client in clients:
            client.hang_up()
    await gone(door)
    gc.collect()

    assert len(asyncio.all_tasks()) == before
    assert door.front.connections == []
