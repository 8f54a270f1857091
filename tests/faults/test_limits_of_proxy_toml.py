"""Rate limits as an operator writes them: every scope, every field, on real sockets; and the queue over one Redis."""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson
import pytest

from hookline.testing.raw_client import chat_request
from hookline.testing.redis import RedisServer
from hookline.testing.upstream import ScriptedUpstream, json_reply

BASE = """
[chain]
plugins = ["auth", "rate_limit", "fallback", "metrics"]
[plugins.metrics]
open = true
[providers.up]
kind = "openai"
base_url = "{up}"
[[plugins.auth.keys]]
name = "ci"
key = "sk-ci"
tenant = "acme"
user = "ann"
"""
MODEL = '[models.m]\ndeployments = ["up/m"]\n'
ANSWER = json_reply({"choices": [{"index": 0, "message": {"content": "ho"}}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})  # fmt: skip


def asked_for(model: str) -> bytes:
    return chat_request(model, max_tokens=10).replace(b"\r\n", b"\r\nauthorization: Bearer sk-ci\r\n", 1)


ASKED = asked_for("m")

EVERY_SCOPE = [
    ("requests_per_minute = 1\n" + MODEL, "key:ci: limit of 1 requests per minute"),
    ("requests_per_day = 1\n" + MODEL, "key:ci: limit of 1 requests per day"),
    ("tokens_per_hour = 130\n" + MODEL, "key:ci: limit of 130 tokens per hour"),
    ('limits_by_model = { "m*" = { requests_per_minute = 1 } }\n' + MODEL, "key:ci model:m*: limit of 1 requests"),
    (MODEL + "[users.ann]\nrequests_per_hour = 1\n", "user:ann: limit of 1 requests per hour"),
    (MODEL + "[tenants.acme]\nrequests_per_minute = 1\n", "tenant:acme: limit of 1 requests per minute"),
    (MODEL + "[tenants.acme.limits_by_model.m]\nrequests_per_minute = 1\n", "tenant:acme model:m: limit of 1 requests"),
    (MODEL + "[global]\nrequests_per_minute = 1\n", "global: limit of 1 requests per minute"),
    ("[models.m]\nrequests_per_minute = 1\n" + MODEL.removeprefix("[models.m]\n"), "model:m: limit of 1 requests"),
    ('[models.m]\ndeployments = [{ provider = "up", model = "m", requests_per_minute = 1 }]\n', "deployment:up/m: limit of 1 requests"),
    ('[models.m]\ndeployments = [{ provider = "up", model = "m", tokens_per_day = 130 }]\n', "deployment:up/m: limit of 130 tokens"),
    *(
        (MODEL + f"[plugins.rate_limit]\n{field} = {{ requests_per_minute = 1 }}\n", f"{scope}: limit of 1 requests")
        for field, scope in (
            ("per_key", "key:ci"), ("per_user", "user:ann"), ("per_tenant", "tenant:acme"), ("per_model", "model:m"),
            ("per_deployment", "deployment:up/m"), ("global", "global"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("more", "told"), EVERY_SCOPE, ids=[told for _, told in EVERY_SCOPE])
async def test_every_scope_that_can_be_written_holds_and_is_named(
    start_gateway, upstream: ScriptedUpstream, more: str, told: str
) -> None:
    upstream.always(ANSWER)
    gateway = await start_gateway(BASE.format(up=upstream.url) + more)

    replies = [await gateway.ask(ASKED) for _ in range(30 if "tokens" in told else 2)]

    assert replies[0].status == 200
    assert replies[-1].status == 429
    error = orjson.loads(replies[-1].body)["error"]
    assert told in error["message"]
    assert error["code"] == "rate_limit_exceeded"
    assert int(replies[-1].headers["retry-after"]) >= 1
    metrics = await gateway.ask(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
    kind = "tokens" if "tokens" in told else "requests"
    assert f'hookline_rate_limited_total{{kind="{kind}",scope="{told.partition(":")[0]}"}}'.encode() in metrics.body


async def test_a_deployment_over_its_limit_is_passed_by(start_gateway, upstream: ScriptedUpstream) -> None:
    upstream.always(ANSWER)
    more = '[models.m]\ndeployments = [{ provider = "up", model = "a", max_parallel = 1, requests_per_minute = 1 }, "up/b"]\n'
    gateway = await start_gateway(BASE.format(up=upstream.url) + more)

    seen = [(await gateway.ask(ASKED)).headers["x-hookline-deployment"] for _ in range(3)]

    assert seen == ["up/a", "up/b", "up/b"]


async def test_a_deployment_has_its_limit_by_whichever_name_it_is_asked_for(
    start_gateway, upstream: ScriptedUpstream
) -> None:
    """Asked for as "up/a" before anybody asked for its model, it had no limit any more, for nobody."""
    upstream.always(ANSWER)
    more = '[models.m]\ndeployments = [{ provider = "up", model = "a", requests_per_minute = 2 }]\n'
    gateway = await start_gateway(BASE.format(up=upstream.url) + more)
    by_itself = asked_for("up/a")

    statuses = [(await gateway.ask(asked)).status for asked in (by_itself, ASKED, ASKED, by_itself)]

    assert statuses == [200, 200, 429, 429]


async def test_a_call_waits_for_a_slot_that_another_process_has(
    start_gateway, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """Two gateways on one Redis. Nobody tells the second one that a slot came free: it asks again after the time that it was told."""
    released = asyncio.Event()
    upstream.play([released, *ANSWER])
    upstream.always(ANSWER)
    with RedisServer(tmp_path) as redis:
        text = (
            f'[state]\nshared = "{redis.url}"\n[plugins.rate_limit]\nmax_wait_s = 30\n{BASE.format(up=upstream.url)}'
            f"max_parallel = 1\n{MODEL}"
        )
        here, there = await start_gateway(text), await start_gateway(text)
        first = asyncio.ensure_future(here.ask(ASKED))
        await upstream.wait_for_requests(1)
        others = [asyncio.ensure_future(gateway.ask(ASKED)) for gateway in (there, here, there)]
        queues = [g.app.current.chain.plugins[1].instance._queue for g in (here, there)]
        while [queue.length for queue in queues] != [1, 2]:  # noqa: ASYNC110 - they are on their way
            await asyncio.sleep(0.001)

        released.set()
        replies = await asyncio.gather(first, *others)

        assert [reply.status for reply in replies] == [200] * 4
        assert sorted(reply.headers.get("x-hookline-queue-position", "") for reply in replies) == ["", "1", "1", "2"]
        for gateway in (here, there):
            await gateway.idle()
            assert gateway.app._process.stores.limits.in_flight == 0
