"""Anthropic on a real socket: addresses, headers, and the way of a call. What is translated into what has tests of its own."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from hookline import Attempt, BadRequest, Call, Reply, UpstreamError
from hookline.providers.anthropic import AnthropicOptions, AnthropicProvider
from hookline.testing.clock import FakeClock
from hookline.testing.upstream import CUT, STALL, ScriptedUpstream, bytes_reply, json_reply, sse_reply

MakeCall = Callable[..., Call]
MakeAttempt = Callable[..., Attempt]
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-x",
    "content": [{"type": "text", "text": "ho"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 3, "output_tokens": 2},
}
BEGIN = {"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}}
DELTA = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hö"}}
END = [
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
    {"type": "message_stop"},
]
STREAM = {"model": "up/m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}


def event(data: dict[str, Any]) -> bytes:
    return f"event: {data['type']}\n".encode() + b"data: " + orjson.dumps(data) + b"\n\n"


@pytest.fixture
async def provider(upstream: ScriptedUpstream) -> AsyncIterator[AnthropicProvider]:
    options = AnthropicOptions(base_url=upstream.url, api_key="sk-ant", beta=["a", "b"])  # type: ignore[arg-type]
    provider = AnthropicProvider("up", options, FakeClock())
    yield provider
    await provider.aclose()


async def pieces_of(reply: Reply) -> list[bytes]:
    assert not isinstance(reply.body, bytes)
    return [piece async for piece in reply.body]


async def test_a_chat_is_a_message_and_back(
    upstream: ScriptedUpstream, provider: AnthropicProvider, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.play(json_reply(MESSAGE, headers={"request-id": "req_up", "anthropic-ratelimit-requests-remaining": "9"}))

    reply = await provider.send(make_call(headers={"authorization": "Bearer canary"}), make_attempt("claude-x"))

    [request] = upstream.requests
    assert (request.method, request.target) == ("POST", "/v1/messages")
    assert request.json() == {"model": "claude-x", "max_tokens": 4096, "messages": [{"role": "user", "content": "hi"}]}
    names = ("x-api-key", "anthropic-version", "anthropic-beta", "authorization", "content-type")
    assert [request.header(name) for name in names] == ["sk-ant", "2023-06-01", "a,b", None, "application/json"]
    completion = ChatCompletion.model_validate(reply.json())
    assert (completion.choices[0].message.content, completion.created) == ("ho", 1_700_000_000)
    assert reply.headers["x-hookline-upstream-request-id"] == "req_up"
    assert reply.headers["anthropic-ratelimit-requests-remaining"] == "9"


@pytest.mark.parametrize(
    ("about", "cap", "expected"),
    [({}, None, 4096), ({"max_output_tokens": 999}, None, 999), ({"max_output_tokens": 999}, 7, 7)],
)
async def test_the_limit_comes_from_the_deployment_and_the_cap_lowers_it(
    upstream: ScriptedUpstream, provider: AnthropicProvider, make_call: MakeCall, make_attempt: MakeAttempt,
    about: dict[str, Any], cap: int | None, expected: int,
) -> None:  # fmt: skip
    upstream.play(json_reply(MESSAGE))

    await provider.send(make_call(), make_attempt(cap=cap, **about))

    assert upstream.requests[0].json()["max_tokens"] == expected


async def test_a_stream_is_translated_event_by_event_and_ends_with_done(
    upstream: ScriptedUpstream, provider: AnthropicProvider, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    written = event(DELTA)
    middle = written.index("ö".encode()) + 1
    upstream.play(sse_reply(event(BEGIN), b": ping\n\n", written[:middle], written[middle:], *map(event, END)))
    attempt = make_attempt()

    reply = await provider.send(make_call(STREAM), attempt)
    text = b"".join(await pieces_of(reply)).decode()

    assert ": ping\n\n" in text
    data = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    chunks = [ChatCompletionChunk.model_validate_json(one) for one in data[:-1]]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "hö"
    assert chunks[-1].usage is not None
    assert attempt.has_hidden_usage


async def test_a_client_that_asks_for_usage_gets_it(
    upstream: ScriptedUpstream, provider: AnthropicProvider, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.play(sse_reply(event(BEGIN)))
    attempt = make_attempt()

    await provider.send(make_call({**STREAM, "stream_options": {"include_usage": True}}), attempt)

    assert not attempt.has_hidden_usage


async def test_a_stream_that_is_cut_has_no_end(
    upstream: ScriptedUpstream, provider: AnthropicProvider, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.play(sse_reply(event(BEGIN), event(DELTA)), sse_reply(event(BEGIN), CUT))

    proper_framing = await provider.send(make_call(STREAM), make_attempt())
    assert b"[DONE]" not in b"".join(await pieces_of(proper_framing))

    cut = await provider.send(make_call(STREAM), make_attempt())
    with pytest.raises(Exception, match="closed the connection"):
        await pieces_of(cut)


async def test_closing_a_translated_stream_closes_the_upstreams_connection(
    upstream: ScriptedUpstream, provider: AnthropicProvider, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.play(sse_reply(event(BEGIN), STALL))
    reply = await provider.send(make_call(STREAM), make_attempt())
    assert not isinstance(reply.body, bytes)
    await anext(reply.body)

    await reply.body.aclose()  # type: ignore[attr-defined]

    await upstream.requests[0].left.wait()


async def test_an_error_becomes_openais(
    upstream: ScriptedUpstream, provider: AnthropicProvider, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    error = {"type": "error", "error": {"type": "rate_limit_error", "message": "slow down"}}
    upstream.play(json_reply(error, status=429, headers={"retry-after": "5"}))

    reply = await provider.send(make_call(), make_attempt())

    assert (reply.status, reply.headers["retry-after"]) == (429, "5")
    assert reply.json()["error"] == {
        "message": "slow down",
        "type": "rate_limit_error",
        "param": None,
        "code": "rate_limit_exceeded",
    }


async def test_an_error_that_is_no_json_is_not_quoted(
    upstream: ScriptedUpstream, provider: AnthropicProvider, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.play(bytes_reply(b"<html>canary", status=529, headers={"content-type": "text/html"}))

    reply = await provider.send(make_call(), make_attempt())

    assert (reply.status, reply.headers["content-type"]) == (503, "application/json")
    assert b"canary" not in reply.body  # type: ignore[operator]


@pytest.mark.parametrize("body", [b"<html>", b"[]", b""])
async def test_a_success_that_is_no_message_is_garbage(
    upstream: ScriptedUpstream, provider: AnthropicProvider, make_call: MakeCall, make_attempt: MakeAttempt, body: bytes
) -> None:
    upstream.play(bytes_reply(body))

    with pytest.raises(UpstreamError, match="no JSON object") as failed:
        await provider.send(make_call(), make_attempt())

    assert failed.value.kind == "garbage"


async def test_a_compressed_message_is_read(
    upstream: ScriptedUpstream, provider: AnthropicProvider, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    packed = gzip.compress(orjson.dumps(MESSAGE))
    upstream.play(bytes_reply(packed, headers={"content-type": "application/json", "content-encoding": "gzip"}))

    reply = await provider.send(make_call(), make_attempt())

    assert reply.json()["choices"][0]["message"]["content"] == "ho"
    assert "content-encoding" not in reply.headers


async def test_what_cannot_be_translated_is_a_400_that_names_the_field_and_nothing_is_sent(
    upstream: ScriptedUpstream, provider: AnthropicProvider, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    with pytest.raises(BadRequest, match='"n"') as refused:
        await provider.send(make_call({**STREAM, "n": 2}), make_attempt())

    assert (refused.value.param, upstream.requests) == ("n", [])


async def test_models_are_listed_in_openais_form(
    upstream: ScriptedUpstream, provider: AnthropicProvider, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    model = {"type": "model", "id": "claude-x", "display_name": "X", "created_at": "2025-01-01T00:00:00Z"}
    shown = {"id": "claude-x", "object": "model", "created": 1735689600, "owned_by": "anthropic"}
    upstream.play(json_reply({"data": [model], "has_more": False}), json_reply(model))

    listed = await provider.send(make_call(method="GET", path="/v1/models"), make_attempt(""))
    one = await provider.send(make_call(method="GET", path="/v1/models/up/claude-x"), make_attempt("claude-x"))

    assert [request.target for request in upstream.requests] == ["/v1/models?limit=1000", "/v1/models/claude-x"]
    assert listed.json() == {"object": "list", "data": [shown]}
    assert one.json() == shown


@pytest.mark.parametrize(
    ("base_url", "expected"),
    [("https://api.anthropic.com", "https://api.anthropic.com/v1"), ("https://h/proxy/v1", "https://h/proxy/v1")],
)
def test_the_path_is_added_to_a_bare_address(base_url: str, expected: str) -> None:
    assert AnthropicOptions(base_url=base_url).base_url == expected


@pytest.mark.parametrize(
    ("effort", "own", "sent"),
    [("medium", None, 16384), ("high", None, 32000), ("none", None, 4096), ("high", 8000, 8000)],
)
async def test_a_default_limit_leaves_room_for_the_thinking_that_was_asked_for(
    upstream: ScriptedUpstream, provider: AnthropicProvider, make_call: MakeCall, make_attempt: MakeAttempt,
    effort: str, own: int | None, sent: int,
) -> None:  # fmt: skip
    upstream.play(json_reply(MESSAGE))
    payload = {"model": "up/m", "messages": [{"role": "user", "content": "hi"}], "reasoning_effort": effort}

    await provider.send(make_call(payload), make_attempt("claude-sonnet-4-5", max_output_tokens=own))

    assert upstream.requests[0].json()["max_tokens"] == sent


@pytest.mark.parametrize(
    ("kind", "status"), [("overloaded_error", 503), ("rate_limit_error", 429), ("invalid_request_error", 400)]
)
async def test_a_stream_that_begins_with_an_error_has_the_status_it_would_have_without_a_stream(
    upstream: ScriptedUpstream, provider: AnthropicProvider, make_call: MakeCall, make_attempt: MakeAttempt,
    kind: str, status: int,
) -> None:  # fmt: skip
    error = {"type": "error", "error": {"type": kind, "message": "later"}}
    upstream.play(sse_reply(event({"type": "ping"}), event(error), headers={"request-id": "req_up"}))

    reply = await provider.send(make_call(STREAM), make_attempt())
    with pytest.raises(UpstreamError) as failed:
        await pieces_of(reply)

    assert failed.value.reply_status == status
    assert orjson.loads(failed.value.upstream_body or b"")["error"]["message"] == "later"
    headers = failed.value.upstream_headers
    assert (headers["content-type"], headers["x-hookline-upstream-request-id"]) == ("application/json", "req_up")


async def test_an_error_never_quotes_our_key(
    upstream: ScriptedUpstream, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    error = {"error": {"type": "authentication_error", "message": "invalid x-api-key: sk-ant-canary"}}
    upstream.play(json_reply(error, status=401))
    provider = AnthropicProvider(
        "up", AnthropicOptions(base_url=upstream.url, api_key="sk-ant-canary"), FakeClock()  # type: ignore[arg-type]
    )  # fmt: skip

    reply = await provider.send(make_call(), make_attempt())
    await provider.aclose()

    assert reply.json()["error"]["message"] == "invalid x-api-key: ***"


@pytest.mark.parametrize(
    ("told", "status", "kind"),
    [
        ({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}, 503, "stream_error"),
        ({"type": "message"}, 502, "garbage"),
        ([1], 502, "garbage"),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_what_is_no_message_is_no_answer_whatever_its_status(
    upstream: ScriptedUpstream,
    provider: AnthropicProvider,
    make_call: MakeCall,
    make_attempt: MakeAttempt,
    told: Any,
    status: int,
    kind: str,
    is_stream: bool,
) -> None:
    """Symptom: it became an answer without text, which could be cached."""
    upstream.play(json_reply(told))

    with pytest.raises(UpstreamError) as failed:
        await provider.send(make_call(STREAM if is_stream else None), make_attempt("claude-x"))

    assert (failed.value.reply_status, failed.value.kind) == (status, kind)


async def test_a_stream_without_its_content_type_is_known_by_its_first_bytes(
    upstream: ScriptedUpstream, provider: AnthropicProvider, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    body = b"".join(map(event, [BEGIN, DELTA, *END]))
    upstream.play(bytes_reply(body, headers={"content-type": "text/plain"}))

    pieces = await pieces_of(await provider.send(make_call(STREAM), make_attempt("claude-x")))

    assert "hö".encode() in b"".join(pieces)


async def test_a_broken_event_is_an_error_and_not_left_out(
    upstream: ScriptedUpstream, provider: AnthropicProvider, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.play(sse_reply(event(BEGIN), b"event: content_block_delta\ndata: {oops\n\n", *map(event, END)))

    with pytest.raises(UpstreamError, match="no JSON object"):
        await pieces_of(await provider.send(make_call(STREAM), make_attempt("claude-x")))


async def test_a_stream_that_nobody_reads_gives_its_connection_back(
    upstream: ScriptedUpstream, provider: AnthropicProvider, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.play(sse_reply(event(BEGIN), STALL))

    reply = await provider.send(make_call(), make_attempt("claude-x"))
    await reply.body.aclose()  # type: ignore[union-attr]

    assert provider._upstream._pool.stats().in_use == 0
