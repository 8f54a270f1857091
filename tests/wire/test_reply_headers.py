"""Every reply to a call says which deployment made it and how many were asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest

from hookline.testing.process import ProxyProcess
from hookline.testing.upstream import ScriptedUpstream, json_reply, sse_reply

CHAT: dict[str, Any] = {
    "id": "c", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
}  # fmt: skip
VECTOR = {
    "object": "list", "model": "m", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
    "usage": {"prompt_tokens": 1, "total_tokens": 1},
}  # fmt: skip
HEAD = '"id":"c","object":"chat.completion.chunk","created":1,"model":"m"'
EVENTS = [
    f'{{{HEAD},"choices":[{{"index":0,"delta":{{"role":"assistant","content":"hello"}},"finish_reason":null}}]}}',
    f'{{{HEAD},"choices":[{{"index":0,"delta":{{}},"finish_reason":"stop"}}]}}',
    "[DONE]",
]
ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COLD = {**ASKED, "temperature": 0}
EMBED = {"model": "m", "input": "hi"}
DOWN = json_reply({"error": {"message": "down", "type": "server_error"}}, status=500)


@pytest.fixture
async def http(serve: Callable[..., ProxyProcess], upstream: ScriptedUpstream) -> AsyncIterator[aiohttp.ClientSession]:
    proxy = serve(f"""
[server]
port = 0
[chain]
plugins = ["auth", "rate_limit", "idempotency", "cache", "degradation", "fallback"]
[admin]
key = "admin-key-0123"
[[plugins.auth.keys]]
name = "ci"
key = "sk-ci"
[[plugins.auth.keys]]
name = "poor"
key = "sk-poor"
requests_per_minute = 1
[models.m]
deployments = ["up/one", "up/other"]
[models.safe]
deployments = ["up/one"]
plugins.degradation = {{ static = "not now" }}
[providers.up]
kind = "openai"
base_url = "{upstream.url}"
api_key = "sk-none"
""")
    async with aiohttp.ClientSession(proxy.base_url, headers={"authorization": "Bearer sk-ci"}) as session:
        yield session


async def told(
    http: aiohttp.ClientSession, body: Any, path: str = "chat/completions", **headers: str
) -> tuple[int, str | None, str | None]:
    async with http.post(f"/v1/{path}", json=body, headers=headers) as reply:
        await reply.read()
        return reply.status, reply.headers.get("x-hookline-deployment"), reply.headers.get("x-hookline-attempts")


async def test_an_answer_names_its_deployment(http: aiohttp.ClientSession, upstream: ScriptedUpstream) -> None:
    upstream.play(json_reply(CHAT), sse_reply(*EVENTS), DOWN, json_reply(CHAT))

    assert await told(http, ASKED) == (200, "up/one", "1")
    assert await told(http, {**ASKED, "stream": True}) == (200, "up/one", "1")
    assert await told(http, ASKED) == (200, "up/other", "2")


@pytest.mark.parametrize(
    ("reply", "body", "path"),
    [
        (json_reply(CHAT), COLD, "chat/completions"),
        (sse_reply(*EVENTS), {**COLD, "stream": True}, "chat/completions"),
        (json_reply(VECTOR), EMBED, "embeddings"),
    ],
    ids=["chat", "stream", "embeddings"],
)
async def test_a_cached_answer_names_who_made_it_then(
    http: aiohttp.ClientSession, upstream: ScriptedUpstream, reply: Any, body: Any, path: str
) -> None:
    upstream.play(DOWN, reply)

    assert await told(http, body, path) == (200, "up/other", "2")
    assert await told(http, body, path) == (200, "up/other", "0")


async def test_a_replay_names_who_made_it_then(http: aiohttp.ClientSession, upstream: ScriptedUpstream) -> None:
    upstream.play(DOWN, json_reply(CHAT))
    key = {"idempotency-key": "k"}

    assert await told(http, ASKED, **key) == (200, "up/other", "2")
    assert await told(http, ASKED, **key) == (200, "up/other", "0")


async def test_an_error_names_who_failed_last(http: aiohttp.ClientSession, upstream: ScriptedUpstream) -> None:
    upstream.play(json_reply({"error": {"message": "no", "type": "invalid_request_error"}}, status=400), DOWN, DOWN)

    assert await told(http, ASKED) == (400, "up/one", "1")
    assert await told(http, ASKED) == (503, "up/other", "2")


async def test_what_no_deployment_made_says_so(http: aiohttp.ClientSession, upstream: ScriptedUpstream) -> None:
    upstream.play(DOWN, json_reply(CHAT))

    assert await told(http, {**ASKED, "model": "safe"}) == (200, "none", "1"), "a static answer"
    assert await told(http, {**ASKED, "model": "unknown"}) == (404, "none", "0")
    assert await told(http, ASKED, authorization="Bearer sk-wrong") == (401, "none", "0")
    assert await told(http, ASKED, authorization="Bearer sk-poor") == (200, "up/one", "1")
    assert await told(http, ASKED, authorization="Bearer sk-poor") == (429, "none", "0")


async def test_a_page_of_ours_is_no_call(http: aiohttp.ClientSession) -> None:
    async with http.get("/admin/spend") as refused, http.get("/v1/models") as models:
        assert [reply.headers.get("x-hookline-deployment") for reply in (refused, models)] == [None, None]
