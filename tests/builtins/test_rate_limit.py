"""rate_limit through the real pipeline, on the memory store."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hookline.builtins.rate_limit import Plugin
from hookline.builtins.rate_limit.plans import MINUTE_S
from hookline.builtins.rate_limit.telling import MINUTE_RESET, format_reset
from hookline.errors import UpstreamError
from hookline.plugin_host import Stores
from hookline.principal import Limits, Principal
from hookline.stores.memory import MemoryLimits
from hookline.testing.clock import FakeClock
from hookline.testing.kit import CHAT, PipelineKit, ScriptedProvider, answer

HOST = {"tenants": {}, "users": {}, "global": {}, "server": {}, "models": []}


def make_kit(
    options: dict[str, Any] | None = None, *, provider: ScriptedProvider | None = None, **host: Any
) -> PipelineKit:
    clock = FakeClock()
    stores = Stores(MemoryLimits(clock), None, None)  # type: ignore[arg-type]
    return PipelineKit(
        Plugin,
        providers=[provider or ScriptedProvider()],
        options={"rate_limit": options or {}},
        stores=stores,
        host_settings={**HOST, **host},
        clock=clock,
    )


def key(**limits: int) -> Principal:
    return Principal(key_id="ci", key_name="ci", tenant="acme", user="ann", limits=Limits(**limits))


async def test_request_beyond_the_limit_is_a_429_that_names_the_scope_and_when() -> None:
    kit, ci = make_kit(), key(requests_per_minute=2)

    seen = [(await kit.call(principal=ci)).status for _ in range(2)]
    refused = await kit.call(principal=ci)

    assert seen == [200, 200]
    assert refused.status == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert "key:ci: limit of 2 requests per minute" in refused.json()["error"]["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 61
    assert "x-should-retry" not in refused.headers
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"


async def test_waiting_as_long_as_told_is_enough() -> None:
    kit, ci = make_kit(), key(requests_per_minute=1)
    await kit.call(principal=ci)
    refused = await kit.call(principal=ci)

    kit.clock.advance(int(refused.headers["retry-after"]))

    assert (await kit.call(principal=ci)).status == 200


async def test_headers_tell_the_tightest_ceiling_and_replace_the_providers() -> None:
    provider = ScriptedProvider(answer(**{"x-ratelimit-remaining-requests": "9", "x-ratelimit-other": "9"}))
    kit = make_kit({"per_tenant": {"requests_per_minute": 3}}, provider=provider)

    delivered = await kit.call(principal=key(requests_per_minute=100))

    ours = {name: value for name, value in delivered.headers.items() if name.startswith("x-ratelimit-")}
    assert ours["x-ratelimit-limit-requests"] == "3"
    assert ours["x-ratelimit-remaining-requests"] == "2"
    assert set(ours) == {f"x-ratelimit-{what}-requests" for what in ("limit", "remaining", "reset")}


async def test_tokens_are_reserved_by_their_bound_and_settled_by_usage() -> None:
    kit, ci = make_kit(), key(tokens_per_minute=1_000)
    payload = {**CHAT, "max_tokens": 100}

    first = await kit.call(payload, principal=ci)
    second = await kit.call(payload, principal=ci)

    assert first.headers["x-ratelimit-remaining-tokens"] == "985"
    assert second.headers["x-ratelimit-remaining-tokens"] == "970"


async def test_call_that_can_never_fit_says_what_to_do_and_not_to_retry() -> None:
    delivered = await make_kit().call({**CHAT, "max_tokens": 5_000}, principal=key(tokens_per_minute=1_000))

    assert delivered.status == 429
    assert delivered.headers["x-should-retry"] == "false"
    assert "lower max_tokens" in delivered.json()["error"]["message"]


async def test_parallel_calls_are_never_one_too_many() -> None:
    running = most = 0
    released = asyncio.Event()

    async def slow(call: Any, attempt: Any) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await released.wait()
        running -= 1
        return answer()

    kit, ci = make_kit(provider=ScriptedProvider(slow)), key(max_parallel=3)
    calls = [asyncio.ensure_future(kit.call(principal=ci)) for _ in range(50)]
    done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    while len(done) < 47:
        more, _ = await asyncio.wait([c for c in calls if c not in done], return_when=asyncio.FIRST_COMPLETED)
        done |= more
    released.set()
    statuses = [(await c).status for c in calls]

    assert most == 3
    assert statuses.count(200) == 3
    assert statuses.count(429) == 47
    assert (await kit.call(principal=ci)).status == 200


async def test_every_scope_counts_and_none_is_drawn_on_by_a_refused_call() -> None:
    kit = make_kit(
        {"per_model": {"requests_per_minute": 10}},
        tenants={"acme": {"requests_per_minute": 10}},
        users={"ann": {"requests_per_minute": 1}},
        **{"global": {"requests_per_minute": 10}},
    )
    await kit.call(principal=key(requests_per_minute=10))
    refused = await kit.call(principal=key(requests_per_minute=10))
    other = await kit.call(principal=Principal(key_id="x", tenant="acme"))

    assert "user:ann" in refused.json()["error"]["message"]
    assert other.headers["x-ratelimit-remaining-requests"] == "8"


async def test_failed_attempt_costs_no_tokens() -> None:
    failing = ScriptedProvider(UpstreamError("refused", kind="connect", is_written=False))
    kit, ci = make_kit(provider=failing), key(tokens_per_minute=5_000)

    first = await kit.call(principal=ci)
    second = await kit.call(principal=ci)

    assert first.status == second.status == 502
    assert first.headers["x-ratelimit-remaining-tokens"] == second.headers["x-ratelimit-remaining-tokens"]


async def test_deployment_over_its_own_limit_is_skipped() -> None:
    kit = make_kit({"per_deployment": {"requests_per_minute": 1}})

    seen = [await kit.call() for _ in range(2)]

    assert [d.status for d in seen] == [200, 429]
    assert "deployment:up/m" in seen[1].json()["error"]["message"]


async def test_nothing_is_held_after_five_hundred_cancelled_calls() -> None:
    arrived = 0
    all_arrived = asyncio.Event()

    async def never(call: Any, attempt: Any) -> Any:
        nonlocal arrived
        arrived += 1
        if arrived == 500:
            all_arrived.set()
        await asyncio.Event().wait()

    kit, ci = make_kit(provider=ScriptedProvider(never)), key(max_parallel=1_000, tokens_per_minute=10**9)
    calls = [kit.make_call(principal=ci) for _ in range(500)]
    tasks = [asyncio.ensure_future(kit.run(call)) for call in calls]
    await all_arrived.wait()
    for call in calls:
        assert call.client_closed is not None
        call.client_closed()
    await asyncio.gather(*tasks)

    assert kit.workshop.stores.limits.in_flight == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0s"), (0.12, "120ms"), (8.64, "8.64s"), (MINUTE_S, MINUTE_RESET), (360, "6m0s"), (86_341, "23h59m1s")],
)
def test_reset_is_written_as_openai_writes_it(seconds: float, text: str) -> None:
    assert format_reset(seconds) == text
