"""The response cache as clients see it: the official SDK and raw bytes, gateway processes, a scripted upstream that counts."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2 as httpx
import openai
import pytest

from hookline.testing.process import ProxyProcess
from hookline.testing.redis import RedisServer
from hookline.testing.upstream import ScriptedUpstream, json_reply, sse_reply

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
REPLY = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": USAGE,
}
HEAD = '"id":"c","object":"chat.completion.chunk","created":1,"model":"m"'
EVENTS = [
    f'{{{HEAD},"choices":[{{"index":0,"delta":{{"role":"assistant","content":"hel"}},"finish_reason":null}}]}}',
    f'{{{HEAD},"choices":[{{"index":0,"delta":{{"content":"lo"}},"finish_reason":null}}]}}',
    f'{{{HEAD},"choices":[{{"index":0,"delta":{{}},"finish_reason":"stop"}}]}}',
    f'{{{HEAD},"choices":[],"usage":{{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}}}}',
    "[DONE]",
]
COLD: dict[str, Any] = {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": "hi"}]}
ADMIN = {"authorization": "Bearer admin-canary"}


def config(upstream_url: str, shared: str = "memory") -> str:
    return f"""
[server]
port = 0
[state]
shared = "{shared}"
[chain]
plugins = ["auth", "rate_limit", "cache", "fallback"]
[[plugins.auth.keys]]
name = "a"
key = "key-acme"
tenant = "acme"
[[plugins.auth.keys]]
name = "b"
key = "key-other"
tenant = "other"
[models.m]
deployments = ["up/m"]
aliases = ["nick"]
[providers.up]
kind = "openai"
base_url = "{upstream_url}"
api_key = "sk-up"
default = true
[admin]
key = "admin-canary"
"""


@pytest.fixture(scope="module")
def upstream_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream_port: int) -> Iterator[ProxyProcess]:
    """One process for all tests here: each has an upstream of its own, and begins with an empty cache."""
    with ProxyProcess(tmp_path_factory.mktemp("proxy"), config(f"http://127.0.0.1:{upstream_port}/v1")) as proxy:
        yield proxy


@pytest.fixture
async def upstream(proxy: ProxyProcess, upstream_port: int) -> AsyncIterator[ScriptedUpstream]:
    async with httpx.AsyncClient(base_url=proxy.base_url, headers=ADMIN) as admin:
        await admin.delete("/admin/cache?all=true")
    async with ScriptedUpstream(port=upstream_port) as upstream:
        yield upstream


@pytest.fixture
async def client(proxy: ProxyProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{proxy.base_url}/v1", api_key="key-acme", max_retries=0) as client:
        yield client


@pytest.fixture
async def raw(proxy: ProxyProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=proxy.base_url, headers={"authorization": "Bearer key-acme"}) as raw:
        yield raw


async def text_of(stream: Any) -> tuple[str, Any]:
    chunks = [chunk async for chunk in stream]
    usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices), usages


async def test_a_stream_answers_plain_calls_and_streams_of_both_kinds(client, upstream):
    upstream.play(sse_reply(*EVENTS))

    first = await text_of(await client.chat.completions.create(**COLD, stream=True))
    again = await text_of(await client.chat.completions.create(**COLD, stream=True))
    usage = await text_of(
        await client.chat.completions.create(**COLD, stream=True, stream_options={"include_usage": True})
    )
    plain = await client.chat.completions.with_raw_response.create(**COLD)
    async with client.chat.completions.stream(**COLD) as helper:
        final = await helper.get_final_completion()

    assert first == again == ("hello", [])
    assert (usage[0], [u.total_tokens for u in usage[1]]) == ("hello", [15])
    assert plain.parse().choices[0].message.content == "hello"
    assert plain.parse().usage.total_tokens == 15
    assert (plain.headers["x-hookline-cache"], plain.headers["age"]) == ("hit", "0")
    assert final.choices[0].message.content == "hello"
    assert len(upstream.requests) == 1


async def test_a_plain_reply_answers_streams_and_the_sync_sdk(client, proxy, upstream):
    upstream.play(json_reply(REPLY))

    def sync() -> str:
        with openai.OpenAI(base_url=f"{proxy.base_url}/v1", api_key="key-acme", max_retries=0) as sdk:
            return "".join(
                c.choices[0].delta.content or "" for c in sdk.chat.completions.create(**COLD, stream=True) if c.choices
            )

    first = await client.chat.completions.create(**COLD)
    streamed = await text_of(
        await client.chat.completions.create(**COLD, stream=True, stream_options={"include_usage": True})
    )

    assert first.choices[0].message.content == streamed[0] == await asyncio.to_thread(sync) == "hello"
    assert [u.total_tokens for u in streamed[1]] == [15]
    assert len(upstream.requests) == 1


async def test_the_same_form_is_the_same_bytes(raw, upstream):
    for script, streams in ((sse_reply(*EVENTS), True), (json_reply(REPLY), False)):
        upstream.play(script)
        payload = {**COLD, "seed": int(streams), "stream": streams, "stream_options": {"include_usage": True}}

        first, second = [await raw.post("/v1/chat/completions", json=payload) for _ in range(2)]

        assert first.content == second.content
        assert [r.headers["x-hookline-cache"] for r in (first, second)] == ["miss", "hit"]
        assert first.headers["x-hookline-cache-key"] == second.headers["x-hookline-cache-key"]
        assert first.headers["content-type"] == second.headers["content-type"]
        assert "age" in second.headers


async def test_the_responses_api_in_both_forms(client, upstream):
    part = {"type": "output_text", "text": "hello", "annotations": []}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    upstream.play(
        json_reply(
            {
                "id": "resp_1",
                "object": "response",
                "created_at": 1,
                "status": "completed",
                "model": "m",
                "output": [message],
                "parallel_tool_calls": True,
                "tool_choice": "auto",
                "tools": [],
                "usage": {
                    "input_tokens": 1,
                    "input_tokens_details": {"cached_tokens": 0},
                    "output_tokens": 2,
                    "output_tokens_details": {"reasoning_tokens": 0},
                    "total_tokens": 3,
                },
            }
        )
    )
    asked: dict[str, Any] = {"model": "m", "input": "hi", "temperature": 0, "store": False}

    first = await client.responses.create(**asked)
    async with client.responses.stream(**asked) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()

    assert first.output_text == final.output_text == "hello"
    assert (kinds[0], kinds[-1], "response.output_text.delta" in kinds) == (
        "response.created",
        "response.completed",
        True,
    )
    assert len(upstream.requests) == 1


def embeddings(*numbers: float) -> Any:
    data = [{"object": "embedding", "index": i, "embedding": [n, 0.5]} for i, n in enumerate(numbers)]
    return json_reply({"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 4, "total_tokens": 4}})


async def test_embeddings_are_kept_by_input(client, upstream):
    upstream.play(embeddings(1, 2))
    both = await client.embeddings.create(model="m", input=["a", "b"], encoding_format="float")

    one = await client.embeddings.with_raw_response.create(model="m", input="b", encoding_format="float")
    turned = await client.embeddings.create(model="m", input=["b", "a"], encoding_format="float")

    assert [d.embedding for d in both.data] == [[1.0, 0.5], [2.0, 0.5]]
    assert one.parse().data[0].embedding == [2.0, 0.5]
    assert one.headers["x-hookline-cache"] == "hit"
    assert [(d.index, d.embedding[0]) for d in turned.data] == [(0, 2.0), (1, 1.0)]
    assert (one.parse().usage.total_tokens, turned.usage.total_tokens) == (2, 4)
    assert len(upstream.requests) == 1


async def test_base64_embeddings_which_the_sdk_asks_for_by_itself(client, upstream):
    body = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": "AACAPwAAAD8="}], "model": "m"}
    upstream.play(json_reply({**body, "usage": {"prompt_tokens": 1, "total_tokens": 1}}))

    first, second = [await client.embeddings.create(model="m", input="a") for _ in range(2)]

    assert first.data[0].embedding == second.data[0].embedding == [1.0, 0.5]
    assert len(upstream.requests) == 1


TRICKS: list[dict[str, Any]] = [
    {},
    {"headers": {"x-hookline-tenant": "acme", "x-tenant": "acme"}},
    {"headers": {"x-hookline-cache": "use", "openai-organization": "acme"}},
    {"headers": {"cache-control": "max-stale, max-age=999999"}},
    {"body": {"tenant": "acme", "principal": {"tenant": "acme"}}},
    {"body": {"user": "acme", "metadata": {"tenant": "acme"}}},
    {"body": {"model": "nick"}},
    {"body": {"stream": True}},
    {"query": {"tenant": "acme"}},
]


async def test_no_trick_reads_another_tenants_answer(raw, upstream):
    secret = {**REPLY, "choices": [{**REPLY["choices"][0], "message": {"role": "assistant", "content": "canary"}}]}
    upstream.play(json_reply(secret))
    key = (await raw.post("/v1/chat/completions", json=COLD)).headers["x-hookline-cache-key"]
    upstream.always(json_reply(REPLY))

    for trick in TRICKS:
        headers = {"authorization": "Bearer key-other", "x-hookline-cache-key": key}
        got = await raw.post(
            "/v1/chat/completions",
            json={**COLD, **trick.get("body", {})},
            headers={**headers, **trick.get("headers", {})},
            params=trick.get("query"),
        )
        assert got.status_code == 200
        assert "canary" not in got.text, trick
    refused = await raw.post(
        "/v1/chat/completions",
        json={**COLD, "seed": 1},
        headers={"authorization": "Bearer key-other", "cache-control": "only-if-cached"},
    )
    mine = await raw.post("/v1/chat/completions", json=COLD)

    assert refused.status_code == 504
    assert ("canary" in mine.text, mine.headers["x-hookline-cache"]) == (True, "hit")


async def test_purging_by_key_model_alias_tenant_and_all(client, raw, upstream):
    upstream.always(json_reply(REPLY))

    for query in ("key={key}", "model=m", "model=nick", "tenant=acme", "all=true"):
        first = await client.chat.completions.with_raw_response.create(**COLD)
        key = first.headers["x-hookline-cache-key"]
        purged = await raw.delete(f"/admin/cache?{query.format(key=key)}", headers=ADMIN)

        assert first.headers["x-hookline-cache"] == "miss"
        assert (purged.status_code, purged.json()["deleted"]) == (200, 1)


NOT_UNDERSTOOD = [
    ("", ADMIN, 400),
    ("?tenant=", ADMIN, 400),
    ("?all=1", ADMIN, 400),
    ("?key=zz", ADMIN, 400),
    ("?tennant=acme", ADMIN, 400),
    ("?tenant=acme&model=m", ADMIN, 400),
    ("?all=true", {"authorization": "Bearer key-acme"}, 403),
    ("?tenant=nobody", ADMIN, 200),
]


async def test_a_purge_that_is_not_understood_purges_nothing(client, raw, upstream):
    upstream.always(json_reply(REPLY))
    await client.chat.completions.create(**COLD)

    got = [(await raw.delete(f"/admin/cache{query}", headers=headers)) for query, headers, _ in NOT_UNDERSTOOD]
    again = await client.chat.completions.with_raw_response.create(**COLD)

    assert [r.status_code for r in got] == [status for _, _, status in NOT_UNDERSTOOD]
    assert again.headers["x-hookline-cache"] == "hit"


async def test_two_processes_share_answers_and_purges_and_serve_without_redis(tmp_path, upstream):
    upstream.always(json_reply(REPLY))
    with RedisServer(tmp_path) as redis_server:
        proxies, clients = [], []
        try:
            for name in ("one", "two"):
                (tmp_path / name).mkdir()
                proxies.append(ProxyProcess(tmp_path / name, config(upstream.url, redis_server.url)))
                clients.append(
                    openai.AsyncOpenAI(base_url=f"{proxies[-1].base_url}/v1", api_key="key-acme", max_retries=0)
                )

            async def ask(n: int) -> str:
                raw = await clients[n].chat.completions.with_raw_response.create(**COLD)
                return str(raw.headers["x-hookline-cache"])

            said = [await ask(0), await ask(1), await ask(1)]
            async with httpx.AsyncClient(base_url=proxies[0].base_url) as admin:
                purged = await admin.delete("/admin/cache?tenant=acme", headers=ADMIN)
            here = await ask(0)  # puts it there again
            redis_server.stop()
            without = [await ask(n) for n in (0, 1) for _ in range(3)]
        finally:
            for client in clients:
                await client.close()
            for proxy in proxies:
                proxy.kill()

    assert said == ["miss", "hit", "hit"]
    assert (purged.json()["deleted"], here) == (1, "miss")
    assert set(without) <= {"hit", "miss", "bypass"}
