"""Deployments that are slow or fail, on real sockets: the circuit that opens, and what the official SDK does about an error."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from hookline.testing.upstream import ScriptedUpstream, json_reply, sse_reply

SLOW_S = 0.05
REPLY = {
    "id": "c1", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
}  # fmt: skip
EVENT = '{"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"hello"},"finish_reason":"stop"}]}'
MESSAGES: Any = [{"role": "user", "content": "hi"}]


def proxy(upstream: ScriptedUpstream, spare: ScriptedUpstream, more: str, deployments: str) -> str:
    return f"""
[chain]
plugins = ["circuit_breaker", "hedging", "fallback"]
{more}
[providers.up]
kind = "openai"
base_url = "{upstream.url}"
[providers.spare]
kind = "openai"
base_url = "{spare.url}"
[models.m]
deployments = {deployments}
"""


def sdk(port: int, **more: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", **more)


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_and_first_events_that_come_late_open_the_circuit(start_gateway, upstream, spare, stream):
    options = f"[plugins.circuit_breaker]\nslow_call_s = {SLOW_S}\nslow_call_rate = 0.5\nmin_votes = 4\n[plugins.hedging]\nmax_per_call = 0"
    gateway = await start_gateway(proxy(upstream, spare, options, '["up/m", "spare/m"]'))
    reply = sse_reply(EVENT, "[DONE]") if stream else json_reply(REPLY)
    head, *rest = reply if stream else [b"", *reply]

    def late(request: Any) -> list[Any]:
        gate = asyncio.Event()
        asyncio.get_running_loop().call_later(2 * SLOW_S, gate.set)
        return [head, gate, *rest]

    upstream.always(late)
    spare.always(reply)
    async with sdk(gateway.port, max_retries=0) as client:

        async def ask() -> str:
            raw = await client.chat.completions.with_raw_response.create(model="m", messages=MESSAGES, stream=stream)
            parsed = raw.parse()
            if stream:
                assert [event.choices[0].delta.content async for event in parsed] == ["hello"]
            return raw.headers["x-hookline-deployment"]

        asked = [await ask() for _ in range(6)]

    assert asked == ["up/m"] * 4 + ["spare/m"] * 2


async def test_the_sdk_does_not_multiply_an_outage(start_gateway, upstream, spare):
    """It says how often it has tried, so its retries are paid from the budget of the deployment; without one, an error is final."""
    options = "[plugins.fallback]\nretry_budget = 0.0\nretry_budget_per_s = 0.0"
    gateway = await start_gateway(proxy(upstream, spare, options, '["up/m"]'))
    upstream.always(json_reply({"error": {"message": "down"}}, status=500))

    async with sdk(gateway.port, max_retries=2) as client:
        with pytest.raises(openai.InternalServerError) as failed:
            await client.chat.completions.create(model="m", messages=MESSAGES)

    assert failed.value.response.headers["x-should-retry"] == "false"
    assert len(upstream.requests) == 1


async def test_a_provider_that_says_retry_is_obeyed_and_the_client_is_told(start_gateway, upstream, spare):
    gateway = await start_gateway(
        proxy(upstream, spare, "[plugins.fallback]\nmax_retries = 1\nbackoff_s = 0.01", '["up/m"]')
    )
    error = {"error": {"message": "no"}}
    upstream.play(json_reply(error, status=500, headers={"x-should-retry": "true"}), json_reply(REPLY))

    async with sdk(gateway.port, max_retries=0) as client:
        answered = await client.chat.completions.with_raw_response.create(model="m", messages=MESSAGES, store=True)
        upstream.always(json_reply(error, status=500, headers={"x-should-retry": "false"}))
        with pytest.raises(openai.InternalServerError) as failed:
            await client.chat.completions.create(model="m", messages=MESSAGES)

    assert answered.headers["x-hookline-attempts"] == "2"
    assert failed.value.response.headers["x-should-retry"] == "false"
    assert len(upstream.requests) == 3
