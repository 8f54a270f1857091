"""Calls that wait for their turn in place of a 429: in order, fair, bounded, and gone at once when their client is.

The scripted provider holds every call until the test lets it go, so what frees a slot is the test."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest

from hookline import Call
from hookline.builtins.rate_limit import Plugin
from hookline.builtins.rate_limit.queue import Line, Waiter
from hookline.pipeline_settings import PipelineSettings
from hookline.plugin_host import Stores
from hookline.principal import Limits, Principal
from hookline.stores.memory import MemoryLimits
from hookline.testing.clock import FakeClock
from hookline.testing.kit import CHAT, PipelineKit, Running, ScriptedProvider, answer

HOST = {"tenants": {}, "users": {}, "global": {}, "server": {}, "models": []}
LONG_S = 600.0
SHORT = {**CHAT, "max_tokens": 10}


class Slots:
    """An upstream whose calls end when the test says so. `order` has the tenants (and models) in the order of their turns."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.running: list[asyncio.Event] = []
        self.most = 0
        self._begun = asyncio.Condition()

    async def send(self, call: Any, attempt: Any) -> Any:
        done = asyncio.Event()
        self.order.append(call.principal.tenant)
        self.running.append(done)
        self.most = max(self.most, len(self.running))
        async with self._begun:
            self._begun.notify_all()
        try:
            await done.wait()
        finally:
            if done in self.running:
                self.running.remove(done)
        return answer()

    async def wait_for(self, number: int) -> None:
        """Return when `number` calls have had their turn."""
        async with self._begun:
            await self._begun.wait_for(lambda: len(self.order) >= number)

    def end_one(self) -> None:
        self.running.pop(0).set()


class Queued:
    """A kit whose calls wait, and its upstream."""

    def __init__(self, settings: PipelineSettings | None = None, hook_timeout_s: float = 5.0, **options: Any) -> None:
        self.slots = Slots()
        clock = FakeClock()
        self.kit = PipelineKit(
            Plugin,
            providers=[ScriptedProvider(self.slots.send)],
            options={"rate_limit": {"max_wait_s": LONG_S, **options}},
            stores=Stores(MemoryLimits(clock), None, None),  # type: ignore[arg-type]
            host_settings=HOST,
            clock=clock,
            settings=settings,
            hook_timeout_s=hook_timeout_s,
        )

    def start(self, tenant: str = "acme", payload: dict[str, Any] | None = None, **limits: int) -> Running:
        principal = Principal(key_id=f"key-{tenant}", tenant=tenant, limits=Limits(**limits))
        return self.kit.start(self.kit.make_call(payload or SHORT, principal=principal))

    @property
    def length(self) -> int:
        return int(self.kit.metric("hookline_rate_limit_waiting_calls"))

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():  # noqa: ASYNC110 - ends by what the test has set going, or by the test's timeout
            await asyncio.sleep(0)

    async def until_waiting(self, number: int) -> None:
        await self.until(lambda: self.length == number)

    async def serve(self, count: int) -> None:
        """Let everybody have a turn, one after the other."""
        for number in range(1, count + 1):
            await self.slots.wait_for(number)
            self.slots.end_one()

    def assert_empty(self) -> None:
        queue = self.kit.plugin(Plugin)._queue
        assert (queue.lines, queue.length, self.length) == ({}, 0, 0)
        assert self.kit.workshop.stores.limits.in_flight == 0  # type: ignore[attr-defined]


async def test_calls_wait_for_a_slot_in_the_order_they_came_and_are_told_their_place() -> None:
    queued = Queued(**{"global": {"max_parallel": 1}})
    calls = [queued.start() for _ in range(5)]
    await queued.slots.wait_for(1)
    await queued.until_waiting(4)

    await queued.serve(5)
    seen = [await call.done() for call in calls]

    assert [d.status for d in seen] == [200] * 5
    assert queued.slots.most == 1
    assert [d.headers.get("x-hookline-queue-position") for d in seen] == [None, "1", "2", "3", "4"]
    assert "x-hookline-queue-wait-ms" in seen[4].headers
    assert queued.kit.metric("hookline_rate_limit_wait_seconds_count", outcome="admitted") == 4
    assert queued.kit.metric("hookline_rate_limited_total") == 0
    queued.assert_empty()


async def test_tenants_take_turns_however_many_calls_each_has() -> None:
    queued = Queued(**{"global": {"max_parallel": 1}})
    first = queued.start("first")
    await queued.slots.wait_for(1)
    calls = [first]
    for tenant, count in (("greedy", 8), ("modest", 2), ("late", 1)):
        calls += [queued.start(tenant) for _ in range(count)]
        await queued.until_waiting(len(calls) - 1)

    await queued.serve(12)
    seen = [await call.done() for call in calls]

    turns = ["greedy", "modest", "late", "greedy", "modest", *["greedy"] * 6]
    assert queued.slots.order == ["first", *turns]
    assert seen[-1].headers["x-hookline-queue-position"] == "3"
    assert seen[-2].headers["x-hookline-queue-position"] == "4"


async def test_tenants_share_tokens_not_calls() -> None:
    """One tenant's calls cost seven times the other's: it gets a seventh of the turns."""
    line = Line("global/tokens/minute")
    for tenant, count in (("large", 4), ("small", 16)):
        for _ in range(count):
            line.join(waiter := Waiter(tenant), is_first=False)
            waiter.number = line.length
    order = []
    while (waiter := line.find_next()) is not None:
        line.count(waiter, {"large": 700, "small": 100}[waiter.tenant])
        line.leave(waiter)
        order.append(waiter.tenant)

    assert order[:9] == ["large", *["small"] * 7, "large"]


async def test_nobody_overtakes_a_large_call_with_small_ones() -> None:
    queued = Queued(**{"global": {"tokens_per_minute": 1_000}})
    running = queued.start(payload={**CHAT, "max_tokens": 600})
    await queued.slots.wait_for(1)
    large = queued.start(payload={**CHAT, "max_tokens": 500})
    await queued.until_waiting(1)
    small = [queued.start(payload={**CHAT, "max_tokens": 1}) for _ in range(3)]
    await queued.until_waiting(4)
    assert len(queued.slots.order) == 1, "small ones would fit, but somebody waits"

    await queued.serve(5)

    seen = [await call.done() for call in (running, large, *small)]
    assert [d.status for d in seen] == [200] * 5
    queued.assert_empty()


async def test_a_full_queue_is_a_429_at_once() -> None:
    queued = Queued(max_queue=2, **{"global": {"max_parallel": 1}})
    calls = [queued.start() for _ in range(3)]
    await queued.slots.wait_for(1)
    await queued.until_waiting(2)

    refused = await queued.start().done()

    assert refused.status == 429
    assert "global: limit of 1 calls in parallel" in refused.json()["error"]["message"]
    assert "x-hookline-queue-position" not in refused.headers
    await queued.serve(3)
    assert [(await call.done()).status for call in calls] == [200] * 3
    queued.assert_empty()


async def test_a_call_waits_no_longer_than_max_wait_s() -> None:
    queued = Queued(max_wait_s=0.02, **{"global": {"max_parallel": 1}})
    running = queued.start()
    await queued.slots.wait_for(1)

    waiting = [queued.start() for _ in range(3)]
    refused = [await call.done() for call in waiting]

    assert [d.status for d in refused] == [429] * 3
    assert [d.headers["x-hookline-queue-position"] for d in refused] == ["1", "2", "3"]
    assert "in the queue" in refused[0].json()["error"]["message"]
    assert int(refused[0].headers["retry-after"]) >= 1
    assert queued.kit.metric("hookline_rate_limit_wait_seconds_count", outcome="refused") == 3
    queued.slots.end_one()
    assert (await running.done()).status == 200
    queued.assert_empty()


async def test_a_call_that_waiting_can_not_help_is_refused_at_once() -> None:
    queued = Queued(max_wait_s=5, **{"global": {"requests_per_minute": 1, "tokens_per_minute": 9_000}})
    running = queued.start()
    await queued.slots.wait_for(1)

    minute = await queued.start().done()
    never = await queued.start(payload={**CHAT, "max_tokens": 9_000}).done()

    assert [minute.status, never.status] == [429, 429]
    assert never.headers["x-should-retry"] == "false"
    queued.slots.end_one()
    await running.done()
    queued.assert_empty()


async def test_calls_wait_until_requests_leave_their_window() -> None:
    """Nothing is given back here: the turn comes by the time that the store has told."""
    queued = Queued(max_wait_s=30, **{"global": {"requests_per_second": 2}})
    calls = [queued.start() for _ in range(4)]
    await queued.slots.wait_for(2)
    await queued.until_waiting(2)
    queued.kit.clock.advance(1.1)  # the timer is the loop's and comes a second later

    await queued.serve(4)

    assert [(await call.done()).status for call in calls] == [200] * 4
    queued.assert_empty()


async def test_whoever_leaves_is_out_at_once_and_the_turn_goes_on() -> None:
    queued = Queued(**{"global": {"max_parallel": 1}})
    calls = [queued.start() for _ in range(6)]
    await queued.slots.wait_for(1)
    await queued.until_waiting(5)

    calls[1].leave()  # it stands first
    calls[3].leave()
    await queued.until_waiting(3)
    await queued.serve(4)
    await asyncio.gather(*(call.done() for call in calls))

    assert [call.delivered.status for call in calls] == [200, 0, 200, 0, 200, 200]
    assert queued.kit.metric("hookline_rate_limit_wait_seconds_count", outcome="gone") == 2
    queued.assert_empty()


@pytest.mark.parametrize("ticks", range(8))
async def test_a_call_that_leaves_just_when_its_turn_comes_holds_nobody_up(ticks: int) -> None:
    queued = Queued(**{"global": {"max_parallel": 1}})
    running, leaving, last = (queued.start() for _ in range(3))
    await queued.slots.wait_for(1)
    await queued.until_waiting(2)

    queued.slots.end_one()
    for _ in range(ticks):
        await asyncio.sleep(0)
    leaving.leave()
    await queued.until(lambda: last.task.done() or bool(queued.slots.running))
    while not last.task.done():
        if queued.slots.running:
            queued.slots.end_one()
        await asyncio.sleep(0)

    assert (await running.done()).status == (await last.done()).status == 200
    await leaving.done()
    queued.assert_empty()


async def test_the_deadline_of_a_call_ends_its_wait() -> None:
    queued = Queued(**{"global": {"max_parallel": 1}})
    running, late = queued.start(), queued.start()
    await queued.slots.wait_for(1)
    await queued.until_waiting(1)

    queued.kit.expire(late.call)

    assert (await late.done()).status == 504
    queued.slots.end_one()
    await running.done()
    queued.assert_empty()


async def test_waiting_is_not_charged_to_the_hooks_time_budget() -> None:
    queued = Queued(hook_timeout_s=0.001, max_wait_s=0.05, **{"global": {"max_parallel": 1}})
    running = queued.start()
    await queued.slots.wait_for(1)

    assert (await queued.start().done()).status == 429, "late would be a 500"

    queued.slots.end_one()
    await running.done()


async def test_whoever_is_refused_elsewhere_moves_there_and_lets_others_pass() -> None:
    """A and B wait for the gateway's slot; A's own slot is taken too when its turn comes."""
    queued = Queued(**{"global": {"max_parallel": 2}})
    a1 = queued.start("a", max_parallel=1)
    x1 = queued.start("x")
    await queued.slots.wait_for(2)
    a2 = queued.start("a", max_parallel=1)
    await queued.until_waiting(1)
    b1 = queued.start("b")
    await queued.until_waiting(2)

    queued.slots.running[1].set()  # x1 ends: the free slot is no use to a2
    await queued.slots.wait_for(3)

    assert queued.slots.order == ["a", "x", "b"]
    queued.slots.running[0].set()
    await queued.slots.wait_for(4)
    for done in list(queued.slots.running):
        done.set()
    assert [(await call.done()).status for call in (a1, x1, a2, b1)] == [200] * 4
    queued.assert_empty()


async def test_streams_that_wait_have_heartbeats() -> None:
    queued = Queued(PipelineSettings(heartbeat_s=0.01), **{"global": {"max_parallel": 1}})
    running = queued.start()
    await queued.slots.wait_for(1)
    waiting = queued.start(payload={**SHORT, "stream": True})

    await waiting.delivered.has_begun.wait()

    assert waiting.delivered.chunks[0] == b": waiting\n\n"
    assert queued.length == 1
    await queued.serve(2)
    assert (await running.done()).status == (await waiting.done()).status == 200
    queued.assert_empty()


async def test_hundreds_wait_and_everybody_is_served_or_gone() -> None:
    queued = Queued(max_queue=1_000, **{"global": {"max_parallel": 7}})
    calls = [queued.start(f"tenant-{n % 5}") for n in range(400)]
    await queued.slots.wait_for(7)
    await queued.until_waiting(393)
    for call in calls[7::3]:
        call.leave()

    while not all(call.task.done() for call in calls):
        if queued.slots.running:
            queued.slots.end_one()
        await asyncio.sleep(0)

    assert queued.slots.most == 7
    assert [call.delivered.status for call in calls].count(0) == len(calls[7::3])
    assert {call.delivered.status for call in calls} == {0, 200}
    queued.assert_empty()


@pytest.mark.parametrize("parallel", [1, 100])
async def test_calls_that_left_are_gone_without_the_garbage_collector(parallel: int) -> None:
    """From the queue, or from the upstream. What forms a cycle stays for a long time: the collector runs rarely in a gateway."""
    queued = Queued(**{"global": {"max_parallel": parallel}})
    running = queued.start()
    await queued.slots.wait_for(1)
    known = {id(thing) for thing in gc.get_objects() if type(thing) is Call}
    gc.disable()
    try:
        calls = [queued.start() for _ in range(50)]
        await queued.until(lambda: queued.length + len(queued.slots.running) == 51)
        for call in calls:
            call.leave()
        await asyncio.gather(*(call.done() for call in calls))
        queued.kit.providers["up"].sent.clear()
        del calls, call

        assert [thing for thing in gc.get_objects() if type(thing) is Call and id(thing) not in known] == []
    finally:
        gc.enable()
    running.leave()
    await running.done()
