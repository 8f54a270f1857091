"""How often a call waits for Redis, counted."""

from __future__ import annotations

import itertools

import pytest

from hookline import Budget, Limits, Principal, hookimpl
from hookline.builtins import budget, cache, circuit_breaker, fallback, rate_limit
from hookline.plugin_host import Stores
from hookline.stores.redis_client import RedisClient
from hookline.stores.redis_limits import RedisLimits
from hookline.stores.redis_replies import RedisReplies, TwoLevelReplies
from hookline.stores.sqlite import SqliteRecords
from hookline.testing.clock import FakeClock
from hookline.testing.kit import PipelineKit, ScriptedProvider, answer
from hookline.testing.redis import RedisServer
from hookline.testing.store_contracts import done

USAGE = b'{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":5,"total_tokens":10}}'
RICH, POOR = (
    Principal(
        key_id=name,
        key_name=name,
        tenant="acme",
        user="ann",
        limits=Limits(1_000, 1_000_000, 10),
        budget=Budget(daily_nanousd=limit, monthly_nanousd=limit * 10),
    )
    for name, limit in (("rich", 10**12), ("poor", 10**6))
)

LENT = Principal(key_id="lent", key_name="lent", budget=Budget(total_nanousd=10**9))


class Gate:
    supports_dry_run = True

    @hookimpl
    def authenticate(self, call):
        return {"rich": RICH, "poor": POOR, "lent": LENT}[call.headers["authorization"]]


@pytest.fixture
async def kit(tmp_path):
    with RedisServer(tmp_path) as server:
        clock = FakeClock()
        limits = RedisLimits(RedisClient(server.url))
        replies = RedisClient(server.url)
        records = SqliteRecords(str(tmp_path / "records.db"))
        stores = Stores(
            limits, TwoLevelReplies(RedisReplies(replies, clock), clock, l1_ttl_s=1, l1_max_bytes=2**20), records
        )
        settings = {
            "tenants": {"acme": {"requests_per_minute": 100_000}},
            "users": {},
            "global": {"max_parallel": 500},
            "server": {},
            "models": ["m"],
        }
        at_upstream = []

        def served():
            at_upstream.append(kit.asked())
            return answer(USAGE)

        kit = PipelineKit(
            *(Gate, rate_limit.Plugin, cache.Plugin, budget.Plugin, circuit_breaker.Plugin, fallback.Plugin),
            providers=[ScriptedProvider(*[served] * 20)],
            deployments={"m": ["up/m"]},
            stores=stores,
            clock=clock,
            host_settings=settings,
        )
        kit.url = server.url
        kit.asked = lambda: (limits._client.asked, replies.asked)
        kit.at_upstream = at_upstream
        yield kit
        await stores.limits.aclose()
        await stores.replies.aclose()
        await records.aclose()


numbers = itertools.count()


async def count(kit: PipelineKit, who: str, **more) -> tuple[int, int]:
    """(questions to the limits store, to the cache) that one call waits for. What the cache keeps is on its way when the call's end has passed it: see below."""
    payload = {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": f"{next(numbers)}"}], **more}
    before = kit.asked()
    delivered = await kit.call(payload, headers={"authorization": who})
    assert delivered.status == 200, delivered.body
    return kit.asked()[0] - before[0], kit.at_upstream[-1][1] - before[1]


async def test_one_question_with_a_lease_three_without_one_more_with_the_cache(kit):
    await count(kit, "rich")  # reads the ledger, and gets a lease
    await count(kit, "poor")  # a hundredth of its budget is less than a call

    assert await count(kit, "rich") == (1, 0), "one admits all rate scopes"
    assert await count(kit, "poor") == (3, 0), "and one reserves, one settles"
    assert await count(kit, "rich", temperature=0) == (1, 1), "and one asks the second level of the cache"
    assert kit.workshop.stores.replies.put(b"k", b"v", ttl_s=60) is None, "nobody waits for what is kept"
    assert kit.workshop.stores.limits._client.is_open is False


@pytest.mark.parametrize("is_spent", [False, True])
async def test_a_check_recalls_what_others_have_leased_as_the_call_would(kit, is_spent):
    """Leased money counts as reserved, so the sums alone would refuse what a recall makes room for."""
    other = RedisLimits(RedisClient(kit.url))
    plan = await kit.plugin(budget.Plugin).make_plan(LENT, kit.clock.time())
    assert await other.reserve("theirs", plan.spends, 10**5, expires_s=60) is None
    await done(other.settle("theirs", 0))
    if is_spent:
        assert await other.reserve("spent", plan.spends, 5 * 10**6, expires_s=60) is None
        await done(other.settle("spent", 5 * 10**6))
    asked = {"model": "m", "max_tokens": 498_000, "messages": [{"role": "user", "content": "hi"}]}
    bound = 498_000 * 2_000
    assert (await other.held([spend.window for spend in plan.spends]))[0] + bound > 10**9

    checked = [await kit.call(asked, headers={"authorization": "lent"}, is_dry_run=True) for _ in range(2)]
    met = await kit.call(asked, headers={"authorization": "lent"})
    await other.aclose()

    assert [each.status for each in (*checked, met)] == ([429] * 3 if is_spent else [200] * 3)
