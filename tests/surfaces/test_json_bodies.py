"""JSON bodies: what they must be, and how they arrive."""

from __future__ import annotations

import gzip
import zlib

import orjson
import pytest

from hookline.surfaces.content_coding import _find_zstd
from hookline.surfaces.json_body import find_repeated_member, judge_names
from hookline.surfaces.settings import FrontSettings


def post(path: str, body: bytes, **headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


BROKEN = {
    "empty": (b"", "empty_body"),
    "not JSON": (b"{'a': 1}", "invalid_json"),
    "cut": (b'{"a": ', "invalid_json"),
    "followed by more": (b"{}{}", "invalid_json"),
    "NaN": (b'{"temperature": NaN}', "invalid_json"),
    "Infinity": (b'{"temperature": Infinity}', "invalid_json"),
    "not UTF-8": (b'{"a": "\xff"}', "invalid_json"),
    "a lone surrogate": (b'{"a": "\\ud800"}', "invalid_json"),
    "nested too deeply": (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", "invalid_json"),
    "nested too deeply to look twice": (b'{"\\u0061":' + b"[" * 1000 + b"]" * 1000 + b"}", "invalid_json"),
    "an array": (b'[{"model":"m"}]', "invalid_json"),
    "a string": (b'"m"', "invalid_json"),
    "null": (b"null", "invalid_json"),
    "model twice": (b'{"model":"a","model":"b"}', "repeated_member"),
    "model twice, spaced": (b'{"model" : "a", "x": {"model": 1},\n"model"\t: "b"}', "repeated_member"),
    "model twice, escaped": (b'{"model":"a","mo\\u0064el":"b"}', "repeated_member"),
    "model twice, escaped behind an escaped value": (
        b'{"x":"\\u0041","mo\\u0064el" :"b","model":"a"}',
        "repeated_member",
    ),
    "a long name twice": (b'{"%b":1,"%b":2}' % (b"n" * 200, b"n" * 200), "repeated_member"),
    "messages twice": (b'{"messages":[],"model":"a","messages":[1]}', "repeated_member"),
    "one of many twice": (b"{" + b",".join(b'"k%d":1' % n for n in range(100)) + b',"k7":2}', "repeated_member"),
    "members without end": (b"{" + b",".join(b'"k%d":1' % n for n in range(1_025)) + b"}", "too_many_members"),
    "model a number": (b'{"model":1}', None),
    "stream a string": (b'{"model":"m","stream":"true"}', None),
}


@pytest.mark.parametrize(("body", "code"), BROKEN.values(), ids=BROKEN.keys())
async def test_body_that_is_not_one_plain_object_is_400(open_door, body, code):
    door = await open_door()
    client = await door.connect()

    reply = await client.ask(post("/v1/chat/completions", body))
    next_one = await client.ask(post("/v1/chat/completions", b'{"model":"m"}'))

    error = orjson.loads(reply.body)["error"]
    assert (reply.status, error["type"], error["code"]) == (400, "invalid_request_error", code)
    assert next_one.status == 200


async def test_broken_json_says_where(open_door):
    door = await open_door()

    reply = await door.ask(post("/v1/chat/completions", b'{\n "a": 1,\n "b" 2}'))

    assert "line 3, column" in orjson.loads(reply.body)["error"]["message"]


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"model":"a","user":"u","messages":[{"role":"user","content":"user"}]}', None),
        (b'{"model":"a","tools":[{"model":"b"},{"model":"c"}]}', None),
        (b'{"a":"x\\u0022: \\"a\\": 1"}', None),
        (b'{"a":{"b":1,"b":2}}', None),
        # Each of these took minutes: escapes without end, a name compiled to a pattern.
        pytest.param(b'{"a":"' + b"\\u0041" * 1_000_000 + b'"}', None, id="a megabyte of escapes"),
        pytest.param(b'{"' + b"n" * 8_000_000 + b'":1}', None, id="a name of megabytes"),
        (b'{"a":1,"b":{"a":1},"a":2}', "a"),
    ],
)
def test_only_members_of_the_object_itself_count_as_repeated(body, name):
    assert find_repeated_member(body, judge_names(tuple(orjson.loads(body)))[1]) == name


@pytest.mark.parametrize(
    "content_type",
    [None, "application/json", "application/json; charset=utf-8", "APPLICATION/JSON", "text/plain", "application/vnd.api+json",
     "application/x-www-form-urlencoded"],
)  # fmt: skip
async def test_json_is_read_whatever_sloppy_clients_call_it(open_door, content_type):
    door = await open_door()
    headers = {} if content_type is None else {"content_type": content_type}

    for path in ("/v1/chat/completions", "/v1/images/generations"):
        await door.ask(post(path, b'{"model":"m","stream":true}', **headers))

    assert [(call.model, call.is_stream) for call in door.pipeline.calls] == [("m", True), ("m", True)]


@pytest.mark.parametrize("content_type", ["multipart/form-data; boundary=x", "audio/mpeg", "text/html"])
async def test_other_types_are_415_where_json_is_asked_for(open_door, content_type):
    door = await open_door()

    reply = await door.ask(post("/v1/chat/completions", b"{}", content_type=content_type))

    assert (reply.status, orjson.loads(reply.body)["error"]["code"]) == (415, "unsupported_media_type")


async def test_completion_without_a_model_gets_the_default_one(open_door):
    door = await open_door(default_completion_model="demo/echo")

    await door.ask(post("/v1/completions", b'{"prompt":"hi"}'))
    await door.ask(post("/v1/completions", b'{"prompt":"hi","model":"mine"}'))
    await door.ask(post("/v1/chat/completions", b'{"messages":[]}'))

    first, second, chat = door.pipeline.calls
    assert (first.model, orjson.loads(first.body)["model"]) == ("demo/echo", "demo/echo")
    assert (second.model, second.body) == ("mine", b'{"prompt":"hi","model":"mine"}')
    assert chat.model is None


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "x-gzip"])
async def test_gzip_body_is_decoded(open_door, coding):
    door = await open_door()
    body = b'{"model":"m","input":"' + b"abc" * 100_000 + b'"}'

    await door.ask(post("/v1/embeddings", gzip.compress(body), content_encoding=coding))

    assert door.pipeline.calls[0].body == body


async def test_gzip_body_of_several_members_is_one_body(open_door):
    door = await open_door()

    await door.ask(
        post("/v1/embeddings", gzip.compress(b'{"model":') + gzip.compress(b'"m"}'), content_encoding="gzip")
    )

    assert door.pipeline.calls[0].body == b'{"model":"m"}'


async def test_gzip_body_of_empty_members_ends(open_door):
    """Each costs work and adds nothing to the plain body, whose size is limited."""
    door = await open_door(limits=FrontSettings(max_body_bytes=1_000_000))
    empty = gzip.compress(b"")

    many = await door.ask(post("/v1/chat/completions", empty * 10_001, content_encoding="gzip"))
    endless = await door.ask(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n"
        + b"%x\r\n%b" % (2_000_000, gzip.compress(b"x", mtime=0)[:10] + b"\x00\x00\x00\xff\xff" * 220_000)
    )

    assert [many.status, endless.status] == [400, 413]


async def test_gzip_bomb_is_413_and_never_unpacked(open_door):
    door = await open_door(limits=FrontSettings(max_body_bytes=1 << 20))
    bomb = gzip.compress(b"x" * (200 << 20), 9)

    reply = await door.ask(post("/v1/embeddings", bomb, content_encoding="gzip"))

    assert reply.status == 413


@pytest.mark.parametrize(
    "body",
    [b"plain", gzip.compress(b'{"model":"m"}')[:-9], gzip.compress(b"{}") + b"trailing", b"\x1f\x8b"],
    ids=["not gzip", "cut", "garbage behind it", "only its magic"],
)
async def test_broken_gzip_is_400(open_door, body):
    door = await open_door()

    reply = await door.ask(post("/v1/embeddings", body, content_encoding="gzip"))

    assert (reply.status, orjson.loads(reply.body)["error"]["code"]) == (400, "bad_content_encoding")


@pytest.mark.parametrize("coding", ["deflate", "br", "gzip, gzip", "compress"])
async def test_other_codings_are_415(open_door, coding):
    door = await open_door()

    reply = await door.ask(post("/v1/embeddings", zlib.compress(b"{}"), content_encoding=coding))

    assert reply.status == 415


async def test_zstd_body_is_decoded_where_python_can_and_415_elsewhere(open_door):
    door = await open_door()
    zstd = _find_zstd()
    body = zstd.compress(b'{"model":"m"}') if zstd is not None else b"\x28\xb5\x2f\xfd"

    reply = await door.ask(post("/v1/embeddings", body, content_encoding="zstd"))

    if zstd is None:
        assert reply.status == 415
    else:
        assert (reply.status, door.pipeline.calls[0].body) == (200, b'{"model":"m"}')


async def test_body_arriving_byte_by_byte_is_the_same_body(open_door):
    door = await open_door()
    client = await door.connect()
    data = post("/v1/embeddings", b'{"model":"m"}')

    for byte in data:
        await client.send(bytes([byte]))
    reply = await client.read_reply()

    assert (reply.status, door.pipeline.calls[0].body) == (200, b'{"model":"m"}')


async def test_body_of_the_full_size_is_read(open_door):
    door = await open_door()
    body = b'{"model":"m","input":"' + b"x" * ((32 << 20) - 24) + b'"}'

    reply = await door.ask(post("/v1/embeddings", body))

    assert len(body) == 32 << 20
    assert (reply.status, door.pipeline.calls[0].body == body) == (200, True)


async def test_bodyless_post_elsewhere_is_a_call_without_a_body(open_door):
    door = await open_door()

    await door.ask(b"POST /v1/batches/b/cancel HTTP/1.1\r\nhost: x\r\n\r\n")

    (call,) = door.pipeline.calls
    assert (call.payload, call.upload, call.body, call.model) == (None, None, b"", None)
