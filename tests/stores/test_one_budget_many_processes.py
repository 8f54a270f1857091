"""Several gateways on one Redis spend one budget: never above it, and down to the last call that fits."""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import ExitStack
from pathlib import Path

import aiohttp

from hookline.testing.process import ProxyProcess
from hookline.testing.redis import RedisServer
from hookline.testing.storm import MAX_TOKENS, NANO_PER_TOKEN, PRICES, Books, ask, bill

PROCESSES = 4 if os.environ.get("HOOKLINE_LONG") else 2
CALLS = 500
LIMIT_NANOUSD = 14_000_000
"""About a hundred calls by what they cost, some fifty by what they may cost."""
TEXT = """
[server]
port = 0
[state]
shared = "{shared}?command_timeout_s=30"
[providers.up]
kind = "openai"
base_url = "{up}"
default = true
{prices}
[[plugins.auth.keys]]
name = "storm"
key = "sk-storm"
budget = {{ total_usd = 0.014 }}
"""


async def test_five_hundred_calls_at_once_never_cost_more_than_the_budget(tmp_path: Path, upstream) -> None:
    books = Books()
    bill(upstream, books, random.Random(7))
    with ExitStack() as opened:
        redis = opened.enter_context(RedisServer(tmp_path))
        urls = []
        for number in range(PROCESSES):
            folder = tmp_path / str(number)
            folder.mkdir()
            text = TEXT.format(shared=redis.url, up=upstream.url, prices=PRICES)
            proxy = await asyncio.to_thread(ProxyProcess, folder, text)
            urls.append(opened.enter_context(proxy).base_url)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(60)) as session:
            calls = [
                ask(session, urls[n % len(urls)], books, f"rush-{n}", key="sk-storm", is_stream=n % 2 == 1)
                for n in range(CALLS)
            ]
            await asyncio.gather(*calls)
            assert sum(books.billed.values()) <= LIMIT_NANOUSD
            assert books.complete
            assert books.refused
            refused, alone = len(books.refused), 0
            while len(books.refused) == refused:
                await ask(session, urls[alone % len(urls)], books, f"alone-{alone}", key="sk-storm", is_stream=False)
                alone += 1
    billed = sum(books.billed.values())
    print(f"{len(books.complete)} of {CALLS + alone} calls cost {billed} of {LIMIT_NANOUSD} nano-dollars")
    assert books.lost == set()
    assert {(status, error["code"]) for status, error in books.refused.values()} == {(429, "insufficient_quota")}
    assert all('"storm" (key, total)' in error["message"] for _, error in books.refused.values())
    assert billed <= LIMIT_NANOUSD
    bound = (400 + MAX_TOKENS) * NANO_PER_TOKEN
    assert LIMIT_NANOUSD - billed < bound, "the last refused call would have fitted"
