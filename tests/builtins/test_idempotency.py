"""Calls with an Idempotency-Key, through the real pipeline: what runs once, what is replayed, what is refused."""

from __future__ import annotations

import asyncio

import pytest

from hookline import Principal, Unavailable, UpstreamError
from hookline.builtins import idempotency
from hookline.flights import Flights
from hookline.plugin_host import Stores
from hookline.stores.memory_flights import MemoryFlights
from hookline.testing.clock import FakeClock
from hookline.testing.kit import CHAT, PipelineKit, ScriptedProvider, answer, stream

DELTA = b'data: {"choices":[{"index":0,"delta":{"content":"ho"}}]}\n\n'
STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
KEY = {"idempotency-key": "order-1"}
STREAMED = {**CHAT, "stream": True}


def make_kit(*scripts, plugins=(), options=None, settings=None, stores=None) -> PipelineKit:
    return PipelineKit(
        *plugins,
        idempotency.Plugin,
        providers=[ScriptedProvider(*scripts)],
        options={"idempotency": options or {}},
        settings=settings,
        stores=stores,
    )


def sent(kit: PipelineKit) -> int:
    return len(kit.providers["up"].sent)


async def settled(rounds: int = 20) -> None:
    """Let everything that can run do so."""
    for _ in range(rounds):
        await asyncio.sleep(0)


async def test_the_second_call_gets_the_first_ones_reply_and_says_so():
    kit = make_kit()

    first, second = [await kit.call(headers=KEY) for _ in range(2)]

    assert (second.status, second.body, sent(kit)) == (200, first.body, 1)
    assert "x-hookline-replayed" not in first.headers
    assert second.headers["x-hookline-replayed"] == "true"
    assert second.headers["content-type"] == "application/json"
    assert kit.metric("hookline_idempotent_calls_total", part="replayed") == 1


async def test_without_the_header_every_call_runs():
    kit = make_kit()

    for _ in range(2):
        await kit.call()

    assert sent(kit) == 2


async def test_a_key_is_forgotten_after_its_time():
    kit = make_kit(options={"ttl_s": 60.0})
    await kit.call(headers=KEY)

    kit.clock.advance(61)
    await kit.call(headers=KEY)

    assert sent(kit) == 2


OTHERS = [
    {"headers": {"idempotency-key": "order-2"}},
    {"path": "/v1/completions"},
    {"principal": Principal("k", "k", tenant="other")},
]


@pytest.mark.parametrize("other", OTHERS)
async def test_another_key_path_or_tenant_is_another_call(other):
    kit = make_kit()
    await kit.call(headers=KEY)

    await kit.call(**{"headers": KEY, **other})

    assert sent(kit) == 2


@pytest.mark.parametrize("payload", [{**CHAT, "temperature": 1}, STREAMED])
async def test_another_body_with_the_same_key_is_a_409_that_is_not_retried(payload):
    kit = make_kit()
    await kit.call(headers=KEY)

    refused = await kit.call(payload, headers=KEY)

    assert (refused.status, refused.headers["x-should-retry"], sent(kit)) == (409, "false", 1)
    assert refused.json()["error"]["code"] == "idempotency_key_reused"
    assert "order-1" not in refused.body.decode()


@pytest.mark.parametrize("key", ["", " ", "x" * 256, "schlüssel", "a\tb"])
async def test_a_key_that_is_none_is_a_400(key):
    kit = make_kit()

    refused = await kit.call(headers={"idempotency-key": key})

    assert (refused.status, sent(kit)) == (400, 0)
    assert refused.json()["error"]["code"] == "invalid_idempotency_key"


async def test_reading_needs_no_key():
    kit = make_kit()

    for _ in range(2):
        await kit.call(method="GET", path="/v1/files", headers={"idempotency-key": ""})

    assert sent(kit) == 2


async def test_a_stream_is_replayed_as_the_same_bytes():
    kit = make_kit(lambda: stream(DELTA, STOP, DONE))

    first, second = [await kit.call(STREAMED, headers=KEY) for _ in range(2)]

    assert (second.body, sent(kit)) == (first.body, 1) == (DELTA + STOP + DONE, 1)
    assert second.headers["content-type"] == "text/event-stream"


@pytest.mark.parametrize(
    ("status", "is_kept"), [(400, True), (404, True), (422, True), (429, False), (500, False), (503, False)]
)
async def test_which_answers_of_an_upstream_are_kept(status, is_kept):
    kit = make_kit(lambda: answer(b'{"error":{"message":"no"}}', status))

    first, second = [await kit.call(headers=KEY) for _ in range(2)]

    assert (first.status, second.status, second.body) == (status, status, first.body)
    assert ("x-hookline-replayed" in second.headers, sent(kit)) == (is_kept, 1 if is_kept else 2)


@pytest.mark.parametrize(
    "events",
    [
        [DELTA],
        [DELTA, UpstreamError("gone", kind="reset")],
        [DELTA, b'data: {"error":{"message":"overloaded"}}\n\n', DONE],
    ],
)
async def test_a_stream_that_did_not_end_well_frees_its_key(events):
    kit = make_kit(lambda: stream(*events))

    for _ in range(2):
        await kit.call(STREAMED, headers=KEY)

    assert sent(kit) == 2


async def test_a_responses_stream_that_says_it_failed_frees_its_key():
    """It is complete, and still no answer."""
    failed = b'event: response.failed\ndata: {"type":"response.failed","response":{"id":"r","status":"failed"}}\n\n'
    kit = make_kit(lambda: stream(failed))
    payload = {"model": "up/m", "input": "hi", "stream": True}

    for _ in range(2):
        await kit.call(payload, path="/v1/responses", headers=KEY)

    assert sent(kit) == 2


async def test_a_plain_reply_longer_than_the_bound_is_not_kept():
    kit = make_kit(options={"max_entry_bytes": 64})

    for _ in range(2):
        assert (await kit.call(headers=KEY)).body == answer().body

    assert sent(kit) == 2


async def test_calls_in_flight_join_one_upstream_call():
    go = asyncio.Event()
    kit = make_kit(lambda: stream(DELTA, go, STOP, DONE))
    running = [kit.start(kit.make_call(STREAMED, headers=KEY)) for _ in range(20)]

    for call in running:
        await call.delivered.has_begun.wait()
    go.set()
    delivered = [await call.done() for call in running]

    assert {d.body for d in delivered} == {DELTA + STOP + DONE}
    assert ([d.headers.get("x-hookline-replayed") for d in delivered].count("true"), sent(kit)) == (19, 1)


async def test_in_flight_another_body_is_a_409_at_once():
    go = asyncio.Event()
    kit = make_kit(lambda: stream(DELTA, go, STOP, DONE))
    running = kit.start(kit.make_call(STREAMED, headers=KEY))
    await running.delivered.has_begun.wait()

    refused = await kit.call(headers=KEY)
    go.set()
    await running.done()

    assert (refused.status, sent(kit)) == (409, 1)


async def test_a_client_that_leaves_finds_the_reply_when_it_comes_again():
    go = asyncio.Event()
    kit = make_kit(lambda: stream(DELTA, go, STOP, DONE))
    running = kit.start(kit.make_call(STREAMED, headers=KEY))
    await running.delivered.has_begun.wait()

    running.leave()
    again = kit.start(kit.make_call(STREAMED, headers=KEY))
    await again.delivered.has_begun.wait()
    go.set()
    await asyncio.gather(running.done(), again.done())

    assert (again.delivered.body, sent(kit)) == (DELTA + STOP + DONE, 1)
    assert (await kit.call(STREAMED, headers=KEY)).body == DELTA + STOP + DONE
    assert sent(kit) == 1


async def test_a_reply_that_is_too_long_is_not_kept_and_can_not_be_joined():
    go = asyncio.Event()
    kit = make_kit(lambda: stream(DELTA, STOP, go, DONE), options={"max_entry_bytes": 64})
    running = kit.start(kit.make_call(STREAMED, headers=KEY))
    while len(running.delivered.chunks) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)

    refused = await kit.call(STREAMED, headers=KEY)
    go.set()
    await running.done()

    assert (refused.status, refused.json()["error"]["code"]) == (409, "idempotency_key_in_use")
    assert (refused.headers["retry-after"], "x-should-retry" in refused.headers) == ("1", False)
    assert (await kit.call(STREAMED, headers=KEY)).body == DELTA + STOP + DONE
    assert sent(kit) == 2


class AwayFlights(MemoryFlights):
    """A store that does not answer."""

    is_shared = True

    async def claim(self, key, claim, *, ttl_s):
        raise Unavailable("the shared store does not answer", retry_after_s=1.0)


class Records:
    """What the plugin asks of `records`: whether they answer."""

    def __init__(self, *, is_away: bool) -> None:
        self._is_away = is_away

    async def ping(self) -> None:
        if self._is_away:
            raise Unavailable("records do not answer", retry_after_s=0.5)


@pytest.mark.parametrize("away", ["flights", "records"])
async def test_a_store_that_is_away_is_a_503_for_calls_with_a_key_only(away):
    clock = FakeClock()
    flights = AwayFlights(clock) if away == "flights" else MemoryFlights(clock)
    kit = make_kit(stores=Stores(None, None, Records(is_away=away == "records"), Flights(flights, clock)))

    refused, plain = await kit.call(headers=KEY), await kit.call()

    assert (refused.status, refused.headers["retry-after"], plain.status) == (503, "1", 200)
