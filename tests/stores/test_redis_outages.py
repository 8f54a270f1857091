"""Redis away, slow, back, back empty, a replica: what becomes of limits and money."""

from __future__ import annotations

import asyncio
import time

import pytest

from hookline.errors import StartupError, Unavailable
from hookline.stores.protocols import Refusal, Spend, SpendRefusal, Take
from hookline.stores.redis_client import RedisClient
from hookline.stores.redis_limits import RedisLimits
from hookline.testing.redis import RedisServer
from hookline.testing.store_contracts import done

NEVER = float("inf")
SHARED = Spend("key:ci/total", 1_000, NEVER)
RATE = (Take("key:ci/requests", 8, 600.0), Take("key:ci/parallel", 4, 0.0))


@pytest.fixture
async def server(tmp_path):
    with RedisServer(tmp_path) as server:
        client = RedisClient(server.url)  # an epoch of long ago: only what a test loses is young
        await client.send("HSET", "{hookline}:epoch", "id", "old", "grace", 0, "born", 0)
        await client.aclose()
        yield server


@pytest.fixture
async def open_limits(server):
    opened: list[RedisLimits] = []

    def make(query: str = "", **about: int) -> RedisLimits:
        opened.append(RedisLimits(RedisClient(server.url + query), **about))
        return opened[-1]

    yield make
    for store in opened:
        await store.aclose()


async def until(is_true) -> None:
    """The test's own timeout bounds it."""
    while not is_true():  # noqa: ASYNC110 - only tests wait for it
        await asyncio.sleep(0.01)


async def lose(server: RedisServer, *stores: RedisLimits) -> None:
    """Redis ends, with all it knows, and starts again; every store has found it."""
    await asyncio.to_thread(server.stop)
    await until(lambda: all(store.is_open for store in stores))
    await asyncio.to_thread(server.start)
    await until(lambda: all(store._client._state == "up" for store in stores))


async def test_back_empty_counts_the_ledger_and_what_is_in_flight_everywhere(open_limits, server):
    stores = [open_limits() for _ in range(4)]
    for n, store in enumerate(stores):
        assert await store.reserve(f"r{n}", (SHARED,), 100, expires_s=600) is None
    await done(stores[3].settle("r3", 90))

    await lose(server, *stores)

    with pytest.raises(Unavailable):
        await stores[3].reserve("early", (SHARED,), 1, expires_s=600)
    await stores[3].restore(SHARED, [(time.time(), 90)])
    assert await stores[3].reserve("all", (SHARED,), 611, expires_s=600) == SpendRefusal(SHARED, 90, 390, 611)
    assert await stores[3].reserve("fits", (SHARED,), 610, expires_s=600) is None
    for n, store in enumerate(stores[:3]):
        await done(store.settle(f"r{n}", 50))
    assert list(await stores[0].held((SHARED.window,))) == [90 + 3 * 50 + 610]


async def test_a_worker_that_starts_after_the_loss_waits_for_the_others(open_limits, server):
    old = open_limits()
    await old.reserve("running", (SHARED,), 600, expires_s=600)
    await asyncio.to_thread(server.stop)
    await asyncio.to_thread(server.start)

    new = open_limits()
    with pytest.raises(Unavailable, match="once more"):
        await new.restore(SHARED, [])
    await new.restore(SHARED, [])

    assert await new.reserve("r", (SHARED,), 401, expires_s=600) == SpendRefusal(SHARED, 0, 600, 401)


async def test_leases_are_told_to_a_redis_that_came_back_empty(open_limits, server):
    wide = (Spend("key:ci/wide", 1_000_000, NEVER),)
    one, other = open_limits(), open_limits()
    await one.reserve("first", wide, 100, expires_s=600)
    await done(one.settle("first", 100))
    assert await one.reserve("running", wide, 100, expires_s=600) is None
    assert "running" in one._drawn
    await other.held((wide[0].window,))

    await lose(server, one, other)
    await until(lambda: not other._client.is_open)

    assert (await other.held((wide[0].window,)))[0] == one._leases.find(wide).left
    await done(one.settle("running", 70))
    with pytest.raises(Unavailable):
        await other.restore(wide[0], [(time.time(), 100)])
    await other.restore(wide[0], [(time.time(), 100)])
    assert await other.reserve("too much", wide, 999_900, expires_s=600) == SpendRefusal(wide[0], 170, 170, 999_900)


async def test_a_share_is_that_of_all_workers_of_a_server_though_none_was_heard_of(open_limits, server):
    await asyncio.to_thread(server.stop)
    store = open_limits(workers=4)
    take = Take("key:ci/requests", 20, 600.0)

    taken = [await store.take(str(n), (take,), (1,), expires_s=60) for n in range(6)]

    assert [isinstance(answer, Refusal) for answer in taken] == [False] * 5 + [True]


async def test_money_settled_while_redis_was_away_is_settled_when_it_is_back(open_limits, server):
    store, other = open_limits("?command_timeout_s=0.1"), open_limits()
    await store.reserve("r", (SHARED,), 900, expires_s=600)
    await other.held((SHARED.window,))
    server.freeze()

    assert list(await done(store.settle("r", 400))) == []
    server.thaw()
    await until(lambda: not store.is_open)

    assert list(await other.held((SHARED.window,))) == [400]


async def test_a_reservation_that_was_never_answered_is_undone(open_limits, server):
    store, other = open_limits("?command_timeout_s=0.1"), open_limits()
    assert list(await store.held((SHARED.window,))) == list(await other.held((SHARED.window,))) == [0]
    await store.reserve("before", (SHARED,), 0, expires_s=600)
    server.freeze()

    with pytest.raises(Unavailable):
        await store.reserve("lost", (SHARED,), 900, expires_s=600)
    server.thaw()
    await until(lambda: not store.is_open)
    store._leases.stop()
    await until(lambda: not store._leases.has_any)

    assert list(await other.held((SHARED.window,))) == [0]
    assert await other._client.send("ZCARD", "{hookline}:in-flight") == 1  # "before"


async def test_while_redis_is_away_each_worker_gives_its_share_of_a_limit(open_limits, server):
    stores = [open_limits() for _ in range(4)]
    for store in stores:
        await store.held(())
    await until(lambda: all(store._presence.workers == 4 for store in stores))
    await asyncio.to_thread(server.stop)
    await until(lambda: all(store.is_open for store in stores))

    answers = [await store.take(f"t{n}", RATE, (1, 0), expires_s=60) for store in stores for n in range(5)]

    assert sum(not isinstance(answer, Refusal) for answer in answers) == 8
    refusals = [answer for answer in answers if isinstance(answer, Refusal)]
    assert {refusal.take for refusal in refusals} == {RATE[0]}
    assert all(store.bypassed for store in stores)
    assert not isinstance(await stores[0].take("slot", RATE[1:], (1,), expires_s=60), Refusal)
    assert isinstance(await stores[0].take("second", RATE[1:], (1,), expires_s=60), Refusal)
    stores[0].give_back("slot", (0,))
    assert not isinstance(await stores[0].take("third", RATE[1:], (1,), expires_s=60), Refusal)
    await asyncio.to_thread(server.start)


async def test_parallel_slots_are_told_to_a_redis_that_came_back_empty(open_limits, server):
    stores = [open_limits() for _ in range(2)]
    for n, store in enumerate(stores):
        for i in range(2):
            await store.take(f"{n}.{i}", RATE[1:], (1,), expires_s=600)

    await lose(server, *stores)

    assert isinstance(await stores[0].take("fifth", RATE[1:], (1,), expires_s=600), Refusal)
    stores[1].give_back("1.0", (0,))
    await stores[1].held(())
    assert not isinstance(await stores[0].take("sixth", RATE[1:], (1,), expires_s=600), Refusal)


async def test_slots_given_back_while_redis_was_away_are_free_when_it_is_back(open_limits, server):
    store, other = open_limits("?command_timeout_s=0.1"), open_limits()
    for n in range(4):
        await store.take(f"t{n}", RATE[1:], (1,), expires_s=600)
    await other.held(())
    server.freeze()
    with pytest.raises(Unavailable):
        await store.held(())

    for n in range(4):
        store.give_back(f"t{n}", (0,))
    server.thaw()
    await until(lambda: not store.is_open)

    assert await other._client.send("ZCARD", "{hookline}:w:key:ci/parallel") == 0


async def test_a_server_that_became_a_replica_is_left_until_it_decides_again(open_limits, server):
    store, operator = open_limits(), RedisClient(server.url)
    await store.reserve("before", (SHARED,), 100, expires_s=600)
    await operator.send("REPLICAOF", "127.0.0.1", "1")

    with pytest.raises(Unavailable, match="READONLY"):
        await store.reserve("during", (SHARED,), 100, expires_s=600)
    await until(lambda: store.is_open)
    await operator.send("REPLICAOF", "NO", "ONE")
    await until(lambda: not store.is_open)

    assert await store.reserve("after", (SHARED,), 800, expires_s=600) is None
    await operator.aclose()


async def test_a_flushed_redis_is_noticed_without_a_new_connection(open_limits, server):
    store, other = open_limits(), open_limits()
    await store.reserve("running", (SHARED,), 600, expires_s=600)
    await other.held(())

    await other._client.send("FLUSHALL")
    # As on a server that has been up for long: nobody but who remembers knows that something was lost.
    await other._client.send("HSET", "{hookline}:epoch", "id", "new", "grace", 0, "born", int(time.time() * 1e6))

    with pytest.raises(Unavailable):
        await other.reserve("early", (SHARED,), 401, expires_s=600)
    await other.restore(SHARED, [])
    assert await other.reserve("late", (SHARED,), 401, expires_s=600) == SpendRefusal(SHARED, 0, 600, 401)


async def test_a_server_that_is_away_is_not_asked_by_calls(open_limits, server):
    store = open_limits()
    await store.held(())
    await asyncio.to_thread(server.stop)
    await until(lambda: store.is_open)
    asked = store._client.round_trips

    for _ in range(100):
        with pytest.raises(Unavailable):
            await store.held(())

    assert store._client.round_trips == asked
    await asyncio.to_thread(server.start)
    await until(lambda: not store.is_open)
    assert list(await store.held((SHARED.window,))) == [0]


async def test_a_pause_between_two_questions_is_no_silence(open_limits, server):
    """A question put down in the very turn in which the timer of an earlier one ends."""
    client = open_limits("?command_timeout_s=0.1")._client
    loop, connections = asyncio.get_running_loop(), set()

    for _ in range(5):
        await client.send("PING")
        asked: list[asyncio.Future[bytes]] = []
        loop.call_later(0.1, lambda asked=asked: asked.append(client.send("PING")))
        await asyncio.sleep(0.15)
        assert await asked[0] == b"PONG"
        connections.add(client._connection)

    assert len(connections) == 1


async def test_a_loop_that_was_held_up_reads_before_it_gives_up(open_limits, server):
    client = open_limits("?command_timeout_s=0.1")._client
    await client.send("PING")
    connection, asked = client._connection, client.send("PING")
    await asyncio.sleep(0)

    time.sleep(0.2)  # noqa: ASYNC251 - this is what a blocking plugin does

    assert await asked == b"PONG"
    assert client._connection is connection


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://127.0.0.1/0?command_timeout=1", 'did you mean "command_timeout_s"'),
        ("redis://127.0.0.1/0?command_timeout_s=fast", "is not a number"),
        ("redis://127.0.0.1/0?connect_timeout_s=0", "more than 0"),
        ("redis://127.0.0.1/first", "must be redis://"),
        ("redis://127.0.0.1/0?leases=7", "leases is 1, or 0"),
        ("rediss://127.0.0.1/0?ssl_ca_certs=/nowhere.pem", "can't be read"),
    ],
)
def test_a_bad_url_is_said_at_start(url, said):
    with pytest.raises(StartupError) as error:
        RedisClient(url)

    assert said in error.value.problems[0]


async def test_user_password_and_database_are_used(server):
    operator = RedisClient(server.url)
    await operator.send("ACL", "SETUSER", "ann", "on", ">p@ss", "~*", "+@all")
    address = server.url.removeprefix("redis://").removesuffix("/0")

    client = RedisClient(f"redis://ann:p%40ss@{address}/3")
    await client.send("SET", "key", "value")

    assert await client.send("ACL", "WHOAMI") == b"ann"
    assert await operator.send("GET", "key") is None
    await operator.aclose()
    await client.aclose()


async def test_a_slot_is_held_as_long_as_its_worker_lives_and_not_much_longer(open_limits, server, monkeypatch):
    monkeypatch.setattr("hookline.stores.redis_presence.IDLE_BEAT_S", 0.05)
    monkeypatch.setattr("hookline.stores.redis_presence.RENEW_S", 0.1)
    monkeypatch.setattr("hookline.stores.redis_limits.SLOT_S", 0.5)
    one = (Take("key:ci/parallel", 1, 0.0),)
    living, other = open_limits(), open_limits()
    assert not isinstance(await living.take("long", one, (1,), expires_s=600), Refusal)
    slots = RedisClient(server.url)
    key, first = "{hookline}:w:key:ci/parallel", None
    while (score := await slots.send("ZSCORE", key, "long/1")) is not None and float(score) < float(
        first or score
    ) + 1e6:
        first = first or score  # 1 s of it has been held on to, twice as long as it is held by itself
        assert isinstance(await other.take("second", one, (1,), expires_s=600), Refusal)

    living._presence._renew = lambda: None  # as if it had died: nobody gives the slot back

    assert score is not None
    while isinstance(await other.take("third", one, (1,), expires_s=600), Refusal):  # noqa: ASYNC110 - Redis tells nobody
        await asyncio.sleep(0.01)
    await slots.aclose()
