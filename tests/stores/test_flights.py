"""Flights in memory and in a real Redis: the contract, and two processes' worth of `Flights` on one store."""

from __future__ import annotations

import asyncio
import time

import pytest

from hookline import FlightRules, Lead, Slot, hookimpl
from hookline.flights import Flights
from hookline.plugin_host import Stores
from hookline.stores.memory_flights import MemoryFlights
from hookline.stores.redis_client import RedisClient
from hookline.stores.redis_flights import RedisFlights
from hookline.testing.flight_contract import FlightStoreContract
from hookline.testing.kit import CHAT, PipelineKit, ScriptedProvider, answer, stream
from hookline.testing.redis import RedisServer

DELTA = b'data: {"choices":[{"index":0,"delta":{"content":"ho"}}]}\n\n'
STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
STREAMED = {**CHAT, "stream": True}


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


class RealClock:
    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)


def redis_flights(server):
    return RedisFlights(RedisClient(server.url, monotonic=time.monotonic))


class TestMemoryFlights(FlightStoreContract):
    @pytest.fixture
    async def store(self):
        return MemoryFlights(RealClock())


class TestRedisFlights(FlightStoreContract):
    @pytest.fixture
    async def store(self, redis_server):
        store = redis_flights(redis_server)
        yield store
        await store.aclose()


async def test_memory_keeps_what_fits_and_drops_the_oldest():
    store = MemoryFlights(RealClock(), max_bytes=4_000)

    for n in range(5):
        store.keep(b"%d" % n, None, b"x" * 1_000, ttl_s=60)
    store.keep(b"big", None, b"x" * 5_000, ttl_s=60)

    kept = [n for n in range(5) if await store.read(b"%d" % n) is not None]
    assert (kept, await store.read(b"big")) == ([3, 4], None)


async def test_a_cancelled_claim_is_given_back(redis_server):
    store = redis_flights(redis_server)
    asking = asyncio.ensure_future(store.claim(b"cancelled", b"C1", ttl_s=60))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)

    while (await store.claim(b"cancelled", b"C2", ttl_s=60)) is not None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)  # bounded by the test's own timeout
    await store.aclose()


LEAD: Slot[Lead] = Slot("test_lead")


class Sharing:
    """Every call is the same call."""

    keep_s = 0.0
    max_bytes = 10_000

    def __init__(self, options, host):
        self._flights = host.flights
        self._rules = FlightRules("sharing", "coalesced", self.max_bytes, self.keep_s)

    @hookimpl
    async def lookup(self, call):
        found = await self._flights.board(call, call.headers.get("x-key", "key").encode(), self._rules)
        if isinstance(found, Lead):
            call[LEAD] = found
        return found

    @hookimpl
    def edit_reply(self, call, reply):
        if LEAD in call.slots:
            call[LEAD].begin(reply)
        return reply

    @hookimpl
    def call_ended(self, call, result):
        if LEAD in call.slots:
            call[LEAD].close()


class Short(Sharing):
    max_bytes = 100


class Processes:
    """Two pipelines with a `Flights` each, as two processes have, on one Redis; one scripted provider each."""

    def __init__(self, server, plugin=Sharing):
        self._server = server
        self._plugin = plugin
        self.kits = []

    def add(self, *scripts):
        kit = PipelineKit(
            self._plugin,
            providers=[ScriptedProvider(*scripts)],
            stores=Stores(None, None, None, Flights(redis_flights(self._server), RealClock())),
        )
        self.kits.append(kit)
        return kit

    async def aclose(self):
        for kit in self.kits:
            await kit.workshop.stores.flights.aclose()


@pytest.fixture
async def processes(redis_server):
    made = []

    def make(plugin=Sharing):
        made.append(Processes(redis_server, plugin))
        return made[-1]

    yield make
    for each in made:
        await each.aclose()


def sent(kit):
    return len(kit.providers["up"].sent)


def start(kit, key, payload=STREAMED):
    return kit.start(kit.make_call(payload, headers={"x-key": key}))


async def asked(kit, number=1):
    while sent(kit) < number:  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def following(kit):
    """The second process knows that the first one leads, and follows."""
    while not kit.workshop.stores.flights._claims._tasks:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)


async def test_a_stream_of_another_process_is_read_as_it_comes(processes):
    go, both = asyncio.Event(), processes()
    a, b = both.add(lambda: stream(DELTA, go, STOP, DONE)), both.add()
    leader = start(a, "live")
    await asked(a)
    followers = [start(b, "live") for _ in range(3)]

    for follower in followers:
        await follower.delivered.has_begun.wait()
    assert {f.delivered.body for f in followers} == {DELTA}
    go.set()

    assert {(await f.done()).body for f in (leader, *followers)} == {DELTA + STOP + DONE}
    assert (sent(a), sent(b)) == (1, 0)


async def test_a_plain_reply_of_another_process_comes_when_it_is_there(processes):
    go, both = asyncio.Event(), processes()

    async def slow(call, attempt):
        await go.wait()
        return answer()

    a, b = both.add(slow), both.add()
    leader = start(a, "plain", CHAT)
    await asked(a)
    follower = start(b, "plain", CHAT)
    await following(b)

    go.set()
    delivered = await follower.done()

    assert (delivered.status, delivered.body) == (200, (await leader.done()).body)
    assert (sent(a), sent(b)) == (1, 0)


async def test_an_error_of_another_process_is_shared(processes):
    go, both = asyncio.Event(), processes()

    async def failing(call, attempt):
        await go.wait()
        return answer(b'{"error":{"message":"no"}}', 503)

    a, b = both.add(failing), both.add()
    leader = start(a, "error", CHAT)
    await asked(a)
    follower = start(b, "error", CHAT)
    await following(b)
    go.set()

    assert [(await r.done()).status for r in (leader, follower)] == [503, 503]
    assert sent(b) == 0


async def test_when_a_leader_gives_up_exactly_one_of_another_process_leads(processes):
    both = processes()

    async def never(call, attempt):
        await asyncio.Event().wait()

    async def slow(call, attempt):
        await asyncio.sleep(0.1)
        return answer()

    a, b = both.add(never), both.add(slow)
    leader = start(a, "gives up", CHAT)
    await asked(a)
    followers = [start(b, "gives up", CHAT) for _ in range(4)]
    await following(b)

    a.expire(leader.call)

    assert {(await f.done()).status for f in followers} == {200}
    assert (await leader.done()).status == 504
    assert sent(b) == 1


async def test_when_a_leaders_process_dies_one_of_another_leads_within_seconds(processes):
    both = processes()

    async def never(call, attempt):
        await asyncio.Event().wait()

    a, b = both.add(never), both.add()
    leader = start(a, "dies", CHAT)
    await asked(a)
    for task in list(a.workshop.stores.flights._claims._tasks):  # it renews nothing any more
        task.cancel()
    follower = start(b, "dies", CHAT)

    assert (await follower.done()).status == 200
    assert sent(b) == 1
    leader.leave()
    await leader.done()


async def test_a_leader_whose_client_left_goes_on_for_another_process(processes):
    go, both = asyncio.Event(), processes()
    a, b = both.add(lambda: stream(DELTA, go, STOP, DONE)), both.add()
    leader = start(a, "left", STREAMED)
    await asked(a)
    follower = start(b, "left", STREAMED)
    await follower.delivered.has_begun.wait()

    leader.leave()
    await asyncio.sleep(0.05)
    go.set()

    assert (await follower.done()).body == DELTA + STOP + DONE
    await leader.done()


async def test_a_stream_that_is_cut_is_cut_in_another_process_too(processes):
    go, both = asyncio.Event(), processes()
    a, b = both.add(lambda: stream(DELTA, go, ConnectionResetError())), both.add()
    leader = start(a, "cut", STREAMED)
    await asked(a)
    follower = start(b, "cut", STREAMED)
    await follower.delivered.has_begun.wait()
    go.set()

    for running in (leader, follower):
        delivered = await running.done()
        assert (delivered.body.count(b'"error"'), DONE in delivered.body, delivered.error is not None) == (
            1,
            False,
            True,
        )


async def test_a_stream_longer_than_the_bound_reaches_those_of_another_process_who_had_joined(processes):
    gates, both = [asyncio.Event() for _ in range(4)], processes(Short)
    events = [event for pair in zip(gates, [DELTA, DELTA, STOP, DONE], strict=True) for event in pair]
    a, b = both.add(lambda: stream(DELTA, *events)), both.add()
    leader = start(a, "long", STREAMED)
    await asked(a)
    follower = start(b, "long", STREAMED)
    for number, gate in enumerate(gates, 1):
        while len(follower.delivered.chunks) < number:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        gate.set()

    assert (await follower.done()).body == (await leader.done()).body == DELTA * 3 + STOP + DONE


async def test_what_nobody_wants_leaves_nothing_behind(processes, redis_server):
    both = processes()
    a = both.add()
    client = RedisClient(redis_server.url, monotonic=time.monotonic)

    await start(a, "alone", CHAT).done()

    assert await client.send("EXISTS", *a.workshop.stores.flights._store._keys(b"sharing:alone")) == 0
    await client.aclose()
