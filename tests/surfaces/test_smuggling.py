"""Requests that two servers could read differently are refused, and the connection ends with them."""

from __future__ import annotations

import orjson
import pytest

REFUSED = {
    "two lengths": b"content-length: 3\r\ncontent-length: 4\r\n\r\nabc",
    "two equal lengths": b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc",
    "a list of lengths": b"content-length: 3, 3\r\n\r\nabc",
    "a signed length": b"content-length: +3\r\n\r\nabc",
    "a hexadecimal length": b"content-length: 0x3\r\n\r\nabc",
    "an empty length": b"content-length:\r\n\r\nabc",
    "a length beyond 64 bits": b"content-length: 99999999999999999999999\r\n\r\nabc",
    "the largest length of 64 bits": b"content-length: 18446744073709551615\r\n\r\nabc",
    "length and chunked": b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
    "gzip, chunked": b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "two codings": b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "identity": b"transfer-encoding: identity\r\n\r\nabc",
    "an unknown coding": b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "an empty coding": b"transfer-encoding:\r\n\r\n",
    "a coding with parameters": b"transfer-encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
    "a coding after a vertical tab": b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "whitespace before a colon": b"x-a : 1\r\n\r\n",
    "whitespace before the coding's colon": b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
    "a folded line": b"x-a: 1\r\n 2\r\n\r\n",
    "a bare CR": b"x-a: 1\rx-b: 2\r\n\r\n",
    "a bare LF": b"x-a: 1\nx-b: 2\r\n\r\n",
    "a NUL": b"x-a: 1\x002\r\n\r\n",
    "a control character": b"x-a: 1\x012\r\n\r\n",
    "a name that is no token": b"x\x01a: 1\r\n\r\n",
    "no name": b": 1\r\n\r\n",
    "a second host": b"host: y\r\n\r\n",
    "a chunk size that is no number": b"transfer-encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n",
    "a chunk size with a prefix": b"transfer-encoding: chunked\r\n\r\n0x2\r\nab\r\n0\r\n\r\n",
    "a negative chunk size": b"transfer-encoding: chunked\r\n\r\n-2\r\nab\r\n0\r\n\r\n",
    "a chunk size beyond 64 bits": b"transfer-encoding: chunked\r\n\r\n10000000000000002\r\nab\r\n0\r\n\r\n",
    "a chunk size before a bare LF": b"transfer-encoding: chunked\r\n\r\n2\nab\r\n0\r\n\r\n",
    "a chunk extension with a bare LF": b"transfer-encoding: chunked\r\n\r\n2;a\nb\r\nab\r\n0\r\n\r\n",
    "a chunk longer than its size": b"transfer-encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("rest", REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("is_split", [False, True], ids=["whole", "head first"])
async def test_ambiguous_request_is_refused_and_nothing_after_it_is_read(open_door, rest, is_split):
    door = await open_door()
    client = await door.connect()
    data = b"POST /v1/files HTTP/1.1\r\nhost: x\r\n" + rest

    if is_split:
        head, separator, body = data.partition(b"\r\n\r\n")
        await client.send(head + separator)
        await client.send(body)
    else:
        await client.send(data)
    reply = await client.read_reply()
    await client.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")

    assert reply.status == 400
    assert orjson.loads(reply.body)["error"]["type"] == "invalid_request_error"
    assert reply.headers["connection"] == "close"
    assert reply.headers["x-request-id"].startswith("req_")
    assert await client.is_closed()
    assert door.pipeline.ended in ([], ["ok"])  # it may have begun with the head, and was told of the broken body


@pytest.mark.parametrize(
    "data",
    [
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/2.0\r\nhost: x\r\n\r\n",
        b"GET /healthz HTTP/1.2\r\nhost: x\r\n\r\n",
        b"GET /healthz\r\n\r\n",
        b"POST /v1/files HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"NONSENSE /healthz HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /heal\x01thz HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET http://[bad/healthz HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
    ids=[
        "no host",
        "HTTP/2",
        "HTTP/1.2",
        "HTTP/0.9",
        "chunked in HTTP/1.0",
        "h2 preface",
        "TLS",
        "method",
        "control",
        "IPv6",
    ],
)
async def test_what_is_not_http_1_is_refused(open_door, data):
    door = await open_door()

    reply = await door.ask(data)

    assert (reply.status, reply.headers["connection"]) == (400, "close")
    assert door.pipeline.calls == []


@pytest.mark.parametrize(
    "data",
    [
        b"GET /v1/x HTTP/1.1\r\nhost: x\r\nauthorization : Bearer sk-secret\r\n\r\n",
        b"GET /v1/x HTTP/1.1\r\nhost: x\r\nx-a: \x01\r\nauthorization: Bearer sk-secret\r\n\r\n",
        b"GET http://[sk-secret/ HTTP/1.1\r\nhost: x\r\n\r\n",
        b"sk-secret\r\n\r\n",
        b"GET /sk-secret\x01 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /v1/x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nsk-secret\r\n",
        b"GET /v1/x HTTP/1.1\r\nhost: x\r\nsec-websocket-key1: sk-secret\r\n\r\n",
        b'POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 21\r\n\r\n{"key": sk-secret-12}',
        b'POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 11\r\n\r\n"sk-secret"',
    ],
)
async def test_errors_never_quote_the_request(open_door, data):
    door = await open_door()

    reply = await door.ask(data)

    assert reply.status == 400
    assert b"secret" not in reply.body


async def test_chunk_extensions_and_trailers_are_read_and_dropped(open_door):
    door = await open_door()

    reply = await door.ask(
        b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ntransfer-encoding: CHUNKED\r\n\r\n"
        b'5;a=b\r\n{"a":\r\n2\r\n1}\r\n0\r\nx-checksum: 1\r\n\r\n'
    )

    (call,) = door.pipeline.calls
    assert (reply.status, call.body) == (200, b'{"a":1}')


async def test_garbage_behind_a_request_does_not_cost_that_request_its_answer(open_door):
    door = await open_door()
    client = await door.connect()

    first = await client.ask(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
    second = await client.ask(b"\x00\x01garbage\r\n\r\n")

    assert [first.status, second.status] == [200, 400]
    assert await client.is_closed()
