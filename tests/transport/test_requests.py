"""What goes out on the wire, and what is refused before it does."""

import asyncio

import pytest

from hookline.transport import serialize_headers

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def sent(pool, upstream, ask, **request):
    pending = asyncio.ensure_future(ask(pool, **request))
    peer = await upstream.accept()
    head, body = await peer.receive_request()
    await peer.send(OK)
    await (await pending).read()
    return head, body


async def test_writes_request_line_host_and_the_callers_headers(pool, upstream, ask):
    head, body = await sent(pool, upstream, ask, target=b"/v1/models?a=%2F", head=b"authorization: Bearer x\r\n")

    expected = (
        b"GET /v1/models?a=%%2F HTTP/1.1\r\nhost: 127.0.0.1:%d\r\nauthorization: Bearer x\r\n\r\n" % upstream.port
    )
    assert expected == head
    assert body == b""


async def test_bytes_go_out_with_their_length(pool, upstream, ask):
    head, body = await sent(pool, upstream, ask, method=b"POST", body=b'{"a":1}')

    assert b"content-length: 7\r\n" in head
    assert body == b'{"a":1}'


async def test_a_large_body_arrives_whole(pool, upstream, ask):
    large = bytes(range(256)) * 8000  # above the size that is copied into one write

    _, body = await sent(pool, upstream, ask, method=b"POST", body=large)

    assert large == body


@pytest.mark.parametrize("body", [None, b""])
async def test_a_post_without_body_says_length_zero(pool, upstream, ask, body):
    head, _ = await sent(pool, upstream, ask, method=b"POST", body=body)

    assert b"content-length: 0\r\n" in head


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"DELETE", b"OPTIONS"])
async def test_a_method_that_usually_has_no_body_announces_none(pool, upstream, ask, method):
    head, _ = await sent(pool, upstream, ask, method=method)

    assert b"content-length" not in head


async def test_the_default_port_is_not_in_the_host_header(make_pool, upstream, ask):
    async def to_upstream(host, port):
        return [(2, ("127.0.0.1", upstream.port))]

    pool = make_pool("models.example", 80, resolver=to_upstream)

    head, _ = await sent(pool, upstream, ask)

    assert b"\r\nhost: models.example\r\n" in head


async def test_more_targets_than_are_cached_still_go_out_right(make_pool, upstream, ask):
    pool = make_pool()
    seen = []

    async def answer(peer):
        while True:
            head, _ = await peer.receive_request()
            seen.append(head.split(b" ")[1])
            await peer.send(OK)

    upstream.serve(answer)
    for number in range(600):
        await (await ask(pool, target=b"/files/%d" % (number % 300))).read()

    assert [b"/files/%d" % (number % 300) for number in range(600)] == seen


@pytest.mark.parametrize(
    "target",
    [b"", b"/a b", b"/a\r\nx: y", b"/a\nb", b"/\x00", b"/\x7f"],
    ids=["empty", "space", "crlf", "lf", "nul", "del"],
)
async def test_a_target_that_would_break_the_line_is_refused(pool, ask, target):
    with pytest.raises(ValueError, match="percent-encode"):
        await ask(pool, target=target)

    assert pool.stats().open == 0


@pytest.mark.parametrize("method", [b"", b"GE T", b"GET\r\n", b"CONNECT"])
async def test_a_method_that_cannot_be_sent_is_refused(pool, ask, method):
    with pytest.raises(ValueError, match="cannot be sent"):
        await ask(pool, method=method)


def test_headers_are_serialised_as_lines():
    lines = serialize_headers([(b"Authorization", b"Bearer x"), (b"x-empty", b""), (b"x-utf8", "ä".encode())])

    assert lines == b"Authorization: Bearer x\r\nx-empty: \r\nx-utf8: \xc3\xa4\r\n"


@pytest.mark.parametrize("value", [b"a\r\nb: c", b"a\rb", b"a\nb", b"a\x00b", b"\x1b[0m", b"\x7f"])
def test_a_header_value_with_a_control_character_is_refused_and_not_quoted(value):
    with pytest.raises(ValueError, match="x-key") as refused:
        serialize_headers([(b"x-key", b"secret" + value)])

    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("name", [b"", b"a b", b"a:", b"a\r\n", b"\xc3\xa4", b"a\x00"])
def test_a_header_name_that_is_no_token_is_refused(name):
    with pytest.raises(ValueError, match="header name"):
        serialize_headers([(name, b"x")])


@pytest.mark.parametrize("name", [b"Host", b"content-length", b"Transfer-Encoding", b"connection", b"expect"])
def test_headers_that_the_transport_owns_are_refused(name):
    with pytest.raises(ValueError, match="written by the transport"):
        serialize_headers([(name, b"x")])
