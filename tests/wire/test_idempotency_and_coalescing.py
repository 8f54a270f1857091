"""Idempotency-Key and coalescing as clients see them: the official SDK, many connections at once, a gateway process with the default chain before a scripted upstream that counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import openai
import pytest

from hookline.testing.process import ProxyProcess
from hookline.testing.upstream import RESET, ScriptedUpstream, json_reply, sse_reply

REPLY = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ho"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
}
CHUNK = '{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"ho"}}]}'
LAST = '{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COLD = {**CHAT, "temperature": 0}


def config(upstream: ScriptedUpstream) -> str:
    return f"""
[server]
port = 0
[providers.up]
kind = "openai"
base_url = "{upstream.url}"
api_key = "sk-up"
default = true
"""


@pytest.fixture
def proxy(serve: Callable[..., ProxyProcess], upstream: ScriptedUpstream) -> ProxyProcess:
    return serve(config(upstream))


@pytest.fixture
async def client(proxy: ProxyProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{proxy.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def keyed(key: str = "k1") -> dict[str, str]:
    return {"Idempotency-Key": key}


async def text_of(stream: Any) -> str:
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def test_a_hundred_equal_calls_at_once_are_one_upstream_call(client, upstream):
    go = asyncio.Event()
    upstream.always([go, *json_reply(REPLY)])
    calls = [asyncio.ensure_future(client.chat.completions.with_raw_response.create(**COLD)) for _ in range(100)]
    await upstream.wait_for_requests(1)
    go.set()

    replies = await asyncio.gather(*calls)

    assert {r.parse().choices[0].message.content for r in replies} == {"ho"}
    said = [r.headers["x-hookline-cache"] for r in replies]
    assert (len(upstream.requests), said.count("miss"), said.count("hit")) == (1, 1, 99)


async def test_fifty_equal_streams_at_once_are_one_upstream_call_and_some_leave(client, upstream):
    go = asyncio.Event()
    upstream.always(sse_reply(CHUNK, go, CHUNK, LAST, "[DONE]"))
    streams = await asyncio.gather(*(client.chat.completions.create(**COLD, stream=True) for _ in range(50)))

    for stream in streams[:25]:  # the leader is likely among them
        await stream.close()
    go.set()
    texts = await asyncio.gather(*map(text_of, streams[25:]))

    assert (set(texts), len(upstream.requests)) == ({"hoho"}, 1)
    assert not upstream.requests[0].left.is_set()


async def test_when_every_reader_has_left_the_upstream_is_cancelled(client, upstream):
    upstream.always(sse_reply(CHUNK, asyncio.Event()))
    streams = await asyncio.gather(*(client.chat.completions.create(**COLD, stream=True) for _ in range(5)))

    for stream in streams:
        await stream.close()

    await upstream.requests[0].left.wait()
    assert len(upstream.requests) == 1


async def test_a_lost_upstream_is_an_error_for_every_reader(client, upstream):
    go = asyncio.Event()
    upstream.always(sse_reply(CHUNK, go, RESET))
    streams = await asyncio.gather(*(client.chat.completions.create(**COLD, stream=True) for _ in range(10)))
    go.set()

    ends = await asyncio.gather(*map(text_of, streams), return_exceptions=True)

    assert {type(end) for end in ends} == {openai.APIError}
    assert len(upstream.requests) == 1


async def test_a_keyed_call_runs_once_and_the_key_stays_here(client, upstream):
    upstream.always(json_reply(REPLY))

    first, second = [
        await client.chat.completions.with_raw_response.create(**CHAT, extra_headers=keyed()) for _ in range(2)
    ]

    assert (len(upstream.requests), upstream.requests[0].header("idempotency-key")) == (1, None)
    assert (first.headers.get("x-hookline-replayed"), second.headers["x-hookline-replayed"]) == (None, "true")
    assert second.content == first.content


async def test_the_sdks_retry_with_its_key_gets_the_reply_of_the_call_that_it_gave_up(client, upstream):
    """A client that times out and tries again, as SDKs do: one upstream call, and an answer."""
    go = asyncio.Event()
    upstream.always([go, *json_reply(REPLY)])
    asyncio.get_running_loop().call_later(1.0, go.set)

    impatient = client.with_options(timeout=0.4, max_retries=5)
    reply = await impatient.chat.completions.create(**CHAT, extra_headers=keyed("retry"))

    assert (reply.choices[0].message.content, len(upstream.requests)) == ("ho", 1)


async def test_a_keyed_stream_is_replayed_and_another_body_is_a_conflict_that_is_not_retried(client, upstream):
    upstream.always(sse_reply(CHUNK, LAST, "[DONE]"))
    texts = [
        await text_of(await client.chat.completions.create(**CHAT, stream=True, extra_headers=keyed()))
        for _ in range(2)
    ]
    assert (texts, len(upstream.requests)) == (["ho", "ho"], 1)

    retrying = client.with_options(max_retries=3)
    with pytest.raises(openai.ConflictError) as raised:
        await retrying.chat.completions.create(**{**CHAT, "temperature": 0.5}, extra_headers=keyed())

    assert raised.value.code == "idempotency_key_reused"
    assert len(upstream.requests) == 1


async def test_a_form_is_the_same_whatever_its_boundary(client, upstream):
    """The SDK makes a new boundary for each request."""
    upstream.always(json_reply({"text": "hello"}))

    async def transcribe(audio: bytes) -> Any:
        return await client.audio.transcriptions.with_raw_response.create(
            model="m", file=("a.wav", audio), extra_headers=keyed("form")
        )

    first, second = await transcribe(b"RIFF" * 1000), await transcribe(b"RIFF" * 1000)
    with pytest.raises(openai.ConflictError):
        await transcribe(b"RIFF" * 1001)

    assert (second.headers["x-hookline-replayed"], len(upstream.requests)) == ("true", 1)
    assert first.content == second.content


async def test_binary_replies_are_replayed(client, upstream):
    audio = bytes(range(256)) * 400
    upstream.always([b"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\ncontent-length: %d\r\n\r\n" % len(audio) + audio])

    replies = [
        await client.audio.speech.create(model="m", voice="alloy", input="hi", extra_headers=keyed("speech"))
        for _ in range(2)
    ]

    assert ([r.content for r in replies], len(upstream.requests)) == ([audio, audio], 1)
    assert replies[1].response.headers["content-type"] == "audio/mpeg"


async def test_no_provider_sends_the_key_on(serve, upstream):
    upstream.always(json_reply({"error": {"message": "no"}}, status=400))
    others = "".join(
        f"""
[providers.{kind}]
kind = "{kind}"
base_url = "{upstream.url}"
api_key = "sk-up"
{more}
"""
        for kind, more in (("anthropic", ""), ("azure", 'api_version = "2024-10-21"'))
    )
    proxy = serve(config(upstream) + others)

    async with openai.AsyncOpenAI(base_url=f"{proxy.base_url}/v1", api_key="none", max_retries=0) as client:
        for model in ("up/m", "anthropic/m", "azure/m"):
            with pytest.raises(openai.BadRequestError):
                await client.chat.completions.create(
                    **{**CHAT, "model": model}, max_tokens=10, extra_headers=keyed(model)
                )

    assert [r.header("idempotency-key") for r in upstream.requests] == [None] * 3
