"""rate_limit through the real pipeline, on the memory store."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from hookline.builtins import cache, fallback
from hookline.builtins.rate_limit import Plugin
from hookline.builtins.rate_limit.plans import MINUTE_S, Scopes
from hookline.builtins.rate_limit.telling import MINUTE_RESET, format_reset
from hookline.errors import Rejected, UpstreamError
from hookline.plugin_host import Stores
from hookline.principal import Limits, Principal
from hookline.stores.memory import MemoryLimits, MemoryReplies
from hookline.testing.clock import FakeClock
from hookline.testing.kit import CHAT, Delivered, PipelineKit, ScriptedProvider, answer, stream

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
    [
        (0.0, "0s"),
        (0.12, "120ms"),
        (8.64, "8.64s"),
        (59.999, MINUTE_RESET),
        (MINUTE_S, MINUTE_RESET),
        (360, "6m0s"),
        (86_341, "23h59m1s"),
    ],
)
def test_reset_is_written_as_openai_writes_it(seconds: float, text: str) -> None:
    assert format_reset(seconds) == text


@pytest.mark.parametrize(
    ("field", "window_s", "told"),
    [
        ("requests_per_second", 1, "2 requests per second"),
        ("requests_per_minute", 60, "2 requests per minute"),
        ("requests_per_hour", 3_600, "2 requests per hour"),
        ("requests_per_day", 86_400, "2 requests per day"),
    ],
)
async def test_every_window_slides(field: str, window_s: int, told: str) -> None:
    kit, ci = make_kit(), key(**{field: 2})
    await kit.call(principal=ci)
    kit.clock.advance(window_s / 2)
    await kit.call(principal=ci)

    refused = await kit.call(principal=ci)
    kit.clock.advance(int(refused.headers["retry-after-ms"]) / 1000 - 0.01)
    early = await kit.call(principal=ci)
    kit.clock.advance(0.02)

    assert f"key:ci: limit of {told} reached" in refused.json()["error"]["message"]
    assert early.status == 429
    assert (await kit.call(principal=ci)).status == 200
    assert (await kit.call(principal=ci)).status == 429


@pytest.mark.parametrize("field", ["tokens_per_minute", "tokens_per_hour", "tokens_per_day"])
async def test_tokens_are_counted_in_every_window(field: str) -> None:
    kit, ci = make_kit(), key(**{field: 300})
    payload = {**CHAT, "max_tokens": 100}

    seen = [await kit.call(payload, principal=ci) for _ in range(12)]

    statuses = [d.status for d in seen]
    served = statuses.count(200)
    assert statuses == [200] * served + [429] * (12 - served)
    assert 15 * served <= 300
    message = seen[-1].json()["error"]["message"]
    used, need = 15 * served, int(message.partition("may need ")[2].partition(";")[0])
    assert f"{used} used or reserved" in message
    assert used + need > 300 >= used - 15 + need, "only what does not fit is refused"


async def test_a_refusal_that_lasts_longer_than_an_sdk_waits_says_not_to_retry() -> None:
    kit, ci = make_kit(), key(requests_per_day=1)
    await kit.call(principal=ci)

    refused = await kit.call(principal=ci)

    assert refused.headers["retry-after"] == "86400"
    assert refused.headers["x-should-retry"] == "false"
    assert refused.headers["x-ratelimit-reset-requests"] == "24h0m0s"


async def test_whoever_waits_as_long_as_told_is_served_whatever_was_before() -> None:
    dice = random.Random(5)
    kit = make_kit()
    ci = key(requests_per_minute=7, tokens_per_minute=900, requests_per_hour=60, requests_per_second=3)
    refusals = 0
    for _ in range(300):
        kit.clock.advance(dice.choice([0.0, 0.0, 0.1, 0.9, 5.0]))
        payload = {**CHAT, "max_tokens": dice.choice([1, 100, 400])}
        refused = await kit.call(payload, principal=ci)
        if refused.status == 200:
            continue
        refusals += 1
        kit.clock.advance(int(refused.headers["retry-after"]))

        assert (await kit.call(payload, principal=ci)).status == 200
    assert refusals > 50


async def test_users_of_the_same_name_in_two_tenants_share_nothing() -> None:
    kit = make_kit(users={"ann": {"requests_per_minute": 1}})

    seen = [
        (await kit.call(principal=Principal(key_id=f"k-{tenant}", tenant=tenant, user="ann"))).status
        for tenant in ("acme", "other", "acme")
    ]

    assert seen == [200, 200, 429]


def test_no_chosen_name_means_the_window_of_another() -> None:
    tables = {
        "users": {"b/c": {"requests_per_minute": 1}, "c": {"requests_per_minute": 1}},
        "tenants": {"a": {"requests_per_minute": 1}, "a/requests": {"requests_per_minute": 1}},
    }
    scopes = Scopes(tables, dict.fromkeys(("key", "user", "tenant", "model", "global"), Limits(requests_per_minute=1)))
    inner = (("m", Limits(requests_per_minute=1)),)
    principals = [
        Principal(key_id="k1", tenant="a", user="b/c"),
        Principal(key_id="k2", tenant="a/b", user="c"),
        Principal(key_id="k3", tenant="a/requests", limits=Limits(by_model=inner)),
        Principal(key_id="k3/model:m", tenant="global"),
        Principal(key_id="k4/model:m/requests", tenant="x"),
    ]

    names = [take.scope for p in principals for take in scopes.of_call(p, "m").takes]

    everyones = {"global/requests/minute", "model:m/requests/minute", "tenant:a/requests/minute"}
    own = [name for name in names if name not in everyones]
    assert len(own) == len(set(own))


async def test_limits_of_models_inside_a_key() -> None:
    by_model = (("up/gpt*", Limits(requests_per_minute=1)),)
    ci = Principal(key_id="ci", limits=Limits(requests_per_minute=10, by_model=by_model))
    kit = make_kit()

    seen = [await kit.call({**CHAT, "model": f"up/{name}"}, principal=ci) for name in ("gpt-a", "m", "gpt-b", "m")]

    assert [d.status for d in seen] == [200, 200, 429, 200]
    assert "key:ci model:up/gpt*: limit of 1 requests per minute" in seen[2].json()["error"]["message"]
    assert seen[0].headers["x-ratelimit-limit-requests"] == "1"
    assert seen[3].headers["x-ratelimit-remaining-requests"] == "7"


async def test_limits_of_a_model_hold_for_everyone_and_under_every_alias() -> None:
    kit = make_kit(
        {"per_model": {"requests_per_minute": 5}},
        model_limits={"up/m": {"requests_per_minute": 2}},
        aliases={"up/alias": "up/m"},
    )

    seen = [
        await kit.call({**CHAT, "model": model}, principal=Principal(key_id=model))
        for model in ("up/m", "up/alias", "up/m", "up/other")
    ]

    assert [d.status for d in seen] == [200, 200, 429, 200]
    assert "model:up/m: limit of 2" in seen[2].json()["error"]["message"]
    assert seen[3].headers["x-ratelimit-limit-requests"] == "5"


async def test_every_limit_of_a_deployment_skips_it() -> None:
    running = asyncio.Event()
    release = asyncio.Event()

    async def slow(call: Any, attempt: Any) -> Any:
        running.set()
        await release.wait()
        return answer()

    kit = make_kit({"per_deployment": {"max_parallel": 1, "tokens_per_minute": 5_000}}, provider=ScriptedProvider(slow))
    small = {**CHAT, "max_tokens": 10}
    first = kit.start(kit.make_call(small))
    await running.wait()
    parallel = await kit.call(small)
    release.set()
    await first.done()
    tokens = await kit.call({**CHAT, "max_tokens": 4_900})
    never = await kit.call({**CHAT, "max_tokens": 6_000})

    assert (parallel.status, tokens.status, never.status) == (429, 429, 429)
    assert "deployment:up/m: limit of 1 calls in parallel" in parallel.json()["error"]["message"]
    assert "deployment:up/m: limit of 5000 tokens per minute" in tokens.json()["error"]["message"]
    assert never.headers["x-should-retry"] == "false"
    assert "retry-after" not in never.headers
    assert (await kit.call(small)).status == 200


async def test_tokens_of_a_call_that_its_client_left_stay_as_they_were_bound() -> None:
    asked = asyncio.Event()

    async def never(call: Any, attempt: Any) -> Any:
        asked.set()
        await asyncio.Event().wait()

    kit, ci = make_kit(provider=ScriptedProvider(never, answer)), key(tokens_per_minute=10_000)
    running = kit.start(kit.make_call(principal=ci))
    await asked.wait()
    running.leave()
    await running.done()

    delivered = await kit.call(principal=ci)

    assert int(delivered.headers["x-ratelimit-remaining-tokens"]) < 10_000 - 4_096 - 15


async def test_headers_of_a_stream_tell_what_is_reserved_while_it_runs() -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}}\n\n'
    provider = ScriptedProvider(lambda: stream(b'data: {"choices":[]}\n\n', usage, b"data: [DONE]\n\n"))
    kit, ci = make_kit(provider=provider), key(tokens_per_minute=10_000)
    payload = {**CHAT, "stream": True, "max_tokens": 1_000}

    first, second = [await kit.call(payload, principal=ci) for _ in range(2)]

    remaining = [int(d.headers["x-ratelimit-remaining-tokens"]) for d in (first, second)]
    assert 8_500 < remaining[0] <= 9_000
    assert remaining[1] == remaining[0] - 15


async def test_a_cache_hit_is_one_request_and_no_tokens() -> None:
    clock = FakeClock()
    kit = PipelineKit(
        Plugin,
        cache.Plugin,
        stores=Stores(MemoryLimits(clock), MemoryReplies(clock), None),  # type: ignore[arg-type]
        host_settings=HOST,
        clock=clock,
    )
    ci, cold = key(requests_per_minute=10, tokens_per_minute=10_000), {**CHAT, "temperature": 0}

    missed, hit, again = [await kit.call(cold, principal=ci) for _ in range(3)]

    assert [d.headers["x-hookline-cache"] for d in (missed, hit, again)] == ["miss", "hit", "hit"]
    assert [d.headers["x-ratelimit-remaining-requests"] for d in (missed, hit, again)] == ["9", "8", "7"]
    assert [d.headers["x-ratelimit-remaining-tokens"] for d in (missed, hit, again)] == ["9985"] * 3


async def test_what_a_dry_run_asks_is_not_taken() -> None:
    kit, ci = make_kit({"max_wait_s": 60}), key(requests_per_minute=1, max_parallel=1)
    plugin: Plugin = kit.plugin(Plugin)

    for _ in range(3):
        call = kit.make_call(principal=ci, is_dry_run=True)
        call.is_explained = True
        call.set_json(b"{}", {**CHAT})
        assert await plugin.admit(call) is None
        assert [note.verdict for note in call.notes or ()] == ["fits"]
    assert (await kit.call(principal=ci)).headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(Rejected, match="limit of 1 requests"):
        await plugin.admit(call)

    assert kit.metric("hookline_rate_limited_total") == 0
    assert kit.workshop.stores.limits.in_flight == 0  # type: ignore[attr-defined]


async def test_output_without_a_limit_is_capped_where_that_is_asked_for() -> None:
    kit, ci = make_kit({"cap_output": True, "assumed_output_tokens": 50}), key(tokens_per_minute=10_000)

    capped = await kit.call(principal=ci)
    own = await kit.call({**CHAT, "max_tokens": 70}, principal=ci)
    unlimited = await kit.call(principal=key())

    assert capped.headers["x-hookline-output-capped"] == "50"
    assert "x-hookline-output-capped" not in own.headers
    assert "x-hookline-output-capped" not in unlimited.headers


async def test_what_a_request_only_refers_to_is_assumed() -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}
    payload = {**CHAT, "max_tokens": 1, "messages": [{"role": "user", "content": [part]}]}

    refused = await make_kit({"assumed_input_tokens": 5_000}).call(payload, principal=key(tokens_per_minute=5_000))
    served = await make_kit({"assumed_input_tokens": 500}).call(payload, principal=key(tokens_per_minute=5_000))

    assert (refused.status, served.status) == (429, 200)


class Watched(Delivered):
    """Notes how many holds there are whenever bytes leave."""

    def __init__(self, kit: PipelineKit) -> None:
        super().__init__()
        self.limits: Any = kit.workshop.stores.limits
        self.holds: list[int] = []

    async def _write(self, chunk: bytes) -> None:
        self.holds.append(self.limits.in_flight)
        await super()._write(chunk)


DELTA = b'data: {"choices":[{"index":0,"delta":{"content":"ho"}}]}\n\n'
STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize("options", [{}, {"per_deployment": {"max_parallel": 5}}, {"max_wait_s": 1}])
async def test_who_has_the_end_of_a_reply_in_hand_finds_its_slot_free(options: dict[str, Any]) -> None:
    """Else a client of two processes on one Redis is refused because of its own last call."""
    provider = ScriptedProvider(
        answer,
        lambda: stream(DELTA, STOP, USAGE, DONE),
        UpstreamError("no", kind="connect", is_written=False),
        answer,
    )
    kit, ci = make_kit(options, provider=provider), key(max_parallel=1, tokens_per_minute=10_000)
    seen = []
    for payload in (CHAT, {**CHAT, "stream": True}, CHAT, CHAT):
        seen.append(await kit.run(kit.make_call(payload, principal=ci), Watched(kit)))

    whole, streamed, _, again = seen
    assert [d.status for d in seen] == [200, 200, 502, 200]
    assert (whole.holds, again.holds) == ([0], [0])
    assert (streamed.holds[0] > 0, streamed.holds[-1]) == (True, 0)
    assert kit.workshop.stores.limits.in_flight == 0  # type: ignore[attr-defined]
    assert again.headers["x-ratelimit-remaining-tokens"] == str(10_000 - 3 * 15)


async def test_an_attempt_that_failed_before_the_next_answers_leaves_the_slot_taken() -> None:
    most = 0

    async def second(call: Any, attempt: Any) -> Any:
        nonlocal most
        most = kit.workshop.stores.limits.in_flight  # type: ignore[attr-defined]
        return answer()

    clock = FakeClock()
    kit = PipelineKit(
        Plugin,
        fallback.Plugin,
        providers=[ScriptedProvider(UpstreamError("no", kind="reset"), name="a"), ScriptedProvider(second, name="b")],
        deployments={"m": ["a/m", "b/m"]},
        stores=Stores(MemoryLimits(clock), None, None),  # type: ignore[arg-type]
        host_settings=HOST,
        clock=clock,
    )

    delivered = await kit.call({**CHAT, "model": "m"}, principal=key(max_parallel=1))

    assert (delivered.status, delivered.headers["x-hookline-deployment"], most) == (200, "b/m", 1)
    assert kit.workshop.stores.limits.in_flight == 0  # type: ignore[attr-defined]
