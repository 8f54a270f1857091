"""Coalescing of what may be cached, through the real pipeline: budgets, limits, log and metrics see what the issue says."""

from __future__ import annotations

import asyncio
import gc

import pytest

from hookline import Budget, Call, InsufficientQuota, Principal, Skip, to_nanousd
from hookline.builtins import budget, cache, idempotency, metrics, rate_limit
from hookline.plugin_host import Stores
from hookline.principal import Limits
from hookline.stores.memory import MemoryLimits, MemoryReplies
from hookline.stores.sqlite import SqliteRecords
from hookline.tape import Tape
from hookline.testing.clock import FakeClock
from hookline.testing.kit import NoRecords, PipelineKit, ScriptedProvider, answer, make_plugin, stream

COLD = {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": "hi"}]}
HOT = {**COLD, "temperature": 1}
DELTA = b'data: {"choices":[{"index":0,"delta":{"content":"ho"}}]}\n\n'
STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


class World:
    """Model "m" at an upstream that answers when `go` is set."""

    def __init__(self, *plugins, reply=answer, options=None, records=None):
        self.go = asyncio.Event()
        self.results = {}
        self.clock = FakeClock()

        async def send(call, attempt):
            await self.go.wait()
            return reply()

        self.up = ScriptedProvider(send)
        results = self.results

        def call_ended(call, result):
            results[call.id] = result

        self.kit = PipelineKit(
            *(plugins or (cache.Plugin,)),
            make_plugin("watch", call_ended=call_ended),
            providers=[self.up],
            deployments={"m": ["up/m"]},
            stores=Stores(MemoryLimits(self.clock), MemoryReplies(self.clock), records or NoRecords()),
            clock=self.clock,
            options=options,
        )

    async def all(self, *calls):
        """Start them together, let the upstream answer, and return what was delivered."""
        running = [self.kit.start(call) for call in calls]
        for _ in range(50):
            await asyncio.sleep(0)
        self.go.set()
        return [await r.done() for r in running]

    def make(self, number, payload=COLD, **about):
        return [self.kit.make_call(payload, **about) for _ in range(number)]


@pytest.mark.parametrize(
    ("payload", "path", "upstream_calls"),
    [
        (COLD, "/v1/chat/completions", 1),
        ({"model": "m", "input": "x"}, "/v1/embeddings", 1),
        (HOT, "/v1/chat/completions", 10),
        ({**COLD, "store": True}, "/v1/chat/completions", 10),
    ],
)
async def test_exactly_what_may_be_cached_is_coalesced(payload, path, upstream_calls):
    world = World()

    delivered = await world.all(*world.make(10, payload, path=path))

    assert {d.status for d in delivered} == {200}
    assert len(world.up.sent) == upstream_calls


@pytest.mark.parametrize(
    "headers", [{"cache-control": "no-cache"}, {"cache-control": "no-store"}, {"x-hookline-cache": "bypass"}]
)
async def test_who_asks_anew_does_not_follow(headers):
    world = World()

    await world.all(*world.make(2), *world.make(2, headers=headers))

    assert len(world.up.sent) == 3


async def test_it_can_be_switched_off():
    world = World(options={"cache": {"coalesce": False}})

    await world.all(*world.make(3))

    assert len(world.up.sent) == 3


async def test_what_followers_say_and_cost():
    world = World(cache.Plugin, metrics.Plugin)

    delivered = await world.all(*world.make(4))

    assert [d.headers["x-hookline-cache"] for d in delivered] == ["miss", "hit", "hit", "hit"]
    assert [d.headers.get("age") for d in delivered] == [None, "0", "0", "0"]
    assert {d.body for d in delivered} == {answer().body}
    assert [r.source for r in world.results.values()].count("coalesced") == 3
    assert sum(r.cost_nanousd for r in world.results.values()) == 20_000  # 10 tokens in, 5 out, once
    assert world.kit.metric("hookline_cache_total", model="m", status="coalesced") == 3


async def test_a_follower_counts_as_a_request_and_holds_a_slot_and_no_tokens():
    limits = Limits(requests_per_minute=3, tokens_per_minute=2_000, max_parallel=3)
    principal = Principal("k", "k", limits=limits)
    world = World(rate_limit.Plugin, cache.Plugin)

    delivered = await world.all(*world.make(4, {**COLD, "max_tokens": 500}, principal=principal))

    assert [d.status for d in delivered] == [200, 200, 200, 429]
    used = [int(d.headers["x-ratelimit-remaining-tokens"]) for d in delivered[:3]]
    assert used[0] > used[-1]
    left = await world.kit.workshop.stores.limits.take("probe", [], [], expires_s=1)
    assert list(left) == []
    assert world.kit.workshop.stores.limits.in_flight == 1  # the probe


async def test_tenants_do_not_share():
    world = World()
    tenants = [Principal("k", "k", tenant=name) for name in ("a", "b")]

    await world.all(*(world.kit.make_call(COLD, principal=tenants[n % 2]) for n in range(6)))

    assert len(world.up.sent) == 2


async def test_after_a_flight_the_next_call_is_a_hit():
    world = World()
    await world.all(*world.make(3))

    again = await world.kit.call(COLD)

    assert (again.headers["x-hookline-cache"], len(world.up.sent)) == ("hit", 1)
    assert world.kit.workshop.stores.flights.in_flight == 0


async def test_a_leader_refused_by_its_budget_hands_over_and_the_rest_is_found_in_the_cache_if_it_is_late():
    """The next leader is done before the others look: they find its reply where it is kept."""

    def admit_attempt(call, target, attempt):
        if call.id == "req_1":
            raise Skip("spent", InsufficientQuota("spent"))

    async def lookup(call):
        if call.id == "req_1":
            await call.wait(world.go.wait())

    world = World(cache.Plugin, make_plugin("gate", lookup=lookup, admit_attempt=admit_attempt))

    delivered = await world.all(*world.make(5))

    assert [d.status for d in delivered] == [429, 200, 200, 200, 200]
    assert len(world.up.sent) == 1


async def test_streams_are_shared_as_they_come():
    go = asyncio.Event()
    world = World(reply=lambda: stream(DELTA, go, STOP, DONE))
    world.go.set()
    running = [world.kit.start(call) for call in world.make(5, {**COLD, "stream": True})]
    for each in running:
        await each.delivered.has_begun.wait()

    go.set()

    assert {(await r.done()).body for r in running} == {DELTA + STOP + DONE}
    assert len(world.up.sent) == 1


async def test_a_stream_that_has_ended_leaves_nothing_for_the_garbage_collector():
    world = World(reply=lambda: stream(DELTA, STOP, DONE))
    world.go.set()
    gc.collect()
    before = [id(one) for one in gc.get_objects() if isinstance(one, Call | Tape)]  # of other tests
    gc.disable()
    try:
        assert (await world.all(*world.make(1, {**COLD, "stream": True})))[0].body == DELTA + STOP + DONE
        world.up.sent.clear()
        world.results.clear()
        await asyncio.sleep(0)
        assert not [left for left in gc.get_objects() if isinstance(left, Call | Tape) and id(left) not in before]
    finally:
        gc.enable()


async def test_an_idempotent_call_can_follow_and_its_replay_is_its_own():
    """Two keys, one question: one upstream call, and each key has its reply."""
    world = World(idempotency.Plugin, cache.Plugin)
    calls = [world.kit.make_call(COLD, headers={"idempotency-key": f"k{n}"}) for n in range(3)]

    first = await world.all(*calls)
    again = [await world.kit.call(COLD, headers={"idempotency-key": f"k{n}"}) for n in range(3)]

    assert {d.body for d in (*first, *again)} == {answer().body}
    assert [d.headers.get("x-hookline-replayed") for d in again] == ["true"] * 3
    assert len(world.up.sent) == 1


@pytest.fixture
async def paid_world(tmp_path):
    """A world with budgets, whose followers pay or don't."""
    records = SqliteRecords(tmp_path / "ledger.db")

    def make(pay, reply=answer):
        world = World(
            cache.Plugin, budget.Plugin, reply=reply, options={"cache": {"coalesce_pay": pay}}, records=records
        )
        return world, world.kit.workshop.stores

    yield make
    await records.aclose()


def payer(name, usd=1.0):
    return Principal(key_id=name, key_name=name, budget=Budget(total_nanousd=to_nanousd(usd)))


COST = 10 * 1_000 + 5 * 2_000
"""10 tokens in at 1 USD and 5 out at 2 USD per million, in nano-dollars."""


@pytest.mark.parametrize(("pay", "spent"), [("leader", [COST, 0, 0]), ("each", [COST, COST, COST])])
async def test_the_leader_pays_or_each_in_its_own_budget(paid_world, pay, spent):
    world, stores = paid_world(pay)
    calls = [world.kit.make_call({**COLD, "max_tokens": 50}, principal=payer(name)) for name in "abc"]

    delivered = await world.all(*calls)

    assert ({d.status for d in delivered}, len(world.up.sent)) == ({200}, 1)
    assert list(await stores.limits.held([f"key:{name}/total" for name in "abc"])) == spent
    assert [to_nanousd(float(d.headers["x-hookline-cost-usd"])) for d in delivered] == spent
    assert [world.results[call.id].cost_nanousd for call in calls] == spent
    assert stores.limits.in_flight == 0
    await stores.records.flush()
    assert [await stores.records.spent_in(f"key:{name}") for name in "abc"] == spent


async def test_with_each_a_follower_whose_budget_does_not_fit_is_refused_and_nobody_else(paid_world):
    world, stores = paid_world("each")
    payers = [payer("a"), payer("poor", 0.000_001), payer("c")]
    calls = [world.kit.make_call({**COLD, "max_tokens": 50}, principal=p) for p in payers]

    delivered = await world.all(*calls)

    assert [d.status for d in delivered] == [200, 429, 200]
    assert delivered[1].json()["error"]["code"] == "insufficient_quota"
    assert len(world.up.sent) == 1
    assert list(await stores.limits.held(["key:poor/total"])) == [0]


async def test_with_each_a_follower_of_a_stream_pays_what_it_cost(paid_world):
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}}\n\n'
    go = asyncio.Event()
    world, stores = paid_world("each", lambda: stream(DELTA, go, STOP, usage, DONE))
    world.go.set()
    payload = {**COLD, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 50}
    running = []
    for name in "ab":
        running.append(world.kit.start(world.kit.make_call(payload, principal=payer(name))))
        await running[-1].delivered.has_begun.wait()
    assert all(n > COST for n in await stores.limits.held(["key:a/total", "key:b/total"])), "reserved by the bound"

    go.set()
    for each in running:
        assert b'"cost_usd":0.00002}' in (await each.done()).body
    assert [result.cost_nanousd for result in world.results.values()] == [COST, COST]

    assert list(await stores.limits.held(["key:a/total", "key:b/total"])) == [COST, COST]


USAGE = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}}\n\n'
NAMED = DELTA.replace(b'{"choices"', b'{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices"')
NAMED_STOP = STOP.replace(
    b'{"choices"', b'{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices"'
)


@pytest.mark.parametrize("leads", ["stream", "plain"])
async def test_a_stream_and_a_plain_call_of_one_question_are_one_upstream_call(leads):
    """Who can't read along waits for the end, and is told what was kept in its own form."""
    world = World(reply=lambda: stream(NAMED, NAMED_STOP, USAGE, DONE) if leads == "stream" else answer())
    payloads = [{**COLD, "stream": True, "stream_options": {"include_usage": True}}, COLD]
    if leads == "plain":
        payloads.reverse()

    delivered = await world.all(*(world.kit.make_call(payload) for payload in payloads * 3))

    assert len(world.up.sent) == 1
    plain = [d for d in delivered if d.headers["content-type"].startswith("application/json")]
    streams = [d for d in delivered if d.headers["content-type"].startswith("text/event-stream")]
    assert {d.json()["choices"][0]["message"]["content"] for d in plain} == {"ho"}
    assert (len(plain), {d.body.count(b'"ho"') for d in streams}, {d.body.endswith(DONE) for d in streams}) == (
        3,
        {1},
        {True},
    )


async def test_an_error_is_everybodys_in_whatever_form_they_asked():
    world = World(reply=lambda: answer(b'{"error":{"message":"no"}}', 400))

    delivered = await world.all(*world.make(2, {**COLD, "stream": True}), *world.make(2))

    assert ([d.status for d in delivered], len(world.up.sent)) == ([400] * 4, 1)


async def test_a_whole_reply_longer_than_an_entry_reaches_those_who_wait():
    big = answer(answer().body.replace(b'"ho"', b'"' + b"x" * 5_000 + b'"'))
    world = World(reply=lambda: answer(big.body), options={"cache": {"max_entry_bytes": 1_000}})

    delivered = await world.all(*world.make(5))

    assert ({d.body for d in delivered}, len(world.up.sent)) == ({big.body}, 1)
    await world.kit.call(COLD)
    assert len(world.up.sent) == 2, "it is not kept"


async def test_a_caller_never_reads_another_callers_metadata():
    body = b'{"id":"resp_1","object":"response","status":"completed","metadata":{"who":"%s"},"output":[]}'

    def reply_for(call, attempt):
        return answer(body % call.payload["metadata"]["who"].encode())

    world = World()

    async def send(call, attempt):
        await world.go.wait()
        return reply_for(call, attempt)

    world.up.scripts = [send]
    payload = {"model": "m", "input": "hi", "temperature": 0, "store": False}
    calls = [
        world.kit.make_call({**payload, "metadata": {"who": who}}, path="/v1/responses")
        for who in ("ann", "bob", "ann")
    ]

    delivered = await world.all(*calls)

    assert [d.json()["metadata"]["who"] for d in delivered] == ["ann", "bob", "ann"]
    assert len(world.up.sent) == 1
