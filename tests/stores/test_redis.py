"""The stores in Redis, on a real server: the contracts, and what only a remote store must show."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time

import pytest

from hookline.errors import Unavailable
from hookline.stores.protocols import Refusal, Spend, SpendRefusal, Take
from hookline.stores.redis_client import RedisClient
from hookline.stores.redis_limits import RedisLimits
from hookline.stores.redis_replies import RedisReplies, TwoLevelReplies
from hookline.testing.clock import FakeClock
from hookline.testing.redis import RedisServer
from hookline.testing.store_contracts import LimitStoreContract, ReplyStoreContract


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


class TestRedisLimits(LimitStoreContract):
    @pytest.fixture
    async def store(self, clock, redis_server):
        store = RedisLimits(RedisClient(redis_server.url, monotonic=clock.monotonic), clock)
        yield store
        await store.aclose()


class TestRedisReplies(ReplyStoreContract):
    @pytest.fixture
    async def store(self, clock, redis_server):
        store = RedisReplies(RedisClient(redis_server.url, monotonic=clock.monotonic), clock)
        yield store
        await store.aclose()


class TestTwoLevelReplies(ReplyStoreContract):
    @pytest.fixture
    async def store(self, clock, redis_server):
        l2 = RedisReplies(RedisClient(redis_server.url, monotonic=clock.monotonic), clock)
        store = TwoLevelReplies(l2, clock, l1_ttl_s=1.0, l1_max_bytes=2**20)
        yield store
        await store.aclose()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


NEVER = float("inf")
SHARED = Spend("key:ci/total", 1_000, NEVER)


@pytest.fixture
async def open_limits(clock, redis_server):
    """Stores as several workers have them, on an empty server and its own time."""
    opened = []

    def make(given: FakeClock | None = None, query: str = "") -> RedisLimits:
        opened.append(RedisLimits(RedisClient(redis_server.url + query, monotonic=time.monotonic), given))
        return opened[-1]

    flush = RedisClient(redis_server.url)
    await flush.send("FLUSHALL")
    await flush.aclose()
    yield make
    for store in opened:
        await store.aclose()


async def test_workers_share_windows_slots_and_money(open_limits):
    one, other = open_limits(), open_limits()
    takes = (Take("key:ci/requests", 2, 60.0), Take("key:ci/parallel", 1, 0.0))

    await one.take("a", takes, (1, 1), expires_s=60)
    refused = await other.take("b", takes, (1, 1), expires_s=60)
    one.give_back("a", (1, 0))
    await one._client.send("PING")  # the other connection comes after it
    levels = await other.take("c", takes, (1, 1), expires_s=60)
    await one.reserve("r", (SHARED,), 700, expires_s=60)

    assert isinstance(refused, Refusal)
    assert refused.take == takes[1]
    assert [level.remaining for level in levels] == [0, 0]
    assert await other.reserve("s", (SHARED,), 301, expires_s=60) == SpendRefusal(SHARED, 0, 700, 301)


async def test_a_dead_workers_money_is_charged_whole_and_its_slots_come_free(open_limits, clock):
    dead, next_one = open_limits(clock), open_limits(clock)
    slot = (Take("key:ci/parallel", 1, 0.0),)
    await dead.reserve("r", (SHARED,), 700, expires_s=30)
    await dead.take("t", slot, (1,), expires_s=30)

    clock.advance(31)

    assert await next_one.reserve("s", (SHARED,), 301, expires_s=30) == SpendRefusal(SHARED, 700, 700, 301)
    assert not isinstance(await next_one.take("u", slot, (1,), expires_s=30), Refusal)


async def test_scripts_that_the_server_has_forgotten_are_sent_again(open_limits):
    store, takes = open_limits(), (Take("model:m/requests", 100, 60.0),)
    await store.take("before", takes, (1,), expires_s=60)
    await store._client.send("SCRIPT", "FLUSH")

    answers = await asyncio.gather(*(store.take(f"after{n}", takes, (1,), expires_s=60) for n in range(5)))

    assert sorted(levels[0].remaining for levels in answers) == [94, 95, 96, 97, 98]


async def test_commands_of_one_tick_are_one_round_trip(open_limits):
    store, takes = open_limits(), (Take("model:m/requests", 1_000, 60.0),)
    await store.take("first", takes, (1,), expires_s=60)
    trips = store._client.round_trips

    await asyncio.gather(*(store.take(f"t{n}", takes, (1,), expires_s=60) for n in range(100)))

    assert store._client.round_trips - trips == 1


async def test_every_key_has_an_end(open_limits):
    store = open_limits()
    await store.take("t", (Take("a/requests", 9, 60.0), Take("a/parallel", 9, 0.0)), (1, 1), expires_s=60)
    windows = (SHARED, Spend("a/day", 100, time.time() + 5), Spend("a/rolling", 100, NEVER, window_s=3600))
    await store.reserve("r", windows, 5, expires_s=60)
    await store.settle("r", 5)
    await store.reserve("s", windows, 5, expires_s=60)

    client = store._client
    left = {key: await client.send("TTL", key) for key in await client.send("KEYS", "*")}
    assert [key for key, ttl_s in left.items() if ttl_s < 0] == [b"{hookline}:epoch"]
    assert len(left) == 9


async def test_a_server_that_came_back_empty_grants_no_money_before_it_is_told_what_was_spent(
    open_limits, redis_server
):
    store = open_limits()
    await store.reserve("r", (SHARED,), 900, expires_s=60)
    await store.settle("r", 900)
    await asyncio.to_thread(redis_server.stop)
    await asyncio.to_thread(redis_server.start)
    await is_back(store)

    for attempt in range(2):
        with pytest.raises(Unavailable):
            await store.reserve(f"s{attempt}", (SHARED,), 200, expires_s=60)
    await store.restore(SHARED, [(time.time(), 900)])

    assert await store.reserve("t", (SHARED,), 200, expires_s=60) == SpendRefusal(SHARED, 900, 900, 200)
    assert await store.reserve("u", (SHARED,), 100, expires_s=60) is None


async def is_back(store: RedisLimits) -> None:
    """Wait until the breaker has closed; the test's own timeout bounds it."""
    while store.is_open:  # noqa: ASYNC110 - only tests wait for it
        await asyncio.sleep(0.01)


async def test_cancelled_calls_leave_nothing_and_every_answer_belongs_to_its_question(open_limits):
    store = open_limits()
    takes = (Take("key:ci/parallel", 1_000, 0.0),)
    client, dice = store._client, random.Random(5)

    async def echo(n: int) -> None:
        assert await client.send("ECHO", f"question {n}") == f"question {n}".encode()

    async def call(n: int) -> None:
        if not isinstance(await store.take(f"t{n}", takes, (1,), expires_s=60), Refusal):
            store.give_back(f"t{n}", (0,))
        await store.reserve(f"r{n}", (SHARED,), 1, expires_s=60)
        await store.settle(f"r{n}", 0)

    for round in range(20):
        doomed = [asyncio.ensure_future(call(round * 100 + n)) for n in range(100)]
        echoes = [asyncio.ensure_future(echo(n)) for n in range(20)]
        for _ in range(dice.randrange(12)):
            await asyncio.sleep(0)
        for task in doomed:
            if dice.random() < 0.7:
                task.cancel()
        await asyncio.gather(*echoes)
        await asyncio.gather(*doomed, return_exceptions=True)
    store._leases.stop()
    while store._leases.has_any:
        await client.send("PING")  # after everything that was undone

    assert await client.send("ZCARD", "{hookline}:w:key:ci/parallel") == 0
    assert await client.send("ZCARD", "{hookline}:in-flight") == 0
    assert list(await store.held((SHARED.window,))) == [0]
    assert store.in_flight == 0


async def test_an_answer_that_comes_too_late_is_nobody_elses(open_limits, redis_server):
    slow, other = open_limits(query="?command_timeout_s=0.05"), open_limits()
    client = slow._client
    await client.send("PING")
    await other._client.send("CLIENT", "PAUSE", 300)

    with pytest.raises(Unavailable):
        await client.send("ECHO", "late")
    assert client.is_open
    await other._client.send("PING")  # answered when the pause has ended
    await is_back(slow)

    assert await client.send("ECHO", "mine") == b"mine"


async def test_a_purge_elsewhere_takes_hold_within_l1s_time(redis_server, clock):
    here, there = (
        TwoLevelReplies(
            RedisReplies(RedisClient(redis_server.url, monotonic=clock.monotonic), clock),
            clock,
            l1_ttl_s=1.0,
            l1_max_bytes=2**20,
        )
        for _ in range(2)
    )
    here.put(b"shared", b"body", ttl_s=60, tags=("tenant:acme",))
    await here.delete_tagged("nothing")  # waits for what is on its way
    assert await there.get(b"shared") == b"body"

    await here.delete_tagged("tenant:acme")
    assert await here.get(b"shared") is None
    clock.advance(1.0)

    assert await there.get(b"shared") is None
    await here.aclose()
    await there.aclose()


async def test_many_keys_are_one_question_and_a_kept_one_few_commands(redis_server, clock):
    client = RedisClient(redis_server.url, monotonic=clock.monotonic)
    store = TwoLevelReplies(RedisReplies(client, clock), clock, l1_ttl_s=1.0, l1_max_bytes=2**20)
    tags = ("tenant:acme", "model:m", "cache")
    store.put(b"first", b"1", ttl_s=60, tags=tags)
    await asyncio.sleep(0)
    sent = []
    send, client.send = client.send, lambda *arguments: sent.append(arguments[0]) or send(*arguments)

    store.put_many({b"a": b"2", b"b": b"3"}, ttl_s=60, tags=tags)
    await store.delete_tagged("nothing")  # waits for what is on its way
    asked, before = len(sent) - 1, client.round_trips
    found = await store.get_many([b"b", b"unknown", b"a", b"first"])

    assert asked == len(tags) + 2
    assert (found, sent[-1], client.round_trips - before) == ([b"3", None, b"2", b"1"], "MGET", 1)
    assert await store.get_many([b"b", b"a"]) == [b"3", b"2"]
    assert client.round_trips - before == 1
    await store.aclose()


WORKER = """
import asyncio, sys, time
from hookline.stores.protocols import Refusal, Spend, Take
from hookline.stores.redis_client import RedisClient
from hookline.stores.redis_limits import RedisLimits

async def main(url, name):
    store = RedisLimits(RedisClient(url, monotonic=time.monotonic))
    takes = (Take("race/requests", 100, 600.0), Take("race/parallel", 7, 0.0))
    spend = Spend("race/total", 1_000, float("inf"))
    granted = peak = 0
    async def call(n):
        nonlocal granted, peak
        if not isinstance(await store.take(f"{name}.{n}", takes, (1, 1), expires_s=600), Refusal):
            granted += 1
            held = await store._client.send("ZCARD", "{hookline}:w:race/parallel")
            assert held <= 7, held
            store.give_back(f"{name}.{n}", (1, 0))
        if await store.reserve(f"{name}.r{n}", (spend,), 30, expires_s=600) is None:
            peak = max(peak, (await store.held((spend.window,)))[0])
            await store.settle(f"{name}.r{n}", 10)
    sys.stdin.readline()
    for round in range(30):
        await asyncio.gather(*(call(round * 20 + n) for n in range(20)))
    await store.aclose()
    print(granted, peak)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_several_processes_never_exceed_by_one(open_limits, redis_server):
    workers = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", WORKER, redis_server.url, f"w{n}", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for n in range(4)
    ]

    said = [await worker.communicate(b"go\n") for worker in workers]

    answers = [tuple(map(int, out.split())) for out, _ in said]
    assert sum(granted for granted, _ in answers) == 100
    assert all(peak <= 1_000 for _, peak in answers)
    assert 1_000 - 30 < (await open_limits().held(("race/total",)))[0] <= 1_000
