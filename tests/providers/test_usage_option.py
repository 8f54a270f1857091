"""Streams are asked for their usage; servers that refuse the option are asked again without it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from hookline import Attempt, Call
from hookline.providers import openai
from hookline.providers.openai import OpenAIOptions, OpenAIProvider
from hookline.testing.upstream import ScriptedUpstream, json_reply, sse_reply

MakeCall = Callable[..., Call]
MakeAttempt = Callable[..., Attempt]
STREAM = {"model": "m", "stream": True, "messages": []}
REFUSAL = {"error": {"message": "Unrecognized request argument supplied: stream_options"}}


@pytest.fixture
async def provider(upstream: ScriptedUpstream) -> AsyncIterator[OpenAIProvider]:
    provider = OpenAIProvider("up", OpenAIOptions(base_url=upstream.url))
    yield provider
    await provider.aclose()


@pytest.mark.parametrize(
    ("payload", "sent", "is_hidden"),
    [
        (STREAM, {"include_usage": True}, True),
        ({**STREAM, "stream_options": None}, {"include_usage": True}, True),
        ({**STREAM, "stream_options": {"include_usage": False, "x": 1}}, {"include_usage": True, "x": 1}, True),
        ({**STREAM, "stream_options": {"include_usage": True}}, {"include_usage": True}, False),
        ({**STREAM, "stream_options": "odd"}, "odd", False),
        ({**STREAM, "stream": False}, None, False),
    ],
)
async def test_usage_is_asked_for_where_the_client_did_not(
    upstream: ScriptedUpstream, provider: OpenAIProvider, make_call: MakeCall, make_attempt: MakeAttempt,
    payload: dict[str, Any], sent: Any, is_hidden: bool,
) -> None:  # fmt: skip
    upstream.play(sse_reply("[DONE]"))
    attempt = make_attempt()

    await provider.send(make_call(payload), attempt)

    assert upstream.requests[0].json().get("stream_options") == sent
    assert attempt.has_hidden_usage is is_hidden


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/embeddings", "/v1/audio/speech"])
async def test_other_endpoints_are_not_asked(
    upstream: ScriptedUpstream, provider: OpenAIProvider, make_call: MakeCall, make_attempt: MakeAttempt, path: str
) -> None:
    upstream.play(sse_reply("1"))

    await provider.send(make_call(STREAM, path=path), make_attempt())

    assert "stream_options" not in upstream.requests[0].json()


@pytest.mark.parametrize("status", [400, 422])
async def test_a_refusal_that_names_the_option_is_sent_again_without_it_once_and_remembered(
    upstream: ScriptedUpstream, provider: OpenAIProvider, make_call: MakeCall, make_attempt: MakeAttempt, status: int
) -> None:
    upstream.play(json_reply(REFUSAL, status=status), sse_reply("1"), sse_reply("2"), sse_reply("3"))
    attempt = make_attempt()

    reply = await provider.send(make_call(STREAM), attempt)
    await provider.send(make_call(STREAM), make_attempt())
    await provider.send(make_call({**STREAM, "model": "other"}), make_attempt("other"))

    assert (reply.status, attempt.has_hidden_usage) == (200, False)
    has_option = ["stream_options" in request.json() for request in upstream.requests]
    assert has_option == [True, False, False, True]


async def test_the_second_answer_is_passed_on_whatever_it_is(
    upstream: ScriptedUpstream, provider: OpenAIProvider, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.play(json_reply(REFUSAL, status=400), json_reply(REFUSAL, status=400))

    reply = await provider.send(make_call(STREAM), make_attempt())

    assert (reply.status, len(upstream.requests)) == (400, 2)


@pytest.mark.parametrize(
    ("status", "error"), [(400, {"error": {"message": "bad messages"}}), (500, REFUSAL), (429, REFUSAL)]
)
async def test_other_errors_are_not_sent_again(
    upstream: ScriptedUpstream, provider: OpenAIProvider, make_call: MakeCall, make_attempt: MakeAttempt,
    status: int, error: Any,
) -> None:  # fmt: skip
    upstream.play(json_reply(error, status=status))

    reply = await provider.send(make_call(STREAM), make_attempt())

    assert (reply.status, len(upstream.requests)) == (status, 1)


async def test_a_refusal_of_what_the_client_asked_itself_is_passed_on(
    upstream: ScriptedUpstream, provider: OpenAIProvider, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.play(json_reply(REFUSAL, status=400))

    reply = await provider.send(make_call({**STREAM, "stream_options": {"include_usage": True}}), make_attempt())

    assert (reply.status, len(upstream.requests)) == (400, 1)


async def test_what_is_remembered_is_bounded(
    upstream: ScriptedUpstream, provider: OpenAIProvider, make_call: MakeCall, make_attempt: MakeAttempt,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(openai, "MAX_REMEMBERED", 2)

    for number in range(5):
        upstream.play(json_reply(REFUSAL, status=400), sse_reply("1"))
        await provider.send(make_call({**STREAM, "model": str(number)}), make_attempt(str(number)))

    assert len(provider._refuses_usage) <= 2
