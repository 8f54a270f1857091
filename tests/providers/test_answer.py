"""What becomes of an upstream's reply that says too much, or not all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from hookline import Attempt, Call, UpstreamError
from hookline.providers.openai import OpenAIOptions, OpenAIProvider
from hookline.testing.upstream import CUT, ScriptedUpstream, json_reply, sse_reply

MakeCall = Callable[..., Call]
MakeAttempt = Callable[..., Attempt]
KEY = "sk-our-own-upstream-key"
HALF = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{"choices": [{"message":'


@pytest.fixture
async def provider(upstream: ScriptedUpstream) -> AsyncIterator[OpenAIProvider]:
    headers = {"x-team-token": "Token tok-12345678", "accept": "application/json"}
    options = OpenAIOptions.model_validate({"base_url": upstream.url, "api_key": KEY, "headers": headers})
    provider = OpenAIProvider("up", options)
    yield provider
    await provider.aclose()


async def test_our_keys_never_come_back_in_an_error(
    upstream: ScriptedUpstream, provider: OpenAIProvider, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    told = {"error": {"message": f"Incorrect API key provided: {KEY}, tok-12345678; send application/json"}}
    upstream.play(json_reply(told, status=401, headers={"x-debug": f"key={KEY}"}))

    reply = await provider.send(make_call(), make_attempt())

    assert isinstance(reply.body, bytes)
    assert b"provided: ***, ***; send application/json" in reply.body
    assert "x-debug" not in reply.headers
    assert reply.headers["content-type"] == "application/json"


async def test_half_a_json_reply_that_ends_with_its_connection_is_a_lost_upstream(
    upstream: ScriptedUpstream, provider: OpenAIProvider, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    """Without a length or chunks only the JSON itself says that something is missing."""
    upstream.play([HALF, CUT])

    with pytest.raises(UpstreamError) as lost:
        await provider.send(make_call(), make_attempt())

    assert lost.value.kind == "reset"


async def test_a_refusal_that_only_quotes_the_usage_option_is_not_remembered(
    upstream: ScriptedUpstream, provider: OpenAIProvider, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    """A client that can make an upstream quote its request must not switch usage off for everybody."""
    quoted = {"error": {"message": "bad temperature in {'stream_options': ...}"}}
    upstream.play(json_reply(quoted, status=400), json_reply(quoted, status=400), sse_reply("[DONE]"))
    stream = {"model": "m", "stream": True, "messages": []}

    await provider.send(make_call(stream), make_attempt())
    await provider.send(make_call(stream), make_attempt())

    assert ["stream_options" in request.json() for request in upstream.requests] == [True, False, True]
