"""The working door: a request becomes a call, the reply comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson

from hookline.call import Call
from hookline.reply import Reply

CHAT = b'{"model":"demo/echo","messages":[{"role":"user","content":"hi"}]}'


def post(path: bytes, body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST %b HTTP/1.1" % path, b"host: x", b"content-length: %d" % len(body), *headers]
    if not any(line.lower().startswith(b"content-type") for line in headers):
        lines.append(b"content-type: application/json")
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def test_chat_completion_reaches_the_pipeline_and_comes_back(open_door):
    door = await open_door()

    reply = await door.ask(post(b"/v1/chat/completions?a=%2Fb", CHAT))

    (call,) = door.pipeline.calls
    assert (reply.status, reply.body) == (200, b'{"ok":true}')
    assert (call.endpoint, call.model, call.path, call.query) == ("chat", "demo/echo", "/v1/chat/completions", "a=%2Fb")
    assert call.body == CHAT
    assert reply.headers["x-request-id"] == call.id
    assert reply.headers["content-length"] == "11"
    assert "date" in reply.headers
    assert "connection" not in reply.headers


async def test_stream_is_relayed_chunk_by_chunk(open_door):
    gate = asyncio.Event()

    async def stream() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        await gate.wait()
        yield b""
        yield b"data: [DONE]\n\n"

    async def answer(call: Call) -> Reply:
        assert call.is_stream
        return Reply(200, {"content-type": "text/event-stream"}, stream())

    door = await open_door(answer)
    client = await door.connect()
    await client.send(post(b"/v1/chat/completions", b'{"model":"m","stream":true}'))

    head = await client.reader.readuntil(b"\r\n\r\n")
    first = await client.reader.readexactly(len(b"9\r\ndata: 1\n\n\r\n"))
    gate.set()
    rest = await client.reader.readuntil(b"0\r\n\r\n")

    assert b"transfer-encoding: chunked\r\n" in head
    assert first == b"9\r\ndata: 1\n\n\r\n"
    assert rest == b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


async def test_connection_carries_many_calls_and_pipelined_ones_in_order(open_door):
    async def answer(call: Call) -> Reply:
        assert call.payload is not None
        return Reply(200, {}, orjson.dumps(call.payload["n"]))

    door = await open_door(answer)
    client = await door.connect()
    requests = [post(b"/v1/embeddings", b'{"n":%d}' % n) for n in range(40)]

    one = await client.ask(requests[0])
    await client.send(b"".join(requests[1:]))
    replies = [await client.read_reply() for _ in requests[1:]]

    assert [b"%d" % n for n in range(40)] == [one.body] + [reply.body for reply in replies]
    assert door.front.connection_count == 1


async def test_healthz_answers_without_the_pipeline(open_door):
    door = await open_door()

    reply = await door.ask(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")

    assert (reply.status, orjson.loads(reply.body)) == (200, {"status": "ok"})
    assert door.pipeline.calls == []
