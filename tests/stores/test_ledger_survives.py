"""Nothing that an upstream served is missing in the ledger: `kill -9` under load, PostgreSQL stopped under load, a worker of several killed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from hookline.testing.process import ProxyProcess
from hookline.testing.redis import RedisServer
from hookline.testing.upstream import STALL, ScriptedUpstream, json_reply

IS_LONG = os.environ.get("HOOKLINE_LONG") == "1"
ROUNDS = 12 if IS_LONG else 3
CALLS_A_ROUND = 400 if IS_LONG else 40
LIMIT_USD = 100
CONFIG = """
[server]
port = 0
[state]
{state}
[chain]
plugins = ["auth", "budget"]
[providers.up]
kind = "openai"
base_url = "{upstream}"
default = true
[prices."up/m"]
input = 1.0
output = 1.0
[[plugins.auth.keys]]
name = "ci"
key = "sk-ci"
budget = {{ total_usd = 100 }}
[[plugins.auth.keys]]
name = "free"
key = "sk-free"
"""
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
CALL_NANOUSD = 15_000
REPLY = json_reply(
    {
        "id": "x",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
        "usage": USAGE,
    }
)


@pytest.fixture
async def upstream():
    """Answers, but for requests that say "wait": those it has served and never ends."""
    async with ScriptedUpstream() as upstream:
        upstream.always(lambda request: [STALL] if b'"wait"' in request.body else REPLY)
        yield upstream


@pytest.fixture
def start(tmp_path: Path, upstream: ScriptedUpstream):
    started = []

    async def start(state: str = "", *arguments: str, folder: str = ".") -> ProxyProcess:
        (tmp_path / folder).mkdir(exist_ok=True)
        text = CONFIG.format(upstream=upstream.url, state=state)
        started.append(await asyncio.to_thread(ProxyProcess, tmp_path / folder, text, *arguments))
        return started[-1]

    yield start
    for proxy in started:
        proxy.kill()


async def call(
    session: aiohttp.ClientSession, proxy: ProxyProcess, text: str = "hi", *, key: str = "sk-ci", max_tokens: int = 20
) -> tuple[int, str, Any]:
    """(status, call id, body)"""
    body = {"model": "up/m", "max_tokens": max_tokens, "messages": [{"role": "user", "content": text}]}
    async with session.post(
        f"{proxy.base_url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}
    ) as reply:
        return reply.status, reply.headers["x-request-id"], await reply.json()


@asynccontextmanager
async def load(proxy: ProxyProcess, done: set[str], *, key: str = "sk-ci") -> AsyncIterator[None]:
    """Eight clients that call until they are stopped; ids of answered calls go to `done`."""

    async def go(session: aiohttp.ClientSession) -> None:
        while True:
            try:
                status, id, _ = await call(session, proxy, key=key)
            except aiohttp.ClientError:
                return
            if status == 200:
                done.add(id)

    async with aiohttp.ClientSession() as session:
        clients = [asyncio.create_task(go(session)) for _ in range(8)]
        try:
            yield
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)


async def reached(done: set[str], number: int) -> None:
    while len(done) < number:  # noqa: ASYNC110 - grows by answers of another process
        await asyncio.sleep(0.005)


async def spent_of_window(proxy: ProxyProcess) -> int:
    """What the budget says is spent, in nano-dollars: a call that can't fit is told."""
    async with aiohttp.ClientSession() as session:
        status, _, body = await call(session, proxy, max_tokens=LIMIT_USD * 1_000_000)
    told = re.search(r"spent: ([0-9.]+) of", body["error"]["message"])
    assert (status, bool(told)) == (429, True), body
    return round(float(told[1]) * 1e9)


def check(rows: list[tuple[str, int, bool]], done: set[str], served: int) -> int:
    """Every answered call has one exact row; all rows together cost at least what was served. Answers that sum."""
    exact = {call_id: cost for call_id, cost, is_estimated in rows if not is_estimated}
    assert {id: exact.get(id) for id in done} == dict.fromkeys(done, CALL_NANOUSD)
    assert len(rows) == len({call_id for call_id, _, _ in rows})
    assert len(rows) >= served, "and those that were killed before they reached it"
    total = sum(cost for _, cost, _ in rows)
    assert total >= served * CALL_NANOUSD
    return total


ROWS = "SELECT call_id, cost_nanousd, is_estimated FROM ledger"


async def test_a_process_that_is_killed_again_and_again_never_spends_less_than_was_served(start, upstream, tmp_path):
    done: set[str] = set()
    for number in range(ROUNDS):
        proxy = await start()
        async with aiohttp.ClientSession() as session, load(proxy, done):
            waiting = asyncio.create_task(call(session, proxy, "wait"))
            await reached(done, (number + 1) * CALLS_A_ROUND)
            proxy.process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(proxy.wait)
            await asyncio.gather(waiting, return_exceptions=True)
    served = len(upstream.requests)
    proxy = await start()

    spent = await spent_of_window(proxy)

    proxy.send(signal.SIGTERM)
    assert await asyncio.to_thread(proxy.wait) == 0
    with closing(sqlite3.connect(tmp_path / "hookline.db")) as file:
        total = check(file.execute(ROWS).fetchall(), done, served)
        outcomes = dict(file.execute("SELECT outcome, count(*) FROM ledger GROUP BY 1").fetchall())
    assert spent == total
    assert outcomes["upstream_lost"] >= ROUNDS
    assert list((tmp_path / "hookline.db.journal").iterdir()) == []


async def test_a_call_that_no_budget_pays_is_in_the_ledger_though_its_process_was_killed(start, upstream, tmp_path):
    proxy = await start()
    async with aiohttp.ClientSession() as session:
        waiting = asyncio.create_task(call(session, proxy, "wait", key="sk-free"))
        await upstream.wait_for_requests(1)
        await asyncio.to_thread(proxy.kill)
        await asyncio.gather(waiting, return_exceptions=True)

    proxy = await start()
    proxy.send(signal.SIGTERM)
    await asyncio.to_thread(proxy.wait)

    with closing(sqlite3.connect(tmp_path / "hookline.db")) as file:
        rows = file.execute("SELECT key_id, outcome, cost_nanousd, is_estimated FROM ledger").fetchall()
    assert rows == [("free", "upstream_lost", None, 1)]


async def test_postgres_stopped_under_load_costs_no_row(running, start, upstream, tmp_path):
    url = await asyncio.to_thread(running.make_database)
    proxy = await start(f'records = "{url}"')
    done: set[str] = set()
    async with load(proxy, done, key="sk-free"):
        await reached(done, 50)
        await asyncio.to_thread(running.stop)
        if IS_LONG:
            await asyncio.sleep(10)
        await reached(done, len(done) + 100)
        await asyncio.to_thread(proxy.process.send_signal, signal.SIGKILL)
        await asyncio.to_thread(proxy.wait)
        await asyncio.to_thread(running.start)
    served = len(upstream.requests)
    proxy = await start(f'records = "{url}"')
    proxy.send(signal.SIGTERM)
    assert await asyncio.to_thread(proxy.wait) == 0

    rows = await fetch(url, "SELECT call_id, COALESCE(cost_nanousd, 15000), is_estimated FROM ledger")
    check(rows, done, served)


async def test_a_worker_that_is_killed_is_charged_at_once_and_its_reservations_settled(
    postgres, start, upstream, tmp_path
):
    url = await asyncio.to_thread(postgres.make_database)
    with RedisServer(tmp_path) as redis:
        proxy = await start(f'records = "{url}"\nshared = "{redis.url}"', "--workers", "2")
        async with aiohttp.ClientSession() as session:
            await call(session, proxy)
            waiting = [asyncio.create_task(call(session, proxy, "wait")) for _ in range(6)]
            await upstream.wait_for_requests(7)
            os.kill(max(proxy.worker_pids, key=lambda pid: journal_bytes(tmp_path, pid)), signal.SIGKILL)
            ended, running = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            while not (rows := await fetch(url, f"{ROWS} WHERE is_estimated")):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            charged = rows[0][1]

            def ledger() -> int:
                return CALL_NANOUSD + len(rows) * charged

            # What still runs is reserved, and neither spent nor in the ledger.
            while (spent := await spent_of_window(proxy)) != ledger():
                rows = await fetch(url, f"{ROWS} WHERE is_estimated")
                assert spent <= 7 * charged
            for task in running:
                task.cancel()
            await asyncio.gather(*ended, *running, return_exceptions=True)

    assert len(rows) >= 1
    assert charged > CALL_NANOUSD


def journal_bytes(folder: Path, pid: int) -> int:
    return sum(path.stat().st_size for path in folder.glob(f"hookline-spool/{pid}-*.journal"))


async def fetch(url: str, question: str) -> list[Any]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(question)]
    finally:
        await connection.close()
