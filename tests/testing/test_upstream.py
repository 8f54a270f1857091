"""The scripted upstream does what its script says: the other tests lean on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from hookline.testing.upstream import CUT, RESET, STALL, ScriptedUpstream, bytes_reply, json_reply, sse_reply

REQUEST = b"POST /v1/x?y=1 HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nx-a: 2\r\ncontent-length: 2\r\n\r\n{}"


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as running:
        yield running


async def talk(upstream: ScriptedUpstream, *requests: bytes) -> bytes:
    """Send requests on one connection and read until the server ends it, or has answered each with a length."""
    reader, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
    try:
        writer.write(b"".join(requests))
        writer.write_eof()
        return await reader.read()
    finally:
        writer.close()


async def test_requests_are_recorded_as_they_came(upstream: ScriptedUpstream) -> None:
    chunked = b"PUT /v1/c HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"

    await talk(upstream, REQUEST, chunked)

    first, second = upstream.requests
    assert (first.method, first.target, first.json()) == ("POST", "/v1/x?y=1", {})
    assert [value for name, value in first.headers if name == "x-a"] == ["1", "2"]
    assert (first.header("X-A"), first.header("none")) == ("1", None)
    assert (second.body, second.connection) == (b"abcde", 1)


async def test_scripts_are_played_in_order_then_always_then_500(upstream: ScriptedUpstream) -> None:
    upstream.play(bytes_reply(b"one"), json_reply({"two": 2}, status=201, headers={"x-b": "c"}))

    raw = await talk(upstream, REQUEST, REQUEST, REQUEST)
    upstream.always(lambda request: bytes_reply(request.target.encode()))
    again = await talk(upstream, REQUEST)

    assert raw.startswith(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\noneHTTP/1.1 201 Created\r\n")
    assert b'x-b: c\r\ncontent-length: 9\r\n\r\n{"two":2}HTTP/1.1 500' in raw
    assert again.endswith(b"/v1/x?y=1")


async def test_an_event_stream_is_chunked_and_waits_for_events(upstream: ScriptedUpstream) -> None:
    go_on = asyncio.Event()
    upstream.play(sse_reply("1", go_on, b": raw\n\n"))
    reader, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
    writer.write(REQUEST)

    assert (await reader.readuntil(b"\n\n\r\n")).endswith(b"9\r\ndata: 1\n\n\r\n")
    go_on.set()
    assert await reader.readuntil(b"0\r\n\r\n") == b"7\r\n: raw\n\n\r\n0\r\n\r\n"
    writer.close()


async def test_reset_is_a_reset_and_cut_an_end(upstream: ScriptedUpstream) -> None:
    upstream.play([RESET], [b"HTTP/1.1 200 OK\r\n", CUT])

    with pytest.raises(ConnectionResetError):
        await talk(upstream, REQUEST)
    assert await talk(upstream, REQUEST) == b"HTTP/1.1 200 OK\r\n"


async def test_a_client_that_leaves_a_stalled_script_is_noticed(upstream: ScriptedUpstream) -> None:
    upstream.play([STALL])
    _, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
    writer.write(REQUEST)
    await upstream.wait_for_requests(1)
    assert not upstream.requests[0].left.is_set()

    writer.close()

    await upstream.requests[0].left.wait()


async def test_stopping_ends_what_is_stalled() -> None:
    async with ScriptedUpstream() as upstream:
        upstream.play([STALL])
        reader, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
        writer.write(REQUEST)
        await upstream.wait_for_requests(1)

    assert await reader.read() == b""
    writer.close()


def test_the_address_is_not_known_before_it_listens() -> None:
    with pytest.raises(RuntimeError, match="not started"):
        _ = ScriptedUpstream().url
