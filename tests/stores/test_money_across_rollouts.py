"""Workers and whole servers are replaced under load: nobody is refused for it, no stream is cut, and the ledger is what the upstream billed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from hookline.testing.process import ProxyProcess
from hookline.testing.redis import RedisServer
from hookline.testing.storm import PRICES, Books, bill, clients, until

IS_LONG = bool(os.environ.get("HOOKLINE_LONG"))
RESTARTS, TAKEOVERS = (20, 5) if IS_LONG else (1, 1)
TIGHT_NANOUSD = 2_000_000
TEXT = """
[server]
port = 0
workers = 2
handover_socket = "hookline.sock"
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
budget = {{ daily_usd = 1000.0 }}
[[plugins.auth.keys]]
name = "tight"
key = "sk-tight"
budget = {{ daily_usd = 0.002 }}
"""


@pytest.mark.timeout(600 if IS_LONG else 120)
async def test_the_ledger_is_what_was_billed(tmp_path: Path, upstream, postgres_url, read_ledger):
    chance, books, tight = random.Random(5), Books(), Books()
    tight.billed = books.billed
    bill(upstream, books, chance, thinks_s=0.3)

    with RedisServer(tmp_path) as redis, ExitStack() as servers:
        text = TEXT.format(records=postgres_url, shared=redis.url, up=upstream.url, prices=PRICES)
        proxy = servers.enter_context(await asyncio.to_thread(ProxyProcess, tmp_path, text))
        url = [proxy.base_url]
        async with (
            clients(url, books, key="sk-storm", number=8),
            clients(url, tight, key="sk-tight", number=2, prefix="tight"),
        ):
            for number in range(1, RESTARTS + 1):
                done = len(books.complete)
                await until(lambda done=done: len(books.complete) >= done + 20)
                proxy.send(signal.SIGUSR2)
                await asyncio.to_thread(proxy.wait_for, "rolling restart: 2 new workers serve", count=number)
            for _ in range(TAKEOVERS):
                former = proxy
                proxy = servers.enter_context(await asyncio.to_thread(ProxyProcess, tmp_path, None, "--takeover"))
                assert await asyncio.to_thread(former.wait) == 0
            done = len(books.complete)
            await until(lambda: len(books.complete) >= done + 20)
        proxy.send(signal.SIGTERM)
        assert await asyncio.to_thread(proxy.wait) == 0
        ledger = await read_ledger(postgres_url)

    assert (books.lost, books.refused, tight.lost) == (set(), {}, set())
    assert set(tight.statuses()) == {429}
    assert books.compare(ledger) == []
    assert tight.compare(ledger) == []
    assert TIGHT_NANOUSD * 0.85 < sum(cost for id, cost in ledger.items() if id.startswith("tight")) <= TIGHT_NANOUSD
