"""A canary, a shadow and probes, with the official SDK, real gateway processes and scripted upstreams."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import openai
import pytest

from hookline.testing.process import ProxyProcess
from hookline.testing.upstream import STALL, ScriptedUpstream, json_reply, sse_reply

COMPLETION = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ho"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
}
CHUNK = '{"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"ho"},"finish_reason":"stop"}]}'
USAGE = '{"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}}'
HI: Any = [{"role": "user", "content": "Hi!"}]
ADMIN = {"authorization": "Bearer sk-admin"}

Serve = Callable[..., ProxyProcess]


@pytest.fixture
async def shadow() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as shadow:
        shadow.always(answer)
        yield shadow


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as http:
        yield http


def answer(request: Any) -> Any:
    if request.method == "GET":
        return json_reply({"object": "list", "data": []})
    return sse_reply(CHUNK, USAGE, "[DONE]") if request.json().get("stream") else json_reply(COMPLETION)


def provider(name: str, url: str) -> str:
    return f'[providers.{name}]\nkind = "openai"\nbase_url = "{url}"\napi_key = "sk-{name}"\n'


def client_of(proxy: ProxyProcess) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{proxy.base_url}/v1", api_key="sk-ci", max_retries=0)


async def line(proxy: ProxyProcess, pattern: str, count: int = 1) -> dict[str, Any]:
    found = await asyncio.to_thread(proxy.wait_for, pattern, count=count)
    told: dict[str, Any] = json.loads(found.string)
    return told


async def test_a_stop_does_not_wait_for_a_shadow_that_hangs(serve: Serve, upstream, shadow):
    upstream.always(answer)
    shadow.always([STALL])
    proxy = serve(
        f"""
[server]
port = 0
drain_s = 3600
[chain]
plugins = ["auth", "mirror", "logging"]
[plugins.mirror]
to = "shadow/m"
share = 1.0
timeout_s = 3600
{provider("up", upstream.url)}{provider("shadow", shadow.url)}
[[plugins.auth.keys]]
name = "ci"
key = "sk-ci"
"""
    )
    async with client_of(proxy) as client:
        await client.chat.completions.create(model="up/m", messages=HI)
    await shadow.wait_for_requests(1)

    proxy.send(signal.SIGTERM)

    assert await asyncio.to_thread(proxy.wait) == 0
    assert (await line(proxy, r'"id":"[^"]+-mirror"'))["outcome"] == "shutdown"


async def test_a_shadow_is_asked_and_booked_apart(serve: Serve, upstream, shadow, http):
    upstream.always(answer)
    proxy = serve(
        f"""
[server]
port = 0
[admin]
key = "sk-admin"
[chain]
plugins = ["auth", "owners", "rate_limit", "idempotency", "cache", "budget", "model_selection", "circuit_breaker", "fallback", "mirror", "logging", "metrics"]
[[plugins.auth.keys]]
name = "ci"
key = "sk-ci"
{provider("up", upstream.url)}{provider("shadow", shadow.url)}
[models.m]
deployments = ["up/m"]
[plugins.mirror]
to = "shadow/new"
share = 1.0
[tenants.default]
[prices."up/m"]
input = 1.0
output = 2.0
[prices."shadow/new"]
input = 10.0
output = 20.0
"""
    )

    async with client_of(proxy) as client:
        reply = await client.chat.completions.create(model="m", messages=HI, user="ann")
        stream = await client.chat.completions.create(model="m", messages=HI, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
    first = await line(proxy, '"key":"mirror"')
    second = await line(proxy, '"key":"mirror"', 2)
    async with http.get(f"{proxy.base_url}/admin/spend?by=tenant,key", headers=ADMIN) as told:
        spent = {row["key"]: (row["tenant"], row["calls"], row["cost_nanousd"]) for row in (await told.json())["data"]}
    async with http.get(f"{proxy.base_url}/metrics") as told:
        metrics = await told.text()
    async with http.get(f"{proxy.base_url}/v1/files/file-old", headers={"authorization": "Bearer sk-ci"}) as told:
        assert "no such object" not in await told.text()  # nobody has become a second tenant

    assert (reply.choices[0].message.content, text) == ("ho", "ho")
    assert [request.json()["model"] for request in shadow.requests] == ["new", "new"]
    assert [request.json().get("stream") for request in shadow.requests] == [None, True]
    assert all(request.header("authorization") == "Bearer sk-shadow" for request in shadow.requests)
    assert {first["deployment"], second["deployment"]} == {"shadow/new"}
    assert (first["tenant"], first["tags"], first["outcome"], first["user"]) == ("mirror", ["mirror"], "ok", None)
    assert first["id"].endswith("-mirror")
    assert sorted(spent.values()) == [("default", 2, 40_000), ("mirror", 2, 400_000)]
    assert 'hookline_mirrored_calls_total{outcome="ok"} 2.0' in metrics
    assert 'hookline_attempts_total{deployment="shadow/new",outcome="ok",provider="shadow"} 2.0' in metrics


async def test_a_shadow_is_not_shown_what_may_not_go_there(serve: Serve, upstream, shadow):
    """Whoever pays for it: a mirrored call holds what the client has written."""
    upstream.always(answer)
    proxy = serve(
        f"""
[server]
port = 0
[chain]
plugins = ["auth", "model_selection", "fallback", "mirror", "logging"]
[[plugins.auth.keys]]
name = "eu"
key = "sk-ci"
tenant = "acme"
[[plugins.auth.keys]]
name = "other"
key = "sk-other"
tenant = "globex"
{provider("up", upstream.url)}region = "eu"
tags = ["reviewed"]
{provider("shadow", shadow.url)}region = "us"
[models.bound]
deployments = ["up/bound"]
[[models.bound.plugins.model_selection.places]]
regions = ["eu"]
[models.free]
deployments = ["up/free"]
[plugins.mirror]
to = "shadow/new"
share = 1.0
[[plugins.model_selection.places]]
tenant = "acme"
tags = ["reviewed"]
"""
    )

    async with client_of(proxy) as client:
        await client.chat.completions.create(model="free", messages=HI)
        await client.with_options(api_key="sk-other").chat.completions.create(model="bound", messages=HI)
    told = await line(proxy, '"key":"mirror"', 2)

    assert shadow.requests == []
    assert told["error"]["code"] == "no_qualified_deployment"


async def test_a_dead_deployment_is_found_and_a_living_one_taken_back_without_a_call(serve: Serve, upstream):
    upstream.always(answer)
    async with ScriptedUpstream() as gone:
        url, port = gone.url, gone.port
    proxy = serve(
        f"""
[server]
port = 0
[chain]
plugins = ["health_probes", "model_selection", "circuit_breaker", "fallback", "logging"]
{provider("a", url)}{provider("b", upstream.url)}
[models.m]
deployments = ["a/m", "b/m"]
[plugins.health_probes]
interval_s = 1.0
failing_interval_s = 0.1
[plugins.circuit_breaker]
consecutive_failures = 3
open_s = 300.0
"""
    )

    await asyncio.to_thread(proxy.wait_for, "circuit of a/m opened")
    async with client_of(proxy) as client:
        during = await client.chat.completions.with_raw_response.create(model="m", messages=HI)
        async with ScriptedUpstream(port=port) as back:
            back.always(answer)
            await asyncio.to_thread(proxy.wait_for, "health probe of a/m: ok")
            after = await client.chat.completions.with_raw_response.create(model="m", messages=HI)

            assert (back.requests[0].method, back.requests[0].target) == ("GET", "/v1/models")
            assert back.requests[0].header("authorization") == "Bearer sk-a"
    assert (during.headers["x-hookline-deployment"], during.headers["x-hookline-attempts"]) == ("b/m", "1")
    assert after.headers["x-hookline-deployment"] == "a/m"


def canary(weight: int) -> str:
    return f"""
[server]
port = 0
[chain]
plugins = ["model_selection", "logging"]
[providers.demo]
kind = "demo"
[models.m]
deployments = [
    {{ provider = "demo", model = "echo", id = "stable", weight = {100 - weight} }},
    {{ provider = "demo", model = "echo", id = "canary", weight = {weight} }},
]
[models.m.plugins.model_selection]
strategy = "sticky"
sticky_by = "user"
"""


async def test_a_new_weight_moves_only_those_who_have_to(serve: Serve, tmp_path):
    proxy = serve(canary(10))

    async def users_of_the_canary() -> set[str]:
        async with client_of(proxy) as client:
            users = [f"user-{number}" for number in range(120)]
            replies = [
                await client.chat.completions.with_raw_response.create(model="m", messages=HI, user=user)
                for user in users
            ]
        sides = [reply.headers["x-hookline-deployment"] for reply in replies]
        return {user for user, side in zip(users, sides, strict=True) if side == "canary"}

    async def reload(weight: int, count: int) -> None:
        (tmp_path / "proxy.toml").write_text(canary(weight))
        proxy.send(signal.SIGHUP)
        await asyncio.to_thread(proxy.wait_for, "reloaded", count=count)

    few = await users_of_the_canary()
    await reload(50, 1)
    many = await users_of_the_canary()
    await reload(10, 2)
    again = await users_of_the_canary()

    assert few < many
    assert again == few
    assert 4 <= len(few) <= 22
    assert 45 <= len(many) <= 75
