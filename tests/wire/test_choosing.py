"""Choosing models and balancing load, with the official SDK, a real gateway process and a scripted upstream."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable

import openai
import pytest

from hookline.testing.process import ProxyProcess
from hookline.testing.upstream import ScriptedUpstream, json_reply, sse_reply

COMPLETION = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ho"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
}
CHUNK = '{"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"ho"},"finish_reason":"stop"}]}'
EASY = [{"role": "user", "content": "Hi!"}]
HARD = [{"role": "user", "content": "Prove, derive, analyze and compare.\n```python\nx\n```"}]

Serve = Callable[..., ProxyProcess]


@pytest.fixture
async def ask(serve: Serve, upstream: ScriptedUpstream) -> AsyncIterator[Callable[..., openai.AsyncOpenAI]]:
    """`ask(toml, key)`: an SDK client of a gateway with this configuration."""
    clients: list[openai.AsyncOpenAI] = []

    def start(text: str, *keys: str) -> list[openai.AsyncOpenAI]:
        proxy = serve(f"[server]\nport = 0\n{text}")
        made = [
            openai.AsyncOpenAI(base_url=f"{proxy.base_url}/v1", api_key=key, max_retries=0) for key in keys or ("none",)
        ]
        clients.extend(made)
        return made

    yield start
    for client in clients:
        await client.close()


def up(upstream: ScriptedUpstream, name: str, more: str = 'api_key = "sk-up"') -> str:
    return f'[providers.{name}]\nkind = "openai"\nbase_url = "{upstream.url}"\n{more}\n'


AUTO = """
[chain]
plugins = ["model_selection", "fallback"]
[models.auto]
deployments = ["a/small", "a/medium", "a/large"]
[models.auto.plugins.model_selection.complexity]
simple = ["a/small"]
medium = ["a/medium"]
complex = ["a/large"]
"""


async def test_a_virtual_model_answers_by_class_and_no_upstream_sees_how(ask, upstream):
    [client] = ask(AUTO + up(upstream, "a"))
    upstream.always(json_reply(COMPLETION))

    async def chosen(messages, **about) -> str:
        raw = await client.chat.completions.with_raw_response.create(model="auto", messages=messages, **about)
        return raw.headers["x-hookline-deployment"]

    assert await chosen(EASY) == "a/small"
    assert await chosen(HARD) == "a/large"
    assert await chosen(EASY, extra_body={"complexity": "complex"}) == "a/large"
    assert await chosen(HARD, extra_headers={"x-hookline-complexity": "medium"}) == "a/medium"
    sent = [request.json() for request in upstream.requests]
    assert [body["model"] for body in sent] == ["small", "large", "large", "medium"]
    assert all(set(body) == {"model", "messages"} for body in sent)
    assert not any(name.startswith("x-hookline") for request in upstream.requests for name, _ in request.headers)


async def test_a_cost_nobody_meets_is_the_sdks_bad_request(ask, upstream):
    [client] = ask(AUTO + up(upstream, "a") + '[prices."a/small"]\ninput = 1\noutput = 2\n')

    with pytest.raises(openai.BadRequestError) as raised:
        await client.chat.completions.create(model="auto", messages=EASY, extra_body={"max_cost": 0.0000001})

    assert raised.value.code == "no_qualified_deployment"
    assert "a/small may cost" in raised.value.message
    assert "a/large has no known price" in raised.value.message
    assert upstream.requests == []


async def test_one_tenants_name_goes_elsewhere_and_gives_no_access(ask, upstream):
    acme, narrow, other = ask(
        '[chain]\nplugins = ["auth", "model_selection", "fallback"]\n'
        + up(upstream, "a")
        + """
[models."gpt-4o"]
deployments = ["a/gpt-4o"]
[models.eu]
deployments = ["a/eu"]
[[plugins.model_selection.mappings]]
model = "gpt-4o"
tenant = "acme"
to = "eu"
[[plugins.auth.keys]]
name = "acme"
key = "sk-acme-00000000"
tenant = "acme"
[[plugins.auth.keys]]
name = "narrow"
key = "sk-narrow-000000"
tenant = "acme"
models = ["gpt-4o"]
[[plugins.auth.keys]]
name = "other"
key = "sk-other-0000000"
""",
        "sk-acme-00000000",
        "sk-narrow-000000",
        "sk-other-0000000",
    )
    upstream.always(json_reply(COMPLETION))

    await acme.chat.completions.create(model="gpt-4o", messages=EASY)
    await other.chat.completions.create(model="gpt-4o", messages=EASY)
    upstream.always(json_reply({"text": "ho"}))
    await acme.audio.transcriptions.create(model="gpt-4o", file=("a.wav", b"RIFF"))
    with pytest.raises(openai.PermissionDeniedError):
        await narrow.chat.completions.create(model="gpt-4o", messages=EASY)

    assert [request.json()["model"] for request in upstream.requests[:2]] == ["eu", "gpt-4o"]
    assert b'name="model"\r\n\r\neu\r\n' in upstream.requests[2].body
    assert len(upstream.requests) == 3


KEYS = 'api_key = ["sk-one", "sk-two", "sk-three"]\ndefault = true'


def keys_used(upstream: ScriptedUpstream) -> list[str]:
    return [request.header("authorization").removeprefix("Bearer ") for request in upstream.requests]


async def test_the_keys_of_a_provider_take_turns_and_stand_in_for_each_other(ask, upstream):
    [client] = ask('[chain]\nplugins = ["model_selection", "circuit_breaker", "fallback"]\n' + up(upstream, "a", KEYS))
    upstream.always(json_reply(COMPLETION))
    for _ in range(6):
        await client.chat.completions.create(model="gpt-4o", messages=EASY)
    assert Counter(keys_used(upstream)) == {"sk-one": 2, "sk-two": 2, "sk-three": 2}

    upstream.requests.clear()
    upstream.play(json_reply({"error": {"message": "slow down"}}, status=429, headers={"retry-after": "60"}))
    limited = await client.chat.completions.with_raw_response.create(model="gpt-4o", messages=EASY)
    for _ in range(4):
        await client.chat.completions.create(model="gpt-4o", messages=EASY)

    assert (limited.headers["x-hookline-deployment"], limited.headers["x-hookline-attempts"]) == ("a/gpt-4o#2", "2")
    assert keys_used(upstream)[:2] == ["sk-one", "sk-two"]
    assert "sk-one" not in keys_used(upstream)[1:]


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_key_that_is_used_up_is_left_alone_before_its_provider_says_429(ask, upstream, is_stream):
    [client] = ask('[chain]\nplugins = ["model_selection", "fallback"]\n' + up(upstream, "a", KEYS))
    told = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m0s"}

    async def call() -> None:
        made = await client.chat.completions.create(model="gpt-4o", messages=EASY, stream=is_stream)
        if is_stream:
            async for _ in made:
                pass

    def reply(**about):
        return sse_reply(CHUNK, "[DONE]", **about) if is_stream else json_reply(COMPLETION, **about)

    upstream.always(reply())
    upstream.play(reply(headers=told))
    for _ in range(7):
        await call()

    assert Counter(keys_used(upstream)) == {"sk-one": 1, "sk-two": 3, "sk-three": 3}


async def test_the_cheapest_answers_when_a_budget_gets_low(ask, upstream):
    [client] = ask(
        AUTO.replace('"model_selection"', '"auth", "budget", "model_selection"')
        + "[plugins.model_selection]\ncheapest_below = 0.5\n"
        + up(upstream, "a")
        + '[prices."a/small"]\noutput = 0.1\n[prices."a/medium"]\noutput = 1\n[prices."a/large"]\noutput = 10\n'
        + '[[plugins.auth.keys]]\nname = "ci"\nkey = "sk-ci-0000000000"\nbudget = { daily_usd = 0.001 }\n',
        "sk-ci-0000000000",
    )
    upstream.always(
        json_reply({**COMPLETION, "usage": {"prompt_tokens": 10, "completion_tokens": 60, "total_tokens": 70}})
    )

    async def chosen() -> str:
        raw = await client.chat.completions.with_raw_response.create(model="auto", messages=HARD, max_tokens=60)
        return raw.headers["x-hookline-deployment"]

    assert [await chosen() for _ in range(4)] == ["a/large", "a/small", "a/small", "a/small"]


async def test_calls_go_round_a_deployment_that_hangs(ask, upstream):
    [client] = ask(
        '[chain]\nplugins = [{ name = "model_selection", strategy = "lowest_latency" }]\n'
        '[models.m]\ndeployments = ["a/well", "a/hangs"]\n' + up(upstream, "a")
    )
    answers = asyncio.Event()

    def script(request):
        return [answers, *json_reply(COMPLETION)] if request.json()["model"] == "hangs" else json_reply(COMPLETION)

    upstream.always(script)
    calls = []
    for number in range(1, 13):
        calls.append(asyncio.ensure_future(client.chat.completions.create(model="m", messages=EASY)))
        await upstream.wait_for_requests(number)
        if upstream.requests[-1].json()["model"] == "well":
            await calls[-1]
    answers.set()
    await asyncio.gather(*calls)

    asked = Counter(request.json()["model"] for request in upstream.requests)
    assert asked == {"hangs": 1, "well": 11}


async def test_a_conversation_stays_with_its_deployment_across_workers_and_restarts(ask, upstream):
    text = (
        '[chain]\nplugins = [{ name = "model_selection", strategy = "sticky" }]\n'
        '[models.m]\ndeployments = ["a/1", "a/2", "a/3"]\n' + up(upstream, "a")
    )
    upstream.always(json_reply(COMPLETION))
    seen = []
    for _ in range(2):
        [client] = ask(text)
        for number in range(8):
            await client.chat.completions.create(
                model="m", messages=EASY, extra_headers={"x-hookline-conversation": str(number)}
            )
        seen.append([request.json()["model"] for request in upstream.requests])
        upstream.requests.clear()

    assert seen[0] == seen[1]
    assert len(set(seen[0])) == 3


async def test_responses_and_embeddings_follow_wishes_too(ask, upstream):
    [client] = ask(AUTO + up(upstream, "a"))
    embedding = {"object": "embedding", "index": 0, "embedding": [0.5]}
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    upstream.play(
        json_reply({"object": "list", "data": [embedding], "model": "m", "usage": usage}),
        json_reply({"id": "r", "object": "response", "status": "completed", "output": []}),
    )

    await client.embeddings.create(model="auto", input="hi", extra_body={"complexity": "Medium"})
    await client.responses.create(
        model="auto", input="hi", extra_body={"complexity": "complex", "prefer_provider": "b"}
    )

    sent = [request.json() for request in upstream.requests]
    assert [body["model"] for body in sent] == ["medium", "large"]
    assert all({"complexity", "prefer_provider"}.isdisjoint(body) for body in sent)
