"""Leases: money that a worker spends without asking, and spent + reserved + leased <= limit all the same."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from hookline.errors import Unavailable
from hookline.stores import redis_limits, redis_presence
from hookline.stores.protocols import Spend, SpendRefusal
from hookline.stores.redis_client import RedisClient
from hookline.stores.redis_leases import LEASE_S
from hookline.stores.redis_limits import RedisLimits
from hookline.testing.clock import FakeClock
from hookline.testing.redis import RedisServer
from hookline.testing.store_contracts import done

NEVER = float("inf")
IS_LONG = os.environ.get("HOOKLINE_LONG") == "1"
PAYERS = (Spend("key:ci/total", 100_000, NEVER), Spend("global/total", 1_000_000, NEVER))
MONEY, IN_FLIGHT = "{hookline}:b:", "{hookline}:in-flight"


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


async def flush(url: str) -> None:
    client = RedisClient(url)
    await client.send("FLUSHALL")
    await client.send(
        "HSET", "{hookline}:epoch", "id", "old", "grace", 0, "born", 0
    )  # of long ago: nobody waits for others
    await client.aclose()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def open_limits(redis_server):
    opened: list[RedisLimits] = []

    def make(clock: FakeClock | None = None) -> RedisLimits:
        opened.append(RedisLimits(RedisClient(redis_server.url), clock))
        return opened[-1]

    await flush(redis_server.url)
    yield make
    for store in opened:
        await store.aclose()


async def held_in(store: RedisLimits, scope: str) -> tuple[int, int]:
    """(spent, reserved) as Redis has it."""
    spent, reserved = await store._client.send("HMGET", MONEY + scope, "s", "r")
    return int(spent or 0), int(reserved or 0)


async def told(store: RedisLimits) -> None:
    """Wait until Redis knows what this worker knows."""
    store._leases.tell()
    while any(lease.is_busy or lease.is_due for lease in (*store._leases._open.values(), *store._leases._closed)):
        await store._client.send("PING")
        store._leases.tell()


async def spend(store: RedisLimits, name: str, bound: int, amount: int, spends=PAYERS) -> SpendRefusal | None:
    refusal = await store.reserve(name, spends, bound, expires_s=600)
    if refusal is None:
        await done(store.settle(name, amount))
    return refusal


async def test_with_a_lease_reserving_and_settling_wait_for_nothing(open_limits):
    store = open_limits()
    await spend(store, "first", 10, 4)
    asked = store._client.asked

    for n in range(50):
        await spend(store, f"s{n}", 10, 4)

    assert store._client.asked == asked
    await told(store)
    assert (await held_in(store, "key:ci/total"))[0] == 51 * 4


async def test_a_lease_is_at_most_a_hundredth_of_what_is_left(open_limits):
    store = open_limits()

    await spend(store, "first", 500, 500)

    spent, leased = await held_in(store, "key:ci/total")
    assert spent == 500
    assert 500 <= leased <= (100_000 - 500) // 100


async def test_there_is_no_lease_where_a_hundredth_is_less_than_a_call(open_limits):
    store = open_limits()

    await spend(store, "first", 1_001, 1)

    assert await held_in(store, "key:ci/total") == (1, 0)
    asked = store._client.asked
    await spend(store, "second", 1_001, 1)
    assert store._client.asked == asked + 2


async def test_a_lease_comes_back_before_anybody_is_refused(open_limits):
    one, other = open_limits(), open_limits()
    await spend(one, "first", 100, 100)
    assert (await held_in(one, "key:ci/total"))[1] > 0

    refusal = await other.reserve("all", PAYERS, 99_900, expires_s=600)

    assert refusal is None
    assert await other.reserve("more", PAYERS, 1, expires_s=600) == SpendRefusal(PAYERS[0], 100, 100_000, 1)


async def test_calls_in_flight_on_a_lease_are_never_taken_back(open_limits):
    one, other = open_limits(), open_limits()
    await spend(one, "first", 100, 100)
    assert await one.reserve("running", PAYERS, 150, expires_s=600) is None
    assert "running" in one._drawn

    refusal = await other.reserve("all", PAYERS, 99_900, expires_s=600)

    assert refusal == SpendRefusal(PAYERS[0], 100, 250, 99_900)
    await done(one.settle("running", 20))
    await told(one)
    assert await other.reserve("again", PAYERS, 99_880, expires_s=600) is None


async def test_what_nobody_uses_goes_back(open_limits):
    store = open_limits()
    await spend(store, "first", 100, 60)

    store._leases.look_after()
    store._leases.look_after()
    await told(store)

    assert await held_in(store, "key:ci/total") == (60, 0)
    assert await store._client.send("ZCARD", IN_FLIGHT) == 0


async def test_the_lease_of_a_silent_worker_is_charged_whole_and_corrected_when_it_speaks_again(open_limits, clock):
    silent, other = open_limits(clock), open_limits(clock)
    await spend(silent, "first", 100, 60)
    assert await silent.reserve("running", PAYERS, 100, expires_s=600) is None
    leased = (await held_in(silent, "key:ci/total"))[1]

    clock.advance(LEASE_S + 1)
    await spend(other, "next", 1_001, 0)
    assert await held_in(other, "key:ci/total") == (60 + leased, 0)

    await done(silent.settle("running", 30))
    await told(silent)
    assert await held_in(other, "key:ci/total") == (90, 0)
    assert not silent._leases.has_any


async def test_a_report_whose_answer_is_lost_counts_once(open_limits):
    store = open_limits()
    await spend(store, "first", 100, 60)
    for n in range(5):
        await spend(store, f"r{n}", 100, 10)
        store._leases.tell()
        assert store._client._connection is not None
        store._client._connection._flush()
        store._client._connection.end("test")  # it was sent, and nobody hears the answer
        await store._client.send("PING")

    await told(store)

    spent, leased = await held_in(store, "key:ci/total")
    lease = store._leases.find(PAYERS)
    assert spent == 110
    assert lease is not None
    assert leased == lease.left


async def test_while_redis_is_away_a_lease_is_what_may_be_spent(tmp_path, clock):
    with RedisServer(tmp_path) as server:
        store = RedisLimits(RedisClient(server.url), clock)
        await spend(store, "first", 100, 60)
        free = store._leases.free_nanousd
        await asyncio.to_thread(server.stop)
        while not store.is_open:  # noqa: ASYNC110 - only tests wait for it
            await asyncio.sleep(0.01)

        served = 0
        with pytest.raises(Unavailable):
            for n in range(1_000):
                await spend(store, f"r{n}", 100, 100)
                served += 1

        assert served == free // 100
        assert store.bypassed > 0
        await asyncio.to_thread(server.start)
        await store.aclose()


async def test_alerts_are_told_once_although_money_is_leased(open_limits):
    store = open_limits()
    payers = (Spend("key:ci/alerting", 10_000, NEVER, alert_nanousd=8_000),)
    alerts = []

    for n in range(180):
        await store.reserve(f"r{n}", payers, 50, expires_s=600)
        alerts += [alert.spent_nanousd for alert in await done(store.settle(f"r{n}", 50))]

    assert len(alerts) == 1
    assert 8_000 <= alerts[0] <= 8_100


async def test_a_cancelled_reservation_leaves_nothing(open_limits):
    store = open_limits()
    await store.held(("key:ci/total",))
    task = asyncio.ensure_future(store.reserve("r", PAYERS, 100, expires_s=600))
    await asyncio.sleep(0)

    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await store._client.send("PING")
    store._leases.stop()
    await told(store)

    assert await held_in(store, "key:ci/total") == (0, 0)


LIMIT = 20_000
WINDOWS = (
    Spend("a/total", LIMIT, NEVER),
    Spend("a/rolling", 2 * LIMIT, NEVER, window_s=3_600.0),
    Spend("all", LIMIT * 3, NEVER),
)
PLANS = (WINDOWS, WINDOWS[1:], WINDOWS[2:])


def make_machine(url: str) -> type[RuleBasedStateMachine]:
    class Workers(RuleBasedStateMachine):
        """Three workers, any order of calls, crashes and silence."""

        def __init__(self) -> None:
            super().__init__()
            self.clock, self.runner = FakeClock(), asyncio.Runner()
            self.runner.run(flush(url))
            self.workers = [RedisLimits(RedisClient(url), self.clock) for _ in range(3)]
            self.running: dict[str, tuple[int, tuple[Spend, ...], int]] = {}
            self.cost = {spend.window: 0 for spend in WINDOWS}
            self.names = 0

        def teardown(self) -> None:
            for worker in self.workers:
                self.runner.run(worker.aclose())
            self.runner.close()

        @rule(worker=st.integers(0, 2), plan=st.sampled_from(PLANS), bound=st.sampled_from([1, 20, 150, 3_000, 9_000]))
        def reserve(self, worker, plan, bound):
            self.names += 1
            name = f"call{self.names}"
            refusal = self.runner.run(self.workers[worker].reserve(name, plan, bound, expires_s=1e6))
            if refusal is None:
                self.running[name] = (worker, plan, bound)
                return
            owed = sum(b for _, p, b in self.running.values() if refusal.spend in p)
            open_leases = sum(w._leases.free_nanousd for w in self.workers)
            assert open_leases == 0 or refusal.held_nanousd + bound > refusal.spend.limit_nanousd
            if not self.has_been_silent:
                assert self.cost[refusal.spend.window] + owed + bound > refusal.spend.limit_nanousd, (
                    "it would have fitted"
                )

        has_been_silent = False

        @rule(data=st.data(), share=st.sampled_from([0.0, 0.3, 1.0]))
        def settle(self, data, share):
            if self.running:
                name = data.draw(st.sampled_from(sorted(self.running)))
                worker, plan, bound = self.running.pop(name)
                amount = int(bound * share)
                self.runner.run(settle_in(self.workers[worker], name, amount))
                for spend in plan:
                    self.cost[spend.window] += amount

        @rule(worker=st.integers(0, 2))
        def look_after(self, worker):
            async def look() -> None:
                self.workers[worker]._leases.look_after()
                await told(self.workers[worker])

            self.runner.run(look())

        @rule()
        def be_silent(self):
            """Long enough for every lease to be charged to whoever comes next."""
            self.clock.advance(LEASE_S + 1)
            self.has_been_silent = True

        @rule(worker=st.integers(0, 2))
        def lose_the_connection(self, worker):
            async def lose() -> None:
                client = self.workers[worker]._client
                if client._connection is not None:
                    self.workers[worker]._leases.tell()
                    client._connection._flush()
                    client._connection.end("test")

            self.runner.run(lose())

        @invariant()
        def holds(self):
            async def look() -> None:
                for spend in WINDOWS:
                    (held,) = await self.workers[0].held((spend.window,))
                    owed = sum(b for _, plan, b in self.running.values() if spend in plan)
                    assert self.cost[spend.window] + owed <= held <= spend.limit_nanousd

            self.runner.run(look())

    return Workers


async def settle_in(store, name, amount):
    answer = store.settle(name, amount)
    return await done(answer)


def test_never_more_than_the_limit_and_never_less_than_what_was_promised(redis_server, monkeypatch):
    monkeypatch.setattr(redis_presence, "BEAT_S", 0.005)
    monkeypatch.setattr(redis_presence, "IDLE_BEAT_S", 0.005)
    monkeypatch.setattr(redis_limits, "RECALL_LOOK_S", 0.005)
    run_state_machine_as_test(
        make_machine(redis_server.url),
        settings=settings(
            max_examples=400 if IS_LONG else 20,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


WORKER = """
import asyncio, random, sys, time
from hookline.stores.protocols import Spend
from hookline.stores.redis_client import RedisClient
from hookline.stores.redis_limits import RedisLimits
from hookline.testing.store_contracts import done

async def main(url, name, limit):
    store = RedisLimits(RedisClient(url))
    spends = (Spend("race/total", int(limit), float("inf")), Spend("race/all", 10**12, float("inf")))
    dice, spent, leased, highest = random.Random(name), 0, 0, 0
    async def call(n):
        nonlocal spent, leased, highest
        bound = dice.randint(20, 60)
        id = f"{name}.{n}"
        refused = await store.reserve(id, spends, bound, expires_s=600)
        if refused is not None:
            assert refused.held_nanousd + bound > int(limit), refused
            return False
        leased += id in store._drawn
        await asyncio.sleep(0.001)
        amount = dice.randint(0, bound)
        await done(store.settle(id, amount))
        spent += amount
        highest = max(highest, (await store.held(("race/total",)))[0])
        return True
    sys.stdin.readline()
    n = refused = 0
    while refused < 3:
        done_now = await asyncio.gather(*(call(n + i) for i in range(20)))
        n += 20
        refused += not any(done_now)
    await store.aclose()
    print(spent, leased, highest)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_four_processes_spend_the_limit_and_not_one_nanodollar_more(open_limits, redis_server):
    limit = 60_000
    workers = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            WORKER,
            redis_server.url,
            f"w{n}",
            str(limit),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for n in range(4)
    ]

    said = [tuple(map(int, out.split())) for out, _ in await asyncio.gather(*(w.communicate(b"go\n") for w in workers))]

    spent = sum(amount for amount, _, _ in said)
    assert limit - 60 <= spent <= limit
    assert any(leased for _, leased, _ in said), "leases were used"
    assert all(highest <= limit for _, _, highest in said)
    assert await held_in(open_limits(), "race/total") == (spent, 0)


DYING = """
import asyncio, os, signal, sys
from hookline.stores.protocols import Spend
from hookline.stores.redis_client import RedisClient
from hookline.stores.redis_limits import RedisLimits
from hookline.testing.store_contracts import done

async def main(url):
    store = RedisLimits(RedisClient(url))
    spends = (Spend("dying/total", 1_000_000, float("inf")),)
    for n in range(20):
        await store.reserve(f"r{n}", spends, 100, expires_s=600)
        await done(store.settle(f"r{n}", 7))
    for n in range(3):
        await store.reserve(f"running{n}", spends, 100, expires_s=600)
        assert f"running{n}" in store._drawn
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("is_late", [False, True])
async def test_of_a_killed_worker_what_it_spent_and_had_in_flight_is_charged_and_the_rest_comes_back(
    open_limits, redis_server, clock, is_late
):
    worker = await asyncio.create_subprocess_exec(sys.executable, "-c", DYING, redis_server.url)
    await worker.wait()
    other = open_limits()
    spent, reserved = await held_in(other, "dying/total")
    assert reserved > 3 * 100
    if is_late:  # its lease has expired and was charged whole
        stranger = open_limits(clock)
        clock.advance(time.time() + 3_600 - clock.time())
        await spend(stranger, "next", 1_001, 0)
        assert await held_in(other, "dying/total") == (spent + reserved, 0)

    other._leases.look_after()
    await other._client.send("PING")

    assert await held_in(other, "dying/total") == (20 * 7 + 3 * 100, 0)
    assert await other._client.send("ZCARD", IN_FLIGHT) == 0
