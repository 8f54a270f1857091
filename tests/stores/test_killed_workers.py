"""Workers are killed under load: no call that ran elsewhere fails, and the ledger is what the upstream billed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest

from hookline.testing.process import ProxyProcess
from hookline.testing.redis import RedisServer
from hookline.testing.storm import PRICES, Books, bill, clients, until

IS_LONG = bool(os.environ.get("HOOKLINE_LONG"))
TEXT = """
[server]
port = 0
workers = {workers}
total_timeout_s = 10
[state]
records = "{records}"
shared = "{shared}"
[providers.up]
kind = "openai"
base_url = "{up}"
default = true
{prices}
[[plugins.auth.keys]]
name = "storm"
key = "sk-storm"
requests_per_minute = 1000000
tokens_per_minute = 1000000000
max_parallel = 100
budget = {{ daily_usd = 1000.0, monthly_usd = 10000.0 }}
"""


async def storm(
    tmp_path: Path, upstream, postgres_url: str, read_ledger, *, kills: int, calls_between: int, pause_s: float
) -> None:
    chance, books = random.Random(5), Books()
    bill(upstream, books, chance)
    with RedisServer(tmp_path) as redis:
        text = TEXT.format(workers=4, records=postgres_url, shared=redis.url, up=upstream.url, prices=PRICES)
        proxy = await asyncio.to_thread(ProxyProcess, tmp_path, text)
        with proxy:
            async with clients([proxy.base_url], books, key="sk-storm", number=16):
                for _ in range(kills):
                    done = len(books.complete)
                    await until(lambda done=done: len(books.complete) >= done + calls_between)
                    await asyncio.sleep(pause_s)
                    pids = proxy.worker_pids
                    os.kill(chance.choice(pids), signal.SIGKILL)
                done = len(books.complete)
                await until(lambda: len(books.complete) >= done + calls_between)
            proxy.send(signal.SIGTERM)
            assert await asyncio.to_thread(proxy.wait) == 0
            ledger = await read_ledger(postgres_url)
    served = len(books.complete) + len(books.refused)
    print(
        f"{kills} kills, {books.asked} calls: {len(books.complete)} complete, {len(books.lost)} lost with their worker, refused {books.statuses()}"
    )
    assert books.lost, "no call ran on a worker that was killed"
    assert len(books.complete) >= 0.999 * served, list(books.refused.values())[:5]
    assert books.compare(ledger) == []


async def test_the_ledger_is_what_was_billed(tmp_path, upstream, postgres_url, read_ledger):
    await storm(tmp_path, upstream, postgres_url, read_ledger, kills=3, calls_between=100, pause_s=0)


@pytest.mark.skipif(not IS_LONG, reason="a minute of kills: ./scripts/test --long")
@pytest.mark.timeout(300)
async def test_the_ledger_is_what_was_billed_in_a_minute_of_kills(tmp_path, upstream, postgres_url, read_ledger):
    await storm(tmp_path, upstream, postgres_url, read_ledger, kills=30, calls_between=1, pause_s=2.0)
