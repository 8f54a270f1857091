"""What an attempt costs, by how it ended: the table of charges.py, each row through the real pipeline into a real ledger."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson
import pytest

from hookline import Budget, Price, Principal, Reply, Retry, Target, UpstreamError, hookimpl
from hookline.testing.kit import CHAT, PRICE, PipelineKit, ScriptedProvider, answer, stream

MakeKit = Callable[..., PipelineKit]
ASKED = {**CHAT, "max_tokens": 100}
PAYER = Principal(key_id="ci", tenant="acme", budget=Budget(daily_nanousd=10**12))
DELTA = b'data: {"choices":[{"index":0,"delta":{"content":"ho"},"finish_reason":null}]}\n\n'
STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5}}\n\n'
PARTIAL = (
    b'data: {"choices":[{"index":0,"delta":{"content":"o"}}],"usage":{"prompt_tokens":10,"completion_tokens":1}}\n\n'
)
DONE = b"data: [DONE]\n\n"
EXACT = 10 * 1_000 + 5 * 2_000
BODY_BYTES = len(orjson.dumps(ASKED))
INPUT_BOUND = (BODY_BYTES + 16) * 1_000
RESERVATION = INPUT_BOUND + 100 * 2_000
NO_USAGE = orjson.dumps({"id": "x", "choices": [{"message": {"content": "ho"}, "finish_reason": "stop"}]})
LOST = UpstreamError("gone", kind="reset", is_written=True)
CALL = Price(call_nanousd=777)


class Row(NamedTuple):
    cost: int | None
    is_estimated: bool


async def booked(kit: PipelineKit, path: Any) -> list[Row]:
    await kit.workshop.stores.records.flush()
    connection = sqlite3.connect(path / "ledger.db")
    rows = [
        Row(cost, bool(flag))
        for cost, flag in connection.execute("SELECT cost_nanousd, is_estimated FROM ledger ORDER BY rowid")
    ]
    connection.close()
    return rows


def binary() -> Reply:
    async def body():
        yield b"\x00" * 10

    return Reply(200, {"content-type": "audio/mpeg"}, body())


@pytest.mark.parametrize(
    ("script", "payload", "price", "expected"),
    [
        pytest.param(answer, ASKED, PRICE, Row(EXACT, False), id="complete with usage: exact"),
        pytest.param(UpstreamError("no", kind="connect", is_written=False), ASKED, PRICE, None, id="never written: 0"),
        pytest.param(lambda: answer(b"{}", 400), ASKED, PRICE, None, id="a complete 400: 0"),
        pytest.param(lambda: answer(b"{}", 429), ASKED, PRICE, None, id="a complete 429: 0"),
        pytest.param(lambda: answer(b"{}", 503), ASKED, PRICE, None, id="a complete 503: 0"),
        pytest.param(lambda: answer(b"{}", 307), ASKED, PRICE, Row(0, False), id="a complete redirect: 0"),
        pytest.param(LOST, ASKED, PRICE, Row(RESERVATION, True), id="no reply: the reservation"),
        pytest.param(
            UpstreamError("late", kind="first_byte_timeout"), ASKED, PRICE, Row(RESERVATION, True), id="timeout: the reservation"
        ),
        pytest.param(
            lambda: stream(DELTA, STOP, USAGE, DONE), {**ASKED, "stream": True}, PRICE, Row(EXACT, False), id="stream with usage: exact"
        ),
        pytest.param(lambda: answer(NO_USAGE), ASKED, PRICE, Row(INPUT_BOUND + len(NO_USAGE) * 2_000, True), id="2xx without usage: input bound + bytes"),
        pytest.param(lambda: answer(NO_USAGE), ASKED, CALL, Row(777, False), id="2xx without usage: the call price"),
        pytest.param(LOST, ASKED, CALL, Row(777, True), id="no reply where calls have a price"),
        pytest.param(binary, ASKED, PRICE, Row(RESERVATION, True), id="binary: the reservation"),
    ],
)  # fmt: skip
async def test_an_end_costs_what_the_table_says(
    make_kit: MakeKit, tmp_path: Any, script: Any, payload: Any, price: Price, expected: Row | None
) -> None:
    kit = make_kit(provider=ScriptedProvider(script), price=price)

    await kit.call(payload, principal=PAYER)

    rows = await booked(kit, tmp_path)
    assert rows == ([] if expected is None else [expected])
    assert list(await kit.workshop.stores.limits.held(["key:ci/day:2023-11-14"])) == [
        sum(row.cost or 0 for row in rows)
    ]


STREAMED = {**ASKED, "stream": True, "max_tokens": 10_000}


@pytest.mark.parametrize(
    ("events", "members", "output_tokens"),
    [
        pytest.param([DELTA, STOP, DONE], {}, len("ho"), id="usage is missing"),
        pytest.param([DELTA, LOST], {}, len("ho"), id="cut"),
        pytest.param([DELTA, PARTIAL, LOST], {}, len("hoo"), id="cut after a usage on the way"),
        pytest.param([DELTA, LOST], {"max_tokens": 1}, 1, id="cut, never above the limit"),
        pytest.param([DELTA, LOST], {"reasoning_effort": "high"}, 10_000, id="cut, and it may have thought unseen"),
    ],
)
async def test_a_stream_without_its_usage_costs_what_was_seen(
    make_kit: MakeKit, tmp_path: Any, events: Any, members: Any, output_tokens: int
) -> None:
    payload = {**STREAMED, **members}
    kit = make_kit(provider=ScriptedProvider(lambda: stream(*events)))

    await kit.call(payload, principal=PAYER)

    (row,) = await booked(kit, tmp_path)
    assert row == Row((len(orjson.dumps(payload)) + 16) * 1_000 + output_tokens * 2_000, True)


async def test_the_calls_cost_is_what_the_ledger_charged(make_kit: MakeKit) -> None:
    ended: list[Any] = []

    class Watch:
        @hookimpl
        def call_ended(self, call: Any, result: Any) -> None:
            ended.append((result.cost_nanousd, result.is_estimated))

    kit = make_kit(provider=ScriptedProvider(LOST), plugins=[Watch])

    delivered = await kit.call(ASKED, principal=PAYER)

    assert ended == [(RESERVATION, True)]
    assert round(float(delivered.headers["x-hookline-cost-usd"]) * 10**9) == RESERVATION


async def test_without_a_budget_an_unpriced_call_is_booked_as_unknown_and_a_lost_one_by_its_bound(
    make_kit: MakeKit, tmp_path: Any
) -> None:
    nobody = Principal(key_id="free")

    unknown = await make_kit(price=None).call(ASKED, principal=nobody)
    kit = make_kit(provider=ScriptedProvider(LOST))
    await kit.call(ASKED, principal=nobody)

    assert "x-hookline-cost-usd" not in unknown.headers
    assert (await booked(kit, tmp_path))[-1] == Row(RESERVATION, True)


async def test_a_failed_attempt_and_the_one_after_it_are_both_paid(make_kit: MakeKit, tmp_path: Any) -> None:
    class Again:
        @hookimpl
        def after_failure(self, call: Any, attempt: Any) -> Any:
            return Retry() if len(call.attempts) == 1 else None

    kit = make_kit(provider=ScriptedProvider(LOST, answer), plugins=[Again])

    delivered = await kit.call(ASKED, principal=PAYER)

    assert [row.cost for row in await booked(kit, tmp_path)] == [RESERVATION, EXACT]
    assert round(float(delivered.headers["x-hookline-cost-usd"]) * 10**9) == RESERVATION + EXACT


async def test_a_cache_hit_costs_nothing_and_says_so_in_streams_too(make_kit: MakeKit) -> None:
    told = {**ASKED, "stream": True, "stream_options": {"include_usage": True}}
    kept: list[bytes] = []

    class Keep:
        @hookimpl
        async def lookup(self, call: Any) -> Reply | None:
            if not kept:
                return None

            async def body():
                for at in range(0, len(kept[0]), 7):  # not at the ends of events
                    yield kept[0][at : at + 7]

            return Reply(200, {"content-type": "text/event-stream"}, body(), source="cache")

    kit = make_kit(provider=ScriptedProvider(lambda: stream(DELTA, STOP, USAGE, DONE)), plugins=[Keep])

    first = await kit.call(told, principal=PAYER)
    kept.append(first.body)
    second = await kit.call(told, principal=PAYER)

    assert first.body == DELTA + STOP + USAGE.replace(b"5}}", b'5,"cost_usd":0.00002}}') + DONE
    assert second.body.count(b'"cost_usd":0.00') == 1
    assert second.body.replace(b"0.00}", b"0.00002}") == first.body
    assert "x-hookline-cost-usd" not in {**first.headers, **second.headers}


async def test_whole_cache_hit_says_zero_in_its_header(make_kit: MakeKit) -> None:
    class Keep:
        @hookimpl
        def lookup(self, call: Any) -> Reply:
            return Reply(200, {"content-type": "application/json"}, b"{}", source="cache")

    delivered = await make_kit(plugins=[Keep]).call(ASKED, principal=PAYER)

    assert delivered.headers["x-hookline-cost-usd"] == "0.00"


TOOLS = PRICE.with_tools((("web_search", 10_000_000),))
SEARCHES = {"id": "r", "usage": {"input_tokens": 10, "output_tokens": 5}, "output": [{"type": "web_search_call"}] * 2}


@pytest.mark.parametrize("is_stream", [False, True])
async def test_hosted_tools_are_charged_as_often_as_they_ran(make_kit: MakeKit, tmp_path: Any, is_stream: bool) -> None:
    end = b"data: %b\n\n" % orjson.dumps({"type": "response.completed", "sequence_number": 1, "response": SEARCHES})
    kit = make_kit(
        provider=ScriptedProvider(lambda: stream(end) if is_stream else answer(orjson.dumps(SEARCHES))), price=TOOLS
    )
    payload = {
        "model": "up/m",
        "input": "x",
        "tools": [{"type": "web_search"}],
        "stream": is_stream,
        "max_output_tokens": 10,
    }
    soft = Principal(key_id="ci", budget=Budget(daily_nanousd=10**12, mode="soft"))

    refused = await kit.call(payload, path="/v1/responses", principal=PAYER)
    await kit.call({**payload, "max_tool_calls": 5}, path="/v1/responses", principal=soft)

    assert (refused.status, refused.json()["error"]["param"]) == (400, "max_tool_calls")
    assert await booked(kit, tmp_path) == [Row(EXACT + 2 * 10_000_000, False)]


async def test_audio_is_charged_at_its_own_price(make_kit: MakeKit, tmp_path: Any) -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"audio_tokens": 4},
        "completion_tokens_details": {"audio_tokens": 3},
    }
    price = Price(1_000_000, 2_000_000, audio_input_picousd=30_000_000, audio_output_picousd=60_000_000)
    kit = make_kit(provider=ScriptedProvider(answer(orjson.dumps({"choices": [], "usage": usage}))), price=price)

    await kit.call(ASKED, principal=PAYER)

    assert await booked(kit, tmp_path) == [Row(6 * 1_000 + 4 * 30_000 + 2 * 2_000 + 3 * 60_000, False)]


async def test_a_hedge_that_lost_is_charged_its_reservation(make_kit: MakeKit, tmp_path: Any) -> None:
    never = asyncio.Event()

    async def slow(call: Any, attempt: Any) -> Reply:
        await never.wait()
        return answer()

    class Hedge:
        @hookimpl
        def select(self, call: Any, targets: Any) -> Any:
            targets[0].hedge_after_s = 0.001
            return [*targets, Target(targets[0].deployment)]

    kit = make_kit(provider=ScriptedProvider(slow, answer), plugins=[Hedge])

    delivered = await kit.call(ASKED, principal=PAYER)

    assert sorted(await booked(kit, tmp_path)) == sorted([Row(RESERVATION, True), Row(EXACT, False)])
    assert round(float(delivered.headers["x-hookline-cost-usd"]) * 10**9) == RESERVATION + EXACT


async def test_an_answer_longer_than_anybody_expected_is_charged_whole(make_kit: MakeKit, tmp_path: Any) -> None:
    """A soft budget sends no limit, so its reservation is no bound."""
    long = orjson.dumps({"choices": [{"message": {"content": "x" * 50_000}}]})
    kit = make_kit(provider=ScriptedProvider(answer(long)))
    soft = Principal(key_id="ci", budget=Budget(daily_nanousd=1, mode="soft"))

    await kit.call(CHAT, principal=soft)

    (row,) = await booked(kit, tmp_path)
    assert row.cost is not None
    assert row.cost > len(long) * 2_000
    assert row.is_estimated


async def test_reading_says_that_it_cost_nothing_with_and_without_a_price(make_kit: MakeKit, tmp_path: Any) -> None:
    for price in (None, PRICE):
        kit = make_kit(provider=ScriptedProvider(answer(b"{}")), price=price)
        delivered = await kit.call(method="GET", path="/v1/files", principal=PAYER)
        assert delivered.headers["x-hookline-cost-usd"] == "0.00"

    assert await booked(kit, tmp_path) == []
