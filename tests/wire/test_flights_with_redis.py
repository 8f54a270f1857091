"""Two `hookline serve` processes on one Redis: equal calls in flight are one upstream call, a key is one key."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import openai
import pytest

from hookline.testing.process import ProxyProcess
from hookline.testing.redis import RedisServer
from hookline.testing.upstream import ScriptedUpstream, json_reply, sse_reply

TEXT = """
[server]
port = 0
[state]
shared = "{redis}"
[chain]
plugins = ["rate_limit", "idempotency", "cache", "fallback"]
[providers.up]
kind = "openai"
base_url = "{upstream}"
api_key = "sk-up"
default = true
"""
REPLY = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ho"}, "finish_reason": "stop"}],
}
CHUNK = '{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"ho"}}]}'
LAST = '{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": text}], **more}


def keyed(key: str) -> dict[str, str]:
    return {"Idempotency-Key": key}


@pytest.fixture
def redis_server(tmp_path):
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
async def two(tmp_path, redis_server, upstream):
    """The processes, and a client of each."""
    processes, clients = [], []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        text = TEXT.format(redis=redis_server.url, upstream=upstream.url)
        processes.append(await asyncio.to_thread(ProxyProcess, tmp_path / name, text))
        clients.append(openai.AsyncOpenAI(base_url=f"{processes[-1].base_url}/v1", api_key="none", max_retries=0))
    yield processes, clients
    for client in clients:
        await client.close()
    for process in processes:
        process.kill()


async def text_of(stream: Any) -> str:
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def test_two_processes_are_one_flight_and_one_key(two, upstream: ScriptedUpstream):
    """One start of two processes carries the whole story."""
    _, (a, b) = two

    # A stream is read in the other process as it comes.
    go = asyncio.Event()
    upstream.play(sse_reply(CHUNK, go, CHUNK, LAST, "[DONE]"))
    leader = await a.chat.completions.create(**chat("stream", stream=True))
    followers = await asyncio.gather(*(b.chat.completions.create(**chat("stream", stream=True)) for _ in range(5)))
    firsts = [await anext(follower) for follower in followers]
    assert {chunk.choices[0].delta.content for chunk in firsts} == {"ho"}
    await leader.close()  # the leader's client leaves: nobody is cut
    go.set()
    assert {await text_of(follower) for follower in followers} == {"ho"}
    assert len(upstream.requests) == 1

    # Plain calls over both processes are one, and so are errors.
    for number, (status, reply) in enumerate([(200, REPLY), (400, {"error": {"message": "no"}})], 2):
        go = asyncio.Event()
        upstream.play([go, *json_reply(reply, status=status)])
        calls = [
            asyncio.ensure_future(client.chat.completions.with_raw_response.create(**chat(f"plain {status}")))
            for client in (a, b) * 10
        ]
        await upstream.wait_for_requests(number)
        for client in (a, b) * 5:  # whoever is answered now came after the calls, which have joined meanwhile
            await client._client.get(str(client.base_url).replace("/v1/", "/healthz"))
        go.set()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert {getattr(answer, "status_code", None) for answer in answers} == {status}
        assert len(upstream.requests) == number

    # A key is one key: joined while it runs, replayed when it is there, refused with another body.
    go = asyncio.Event()
    upstream.play([go, *json_reply(REPLY)])
    first = asyncio.ensure_future(a.chat.completions.create(**chat("keyed"), extra_headers=keyed("k")))
    await upstream.wait_for_requests(4)
    joined = asyncio.ensure_future(
        b.chat.completions.with_raw_response.create(**chat("keyed"), extra_headers=keyed("k"))
    )
    with pytest.raises(openai.ConflictError):
        await b.chat.completions.create(**chat("another"), extra_headers=keyed("k"))
    go.set()
    await first
    assert (await joined).headers["x-hookline-replayed"] == "true"
    replayed = await b.chat.completions.with_raw_response.create(**chat("keyed"), extra_headers=keyed("k"))
    assert replayed.headers["x-hookline-replayed"] == "true"
    assert len(upstream.requests) == 4


async def test_a_killed_leaders_key_is_taken_over_within_seconds(two, upstream: ScriptedUpstream):
    (process, _), (a, b) = two
    upstream.play([asyncio.Event()], json_reply(REPLY))
    first = asyncio.ensure_future(a.chat.completions.create(**chat("killed"), extra_headers=keyed("k")))
    await upstream.wait_for_requests(1)
    waiting = [
        asyncio.ensure_future(b.chat.completions.create(**chat("killed"), extra_headers=keyed("k"))) for _ in range(3)
    ]

    process.send(signal.SIGKILL)

    answers = await asyncio.gather(*waiting)
    assert {answer.choices[0].message.content for answer in answers} == {"ho"}
    assert len(upstream.requests) == 2
    with pytest.raises(openai.APIConnectionError):
        await first


async def test_without_redis_keyed_calls_are_a_503_and_all_others_served(two, upstream: ScriptedUpstream, redis_server):
    _, (a, _) = two
    upstream.always(json_reply(REPLY))
    await a.chat.completions.create(**chat("before"), extra_headers=keyed("k"))

    redis_server.stop()

    with pytest.raises(openai.InternalServerError) as raised:
        await a.chat.completions.create(**chat("during"), extra_headers=keyed("k2"))
    assert (raised.value.status_code, raised.value.response.headers["retry-after"]) == (503, "1")
    for number in range(5):
        await a.chat.completions.create(**chat(f"plain {number}"))
