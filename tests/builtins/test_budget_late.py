"""A usage that is told to another process than the one that charged the call: two gateways on one Redis and one ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from hookline import Budget, LedgerEntry, LedgerQuery, Price, Principal, Spend
from hookline.builtins import budget
from hookline.builtins.budget.late import Expected
from hookline.plugin_host import Stores
from hookline.stores.redis_client import RedisClient
from hookline.stores.redis_limits import RedisLimits
from hookline.stores.redis_replies import RedisReplies, TwoLevelReplies
from hookline.stores.sqlite import SqliteRecords
from hookline.testing.clock import FakeClock
from hookline.testing.kit import PRICE, PipelineKit, ScriptedProvider, answer
from hookline.testing.redis import RedisServer

CI = Principal(key_id="ci", key_name="ci", tenant="acme", budget=Budget(daily_nanousd=10**9, mode="soft"))
QUEUED = {"id": "resp_1", "object": "response", "status": "queued", "output": [], "usage": None}
USAGE = {"input_tokens": 20, "output_tokens": 5, "total_tokens": 25}
DONE = {**QUEUED, "status": "completed", "usage": USAGE}
COST = 20 * 1_000 + 5 * 2_000
ASKED = {"model": "m", "input": "hi", "background": True, "max_output_tokens": 100}


@pytest.fixture
async def kits(tmp_path: Path) -> AsyncIterator[list[PipelineKit]]:
    with RedisServer(tmp_path) as server:
        made, opened = [], []
        for _ in range(2):
            clock = FakeClock()
            replies = TwoLevelReplies(
                RedisReplies(RedisClient(server.url), clock), clock, l1_ttl_s=1, l1_max_bytes=2**20
            )
            limits = RedisLimits(RedisClient(f"{server.url}?leases=0"))
            records = SqliteRecords(str(tmp_path / "records.db"))
            opened += [limits, replies, records]
            made.append(
                PipelineKit(
                    budget.Plugin,
                    providers=[ScriptedProvider(*[lambda: answer(orjson.dumps(DONE))] * 3)],
                    price=PRICE,
                    stores=Stores(limits, replies, records),
                    host_settings={"tenants": {}, "users": {}, "global": {}, "server": {}, "models": []},
                    clock=clock,
                )
            )
        yield made
        for store in opened:
            await store.aclose()


async def test_whichever_process_reads_the_answer_corrects_its_charge_once(kits: list[PipelineKit]) -> None:
    first, second = kits
    first.providers["up"].scripts.insert(0, lambda: answer(orjson.dumps(QUEUED)))

    async def read(kit: PipelineKit) -> int:
        return (await kit.call(method="GET", path="/v1/responses/resp_1", principal=CI)).status

    await first.call(ASKED, path="/v1/responses", principal=CI)
    (window,) = [w.spend.window for w in (await first.plugin(budget.Plugin).make_plan(CI, first.clock.time())).windows]
    (charged,) = await second.workshop.stores.limits.held([window])
    statuses = [await read(kit) for kit in (second, first, second)]
    for kit in kits:
        await kit.plugin(budget.Plugin).stop()
        await kit.workshop.stores.records.flush()
    page = await first.workshop.stores.records.read_ledger(LedgerQuery(limit=10))

    assert statuses == [200] * 3
    assert charged > COST
    assert list(await first.workshop.stores.limits.held([window])) == [COST]
    assert sorted(row.cost_nanousd or 0 for row in page.rows) == [COST - charged, charged]
    assert [row.corrects for row in page.rows if row.corrects] == [row.id for row in page.rows if not row.corrects]
    assert sum(row.input_tokens for row in page.rows) == 20


def test_what_is_shared_comes_back_as_it_was() -> None:
    price = Price(1, 2, cached_picousd=3, tiers=((100, Price(4, 5)),), audio_input_picousd=6, source="proxy.toml")
    price = price.with_tools((("web_search", 7),))
    spends = [
        Spend("key:ci/total", 10, float("inf")),
        Spend("key:ci/day:2026-11-24", 10, 1_795_564_800.0, alert_nanousd=8),
    ]
    row = LedgerEntry(
        "a.1",
        "call",
        1.5,
        "acme",
        "ci",
        None,
        "m",
        "up/m",
        "responses",
        "ok",
        1,
        2,
        3,
        4,
        True,
        ["key:ci"],
        "v",
        None,
        ["t"],
    )

    back = Expected.from_bytes(Expected(row, 5, price, spends).to_bytes())

    assert (back.row, back.price, back.price.version, back.charged_nanousd) == (row, price, price.version, 5)
    assert back.spends == spends
