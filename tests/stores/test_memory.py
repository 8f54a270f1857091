"""The stores in this process: the contracts, and what bounds them."""

from __future__ import annotations

from collections import deque
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookline.errors import Unavailable
from hookline.stores.memory import ENTRY_OVERHEAD_BYTES, SWEEP_FROM_SCOPES, MemoryLimits, MemoryReplies
from hookline.stores.protocols import Refusal, Spend, Take
from hookline.stores.windows import GRAINS, Window
from hookline.testing.clock import FakeClock
from hookline.testing.store_contracts import LimitStoreContract, ReplyStoreContract

NEVER = float("inf")


class TestMemoryLimits(LimitStoreContract):
    @pytest.fixture
    async def store(self, clock):
        return MemoryLimits(clock)


class TestMemoryReplies(ReplyStoreContract):
    @pytest.fixture
    async def store(self, clock):
        return MemoryReplies(clock)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def test_idle_scopes_leave_the_map(clock):
    store = MemoryLimits(clock)
    for round in range(20):
        for n in range(SWEEP_FROM_SCOPES):
            id = f"{round}-{n}"
            await store.take(id, (Take(f"model:{id}", 5, 60.0), Take(f"parallel:{id}", 5, 0)), (1, 1), expires_s=9e9)
            store.give_back(id, (1, 0))
        clock.advance(62)

    assert store.scopes <= 4 * SWEEP_FROM_SCOPES
    assert store.in_flight == 0


async def test_ended_budget_windows_leave_the_map(clock):
    store = MemoryLimits(clock)
    for n in range(10 * SWEEP_FROM_SCOPES):
        await store.reserve(f"r{n}", (Spend(f"key:ci/day:{n}", 100, clock.time() + 1),), 5, expires_s=9e9)
        store.settle(f"r{n}", 5)
        clock.advance(1)

    assert store.scopes <= SWEEP_FROM_SCOPES + 1


async def test_a_window_that_was_just_opened_survives_the_sweep_of_its_own_decision(clock):
    store = MemoryLimits(clock)
    for n in range(SWEEP_FROM_SCOPES - 1):
        await store.take(f"t{n}", (Take(f"idle:{n}", 5, 60.0),), (1,), expires_s=9e9)
    clock.advance(62)
    takes = tuple(Take(f"new:{n}", 1, 60.0) for n in range(4))
    await store.take("first", takes, (1, 1, 1, 1), expires_s=9e9)

    refused = [await store.take(f"second{n}", (take,), (1,), expires_s=9e9) for n, take in enumerate(takes)]

    assert [isinstance(answer, Refusal) for answer in refused] == [True] * 4


async def test_refuses_new_scopes_beyond_the_bound_and_recovers(clock):
    store = MemoryLimits(clock, max_scopes=10)
    for n in range(10):
        await store.take(f"t{n}", (Take(f"model:{n}", 5, 60.0),), (1,), expires_s=9e9)

    with pytest.raises(Unavailable, match="10 scopes are in use"):
        await store.take("new", (Take("model:new", 5, 60.0),), (1,), expires_s=9e9)
    clock.advance(62)

    assert not isinstance(await store.take("new", (Take("model:new", 5, 60.0),), (1,), expires_s=9e9), Refusal)


async def test_nothing_stays_in_flight_after_its_expiry(clock):
    store = MemoryLimits(clock)
    await store.take("t", (Take("key", 5, 0),), (1,), expires_s=10)
    await store.reserve("r", (Spend("key", 5, NEVER),), 1, expires_s=20)
    clock.advance(22)

    await store.held(("key",))

    assert store.in_flight == 0


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.3, 1.0, 7.0, 59.0, 61.5]), st.integers(0, 12), st.integers(0, 12)),
        max_size=40,
    )
)
async def test_agrees_with_a_log_of_every_amount(steps):
    """The model keeps each amount with its time. The store may count an amount 1/60 of the window longer, never shorter."""
    clock, window_s, limit = FakeClock(), 60.0, 20
    store, takes = MemoryLimits(clock), (Take("s", limit, window_s),)
    ids, log = count(), deque[list[float]]()

    for wait_s, amount, settled in steps:
        clock.advance(wait_s)
        now_s, id = clock.monotonic(), str(next(ids))
        strict = sum(a for t, a in log if t + window_s * (1 + 1 / GRAINS) > now_s)
        loose = sum(a for t, a in log if t + window_s > now_s)

        answer = await store.take(id, takes, (amount,), expires_s=NEVER)

        if isinstance(answer, Refusal):
            assert strict + amount > limit
            assert answer.retry_after_s > 0
        else:
            assert loose + amount <= limit
            assert limit - strict - amount <= answer[0].remaining <= limit - loose - amount
            store.give_back(id, (min(settled, amount),))
            log.append([now_s, min(settled, amount)])


async def test_replies_are_bounded_by_bytes_and_the_oldest_leave_first(clock):
    store = MemoryReplies(clock, max_bytes=10 * (ENTRY_OVERHEAD_BYTES + 1_000))
    for n in range(30):
        store.put(b"%03d" % n, b"x" * 997, ttl_s=60)
        await store.get(b"000")

    kept = [n for n in range(30) if await store.get(b"%03d" % n) is not None]

    assert kept == [0, *range(21, 30)]


async def test_a_reply_larger_than_the_store_is_not_kept_and_ends_the_older_one(clock):
    store = MemoryReplies(clock, max_bytes=4_096)
    store.put(b"k", b"small", ttl_s=60)

    store.put(b"k", b"x" * 5_000, ttl_s=60)

    assert await store.get(b"k") is None


async def test_room_of_deleted_expired_and_replaced_replies_is_used_again(clock):
    store = MemoryReplies(clock, max_bytes=2 * (ENTRY_OVERHEAD_BYTES + 1_000))
    for _ in range(5):
        store.put(b"000", b"x" * 997, ttl_s=60, tags=("t",))
        store.put(b"000", b"y" * 997, ttl_s=60, tags=("t",))
        await store.delete_tagged("t")
        store.put(b"001", b"x" * 997, ttl_s=1)
        clock.advance(2)
        await store.get(b"001")

    store.put(b"002", b"x" * 997, ttl_s=60)
    store.put(b"003", b"x" * 997, ttl_s=60)

    assert [await store.get(key) for key in (b"002", b"003")] == [b"x" * 997] * 2


def test_a_window_takes_a_clock_that_was_set_back() -> None:
    window = Window(60.0)
    window.add(1_000.0, 5)
    window.expire(2_000.0)

    window.add(1_000.5, 3)

    assert window.used == 3
