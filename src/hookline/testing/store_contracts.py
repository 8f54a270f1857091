"""What every store must do, as pytest classes: inherit one, and say in a fixture how your store is built.

Lives here: `LimitStoreContract`, `ReplyStoreContract`. Elsewhere: records (record_contract.py), the protocols in words (stores/protocols.py), what only one implementation promises (its own tests).
Idea: time is the `clock` fixture, and each test takes its scopes from `scope`, so that one server can carry a whole run.

    class TestMyLimits(LimitStoreContract):
        @pytest.fixture
        async def store(self, clock): ..."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from itertools import count
from typing import TypeVar

import pytest

from hookline.stores.protocols import (
    LimitStore,
    Notice,
    Refusal,
    ReplyStore,
    Spend,
    SpendRefusal,
    Take,
)
from hookline.testing.clock import FakeClock

MINUTE_S = 60.0
LONG_S = 1e6
SLACK = 1.02
"""An amount counts for its window and at most 1/50 of it longer."""
NEVER = float("inf")
_ids = count(1)
T = TypeVar("T")


def _id() -> str:
    return f"contract-{next(_ids)}-{random.getrandbits(64):x}"


async def done(answer: Awaitable[T] | T) -> T:
    """What settled at once, or is awaited."""
    return await answer if isinstance(answer, Awaitable) else answer


class _Fixtures:
    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    def scope(self) -> str:
        """A scope of this test alone."""
        return f"scope:{_id()}"


class LimitStoreContract(_Fixtures):
    """Fixture `store`: a LimitStore on `clock`."""

    async def test_takes_up_to_the_limit_and_refuses_the_next(self, store: LimitStore, scope: str) -> None:
        takes = (Take(scope, 3, MINUTE_S),)

        granted = [await store.take(_id(), takes, (1,), expires_s=LONG_S) for _ in range(3)]
        refused = await store.take(_id(), takes, (1,), expires_s=LONG_S)

        assert [levels[0].remaining for levels in granted if not isinstance(levels, Refusal)] == [2, 1, 0]
        assert isinstance(refused, Refusal)
        assert refused.take == takes[0]
        assert refused.levels[0].remaining == 0

    async def test_refuses_what_can_never_fit_for_ever(self, store: LimitStore, scope: str) -> None:
        refused = await store.take(_id(), (Take(scope, 10, MINUTE_S),), (11,), expires_s=LONG_S)

        assert isinstance(refused, Refusal)
        assert refused.retry_after_s == NEVER

    async def test_fits_again_after_retry_after_and_not_before(
        self, store: LimitStore, clock: FakeClock, scope: str
    ) -> None:
        takes = (Take(scope, 10, MINUTE_S),)
        await store.take(_id(), takes, (6,), expires_s=LONG_S)
        clock.advance(30)
        await store.take(_id(), takes, (4,), expires_s=LONG_S)

        refused = await store.take(_id(), takes, (5,), expires_s=LONG_S)
        assert isinstance(refused, Refusal)
        assert 30 <= refused.retry_after_s <= 30 * SLACK + MINUTE_S * (SLACK - 1)
        clock.advance(29.9)
        assert isinstance(await store.take(_id(), takes, (5,), expires_s=LONG_S), Refusal)
        clock.advance(refused.retry_after_s - 29.9)

        assert not isinstance(await store.take(_id(), takes, (5,), expires_s=LONG_S), Refusal)

    async def test_never_lets_more_than_the_limit_pass_in_any_span_of_the_window(
        self, store: LimitStore, clock: FakeClock, scope: str
    ) -> None:
        takes, taken = (Take(scope, 20, MINUTE_S),), list[tuple[float, int]]()
        dice = random.Random(7)

        for _ in range(400):
            clock.advance(dice.choice([0.0, 0.01, 0.4, 1.0, 3.0, 20.0]))
            amount = dice.randint(1, 5)
            if not isinstance(await store.take(_id(), takes, (amount,), expires_s=LONG_S), Refusal):
                taken.append((clock.monotonic(), amount))

        spans = [sum(a for t, a in taken if start <= t < start + MINUTE_S) for start, _ in taken]
        assert max(spans) == 20

    async def test_is_empty_again_a_window_after_the_last_take(
        self, store: LimitStore, clock: FakeClock, scope: str
    ) -> None:
        takes = (Take(scope, 10, MINUTE_S),)
        for _ in range(10):
            await store.take(_id(), takes, (1,), expires_s=LONG_S)
            clock.advance(0.3)

        clock.advance(MINUTE_S * SLACK)

        levels = await store.take(_id(), takes, (10,), expires_s=LONG_S)
        assert not isinstance(levels, Refusal)
        assert levels[0].remaining == 0
        assert MINUTE_S <= levels[0].reset_s <= MINUTE_S * SLACK

    async def test_takes_from_all_or_from_none(self, store: LimitStore, scope: str) -> None:
        wide, narrow = Take(scope + ":wide", 10, MINUTE_S), Take(scope + ":narrow", 1, 0)
        await store.take(_id(), (wide, narrow), (1, 1), expires_s=LONG_S)

        refused = await store.take(_id(), (wide, narrow), (1, 1), expires_s=LONG_S)

        assert isinstance(refused, Refusal)
        assert refused.take == narrow
        assert [level.remaining for level in refused.levels] == [9, 0]

    async def test_names_the_take_that_needs_longest(self, store: LimitStore, clock: FakeClock, scope: str) -> None:
        short, long = Take(scope + ":short", 1, MINUTE_S), Take(scope + ":long", 1, 10 * MINUTE_S)
        await store.take(_id(), (short, long), (1, 1), expires_s=LONG_S)

        refused = await store.take(_id(), (short, long), (1, 1), expires_s=LONG_S)

        assert isinstance(refused, Refusal)
        assert refused.take == long
        assert refused.retry_after_s >= 10 * MINUTE_S

    async def test_parallel_holds_end_when_given_back(self, store: LimitStore, clock: FakeClock, scope: str) -> None:
        takes, first = (Take(scope, 2, 0),), _id()
        await store.take(first, takes, (1,), expires_s=LONG_S)
        await store.take(_id(), takes, (1,), expires_s=LONG_S)
        clock.advance(MINUTE_S)
        assert isinstance(await store.take(_id(), takes, (1,), expires_s=LONG_S), Refusal)

        await done(store.give_back(first, (0,)))

        assert not isinstance(await store.take(_id(), takes, (1,), expires_s=LONG_S), Refusal)

    async def test_give_back_frees_what_was_not_used(self, store: LimitStore, scope: str) -> None:
        takes, id = (Take(scope, 100, MINUTE_S),), _id()
        await store.take(id, takes, (90,), expires_s=LONG_S)

        await done(store.give_back(id, (30,)))

        levels = await store.take(_id(), takes, (10,), expires_s=LONG_S)
        assert not isinstance(levels, Refusal)
        assert levels[0].remaining == 60

    async def test_give_back_charges_what_was_used_beyond_the_bound(self, store: LimitStore, scope: str) -> None:
        takes, id = (Take(scope, 100, MINUTE_S),), _id()
        await store.take(id, takes, (10,), expires_s=LONG_S)

        await done(store.give_back(id, (95,)))

        assert isinstance(await store.take(_id(), takes, (6,), expires_s=LONG_S), Refusal)

    async def test_a_late_give_back_does_not_free_what_others_took(
        self, store: LimitStore, clock: FakeClock, scope: str
    ) -> None:
        takes, slow = (Take(scope, 100, MINUTE_S),), _id()
        await store.take(slow, takes, (100,), expires_s=LONG_S)
        clock.advance(MINUTE_S * SLACK)
        await store.take(_id(), takes, (100,), expires_s=LONG_S)

        await done(store.give_back(slow, (0,)))

        assert isinstance(await store.take(_id(), takes, (1,), expires_s=LONG_S), Refusal)

    async def test_give_back_counts_once(self, store: LimitStore, scope: str) -> None:
        takes, id = (Take(scope, 2, 0),), _id()
        await store.take(id, takes, (1,), expires_s=LONG_S)
        await store.take(_id(), takes, (1,), expires_s=LONG_S)

        await done(store.give_back(id, (0,)))
        await done(store.give_back(id, (0,)))
        await done(store.give_back(_id(), (0,)))

        assert not isinstance(await store.take(_id(), takes, (1,), expires_s=LONG_S), Refusal)
        assert isinstance(await store.take(_id(), takes, (1,), expires_s=LONG_S), Refusal)

    async def test_holds_of_the_dead_expire(self, store: LimitStore, clock: FakeClock, scope: str) -> None:
        takes, dead = (Take(scope, 1, 0),), _id()
        await store.take(dead, takes, (1,), expires_s=100)
        clock.advance(102)
        await store.take(_id(), takes, (1,), expires_s=100)

        await done(store.give_back(dead, (0,)))

        assert isinstance(await store.take(_id(), takes, (1,), expires_s=100), Refusal)

    async def test_concurrent_takes_never_exceed(self, store: LimitStore, scope: str) -> None:
        takes = (Take(scope + ":rate", 100, MINUTE_S), Take(scope + ":parallel", 70, 0))

        answers = await asyncio.gather(*(store.take(_id(), takes, (2, 1), expires_s=LONG_S) for _ in range(500)))

        assert sum(not isinstance(answer, Refusal) for answer in answers) == 50

    async def test_reserves_up_to_the_limit_and_names_the_window_that_refuses(
        self, store: LimitStore, scope: str
    ) -> None:
        wide, narrow = Spend(scope + ":month", 1_000, NEVER), Spend(scope + ":day", 100, NEVER)
        assert await store.reserve(_id(), (wide, narrow), 60, expires_s=LONG_S) is None

        refused = await store.reserve(_id(), (wide, narrow), 41, expires_s=LONG_S)

        assert refused == SpendRefusal(narrow, 0, 60, 41)
        assert list(await store.held((wide.window, narrow.window))) == [60, 60]
        assert await store.reserve(_id(), (wide, narrow), 40, expires_s=LONG_S) is None

    async def test_settles_to_the_exact_amount_once(self, store: LimitStore, scope: str) -> None:
        spends, id = (Spend(scope, 100, NEVER),), _id()
        await store.reserve(id, spends, 90, expires_s=LONG_S)

        for amount in (25, 70):
            await done(store.settle(id, amount))
        await done(store.settle(_id(), 99))

        assert list(await store.held((scope,))) == [25]
        refused = await store.reserve(_id(), spends, 80, expires_s=LONG_S)
        assert refused == SpendRefusal(spends[0], 25, 25, 80)

    async def test_a_soft_window_counts_and_never_refuses(self, store: LimitStore, scope: str) -> None:
        spends = (Spend(scope, 10, NEVER, is_hard=False),)

        assert await store.reserve(_id(), spends, 25, expires_s=LONG_S) is None
        assert list(await store.held((scope,))) == [25]

    async def test_an_expired_reservation_is_spent(self, store: LimitStore, clock: FakeClock, scope: str) -> None:
        spends, id = (Spend(scope, 100, NEVER),), _id()
        await store.reserve(id, spends, 60, expires_s=30)

        clock.advance(32)
        await done(store.settle(id, 1))

        assert list(await store.held((scope,))) == [60]
        assert await store.reserve(_id(), spends, 41, expires_s=30) == SpendRefusal(spends[0], 60, 60, 41)

    async def test_concurrent_reservations_never_exceed(self, store: LimitStore, scope: str) -> None:
        spends = (Spend(scope, 1_000, NEVER), Spend(scope + ":wide", 10_000, NEVER))
        highest = [0]

        async def call() -> bool:
            id = _id()
            if await store.reserve(id, spends, 30, expires_s=LONG_S) is not None:
                return False
            highest[0] = max(highest[0], (await store.held((scope,)))[0])
            await asyncio.sleep(0)
            await done(store.settle(id, 10))
            return True

        while any(await asyncio.gather(*(call() for _ in range(500)))):
            pass

        assert highest[0] <= 1_000
        spent = list(await store.held((scope, scope + ":wide")))
        assert spent[0] == spent[1]
        assert 1_000 - 30 < spent[0] <= 1_000

    async def test_a_rolling_window_forgets_after_its_span(
        self, store: LimitStore, clock: FakeClock, scope: str
    ) -> None:
        spends, id = (Spend(scope, 100, NEVER, window_s=3_600),), _id()
        await store.reserve(id, spends, 90, expires_s=LONG_S)
        await done(store.settle(id, 80))
        clock.advance(3_599)
        assert await store.reserve(_id(), spends, 30, expires_s=LONG_S) is not None

        clock.advance(3_600 * SLACK - 3_599)

        assert await store.reserve(_id(), spends, 100, expires_s=LONG_S) is None

    async def test_alerts_once_when_spend_reaches_the_line(self, store: LimitStore, scope: str) -> None:
        spend = Spend(scope, 100, NEVER, alert_nanousd=80)
        alerts = []

        for amount in (79, 1, 5, 5):
            id = _id()
            await store.reserve(id, (spend,), amount, expires_s=LONG_S)
            alerts.append([(alert.spend, alert.spent_nanousd) for alert in await done(store.settle(id, amount))])

        assert alerts == [[], [(spend, 80)], [], []]

    async def test_a_restored_window_goes_on_where_it_was(
        self, store: LimitStore, clock: FakeClock, scope: str
    ) -> None:
        fixed = Spend(scope, 100, NEVER, alert_nanousd=80)
        rolling = Spend(scope + ":rolling", 1_000, NEVER, window_s=3_600)
        now_s = clock.time()

        await store.restore(fixed, ((now_s - 500, 60), (now_s, 30)))
        await store.restore(rolling, ((now_s - 3_700, 7), (now_s - 3_000, 60), (now_s, 30)))

        assert list(await store.held((fixed.window, rolling.window))) == [90, 90]
        id = _id()
        await store.reserve(id, (fixed,), 10, expires_s=LONG_S)
        assert list(await done(store.settle(id, 10))) == [], "the line was reached before, and said"

    async def test_restore_leaves_a_window_that_is_known(self, store: LimitStore, clock: FakeClock, scope: str) -> None:
        spend, id = Spend(scope, 100, NEVER), _id()
        await store.reserve(id, (spend,), 10, expires_s=LONG_S)

        await store.restore(spend, ((clock.time(), 77),))
        await done(store.settle(id, 4))

        assert list(await store.held((scope,))) == [4]

    async def test_a_window_is_known_once_it_was_restored_or_spent_from(self, store: LimitStore, scope: str) -> None:
        restored, spent, unknown = (Spend(f"{scope}:{name}", 100, NEVER) for name in ("restored", "spent", "unknown"))
        id = _id()
        await store.restore(restored, ())
        await store.reserve(id, (spent,), 10, expires_s=LONG_S)
        await done(store.settle(id, 4))

        assert [await store.knows(one) for one in (restored, spent, unknown)] == [True, True, False]

    async def test_unknown_windows_have_spent_nothing(self, store: LimitStore, scope: str) -> None:
        assert list(await store.held((scope, scope + "x"))) == [0, 0]

    async def test_what_one_tells_on_a_board_all_see_and_the_higher_version_stays(
        self, store: LimitStore, scope: str
    ) -> None:
        await store.exchange(scope, [Notice("a", 2, b"two\0", 60.0), Notice("b", 1, b"", 60.0)])

        seen = await store.exchange(
            scope, [Notice("a", 1, b"one", 60.0), Notice("b", 1_795_000_000_000_000, b"new", 60.0)]
        )

        assert sorted(seen) == [("a", 2, b"two\0", 0.0), ("b", 1_795_000_000_000_000, b"new", 0.0)]
        assert await store.exchange(f"{scope}/other", []) == []

    async def test_a_notice_leaves_unless_it_is_told_again(
        self, store: LimitStore, clock: FakeClock, scope: str
    ) -> None:
        await store.exchange(scope, [Notice("kept", 1, b"", 10.0), Notice("left", 1, b"", 10.0)])
        clock.advance(6.0)
        await store.exchange(scope, [Notice("kept", 1, b"", 10.0)])
        clock.advance(6.0)

        assert [notice.name for notice in await store.exchange(scope, [])] == ["kept"]


class ReplyStoreContract(_Fixtures):
    """Fixture `store`: a ReplyStore on `clock` that holds at least 64 KiB."""

    async def test_gives_what_was_put(self, store: ReplyStore) -> None:
        key = _id().encode()
        assert await store.get(key) is None

        await done(store.put(key, b"\x00body", ttl_s=60))

        assert await store.get(key) == b"\x00body"

    async def test_replaces(self, store: ReplyStore) -> None:
        key = _id().encode()
        await done(store.put(key, b"old", ttl_s=60))

        await done(store.put(key, b"new", ttl_s=60))

        assert await store.get(key) == b"new"

    async def test_forgets_after_its_time(self, store: ReplyStore, clock: FakeClock) -> None:
        key = _id().encode()
        await done(store.put(key, b"body", ttl_s=60))
        clock.advance(59)
        assert await store.get(key) == b"body"

        clock.advance(1)

        assert await store.get(key) is None

    async def test_deletes_by_tag(self, store: ReplyStore, scope: str) -> None:
        keys = [_id().encode() for _ in range(3)]
        for key, tags in zip(keys, ((scope, "b"), (scope,), ("b",)), strict=True):
            await done(store.put(key, b"body", ttl_s=60, tags=tags))

        assert await store.delete_tagged(scope) == 2

        assert [await store.get(key) for key in keys] == [None, None, b"body"]
        assert await store.delete_tagged(scope) == 0

    async def test_gives_several_in_the_order_asked(self, store: ReplyStore, clock: FakeClock) -> None:
        one, other, short, unknown = (_id().encode() for _ in range(4))
        await done(store.put(short, b"3", ttl_s=10))
        await done(store.put_many({one: b"1", other: b"2"}, ttl_s=60))
        clock.advance(10)

        assert list(await store.get_many([other, unknown, one, other, short])) == [b"2", None, b"1", b"2", None]
        assert list(await store.get_many([])) == []

    async def test_several_entries_have_their_tags(self, store: ReplyStore, scope: str) -> None:
        entries = {_id().encode(): b"body" for _ in range(3)}
        await done(store.put_many(entries, ttl_s=60, tags=(scope,)))
        await done(store.put_many({}, ttl_s=60, tags=(scope,)))

        assert await store.delete_tagged(scope) == 3

        assert list(await store.get_many([*entries])) == [None] * 3

    async def test_discards_by_key(self, store: ReplyStore, scope: str) -> None:
        gone, kept = _id().encode(), _id().encode()
        await done(store.put_many({gone: b"1", kept: b"2"}, ttl_s=60, tags=(scope,)))

        assert await store.delete([gone, b"unknown"]) == 1

        assert list(await store.get_many([gone, kept])) == [None, b"2"]
        assert await store.delete_tagged(scope) == 1

    async def test_a_tag_outlives_the_first_of_its_entries(
        self, store: ReplyStore, clock: FakeClock, scope: str
    ) -> None:
        await done(store.put(_id().encode(), b"short", ttl_s=1, tags=(scope,)))
        key = _id().encode()
        await done(store.put(key, b"long", ttl_s=600, tags=(scope,)))
        clock.advance(500)
        assert await store.get(key) == b"long"

        await store.delete_tagged(scope)

        assert await store.get(key) is None
