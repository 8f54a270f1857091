"""Over which times and for whom: clocks that change, restarts, reloads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from hookline import Budget, Principal, SpendRefusal, hookimpl
from hookline.builtins import budget
from hookline.builtins.budget import open_windows
from hookline.builtins.budget.windows import budgets_of, quota_error, windows_of
from hookline.stores.memory import MemoryLimits
from hookline.testing.clock import FakeClock
from hookline.testing.kit import CHAT, PipelineKit, ScriptedProvider, answer

MakeKit = Callable[..., PipelineKit]
ANSWER_NANOUSD = 20_000
ASKED = {**CHAT, "max_tokens": 1}
DAY = "key:ci/day:2023-11-14"


def windows(budget: Budget, *moment: int, zone: str = "UTC") -> dict[str, Any]:
    now = datetime(*moment, tzinfo=ZoneInfo(zone)).timestamp()  # type: ignore[arg-type]
    return {
        w.spend.window.split("/")[1].split(":")[0]: (w.spend, since)
        for w, since in open_windows("key:x", "x", budget, now)
    }


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


@pytest.mark.parametrize(
    ("zone", "moment", "begins", "ends"),
    [
        ("Europe/Berlin", (2026, 3, 29, 12), "2026-03-28T23:00:00+00:00", "2026-03-29T22:00:00+00:00"),
        ("Europe/Berlin", (2026, 10, 25, 12), "2026-10-24T22:00:00+00:00", "2026-10-25T23:00:00+00:00"),
        ("Asia/Kathmandu", (2026, 6, 1, 12), "2026-05-31T18:15:00+00:00", "2026-06-01T18:15:00+00:00"),
        ("Africa/Cairo", (2026, 4, 24, 12), "2026-04-23T22:00:00+00:00", "2026-04-24T21:00:00+00:00"),
        ("America/Havana", (2026, 11, 1, 12), "2026-11-01T04:00:00+00:00", "2026-11-02T05:00:00+00:00"),
        ("UTC", (2026, 12, 31, 23), "2026-12-31T00:00:00+00:00", "2027-01-01T00:00:00+00:00"),
    ],
)  # fmt: skip
def test_a_day_is_a_day_of_its_time_zone(zone: str, moment: tuple[int, ...], begins: str, ends: str) -> None:
    """23 and 25 hours; quarters of an hour off; days that begin at 01:00, and days whose first hour comes twice."""
    spend, since = windows(Budget(daily_nanousd=1, time_zone=zone), *moment, zone=zone)["day"]

    assert (iso(since), iso(spend.resets_at)) == (begins, ends)


def test_a_month_ends_where_the_next_begins_and_a_total_never() -> None:
    found = windows(Budget(monthly_nanousd=1, total_nanousd=1), 2026, 12, 31, 23)

    assert iso(found["month"][0].resets_at) == "2027-01-01T00:00:00+00:00"
    assert found["total"][0].resets_at == float("inf")


def test_a_refusal_says_when_it_ends_whatever_kind_of_window_it_is() -> None:
    found = windows(Budget(daily_nanousd=1, total_nanousd=1, rolling=((5, 1),)), 2026, 1, 1)

    said = {kind: quota_error(SpendRefusal(spend, 0, 0, 2), "x").message for kind, (spend, _) in found.items()}

    assert "resets 2026-01-02T00:00Z" in said["day"]
    assert "never resets" in said["total"]
    assert "leaves this window after 5 h" in said["rolling"]


async def test_every_scope_refuses_and_names_itself(make_kit: MakeKit) -> None:
    little = {"budget": {"daily_usd": 0.00000001}}
    ann = Principal(key_id="ci", tenant="acme", user="ann")
    for settings, name in (
        ({"users": {"ann": little}}, '"ann" (user, daily)'),
        ({"tenants": {"acme": little}}, '"acme" (tenant, daily)'),
        ({"global": little}, "of everyone (global, daily)"),
    ):
        refused = await make_kit(**settings).call(principal=ann)
        assert (refused.status, name in refused.json()["error"]["message"]) == (429, True)


async def test_a_rolling_window_is_restored_as_it_was_spent_and_not_as_of_now(make_kit: MakeKit) -> None:
    """1 call at 0:00, 2 at 4:00; after a restart at 4:30 the first leaves at 5:15 at the latest, and not with the others at 9:30."""
    ci, clock = Principal(key_id="ci", budget=Budget(rolling=((5, 10**9),))), FakeClock()
    first = make_kit(clock=clock)
    await first.call(ASKED, principal=ci)
    clock.advance(4 * 3600)
    await first.call(ASKED, principal=ci)
    await first.call(ASKED, principal=ci)
    await first.workshop.stores.records.flush()
    clock.advance(1800)

    second = make_kit(clock=clock)
    await second.call(ASKED, principal=ci)
    at_once = await second.workshop.stores.limits.held(["key:ci/rolling:5h"])
    clock.advance(2700 + 5 * 60 + 1)
    later = await second.workshop.stores.limits.held(["key:ci/rolling:5h"])

    assert (list(at_once), list(later)) == ([4 * ANSWER_NANOUSD], [3 * ANSWER_NANOUSD])


async def test_a_call_under_way_when_its_budget_comes_counts_in_it_once(make_kit: MakeKit) -> None:
    """A reload: another plugin on the same stores. What was under way ends in the old one."""
    asked, go_on, clock = asyncio.Event(), asyncio.Event(), FakeClock()
    limits = MemoryLimits(clock)

    async def slow(call: Any, attempt: Any) -> Any:
        asked.set()
        await go_on.wait()
        return answer()

    before, after = Principal(key_id="ci"), Principal(key_id="ci", budget=Budget(daily_nanousd=10**9))
    old = make_kit(provider=ScriptedProvider(answer, slow), limits=limits, clock=clock)
    await old.call(ASKED, principal=before)
    running = old.start(old.make_call(ASKED, principal=before))
    await asked.wait()
    await old.workshop.stores.records.flush()
    new = make_kit(limits=limits, clock=clock)

    await new.call(ASKED, principal=after)
    counted = list(await limits.held([DAY]))
    go_on.set()
    await running.task
    await old.plugin(budget.Plugin).stop()

    assert counted == [2 * ANSWER_NANOUSD]
    assert list(await limits.held([DAY])) == [3 * ANSWER_NANOUSD]


async def test_a_call_that_ends_while_its_new_budget_is_read_from_the_ledger_counts_in_it_once(
    make_kit: MakeKit,
) -> None:
    asked, go_on, reading, read_on, clock = (*(asyncio.Event() for _ in range(4)), FakeClock())
    limits = MemoryLimits(clock)

    async def slow(call: Any, attempt: Any) -> Any:
        asked.set()
        await go_on.wait()
        return answer()

    before = Principal(key_id="ci")
    after = Principal(key_id="ci", budget=Budget(daily_nanousd=10**9, total_nanousd=10**9))
    old = make_kit(provider=ScriptedProvider(slow), limits=limits, clock=clock)
    running = old.start(old.make_call(ASKED, principal=before))
    await asked.wait()
    new = make_kit(limits=limits, clock=clock)
    records = new.workshop.stores.records
    spent_in = records.spent_in

    async def slowly(*arguments: Any, **more: Any) -> int:
        reading.set()
        await read_on.wait()
        return await spent_in(*arguments, **more)

    records.spent_in = slowly

    first = new.start(new.make_call(ASKED, principal=after))
    await reading.wait()
    go_on.set()
    await running.task
    await old.workshop.stores.records.flush()
    read_on.set()
    await first.task
    await old.plugin(budget.Plugin).stop()
    await old.workshop.stores.records.flush()

    assert list(await limits.held([DAY, "key:ci/total"])) == [2 * ANSWER_NANOUSD] * 2
    assert await spent_in("key:ci") == 2 * ANSWER_NANOUSD


async def test_a_reload_to_another_time_zone_counts_the_day_of_that_zone(make_kit: MakeKit) -> None:
    """One window for both would have the wrong beginning, and in memory the wrong end."""
    clock = FakeClock()  # 2023-11-14 22:13 UTC
    limits = MemoryLimits(clock)
    utc = Principal(key_id="ci", budget=Budget(daily_nanousd=10**9))
    tokyo = Principal(key_id="ci", budget=Budget(daily_nanousd=10**9, time_zone="Asia/Tokyo"))
    kit = make_kit(limits=limits, clock=clock)
    await kit.call(ASKED, principal=utc)
    clock.advance(1.8 * 3600)  # the next day began at 15:00 in Tokyo, and has begun in UTC
    await kit.call(ASKED, principal=utc)
    await kit.call(ASKED, principal=tokyo)

    spent = await limits.held(["key:ci/day:2023-11-15", "key:ci/day:2023-11-15@Asia%2FTokyo"])
    assert list(spent) == [ANSWER_NANOUSD, 3 * ANSWER_NANOUSD]


async def test_a_call_over_midnight_is_paid_by_the_day_it_began_in_and_by_no_other(make_kit: MakeKit) -> None:
    ci, clock = Principal(key_id="ci", budget=Budget(daily_nanousd=10**9)), FakeClock()
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(call: Any, attempt: Any) -> Any:
        asked.set()
        await go_on.wait()
        return answer()

    kit = make_kit(provider=ScriptedProvider(slow), clock=clock)
    midnight = datetime(2023, 11, 15, tzinfo=UTC).timestamp()
    clock.advance(midnight - 5 - clock.time())
    running = kit.start(kit.make_call(ASKED, principal=ci))
    await asked.wait()
    clock.advance(10)
    another = kit.start(kit.make_call(ASKED, principal=ci))
    go_on.set()
    await asyncio.gather(running.task, another.task)
    records = kit.workshop.stores.records
    await records.flush()

    days = [DAY, "key:ci/day:2023-11-15"]
    assert list(await kit.workshop.stores.limits.held(days)) == [ANSWER_NANOUSD, ANSWER_NANOUSD]
    assert await records.spent_in("key:ci", since=midnight) == ANSWER_NANOUSD  # a restart would count the same


async def test_a_reservation_lives_as_long_as_its_call_may(make_kit: MakeKit) -> None:
    """A deadline that a plugin set further away must not end the reservation of a call that still runs."""
    clock, asked, go_on = FakeClock(), asyncio.Event(), asyncio.Event()

    class Patient:
        @hookimpl
        def prepare(self, call: Any) -> None:
            call.deadline = clock.monotonic() + 10_000

    async def slow(call: Any, attempt: Any) -> Any:
        asked.set()
        await go_on.wait()
        return answer()

    kit = make_kit(provider=ScriptedProvider(slow), clock=clock, plugins=[Patient])
    running = kit.start(kit.make_call(ASKED, principal=Principal(key_id="ci", budget=Budget(total_nanousd=10**9))))
    await asked.wait()
    clock.advance(5_000)
    go_on.set()
    await running.task

    assert list(await kit.workshop.stores.limits.held(["key:ci/total"])) == [ANSWER_NANOUSD]


async def test_many_first_calls_at_once_ask_the_ledger_once_and_the_first_may_leave(make_kit: MakeKit) -> None:
    kit = make_kit()
    records: Any = kit.workshop.stores.records
    asked: list[str] = []
    ask = records.spent_in

    async def spent_in(scope: str, **about: Any) -> int:
        asked.append(scope)
        return await ask(scope, **about)  # type: ignore[no-any-return]

    records.spent_in = spent_in
    ci = Principal(key_id="ci", budget=Budget(daily_nanousd=10**12))

    running = [kit.start(kit.make_call(ASKED, principal=ci)) for _ in range(50)]
    await asyncio.sleep(0)
    running[0].leave()
    await asyncio.gather(*(one.task for one in running), return_exceptions=True)

    assert asked == ["key:ci"]
    assert [one.delivered.status for one in running[1:]] == [200] * 49


def test_a_window_is_counted_by_the_key_s_id_and_told_by_its_name() -> None:
    principal = Principal(key_id="key_01a2", key_name="ann's laptop", budget=Budget(total_nanousd=1))

    (opened,) = windows_of(budgets_of(principal, {}), 0.0)

    assert opened.payer == "key:key_01a2"
    assert opened.window.spend.window == "key:key_01a2/total"
    assert opened.window.name == '"ann\'s laptop" (key, total)'
