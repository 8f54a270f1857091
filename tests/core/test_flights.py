"""Flights: one upstream call, many readers, through the real pipeline and a plugin that shares every call of one model."""

from __future__ import annotations

import asyncio

import pytest

from hookline import (
    FlightMismatch,
    FlightRules,
    InsufficientQuota,
    Lead,
    RateLimited,
    Rejected,
    Reply,
    Skip,
    Slot,
    Unavailable,
    UpstreamError,
    hookimpl,
)
from hookline.flight import Flight
from hookline.flights import Flights
from hookline.pipeline_settings import PipelineSettings
from hookline.plugin_host import Stores
from hookline.stores.memory_flights import MemoryFlights
from hookline.testing.clock import FakeClock
from hookline.testing.kit import CHAT, Delivered, PipelineKit, ScriptedProvider, answer, make_plugin, stream

DELTA = b'data: {"choices":[{"index":0,"delta":{"content":"ho"}}]}\n\n'
STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
STREAMED = {**CHAT, "stream": True}
LEAD: Slot[Lead] = Slot("test_lead")
OTHER: Slot[Lead] = Slot("test_other_lead")


class Sharing:
    """Every call is the same call."""

    max_bytes = 10_000

    def __init__(self, options, host):
        self._flights = host.flights
        self._rules = FlightRules("sharing", "coalesced", self.max_bytes)

    @hookimpl
    async def lookup(self, call):
        found = await self._flights.board(call, b"key", self._rules)
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
        results.setdefault(call.id, result)
        if LEAD in call.slots:
            call[LEAD].close()


results = {}


@pytest.fixture(autouse=True)
def no_results():
    results.clear()


class Short(Sharing):
    max_bytes = 100


def make_kit(*scripts, plugins=(Sharing,), **settings):
    return PipelineKit(*plugins, providers=[ScriptedProvider(*scripts)], settings=PipelineSettings(**settings))


def sent(kit):
    return len(kit.providers["up"].sent)


def flights_of(kit):
    return kit.workshop.stores.flights


async def turns(number=30):
    """Let everything that can run do so."""
    for _ in range(number):
        await asyncio.sleep(0)


def start(kit, payload=STREAMED, **about):
    return kit.start(kit.make_call(payload), Delivered(**about))


async def begun(running):
    await running.delivered.has_begun.wait()
    return running


async def test_followers_get_the_first_byte_when_it_is_there_and_all_bytes_from_the_beginning():
    first, go = asyncio.Event(), asyncio.Event()
    kit = make_kit(lambda: stream(DELTA, first, DELTA, go, STOP, DONE))
    early = [start(kit) for _ in range(3)]
    for running in early:
        await begun(running)
    first.set()
    late = await begun(start(kit))
    assert [r.delivered.body for r in early[1:]] != [b""] * 2

    go.set()
    delivered = [await running.done() for running in (*early, late)]

    assert {d.body for d in delivered} == {DELTA + DELTA + STOP + DONE}
    assert (sent(kit), flights_of(kit).in_flight) == (1, 0)
    assert sorted(r.source for r in results.values()) == ["coalesced"] * 3 + ["upstream"]
    assert {r.cost_nanousd for r in results.values() if r.source == "coalesced"} == {0}


async def test_plain_replies_are_shared_too():
    go = asyncio.Event()

    async def slow(call, attempt):
        await go.wait()
        return answer()

    kit = make_kit(slow)
    running = [start(kit, CHAT) for _ in range(50)]
    await turns()

    go.set()
    delivered = [await r.done() for r in running]

    assert {(d.status, d.body) for d in delivered} == {(200, answer().body)}
    assert sent(kit) == 1


async def test_the_next_call_after_a_flight_has_ended_is_a_flight_of_its_own():
    kit = make_kit()

    for _ in range(2):
        await kit.call()

    assert sent(kit) == 2


@pytest.mark.parametrize("is_told", [True, False])
async def test_a_leader_that_leaves_mid_stream_cuts_nobody(is_told):
    go, closed = asyncio.Event(), []
    kit = make_kit(lambda: stream(DELTA, go, STOP, DONE, closed=closed))
    leader, follower = await begun(start(kit)), await begun(start(kit))

    leader.delivered.gone_after = 1
    if is_told:
        leader.leave()
    await turns()
    go.set()
    await asyncio.gather(leader.done(), follower.done())

    assert (follower.delivered.body, follower.delivered.error) == (DELTA + STOP + DONE, None)
    assert (results["req_1"].outcome, results["req_1"].usage is not None) == ("client_gone", True)
    assert (sent(kit), kit.pipeline.pumps.running, closed) == (1, 0, ["closed"])


async def test_a_leader_that_leaves_before_the_first_byte_cuts_nobody():
    go = asyncio.Event()

    async def slow(call, attempt):
        await go.wait()
        return answer()

    kit = make_kit(slow)
    leader, follower = start(kit, CHAT), start(kit, CHAT)
    await turns()

    leader.leave()
    await turns()
    go.set()
    await asyncio.gather(leader.done(), follower.done())

    assert (follower.delivered.status, sent(kit), leader.delivered.times) == (200, 1, 0)


@pytest.mark.parametrize("who_first", [0, 1])
async def test_when_the_last_reader_leaves_the_upstream_is_cancelled(who_first):
    closed = []
    kit = make_kit(lambda: stream(DELTA, asyncio.Event(), closed=closed))
    both = [await begun(start(kit)), await begun(start(kit))]

    both[who_first].leave()
    await turns()
    assert closed == []
    both[1 - who_first].leave()
    for running in both:
        await running.done()

    assert closed == ["closed"]
    assert {r.outcome for r in results.values()} == {"client_gone"}
    assert (flights_of(kit).in_flight, kit.pipeline.pumps.running) == (0, 0)


async def test_a_waiting_follower_that_leaves_lets_a_leader_without_client_end():
    cancelled = []

    async def never(call, attempt):
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(call.id)

    kit = make_kit(never)
    leader, follower = start(kit), start(kit)
    await turns()

    leader.leave()
    await turns()
    assert cancelled == []
    follower.leave()
    await asyncio.gather(leader.done(), follower.done())

    assert (cancelled, flights_of(kit).in_flight) == (["req_1"], 0)


async def test_a_leader_that_reads_slowly_holds_nobody():
    kit = make_kit(lambda: stream(DELTA, DELTA, STOP, DONE))
    slow = Delivered()
    slow.is_reading.clear()
    leader = kit.start(kit.make_call(STREAMED), slow)
    await begun(leader)

    follower = await start(kit).done()

    assert follower.body == DELTA + DELTA + STOP + DONE
    slow.is_reading.set()
    assert (await leader.done()).body == DELTA + DELTA + STOP + DONE


async def test_a_follower_that_reads_slowly_holds_nobody():
    go = asyncio.Event()
    kit = make_kit(lambda: stream(DELTA, go, DELTA, STOP, DONE))
    leader = await begun(start(kit))
    slow = start(kit)
    slow.delivered.is_reading.clear()
    await begun(slow)
    other = await begun(start(kit))

    go.set()
    assert (await other.done()).body == (await leader.done()).body == DELTA + DELTA + STOP + DONE
    slow.delivered.is_reading.set()

    assert (await slow.done()).body == DELTA + DELTA + STOP + DONE


BIG = b"x" * (1 << 20)


async def test_a_follower_that_is_more_than_the_bound_behind_is_cut():
    go = asyncio.Event()
    kit = make_kit(lambda: stream(DELTA, go, *[BIG] * 6, STOP, DONE), plugins=[Short])
    leader = await begun(start(kit))
    slow = start(kit)
    slow.delivered.is_reading.clear()
    await begun(slow)

    go.set()
    whole = (await leader.done()).body
    slow.delivered.is_reading.set()
    await slow.done()

    assert whole == DELTA + BIG * 6 + STOP + DONE
    assert (slow.delivered.body, results["req_2"].outcome) == (DELTA, "client_gone")


async def test_when_all_read_slowly_the_upstream_is_slowed_and_nobody_cut():
    go, sent_bytes = asyncio.Event(), []

    def body():
        async def chunks():
            yield DELTA
            await go.wait()
            for _ in range(12):
                sent_bytes.append(len(BIG))
                yield BIG
            yield STOP + DONE

        return Reply(200, {"content-type": "text/event-stream"}, chunks())

    kit = make_kit(body, plugins=[Short])
    both = [await begun(start(kit)), await begun(start(kit))]
    for running in both:
        running.delivered.is_reading.clear()

    go.set()
    await asyncio.sleep(0.1)
    assert sum(sent_bytes) <= 4 << 20
    for running in both:
        running.delivered.is_reading.set()

    assert {len((await running.done()).body) for running in both} == {len(DELTA + BIG * 12 + STOP + DONE)}


async def test_nobody_joins_when_the_beginning_is_gone():
    go = asyncio.Event()
    kit = make_kit(lambda: stream(DELTA, DELTA, go, STOP, DONE), plugins=[Short])
    leader = start(kit)
    while len(leader.delivered.chunks) < 2:
        await turns(1)

    late = await begun(start(kit))
    go.set()

    assert (await late.done()).body == (await leader.done()).body
    assert sent(kit) == 2


async def test_a_stream_that_is_cut_is_cut_for_all_with_one_error_event_and_no_clean_end():
    go = asyncio.Event()
    kit = make_kit(lambda: stream(DELTA, go, UpstreamError("gone", kind="reset")))
    both = [await begun(start(kit)), await begun(start(kit))]

    go.set()
    delivered = [await running.done() for running in both]

    for d in delivered:
        assert (d.body.count(b'"error"'), DONE in d.body, d.error is not None) == (1, False, True)
    assert {r.outcome for r in results.values()} == {"upstream_lost"}


@pytest.mark.parametrize("status", [400, 429, 500, 503])
async def test_an_upstreams_error_is_everybodys(status):
    go = asyncio.Event()

    async def failing(call, attempt):
        await go.wait()
        return answer(b'{"error":{"message":"no"}}', status, **{"retry-after": "7"})

    kit = make_kit(failing)
    running = [start(kit, CHAT) for _ in range(5)]
    await turns()
    go.set()
    delivered = [await r.done() for r in running]

    assert {(d.status, d.body, d.headers["retry-after"]) for d in delivered} == {
        (status, b'{"error":{"message":"no"}}', "7")
    }
    assert (sent(kit), {r.outcome for r in results.values()}) == (1, {"upstream_error"})


async def test_an_upstream_that_can_not_be_reached_is_everybodys():
    go = asyncio.Event()

    async def failing(call, attempt):
        await go.wait()
        raise UpstreamError("no route", kind="connect")

    kit = make_kit(failing)
    running = [start(kit, CHAT) for _ in range(5)]
    await turns()
    go.set()

    assert [(await r.done()).status for r in running] == [502] * 5
    assert sent(kit) == 1


async def after_some_turns(call, attempt):
    await turns()
    return answer()


def refusing(*ids, error):
    def admit_attempt(call, target, attempt):
        if call.id in ids:
            raise error

    return make_plugin("gate", admit_attempt=admit_attempt)


@pytest.mark.parametrize(
    "error",
    [
        Skip("budget", InsufficientQuota("spent")),
        Rejected(RateLimited("too many")),
    ],
)
async def test_a_leader_that_is_refused_leaves_the_lead_to_exactly_one(error):
    """Two leaders in a row are refused for reasons of their own."""
    go = asyncio.Event()

    async def waits(call):
        if call.id == "req_1":
            await call.wait(go.wait())

    waiting = make_plugin("waiting", lookup=waits)
    provider = ScriptedProvider(after_some_turns)
    kit = PipelineKit(Sharing, waiting, refusing("req_1", "req_2", error=error), providers=[provider])
    running = [start(kit, CHAT) for _ in range(6)]
    await turns()
    go.set()

    assert [(await r.done()).status for r in running] == [429, 429, 200, 200, 200, 200]
    assert (sent(kit), sorted(r.source for r in results.values()).count("coalesced")) == (1, 3)


async def test_a_leaders_own_deadline_before_the_first_byte_makes_another_one_lead():
    asked = asyncio.Event()

    async def slow(call, attempt):
        if call.id == "req_1":
            asked.set()
            await asyncio.Event().wait()
        return await after_some_turns(call, attempt)

    kit = make_kit(slow)
    running = [start(kit, CHAT) for _ in range(4)]
    await asked.wait()
    await turns()
    kit.expire(running[0].call)

    assert [(await r.done()).status for r in running] == [504, 200, 200, 200]
    assert sent(kit) == 2


async def test_a_leaders_own_deadline_mid_stream_ends_its_reply_only():
    go = asyncio.Event()
    kit = make_kit(lambda: stream(DELTA, go, STOP, DONE))
    hurried = kit.make_call(STREAMED)
    hurried.deadline = kit.clock.monotonic() + 0.1
    leader = await begun(kit.start(hurried))
    follower = await begun(start(kit))

    while leader.delivered.error is None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert b"deadline" in leader.delivered.body
    go.set()
    await leader.done()

    assert (await follower.done()).body == DELTA + STOP + DONE
    assert (sent(kit), results["req_1"].outcome, results["req_2"].outcome) == (1, "timeout", "ok")


async def test_a_leader_that_is_cancelled_from_outside_cuts_a_stream_and_vacates_before_it():
    """Shutdown."""
    kit = make_kit(lambda: stream(DELTA, asyncio.Event()), answer)
    leader, follower = await begun(start(kit)), await begun(start(kit))

    leader.task.cancel()
    await follower.done()

    assert (follower.delivered.body.count(b'"error"'), follower.delivered.error is not None) == (1, True)
    assert flights_of(kit).in_flight == 0


async def test_followers_pass_only_edits_of_plugins_listed_before():
    seen = []

    def marking(name):
        def edit_event(call, event):
            seen.append((call.id, name))
            value = event.json()
            if value is not None and value["choices"][0]["delta"].get("content"):
                value["choices"][0]["delta"]["content"] += name
                event.replace_json(value)
            return event

        return make_plugin(name, edit_event=edit_event)

    go = asyncio.Event()
    kit = make_kit(lambda: stream(DELTA, go, STOP, DONE), plugins=[marking("outer"), Sharing, marking("inner")])
    leader, follower = await begun(start(kit)), await begun(start(kit))
    go.set()

    bodies = [(await r.done()).body for r in (leader, follower)]

    assert bodies[0] == bodies[1]
    assert b"hoinnerouter" in bodies[0]
    assert {name for id, name in seen if id == "req_2"} == {"outer"}


async def test_a_leader_whose_pump_has_no_room_is_cut_with_its_followers():
    closed = []
    kit = make_kit(lambda: stream(DELTA, asyncio.Event(), closed=closed), max_pumps=0)
    leader, follower = await begun(start(kit)), await begun(start(kit))

    leader.leave()
    await asyncio.gather(leader.done(), follower.done())

    assert (closed, follower.delivered.error is not None) == (["closed"], True)


async def test_two_flights_of_one_call_share_its_audience():
    """As idempotency and cache do: who follows one of them keeps the leader going, and who follows none doesn't."""
    closed, go = [], asyncio.Event()

    class Other(Sharing):
        def __init__(self, options, host):
            self._flights = host.flights
            self._rules = FlightRules("other", "replay", 10_000)

        @hookimpl
        async def lookup(self, call):
            found = await self._flights.board(call, call.id.encode(), self._rules)
            call[OTHER] = found
            return found

        @hookimpl
        def edit_reply(self, call, reply):
            if OTHER in call.slots:
                call[OTHER].begin(reply)
            return reply

    kit = make_kit(lambda: stream(DELTA, go, STOP, DONE, closed=closed), plugins=[Other, Sharing])
    leader, follower = await begun(start(kit)), await begun(start(kit))

    leader.leave()
    await turns()
    assert closed == []
    go.set()

    assert (await follower.done()).body == DELTA + STOP + DONE
    assert sent(kit) == 1


class SlowStore(MemoryFlights):
    """Shared, and a claim takes its time."""

    is_shared = True

    async def claim(self, key, claim, *, ttl_s):
        await turns(5)
        return await super().claim(key, claim, ttl_s=ttl_s)


async def test_who_waits_while_a_second_flight_is_claimed_keeps_its_leader_going():
    go, clock = asyncio.Event(), FakeClock()

    class Other(Sharing):
        def __init__(self, options, host):
            self._flights = host.flights
            self._rules = FlightRules("other", "replay", 10_000)

        @hookimpl
        async def lookup(self, call):
            if call.id == "req_1":
                call[OTHER] = await self._flights.board(call, b"other", self._rules)
            return call.find(OTHER)

    provider = ScriptedProvider(lambda: stream(DELTA, go, STOP, DONE))
    stores = Stores(None, None, None, Flights(SlowStore(clock), clock))
    kit = PipelineKit(Other, Sharing, providers=[provider], stores=stores, clock=clock)
    leader = start(kit)
    await turns(8)  # it has the first flight, and claims the second
    follower = start(kit)
    await begun(follower)

    leader.leave()
    await turns()
    go.set()

    assert (await follower.done()).body == DELTA + STOP + DONE
    await leader.done()
    await flights_of(kit).aclose()


class LostStore(SlowStore):
    """Goes away between a claim and its release."""

    async def release(self, key, claim, *, unless_wanted):
        raise Unavailable("the shared store is away")


async def test_a_claim_that_can_not_be_given_up_is_no_error_of_the_call(caplog):
    """Regression: while Redis was down, every call that led said so at ERROR, though claims end by themselves."""
    clock = FakeClock()
    stores = Stores(None, None, None, Flights(LostStore(clock), clock))
    kit = PipelineKit(Sharing, providers=[ScriptedProvider(answer())], stores=stores, clock=clock)

    assert (await start(kit, CHAT).done()).status == 200

    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []
    assert flights_of(kit).in_flight == 0
    await flights_of(kit).aclose()


async def test_many_leave_at_any_moment_and_nothing_is_left():
    """A hundred calls, each leaves after another number of turns; whoever stays gets everything."""
    kit = make_kit(lambda: stream(*[DELTA] * 5, STOP, DONE))
    running = [start(kit) for _ in range(100)]
    for index, r in enumerate(running):
        if index % 3:
            asyncio.get_running_loop().call_later(0.0005 * (index % 17), r.leave)

    delivered = [await r.done() for r in running]

    assert {d.body for d in delivered[::3]} == {DELTA * 5 + STOP + DONE}
    assert (flights_of(kit).in_flight, kit.pipeline.pumps.running, kit.pipeline.running) == (0, 0, 0)


class LateStore(MemoryFlights):
    """Says what it has kept when `go` is set."""

    def __init__(self):
        super().__init__(FakeClock())
        self.go = asyncio.Event()
        self.kept = b""

    async def read(self, key):
        await self.go.wait()
        return self.kept


async def test_a_call_of_another_note_that_asks_first_does_not_turn_the_right_one_away():
    """Regression: while the store was asked, the note of who asked first counted as the key's."""
    store, rules = LateStore(), FlightRules("test", "replay", 1_000, keep_s=60)
    kept = Flight(b"test:k", rules, form="", note=b"right")
    kept.begin(200, {"content-type": "application/json"}, b"{}")
    store.kept = kept.head(0.0) + b"{}"
    flights, kit = Flights(store, FakeClock()), make_kit(answer())
    boarding = [
        asyncio.ensure_future(flights.board(kit.make_call(), b"k", rules, note=note)) for note in (b"wrong", b"right")
    ]
    for _ in range(5):
        await asyncio.sleep(0)

    store.go.set()

    wrong, right = await asyncio.gather(*boarding, return_exceptions=True)
    assert isinstance(wrong, FlightMismatch)
    assert isinstance(right, Reply)
    assert right.body == b"{}"
