"""budget through the real pipeline, on the memory store and a real SQLite ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from hookline.builtins.budget import Plugin, open_windows
from hookline.errors import Unavailable, UpstreamError
from hookline.money import to_nanousd
from hookline.principal import Budget, Principal
from hookline.testing.kit import CHAT, PipelineKit, ScriptedProvider, answer, stream

MakeKit = Callable[..., PipelineKit]
"""`make_kit` is in conftest.py."""
ANSWER_NANOUSD = 10 * 1_000 + 5 * 2_000
"""10 tokens in at 1 USD and 5 out at 2 USD per million."""


def key(usd: float = 1.0, **more: Any) -> Principal:
    return Principal(key_id="ci", tenant="acme", user="ann", budget=Budget(daily_nanousd=to_nanousd(usd), **more))


async def spent(kit: PipelineKit, *scopes: str) -> list[int]:
    return list(await kit.workshop.stores.limits.held(scopes))


DAY = "key:ci/day:2023-11-14"
"""The fake clock's day."""


async def test_exact_cost_is_spent_and_booked(make_kit: MakeKit) -> None:
    kit = make_kit()

    delivered = await kit.call(principal=key())

    assert delivered.status == 200
    assert await spent(kit, DAY) == [ANSWER_NANOUSD]
    await kit.workshop.stores.records.flush()
    assert await kit.workshop.stores.records.spent_in("tenant:acme") == ANSWER_NANOUSD


async def test_refusal_names_budget_spend_reset_and_bound(make_kit: MakeKit) -> None:
    kit, ci = make_kit(), key(0.000_03)
    await kit.call({**CHAT, "max_tokens": 1}, principal=ci)

    refused = await kit.call({**CHAT, "max_tokens": 100}, principal=ci)

    error = refused.json()["error"]
    assert (refused.status, error["code"], error["type"]) == (429, "insufficient_quota", "insufficient_quota")
    assert refused.headers["x-should-retry"] == "false"
    assert 'budget "ci" (key, daily) spent: ' in error["message"]
    assert "of 0.00003 USD" in error["message"]
    assert "resets 2023-11-15T00:00Z" in error["message"]
    assert "may cost up to 0.000" in error["message"]


@pytest.mark.parametrize("is_stream", [False, True])
async def test_five_hundred_parallel_calls_never_spend_more_than_there_is(make_kit: MakeKit, is_stream: bool) -> None:
    def reply() -> Any:
        if not is_stream:
            return answer()
        return stream(
            b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
            b'data: {"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5}}\n\n',
            b"data: [DONE]\n\n",
        )

    limit = 100 * ANSWER_NANOUSD
    over: list[int] = []

    async def served(call: Any, attempt: Any) -> Any:
        await asyncio.sleep(0)
        over.extend(held for held in await spent(kit, DAY) if held > limit)
        return reply()

    kit = make_kit(provider=ScriptedProvider(served))
    payload = {**CHAT, "max_tokens": 10, "stream": is_stream}
    ci = Principal(key_id="ci", budget=Budget(daily_nanousd=limit))

    statuses = [d.status for d in await asyncio.gather(*(kit.call(payload, principal=ci) for _ in range(500)))]

    assert not over
    assert set(statuses) == {200, 429}
    assert await spent(kit, DAY) == [statuses.count(200) * ANSWER_NANOUSD]
    assert kit.workshop.stores.limits.in_flight == 0  # type: ignore[attr-defined]


async def test_restart_remembers_what_was_spent(make_kit: MakeKit) -> None:
    first = make_kit()
    await first.call(principal=key())
    await first.workshop.stores.records.flush()

    second = make_kit()
    await second.call(principal=key())

    assert await spent(second, DAY) == [2 * ANSWER_NANOUSD]


async def test_request_without_a_limit_is_capped_on_a_hard_budget_only(make_kit: MakeKit) -> None:
    kit = make_kit(options={"max_output_tokens": 77})

    hard = await kit.call(principal=key())
    soft = await kit.call(principal=key(mode="soft"))
    own = await kit.call({**CHAT, "max_tokens": 5}, principal=key())

    caps = [attempt.output_cap for _, attempt in kit.providers["up"].sent]
    assert caps[0] == 77
    assert caps[1] is None
    assert hard.headers["x-hookline-output-capped"] == "77"
    assert "x-hookline-output-capped" not in soft.headers
    assert "x-hookline-output-capped" not in own.headers


async def test_clients_own_limit_is_lowered_only_when_asked_for(make_kit: MakeKit) -> None:
    payload = {**CHAT, "max_tokens": 1_000_000}

    refused = await make_kit().call(payload, principal=key(0.01))
    clamped = await make_kit(options={"clamp": True}).call(payload, principal=key(0.01))

    assert refused.status == 429
    assert clamped.status == 200
    assert 1 < int(clamped.headers["x-hookline-output-capped"]) < 1_000_000


@pytest.mark.parametrize(
    ("payload", "code", "word"),
    [
        ({**CHAT, "tools": [{"type": "web_search"}]}, "unpriced_route", "tools"),
        ({"model": "up/m", "input": "x", "background": True}, "unpriced_route", "background"),
        ({"model": "up/m", "input": "x", "previous_response_id": "resp_1"}, "unbounded_cost", "previous_response_id"),
        (
            {"model": "up/m", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x"}}]}]},
            "unbounded_cost",
            "image_url",
        ),
    ],
)  # fmt: skip
async def test_what_has_no_bound_is_refused_on_a_hard_budget_and_served_without(
    make_kit: MakeKit, payload: dict[str, Any], code: str, word: str
) -> None:
    path = "/v1/responses" if "input" in payload else "/v1/chat/completions"

    refused = await make_kit().call(payload, path=path, principal=key())
    served = await make_kit().call(payload, path=path)

    assert (refused.status, refused.json()["error"]["code"]) == (400, code)
    assert word in refused.json()["error"]["message"]
    assert served.status == 200


async def test_unpriced_model_names_the_line_to_add(make_kit: MakeKit) -> None:
    refused = await make_kit(price=None).call(principal=key())
    served = await make_kit(price=None).call()

    assert refused.json()["error"]["code"] == "unpriced_route"
    assert '[prices."m"]' in refused.json()["error"]["message"]
    assert served.status == 200


async def test_reading_is_free_even_when_nothing_is_left(make_kit: MakeKit) -> None:
    delivered = await make_kit(price=None).call(method="GET", path="/v1/files", principal=key(0.0))

    assert delivered.status == 200


@pytest.mark.parametrize(
    ("script", "cost"),
    [
        (UpstreamError("refused", kind="connect", is_written=False), 0),
        (answer(b'{"error": {}}', 500), 0),
        (answer(b'{"error": {}}', 429), 0),
    ],
)
async def test_attempt_that_was_not_served_costs_nothing(make_kit: MakeKit, script: Any, cost: int) -> None:
    kit = make_kit(provider=ScriptedProvider(script))

    await kit.call(principal=key())

    assert await spent(kit, DAY) == [cost]


async def test_attempt_without_an_answer_costs_its_reservation(make_kit: MakeKit) -> None:
    lost = UpstreamError("reset", kind="reset", is_written=True)
    kit = make_kit(provider=ScriptedProvider(lost), options={"max_output_tokens": 100})

    await kit.call(principal=key())

    assert (await spent(kit, DAY))[0] > 100 * 2_000


async def test_cut_stream_costs_at_least_what_was_seen(make_kit: MakeKit) -> None:
    first = b'data: {"choices":[{"index":0,"delta":{"content":"hello"},"finish_reason":null}]}\n\n'
    cut = ScriptedProvider(stream(first, UpstreamError("reset", kind="reset")))
    kit = make_kit(provider=cut)

    await kit.call({**CHAT, "stream": True}, principal=key())

    assert (await spent(kit, DAY))[0] >= 1_000 + 2_000


async def test_every_scope_pays(make_kit: MakeKit) -> None:
    table = {"budget": {"total_usd": 1.0, "alert_at": 0.8, "mode": "hard", "time_zone": "UTC", "rolling": []}}
    kit = make_kit(tenants={"acme": table}, users={"ann": table}, **{"global": table})

    await kit.call(principal=key())

    assert await spent(kit, DAY, "user:acme/ann/total", "tenant:acme/total", "global/total") == [ANSWER_NANOUSD] * 4


async def test_users_of_the_same_name_in_two_tenants_share_nothing(make_kit: MakeKit) -> None:
    table = {"budget": {"total_usd": 0.000_11, "alert_at": 0.8, "mode": "hard", "time_zone": "UTC", "rolling": []}}
    payload = {**CHAT, "max_tokens": 1}
    acme = Principal(key_id="a", tenant="acme", user="ann")
    other = Principal(key_id="b", tenant="other/ann", user="x")
    trap = Principal(key_id="c", tenant="other", user="ann/x")
    kit = make_kit(users={"ann": table, "x": table, "ann/x": table})

    first = [(await kit.call(payload, principal=principal)).status for principal in (acme, other, trap)]
    namesake = await kit.call(payload, principal=Principal(key_id="d", tenant="beta", user="ann"))
    refused = await kit.call(payload, principal=acme)
    await kit.workshop.stores.records.flush()
    restarted = make_kit(users={"ann": table, "x": table, "ann/x": table})
    again = await restarted.call(payload, principal=acme)
    fresh = await restarted.call(payload, principal=Principal(key_id="e", tenant="gamma", user="ann"))

    assert (first, namesake.status, refused.status) == ([200] * 3, 200, 429)
    assert 'budget "ann" (user, total)' in refused.json()["error"]["message"]
    assert (again.status, fresh.status) == (429, 200)


async def test_soft_budget_never_refuses_and_alerts_once(make_kit: MakeKit, caplog: pytest.LogCaptureFixture) -> None:
    kit, ci = make_kit(), key(0.000_01, mode="soft")

    statuses = [(await kit.call(principal=ci)).status for _ in range(3)]

    assert statuses == [200] * 3
    assert len([r for r in caplog.records if "alert line" in r.getMessage()]) == 1


@pytest.mark.parametrize("limit", [10**18, 2**63])
async def test_a_soft_budget_serves_who_asks_for_more_than_a_number_can_say(make_kit: MakeKit, limit: int) -> None:
    """Beyond 64 bits the intent could not be written, so the call was 503."""
    kit = make_kit()

    delivered = await kit.call({**CHAT, "max_tokens": limit}, principal=key(1.0, mode="soft"))

    assert delivered.status == 200


def test_windows_follow_the_time_zone_through_a_change_of_clocks() -> None:
    noon = datetime(2026, 10, 25, 12, tzinfo=UTC).timestamp()  # Berlin's 25-hour day
    budget = Budget(daily_nanousd=1, monthly_nanousd=2, total_nanousd=3, rolling=((5, 4),), time_zone="Europe/Berlin")

    windows = {w.spend.window: (w.spend, since) for w, since in open_windows("key:x", "x", budget, noon)}

    day, since = windows["key:x/day:2026-10-25@Europe%2FBerlin"]
    assert day.resets_at - since == 25 * 3600
    assert (
        windows["key:x/month:2026-10@Europe%2FBerlin"][0].resets_at
        == datetime(2026, 10, 31, 23, tzinfo=UTC).timestamp()
    )
    assert windows["key:x/total"][0].limit_nanousd == 3
    assert windows["key:x/rolling:5h"][0].window_s == 5 * 3600


async def test_new_day_is_a_new_window(make_kit: MakeKit) -> None:
    kit, ci = make_kit(), key(0.000_11)  # one call's bound fits, and not once more after its 0.000_02 are spent
    payload = {**CHAT, "max_tokens": 1}

    first, second = await kit.call(payload, principal=ci), await kit.call(payload, principal=ci)
    kit.clock.advance(86_400)
    tomorrow = await kit.call(payload, principal=ci)

    assert [first.status, second.status, tomorrow.status] == [200, 429, 200]


async def test_without_room_in_the_journal_a_budgeted_call_is_503_and_nothing_stays_reserved(make_kit: MakeKit) -> None:
    kit = make_kit()
    records: Any = kit.workshop.stores.records
    records._journal.max_bytes = -1

    refused = await kit.call(principal=key())

    assert (refused.status, refused.json()["error"]["code"]) == (503, "service_unavailable")
    assert int(refused.headers["retry-after"]) > 0
    assert await spent(kit, DAY) == [0]
    assert kit.workshop.stores.limits.in_flight == 0  # type: ignore[attr-defined]
    assert (await kit.call(principal=Principal(key_id="free"))).status == 200


async def test_an_attempt_that_cost_nothing_leaves_neither_row_nor_intent(make_kit: MakeKit) -> None:
    failed = UpstreamError("up/m answered 500", kind="status", upstream_status=500)
    kit = make_kit(provider=ScriptedProvider(failed))

    await kit.call(principal=key())

    records: Any = kit.workshop.stores.records
    await records.flush()
    assert records._journal.open_intents == 0
    assert await records.spent_in("key:ci") == 0


@pytest.mark.parametrize(("choice", "status"), [("refuse", 503), ("serve", 200)])
async def test_while_the_store_is_away_calls_are_refused_or_served_and_booked(
    make_kit: MakeKit, monkeypatch: pytest.MonkeyPatch, choice: str, status: int
) -> None:
    kit = make_kit(options={"when_store_is_away": choice})
    stores = kit.workshop.stores

    def away(*_: Any, **__: Any) -> Any:
        raise Unavailable("limits: the store is away")

    monkeypatch.setattr(stores.limits, "reserve", away)
    delivered = await kit.call(principal=key())

    assert delivered.status == status
    await stores.records.flush()
    booked = await stores.records.spent_in("key:ci")
    assert booked == (ANSWER_NANOUSD if status == 200 else 0)


async def test_a_call_that_no_budget_pays_for_is_told_so_while_the_store_is_away(
    make_kit: MakeKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = make_kit()

    def away(*_: Any, **__: Any) -> Any:
        raise Unavailable("limits: the store is away")

    monkeypatch.setattr(kit.workshop.stores.limits, "reserve", away)
    monkeypatch.setattr(kit.workshop.stores.limits, "held", away)
    free = Principal("free", "free")

    assert (await kit.call(principal=free)).status == 200
    assert (await kit.call(principal=free, is_dry_run=True)).status == 200
    assert (await kit.call(principal=key(), is_dry_run=True)).status == 503


async def test_while_the_ledger_is_away_windows_that_the_store_knows_go_on(
    make_kit: MakeKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has not served this key yet may share its store with one that has."""
    kit = make_kit()
    await kit.call(principal=key())
    kit.plugin(Plugin)._plans.clear()

    def away(*_: Any, **__: Any) -> Any:
        raise Unavailable("records: the ledger is away")

    monkeypatch.setattr(kit.workshop.stores.records, "spent_in", away)
    known = await kit.call(principal=key())
    unknown = await kit.call(principal=Principal(key_id="new", budget=Budget(total_nanousd=1_000_000_000)))

    assert (known.status, unknown.status) == (200, 503)


async def test_while_the_ledger_is_away_the_next_day_begins(make_kit: MakeKit, monkeypatch: pytest.MonkeyPatch) -> None:
    kit = make_kit()
    await kit.call(principal=key())
    kit.clock.advance(86_400)

    def away(*_: Any, **__: Any) -> Any:
        raise Unavailable("records: the ledger is away")

    monkeypatch.setattr(kit.workshop.stores.records, "spent_in", away)

    assert [(await kit.call(principal=key())).status for _ in range(2)] == [200, 200]
    assert await spent(kit, DAY, "key:ci/day:2023-11-15") == [ANSWER_NANOUSD, 2 * ANSWER_NANOUSD]


async def test_it_offers_the_share_that_is_left_of_the_tightest_window(make_kit: MakeKit) -> None:
    kit = make_kit(tenants={"acme": {"budget": {"total_usd": 0.001}}})
    find_left = kit.plugin(Plugin).find_left
    principal = key(1.0)
    assert await find_left(Principal(tenant="other")) is None
    assert await find_left(principal) == 1.0

    await kit.call(principal=principal, payload={**CHAT, "max_tokens": 5})

    assert await find_left(principal) == pytest.approx(1 - ANSWER_NANOUSD / 1_000_000)
