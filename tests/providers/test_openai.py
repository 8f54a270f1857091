"""The OpenAI wire, on a real socket: what the upstream gets, what comes back."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest
from multidict import CIMultiDict

from hookline import Attempt, BadRequest, Call, Reply, StartupError, UpstreamError
from hookline.providers import answer
from hookline.providers.openai import OpenAIOptions, OpenAIProvider
from hookline.testing.upstream import (
    CUT,
    RESET,
    STALL,
    ScriptedUpstream,
    bytes_reply,
    json_reply,
    reply_head,
    sse_reply,
)

MakeCall = Callable[..., Call]
MakeAttempt = Callable[..., Attempt]
Provide = Callable[..., OpenAIProvider]


@pytest.fixture
async def provide(upstream: ScriptedUpstream) -> AsyncIterator[Provide]:
    """Make providers that dial the scripted upstream."""
    made: list[OpenAIProvider] = []

    def make(**options: Any) -> OpenAIProvider:
        made.append(OpenAIProvider("up", OpenAIOptions(**{"base_url": upstream.url, **options})))
        return made[-1]

    yield make
    for provider in made:
        await provider.aclose()


async def whole(reply: Reply) -> bytes:
    return reply.body if isinstance(reply.body, bytes) else b"".join([chunk async for chunk in reply.body])


async def test_bytes_go_out_untouched_when_nothing_differs(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.play(json_reply({"id": 1}, headers={"set-cookie": "a=b", "x-request-id": "up-1"}))
    body = b'{ "x_unknown": 1.10, "model":"m", "messages":[] }\n'

    reply = await provide(api_key="sk-1").send(make_call(body=body), make_attempt())

    [request] = upstream.requests
    assert request.body == body
    assert (request.method, request.target) == ("POST", "/v1/chat/completions")
    assert request.header("authorization") == "Bearer sk-1"
    assert request.header("accept-encoding") == "identity"
    assert reply.body == b'{"id":1}'
    assert dict(reply.headers) == {"content-type": "application/json", "x-hookline-upstream-request-id": "up-1"}


async def test_model_and_cap_are_the_only_bytes_that_differ(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.play(json_reply({}))
    body = b'{"model": "up/m",  "messages":[], "max_tokens" : 500}'

    await provide().send(make_call(body=body), make_attempt(cap=7))

    assert upstream.requests[0].body == b'{"model": "m",  "messages":[], "max_tokens" : 7}'


@pytest.mark.parametrize(
    ("options", "model", "added"),
    [
        ({}, "llama", "max_tokens"),
        ({}, "o3-mini", "max_completion_tokens"),
        ({"chat_limit": "max_completion_tokens"}, "llama", "max_completion_tokens"),
    ],
)
async def test_a_cap_is_added_under_a_name_the_server_knows(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt,
    options: dict[str, Any], model: str, added: str,
) -> None:  # fmt: skip
    upstream.play(json_reply({}))

    await provide(**options).send(make_call(), make_attempt(model, cap=7))

    assert upstream.requests[0].json()[added] == 7


def test_openai_itself_is_capped_by_the_new_name() -> None:
    assert OpenAIOptions().limit_name("gpt-4o") == "max_completion_tokens"


async def test_client_secrets_never_leave_and_ours_do(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.play(json_reply({}))
    headers = {
        "Authorization": "Bearer canary",
        "OpenAI-Organization": "canary",
        "Cookie": "canary",
        "api-key": "canary",
    }
    options = {"api_key": "sk-1", "organization": "org-1", "project": "proj-1", "headers": {"X-Title": "mine"}}

    await provide(**options).send(make_call(headers={**headers, "x-title": "canary"}), make_attempt())

    [request] = upstream.requests
    assert "canary" not in str(request.headers)
    assert request.header("openai-organization") == "org-1"
    assert request.header("openai-project") == "proj-1"
    assert request.header("x-title") == "mine"


async def test_several_keys_take_turns_and_a_deployments_own_key_wins(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.always(json_reply({}))
    provider = provide(api_key=["sk-1", "sk-2"])

    for attempt in (make_attempt(), make_attempt(), make_attempt(api_key="sk-own"), make_attempt()):
        await provider.send(make_call(), attempt)

    sent = [request.header("authorization") for request in upstream.requests]
    assert sent == ["Bearer sk-1", "Bearer sk-2", "Bearer sk-own", "Bearer sk-1"]


async def test_no_key_sends_none(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.play(json_reply({}))

    await provide().send(make_call(headers={"Authorization": "Bearer canary"}), make_attempt())

    assert upstream.requests[0].header("authorization") is None


async def test_a_key_whose_variable_is_not_set_is_an_error_that_names_it_when_used(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    provider = provide(api_key="${MY_KEY}")

    with pytest.raises(UpstreamError, match=r"up/m: .*MY_KEY.* is not set") as failed:
        await provider.send(make_call(), make_attempt())

    assert failed.value.kind == "configuration"
    assert upstream.requests == []


def test_secrets_are_not_in_the_repr_of_options() -> None:
    options = OpenAIOptions(api_key=["canary"], headers={"x": "canary"}, organization="canary")  # type: ignore[arg-type]

    assert "canary" not in repr(options)
    assert "canary" not in str(options.model_dump())


@pytest.mark.parametrize(
    "base_url",
    ["ftp://x/v1", "x", "http://", "http://u:canary@h/v1", "http://h/v1?a=canary", "http://h:99999/v1", "http://h/ v1"],
)
def test_an_address_that_cannot_be_dialled_is_refused_at_start_without_quoting_secrets(base_url: str) -> None:
    with pytest.raises(ValueError, match="base_url") as refused:
        OpenAIOptions(base_url=base_url)
    assert "canary" not in "".join(error["msg"] for error in refused.value.errors())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("method", "path", "query", "target"),
    [
        ("GET", "/v1/files", "limit=2&after=a%2Fb", "/v1/files?limit=2&after=a%2Fb"),
        ("DELETE", "/v1/files/a%20b", "", "/v1/files/a%20b"),
        ("HEAD", "/v1/models", "", "/v1/models"),
        ("GET", "/v1/models", "", "/v1/models"),
        ("GET", "/v1/vector_stores/vs_1/files", "", "/v1/vector_stores/vs_1/files"),
    ],
)
async def test_other_methods_and_queries_are_relayed_byte_for_byte(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt,
    method: str, path: str, query: str, target: str,
) -> None:  # fmt: skip
    upstream.play([reply_head(200, {"content-type": "application/json", "content-length": "0"})])

    reply = await provide().send(make_call(method=method, path=path, query=query, headers={}), make_attempt(""))

    [request] = upstream.requests
    assert (request.method, request.target, request.body) == (method, target, b"")
    assert request.header("content-type") is None
    assert (reply.status, await whole(reply)) == (200, b"")


async def test_a_model_is_retrieved_by_its_upstream_name(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.play(json_reply({}), json_reply({}))
    provider = provide()

    await provider.send(make_call(method="GET", path="/v1/models/up/org/m"), make_attempt("org/m"))
    await provider.send(make_call(method="GET", path="/v1/models/org%2Fm"), make_attempt("org/m"))

    assert [request.target for request in upstream.requests] == ["/v1/models/org/m", "/v1/models/org%2Fm"]


async def test_a_base_url_with_another_path_stands_in_place_of_v1(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.play(json_reply({}))
    provider = provide(base_url=f"http://127.0.0.1:{upstream.port}/api/openai/")

    await provider.send(make_call(), make_attempt())

    assert upstream.requests[0].target == "/api/openai/chat/completions"


async def test_a_call_without_headers_is_sent_as_json(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.play(json_reply({}))

    await provide().send(make_call(headers={}), make_attempt())

    assert upstream.requests[0].header("content-type") == "application/json"


async def test_a_stream_arrives_event_by_event(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    go_on = asyncio.Event()
    upstream.play(sse_reply("1", go_on, "2"))

    reply = await provide(stream_usage=False).send(make_call({"model": "m", "stream": True}), make_attempt())
    body = reply.body
    assert not isinstance(body, bytes)
    first = await anext(body)
    go_on.set()
    rest = [chunk async for chunk in body]

    assert reply.is_event_stream
    assert (first, rest) == (b"data: 1\n\n", [b"data: 2\n\n"])


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 529])
async def test_an_error_status_is_a_reply_with_its_body_and_headers(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt, status: int
) -> None:
    upstream.play(json_reply({"error": {"message": "m"}}, status=status, headers={"retry-after": "7"}))

    reply = await provide().send(make_call(), make_attempt())

    assert (reply.status, reply.json()) == (status, {"error": {"message": "m"}})
    assert reply.headers["retry-after"] == "7"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"<html>502 Bad Gateway</html>", "up/m answered 502: a page and no error object (text/html)"),
        (b"no healthy upstream", "up/m answered 502: no healthy upstream"),
        (b"", "up/m answered 502: no body"),
        (b"\xff" * 1000, f"up/m answered 502: {chr(0xFFFD) * 300}"),
    ],
)
async def test_a_page_in_place_of_an_error_becomes_an_error_object(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt, body: bytes, says: str
) -> None:
    upstream.play(bytes_reply(body, status=502, headers={"content-type": "text/html"}))

    reply = await provide().send(make_call(), make_attempt())

    assert reply.status == 502
    assert reply.json() == {"error": {"message": says, "type": "upstream_error", "param": None, "code": None}}
    assert reply.headers["content-type"] == "application/json"


async def test_an_error_with_a_giant_body_keeps_its_status_and_loses_the_body(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(answer, "MAX_ERROR_BYTES", 10)
    upstream.play(bytes_reply(b"<html>" * 10, status=503, headers={"content-type": "text/html"}))

    reply = await provide().send(make_call(), make_attempt())

    assert reply.status == 503
    assert "up/m answered 503" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ([RESET], "reset"),
        ([CUT], "reset"),
        ([b"\0\1\2 garbage\r\n\r\n"], "garbage"),
        ([reply_head(200, {"content-type": "application/json", "content-length": "9"}) + b"{", CUT], "reset"),
        ([reply_head(500, {"content-length": "9"}) + b"{", CUT], "reset"),
    ],
)
async def test_a_broken_exchange_is_an_upstream_error_that_names_the_deployment(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt, script: Any, kind: str
) -> None:
    upstream.play(script)

    with pytest.raises(UpstreamError, match=r"^up/m: .*; ") as failed:
        await provide(api_key="canary").send(make_call(), make_attempt())

    assert (failed.value.kind, failed.value.is_written) == (kind, True)
    assert "canary" not in str(failed.value)


async def test_nothing_listening_is_a_connect_error_before_anything_was_written(
    provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    provider = provide(base_url="http://127.0.0.1:1/v1")

    with pytest.raises(UpstreamError, match="up/m: cannot connect") as failed:
        await provider.send(make_call(), make_attempt())

    assert (failed.value.kind, failed.value.is_written) == ("connect", False)


async def test_the_targets_timeout_is_obeyed(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.play([STALL])

    with pytest.raises(UpstreamError) as failed:
        await provide().send(make_call(), make_attempt(target={"first_byte_timeout_s": 0.02}))

    assert failed.value.kind == "first_byte_timeout"


async def test_a_stream_that_stalls_after_its_first_event_is_cut_by_the_targets_idle_timeout(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.play(sse_reply("1", STALL))

    reply = await provide().send(make_call(), make_attempt(target={"idle_timeout_s": 0.02}))
    with pytest.raises(Exception, match="sent nothing for") as cut:
        await whole(reply)
    assert cut.value.kind == "idle_timeout"  # type: ignore[attr-defined]


async def test_cancelling_a_send_closes_the_upstreams_connection(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.play([STALL])
    task = asyncio.create_task(provide().send(make_call(), make_attempt()))
    await upstream.wait_for_requests(1)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await upstream.requests[0].left.wait()


async def test_closing_a_streams_body_closes_the_upstreams_connection(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.play(sse_reply("1", STALL))
    reply = await provide(stream_usage=False).send(make_call({"model": "m", "stream": True}), make_attempt())

    await reply.body.aclose()  # type: ignore[union-attr]

    await upstream.requests[0].left.wait()


async def test_a_stream_that_comes_compressed_is_made_plain(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.play(sse_reply(gzip.compress(b"data: 1\n\n"), headers={"content-encoding": "gzip"}))

    reply = await provide().send(make_call({"model": "m", "stream": True}), make_attempt())

    assert "content-encoding" not in reply.headers
    assert await whole(reply) == b"data: 1\n\n"


async def test_a_stream_in_a_coding_we_cannot_undo_is_garbage(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.play(sse_reply(b"?", STALL, headers={"content-encoding": "br"}))

    with pytest.raises(UpstreamError, match='coding "br"') as failed:
        await provide().send(
            make_call({"model": "m", "stream": True}), make_attempt(target={"idle_timeout_s": 9_999.0})
        )

    assert failed.value.kind == "garbage"
    await upstream.requests[0].left.wait()


async def test_a_compressed_answer_is_made_plain(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    """It was asked for identity; what comes nevertheless has a usage that is to be read."""
    packed = gzip.compress(b'{"id":1}')
    upstream.play(bytes_reply(packed, headers={"content-type": "application/json", "content-encoding": "gzip"}))

    reply = await provide().send(make_call(), make_attempt())

    assert (reply.body, "content-encoding" in reply.headers) == (b'{"id":1}', False)


@pytest.mark.parametrize("packed", [b"no gzip", gzip.compress(b'{"id":1}')[:-9]], ids=["none", "cut"])
async def test_a_compressed_answer_that_is_damaged_is_none(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt, packed: bytes
) -> None:
    upstream.play(bytes_reply(packed, headers={"content-type": "application/json", "content-encoding": "gzip"}))

    with pytest.raises(UpstreamError) as failed:
        await provide().send(make_call(), make_attempt())

    assert failed.value.kind == "garbage"


@pytest.mark.parametrize(("path", "coding"), [("/v1/files/f1", "gzip"), ("/v1/chat/completions", "br")])
async def test_what_nobody_reads_here_stays_compressed(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt, path: str, coding: str
) -> None:
    packed = gzip.compress(b'{"id":1}')
    upstream.play(bytes_reply(packed, headers={"content-type": "application/json", "content-encoding": coding}))

    reply = await provide().send(make_call(path=path), make_attempt())

    assert (reply.body, reply.headers["content-encoding"]) == (packed, coding)


async def test_a_binary_reply_is_handed_on_while_it_comes(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    go_on = asyncio.Event()
    upstream.play([reply_head(200, {"content-type": "audio/mpeg", "content-length": "6"}) + b"abc", go_on, b"def"])

    reply = await provide().send(make_call({"model": "m"}, path="/v1/audio/speech"), make_attempt())
    assert not isinstance(reply.body, bytes)
    first = await anext(reply.body)
    go_on.set()

    assert (first, await whole(reply)) == (b"abc", b"def")


async def test_json_of_a_file_route_that_is_larger_than_the_bound_is_streamed(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(answer, "MAX_JSON_BYTES", 3)
    go_on = asyncio.Event()
    head = reply_head(200, {"content-type": "application/json", "transfer-encoding": "chunked"})
    upstream.play([head + b"4\r\n[1,2\r\n", go_on, b"1\r\n]\r\n0\r\n\r\n"])

    reply = await provide().send(make_call(method="GET", path="/v1/files/f/content"), make_attempt(""))
    go_on.set()

    assert not isinstance(reply.body, bytes)
    assert await whole(reply) == b"[1,2]"


@pytest.mark.parametrize("headers", [{}, {"content-type": "text/plain"}, {"content-type": "Application/JSON"}])
async def test_a_chat_reply_is_read_whole_whatever_its_type_says(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt,
    headers: dict[str, str],
) -> None:  # fmt: skip
    go_on = asyncio.Event()
    upstream.play([reply_head(200, {**headers, "content-length": "8"}) + b'{"id"', go_on, b":1}"])
    task = asyncio.ensure_future(provide().send(make_call(), make_attempt()))
    await upstream.wait_for_requests(1)
    go_on.set()

    assert (await task).body == b'{"id":1}'


async def test_a_chat_reply_without_end_is_garbage_and_not_kept(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(answer, "MAX_JSON_BYTES", 100)
    upstream.play([reply_head(200, {"content-type": "application/json"}) + b"[" * 200, STALL])

    with pytest.raises(UpstreamError, match="larger than 100 bytes") as failed:
        await provide().send(make_call(), make_attempt())

    assert failed.value.kind == "garbage"
    await upstream.requests[0].left.wait()


async def test_a_server_that_speaks_no_tls_is_a_tls_error(
    provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.com\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        provider = provide(base_url=f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")

        with pytest.raises(UpstreamError, match="TLS handshake") as failed:
            await provider.send(make_call(), make_attempt())

    assert (failed.value.kind, failed.value.is_written) == ("tls", False)


def test_a_tls_file_that_cannot_be_used_is_refused_at_start() -> None:
    with pytest.raises(StartupError, match=r"\[providers.up\] tls: .*nowhere.pem"):
        OpenAIProvider("up", OpenAIOptions(tls={"ca_file": "/nowhere.pem"}))  # type: ignore[arg-type]


class FakeUpload:
    """A body that can be read once."""

    content_type = "multipart/form-data; boundary=b"
    is_replayable = False

    def __init__(self, content_length: int | None, model: str | None = None) -> None:
        self.content_length = content_length
        self.model = model
        self.asked: list[str | None] = []

    fields = ()

    async def complete(self) -> None: ...

    async def chunks(self, model: str | None, /) -> AsyncIterator[bytes]:
        self.asked.append(model)
        yield b"abc"
        yield (model or "old").encode()

    async def aclose(self) -> None:
        pass


@pytest.mark.parametrize(
    ("asked", "model", "passed", "body", "length"),
    [
        ("m", "m", None, b"abcold", "6"),
        (None, "", None, b"abcold", "6"),
        ("up/other", "other", "other", b"abcother", None),
    ],
)
async def test_an_upload_goes_out_as_it_comes_with_its_length_unless_the_model_is_rewritten(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt,
    asked: str | None, model: str, passed: str | None, body: bytes, length: str | None,
) -> None:  # fmt: skip
    upstream.play(json_reply({"id": "file-1"}))
    call = make_call({}, path="/v1/audio/transcriptions", headers={"content-type": FakeUpload.content_type})
    upload = FakeUpload(6, asked)
    call.upload, call.model = upload, asked

    reply = await provide().send(call, make_attempt(model))

    [request] = upstream.requests
    assert upload.asked == [passed]
    assert (request.body, request.header("content-length")) == (body, length)
    assert request.header("content-type") == FakeUpload.content_type
    assert reply.json() == {"id": "file-1"}


async def test_a_header_that_cannot_be_sent_is_a_bad_request(
    provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    with pytest.raises(BadRequest, match="x-evil"):
        await provide().send(make_call(headers={"x-evil": "a\r\nb: c"}), make_attempt())


async def test_unknown_members_of_replies_survive(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    raw = b'{"x_new": 1.10 , "choices":[]}'
    upstream.play(bytes_reply(raw, headers={"Content-Type": "application/json; charset=utf-8"}))

    reply = await provide().send(make_call(), make_attempt())

    assert reply.body == raw
    assert orjson.loads(raw) == reply.json()


async def test_duplicate_reply_headers_are_kept(
    upstream: ScriptedUpstream, provide: Provide, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.play([b"HTTP/1.1 200 OK\r\nx-a: 1\r\nx-a: 2\r\ncontent-length: 0\r\n\r\n"])

    reply = await provide().send(make_call(), make_attempt())

    assert reply.headers == CIMultiDict([("x-a", "1"), ("x-a", "2")])
