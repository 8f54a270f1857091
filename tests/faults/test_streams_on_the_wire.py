"""Streams through a real gateway and real sockets: giants, slow readers, old clients, connections that die while nobody looks."""

from __future__ import annotations

import asyncio
import socket

import orjson
import pytest

from hookline.testing.raw_client import chat_request
from hookline.testing.upstream import CUT, STALL, bytes_reply, json_reply, reply_head, sse_reply

FINISH = '{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'


def proxy(upstream, server: str = "", provider: str = "") -> str:
    return f"""
[server]
{server}
[chain]
plugins = ["fallback"]
[providers.up]
kind = "openai"
base_url = "{upstream.url}"
default = true
{provider}
"""


def content(text: str) -> str:
    return orjson.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).decode()


@pytest.fixture
async def gateway(start_gateway, upstream):
    return await start_gateway(proxy(upstream))


@pytest.mark.parametrize("size", [1, 3, 4096, 1 << 20])
async def test_a_giant_event_and_split_characters_pass_unharmed(gateway, upstream, size):
    """10 MB in one event where the pieces are large; every byte a chunk of its own where they are small."""
    text = "ü€𝄞\u2028" * (1_000_000 if size > 4096 else 20_000 if size == 4096 else 50)
    body = f": hello\r\n\r\ndata: {content(text)}\r\n\r\n: bye\n\ndata: {FINISH}\n\ndata: [DONE]\n\n".encode()
    upstream.play(sse_reply(*[body[start : start + size] for start in range(0, len(body), size)]))

    reply = await gateway.ask(chat_request("m", stream=True))

    assert reply.is_whole
    assert reply.body == body


async def test_a_giant_response_completed_is_a_clean_end(gateway, upstream):
    last = {
        "type": "response.completed",
        "response": {"output": ["A" * 3_000_000], "usage": {"input_tokens": 1, "output_tokens": 2}},
    }
    body = b"event: response.completed\ndata: %b\n\n" % orjson.dumps(last)
    upstream.play(sse_reply(body))
    request = chat_request("m", stream=True).replace(b"/chat/completions", b"/responses", 1)

    reply = await gateway.ask(request)

    assert (reply.is_whole, reply.body) == (True, body)


async def test_a_reader_that_stalls_stops_the_upstream_and_is_cut(start_gateway, upstream):
    """What is held for it is what sockets and two buffers hold, not the stream."""
    gateway = await start_gateway(proxy(upstream, "write_timeout_s = 0.5"))
    piece = b": %b\n\n" % (b"x" * 65_536)
    sent = 0

    def count(request):
        nonlocal sent
        yield reply_head(200, {"content-type": "text/event-stream"})
        while True:
            sent += len(piece)
            yield piece

    upstream.always(count)
    _, writer = await gateway.connect()
    writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    writer.transport.pause_reading()
    writer.write(chat_request("m", stream=True))

    await upstream.wait_for_requests(1)
    await gateway.idle()

    assert sent < 32 << 20
    writer.transport.abort()


@pytest.mark.parametrize("end", ["whole", "cut"])
async def test_an_http_1_0_client_gets_a_stream_without_chunks(gateway, upstream, end):
    upstream.play(sse_reply(content("a"), FINISH, "[DONE]") if end == "whole" else sse_reply(content("a"), CUT))

    reply = await gateway.ask(chat_request("m", stream=True, version="1.0"))

    assert "transfer-encoding" not in reply.headers
    assert reply.headers["connection"] == "close"
    assert reply.body.startswith(f"data: {content('a')}\n\n".encode())
    assert (b'data: {"error"' in reply.body) is (end == "cut")


@pytest.mark.parametrize("how", ["closed", "spoke"])
async def test_a_kept_connection_that_died_while_idle_is_replaced_without_an_attempt(gateway, upstream, how):
    """At the very moment of use: tests/transport/test_keep_alive.py, where the upstream is a socket of the test's own."""
    go = asyncio.Event()
    late = [go, CUT] if how == "closed" else [go, *json_reply({"not": "yours"})]
    upstream.play([*json_reply({"choices": [], "n": 1}), *late], json_reply({"choices": [], "n": 2}))

    first = await gateway.ask(chat_request("m"))
    assert gateway.pool().idle == 1
    go.set()
    while gateway.pool().idle:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0)
    second = await gateway.ask(chat_request("m"))

    assert (first.body, second.body) == (b'{"choices":[],"n":1}', b'{"choices":[],"n":2}')
    assert second.headers["x-hookline-attempts"] == "1"


@pytest.mark.parametrize(
    "beyond", [b"x", b"\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{\"n\":666}", b"\0" * 70_000], ids=["byte", "line", "reply", "flood"]
)  # fmt: skip
async def test_bytes_beyond_a_reply_answer_nobody(gateway, upstream, beyond):
    upstream.play([json_reply({"choices": [], "n": 1})[0] + beyond, STALL], json_reply({"choices": [], "n": 2}))

    answers = [(await gateway.ask(chat_request("m"))).body for _ in range(2)]

    assert answers == [b'{"choices":[],"n":1}', b'{"choices":[],"n":2}']
    assert upstream.connections == 2 or beyond == b"\r\n"


async def test_redirects_are_passed_on_and_not_followed(gateway, upstream):
    upstream.play(
        bytes_reply(
            b"{}", status=307, headers={"location": f"{upstream.url}/elsewhere", "content-type": "application/json"}
        )
    )

    reply = await gateway.ask(chat_request("m"))

    assert (reply.status, len(upstream.requests)) == (307, 1)


async def test_interim_replies_are_skipped(gateway, upstream):
    upstream.play(
        [
            b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n",
            *json_reply({"choices": [], "n": 1}),
        ]
    )

    reply = await gateway.ask(chat_request("m"))

    assert (reply.status, reply.body, "link" in reply.headers) == (200, b'{"choices":[],"n":1}', False)


@pytest.mark.parametrize("stream", [False, True])
async def test_more_calls_than_connections_wait_their_turn_and_no_longer(start_gateway, upstream, stream):
    gateway = await start_gateway(proxy(upstream, provider="max_connections = 2\npool_timeout_s = 0.3"))
    go = asyncio.Event()
    upstream.always(lambda request: [go, *(sse_reply(FINISH) if stream else json_reply({"choices": [], "n": 1}))])
    calls = [asyncio.ensure_future(gateway.ask(chat_request("m", stream=stream))) for _ in range(5)]

    while sum(call.done() for call in calls) < 3:
        await asyncio.wait([call for call in calls if not call.done()], return_when=asyncio.FIRST_COMPLETED)
    go.set()
    replies = await asyncio.gather(*calls)

    assert sorted(reply.status for reply in replies) == [200, 200, 503, 503, 503]
    assert gateway.pool().open == 2


@pytest.mark.parametrize(("on_disconnect", "is_cancelled"), [("cancel", True), ("drain", False)])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels_the_upstream_or_lets_it_finish(
    start_gateway, upstream, on_disconnect, is_cancelled, stream
):
    gateway = await start_gateway(proxy(upstream, f'on_disconnect = "{on_disconnect}"'))
    go = asyncio.Event()
    script = (
        sse_reply(content("a"), go, FINISH) if stream else [reply_head(200, {"content-length": "2"}) + b"{", go, b"}"]
    )
    upstream.play(script)
    reader, writer = await gateway.connect()
    writer.write(chat_request("m", stream=stream))
    await upstream.wait_for_requests(1)
    if stream:
        await reader.readuntil(b"\n\n")

    writer.transport.abort()
    if is_cancelled:
        await upstream.requests[0].left.wait()
    else:
        while not gateway.app.current.pipeline.pumps.running:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
    go.set()
    await gateway.idle()

    assert upstream.requests[0].left.is_set() is is_cancelled
    assert gateway.pool().open == (0 if is_cancelled else 1)
    assert gateway.app.current.pipeline.pumps.running == 0


async def test_heartbeats_on_the_wire(start_gateway, upstream):
    """The comment comes in a chunk of its own; the error comes as an event, and the stream without its last chunk."""
    gateway = await start_gateway(proxy(upstream, "heartbeat_s = 0.02"))
    go = asyncio.Event()
    upstream.play([go, *json_reply({"error": {"message": "overloaded", "code": "x"}}, status=529)])
    reader, writer = await gateway.connect()
    writer.write(chat_request("m", stream=True))
    head = await reader.readuntil(b": waiting\n\n")
    go.set()
    rest = await reader.read()
    writer.transport.abort()

    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'data: {"error":{"message":"overloaded","code":"x"}}\n\n' in rest
    assert b"0\r\n\r\n" not in rest
    assert b"[DONE]" not in rest


async def test_a_reader_slower_than_its_upstream_gets_every_byte_and_so_does_a_tap(start_gateway, upstream):
    """Chunks are pushed past the call's task, which sees to it when the small buffers are full. The cache's tap reads along."""
    config = proxy(upstream).replace('["fallback"]', '["cache"]')
    gateway = await start_gateway(config + '[plugins.cache]\nwhen = "always"\nmax_entry_bytes = 67108864\n')
    pieces = [b": %d %b\n\n" % (number, b"x" * 40_000) for number in range(150)]
    body = b"".join(
        [b"data: %b\n\n" % content("a").encode(), *pieces, b"data: %b\n\ndata: [DONE]\n\n" % FINISH.encode()]
    )
    upstream.play(
        sse_reply(b"data: %b\n\n" % content("a").encode(), *pieces, b"data: %b\n\ndata: [DONE]\n\n" % FINISH.encode())
    )
    reader, writer = await gateway.connect()
    writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    writer.write(chat_request("m", stream=True))

    raw = await reader.readuntil(b"\r\n\r\n")
    received = b""
    while size := int(await reader.readline(), 16):
        received += (await reader.readexactly(size + 2))[:-2]
    writer.close()
    again = await gateway.ask(chat_request("m", stream=True))

    assert raw.startswith(b"HTTP/1.1 200")
    assert received == body
    assert again.body == body
    assert again.headers["x-hookline-cache"] == "hit"
