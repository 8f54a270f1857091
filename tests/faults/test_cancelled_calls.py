"""Clients that leave at every moment of a call's life, through every plugin: afterwards nothing is open, taken, running or kept.

The short form is a few hundred clients; `./scripts/test --long` (HOOKLINE_LONG=1) sends ten thousand, to this process and to a real one."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from hookline import Call
from hookline.attempt import Attempt
from hookline.reply import Reply
from hookline.testing.process import ProxyProcess
from hookline.testing.raw_client import chat_request, read_reply
from hookline.testing.upstream import RESET, STALL, Script, ScriptedUpstream, json_reply, sse_reply

IS_LONG = os.environ.get("HOOKLINE_LONG") == "1"
CALLS = 10_000 if IS_LONG else 500
TOGETHER = 50
PARALLEL = 12
"""The others wait for their turn: also from the queue they leave."""
KEPT_BYTES_MAX = 256 * 1024
"""What the second half of the calls may add to the heap: code that runs for the first time, tables that are bounded and not full yet."""
RSS_BYTES_MAX = 8 << 20

JOURNAL = """
from hookline import hookimpl

class Ticket:
    def __init__(self, journal, name):
        self.journal, self.name = journal, name
        journal[name + " taken"] += 1
    def settle(self, result):
        self.journal[self.name + " settled"] += 1
        if self.name == "call":
            self.journal[result.outcome] += 1

class Plugin:
    def __init__(self, options, host):
        from collections import Counter
        self.journal = Counter()
    @hookimpl
    def admit(self, call):
        return Ticket(self.journal, "call")
    @hookimpl
    def admit_attempt(self, call, target, attempt):
        return Ticket(self.journal, "attempt")
    @hookimpl
    def attempt_ended(self, call, attempt):
        self.journal["attempt ended"] += 1
    @hookimpl
    def call_ended(self, call, result):
        self.journal["call ended"] += 1
"""
PROXY = """
[chain]
plugins = [{journal}"auth", "rate_limit", "idempotency", "cache", "budget", "model_selection", "circuit_breaker", "fallback", "metrics"]
[server]
port = 0
[providers.up]
kind = "openai"
base_url = "{up}"
max_connections = 30
[providers.spare]
kind = "openai"
base_url = "{up}"
[models.m]
deployments = ["up/m", "spare/m"]
[prices.m]
input = 1.0
output = 2.0
[plugins.rate_limit]
max_wait_s = 20.0
per_deployment = {{ max_parallel = 1000, tokens_per_day = 1000000000 }}
[[plugins.auth.keys]]
name = "k"
key = "sk-client"
max_parallel = {parallel}
requests_per_minute = 1000000
tokens_per_minute = 1000000000
budget = {{ daily_usd = 1000000.0 }}
"""

ANSWER = json_reply(
    {"choices": [{"index": 0, "message": {"content": "ho"}}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
)
EVENT = '{"choices":[{"index":0,"delta":{"content":"ho"}}]}'
FINISH = '{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'
USAGE = '{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
WHOLE_STREAM = sse_reply(EVENT, EVENT, FINISH, USAGE, "[DONE]")
SCRIPTS: dict[bool, list[Script]] = {
    False: [ANSWER, ANSWER, [STALL], [STALL], [ANSWER[0][:40], STALL], json_reply({"error": {}}, status=500)],
    True: [
        WHOLE_STREAM, [STALL], sse_reply(STALL), sse_reply(EVENT, STALL), sse_reply(EVENT, STALL), sse_reply(EVENT, FINISH, STALL),
        sse_reply(EVENT, EVENT, b"data: {", STALL), sse_reply(EVENT[:9].encode(), STALL), sse_reply(EVENT, RESET), [RESET],
    ],
}  # fmt: skip


def play_anything(chance: random.Random) -> object:
    return lambda request: chance.choice(SCRIPTS[request.json()["stream"]])


async def leave_somewhen(port: int, number: int, chance: random.Random) -> None:
    """One client that leaves: with half a request, at once, some turns later, after the head, after some of the body."""
    request = chat_request("m", stream=chance.random() < 0.7, seed=number).replace(
        b"\r\n", b"\r\nauthorization: Bearer sk-client\r\n", 1
    )
    moment = chance.choice(["before", "within", "at once", "soon", "soon", "later", "begun", "begun", "whole"])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        if moment != "before":
            writer.write(request[: chance.randrange(len(request))] if moment == "within" else request)
        if moment == "soon":
            for _ in range(chance.randrange(60)):
                await asyncio.sleep(0)
        elif moment == "later":
            await asyncio.sleep(chance.random() * 0.02)
        elif moment == "begun":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await reader.read(chance.choice([1, 1 << 16]))
        elif moment == "whole":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await read_reply(reader)
    finally:
        if chance.random() < 0.5:
            writer.transport.abort()
        else:
            writer.close()


async def leave(port: int, numbers: range, chance: random.Random) -> None:
    places = asyncio.Semaphore(TOGETHER)

    async def one(number: int) -> None:
        async with places:
            await leave_somewhen(port, number, chance)

    await asyncio.gather(*[one(number) for number in numbers])


async def gone(gateway, upstream: ScriptedUpstream) -> None:
    """Wait until every client's connection has ended, and every connection but those kept alive."""
    await gateway.idle()
    kept = [gateway.pool(name) for name in ("up", "spare")]
    while gateway.app._front.connections or len(upstream._tasks) > sum(stats.open for stats in kept):  # noqa: ASYNC110 - asked at ends only
        await asyncio.sleep(0.001)


def find_alive() -> list[object]:
    """What must not outlive its call."""
    gc.collect()
    return [thing for thing in gc.get_objects() if type(thing) in (Call, Attempt, Reply)]


def count_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.timeout(900)
async def test_clients_that_leave_at_any_moment_leave_nothing_behind(start_gateway, upstream):
    chance = random.Random(7)
    gateway = await start_gateway(
        PROXY.format(journal='{ name = "journal", path = "./journal.py" }, ', up=upstream.url, parallel=PARALLEL),
        journal=JOURNAL,
    )
    upstream.always(play_anything(chance))
    journal = gateway.app.current.chain.plugins[0].instance.journal
    others = find_alive()  # of tests that ran before this one: held, so that their ids stay theirs
    known = {id(thing) for thing in others}
    tasks_before, files_before = len(asyncio.all_tasks()), count_files(os.getpid())

    await leave(gateway.port, range(CALLS // 2), chance)
    await gone(gateway, upstream)
    upstream.requests.clear()
    tracemalloc.start()
    try:
        before = tracemalloc.take_snapshot()
        await leave(gateway.port, range(CALLS // 2, CALLS), chance)
        await gone(gateway, upstream)
        upstream.requests.clear()
        assert Counter(type(thing).__name__ for thing in find_alive() if id(thing) not in known) == {}
        grown = tracemalloc.take_snapshot().compare_to(before, "filename")
    finally:
        tracemalloc.stop()

    print(f"{CALLS} clients left: {dict(journal)}; heap {sum(d.size_diff for d in grown):+} bytes, {grown[:3]}")
    assert journal["client_gone"] > CALLS // 5, "too few left in the middle of a call"
    for name in ("call", "attempt"):
        assert journal[f"{name} taken"] == journal[f"{name} settled"]
    assert journal["attempt taken"] >= journal["attempt ended"]
    assert gateway.app._process.stores.limits.in_flight == 0, "a slot or money"
    assert b"\nhookline_rate_limit_waiting_calls 0.0\n" in gateway.app._process.metrics.render()
    kept = [gateway.pool(name) for name in ("up", "spare")]
    assert [(stats.in_use, stats.waiting) for stats in kept] == [(0, 0), (0, 0)]
    kept_open = sum(stats.open for stats in kept)
    assert count_files(os.getpid()) <= files_before + 2 * kept_open, "each kept connection has two ends in this process"
    assert len(asyncio.all_tasks()) <= tasks_before + kept_open, (
        "each kept connection has a task of the scripted upstream"
    )
    assert sum(d.size_diff for d in grown) < KEPT_BYTES_MAX, [str(d) for d in grown[:10]]

    upstream.always(ANSWER)
    request = chat_request("m").replace(b"\r\n", b"\r\nauthorization: Bearer sk-client\r\n", 1)
    replies = await asyncio.gather(*[gateway.ask(request) for _ in range(TOGETHER)])
    assert [reply.status for reply in replies] == [200] * TOGETHER, "a parallel slot was kept"


def read_rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not IS_LONG, reason="ten thousand calls: ./scripts/test --long")
@pytest.mark.timeout(900)
async def test_a_process_is_as_large_after_ten_thousand_clients_that_left_as_after_two(tmp_path, upstream):
    chance = random.Random(11)
    upstream.always(play_anything(chance))
    with ProxyProcess(tmp_path, PROXY.format(journal="", up=upstream.url, parallel=PARALLEL)) as proxy:
        pid, port = proxy.process.pid, int(proxy.base_url.rpartition(":")[2])
        files_before = count_files(pid)
        await leave(port, range(2_000), chance)
        rss_before = read_rss_bytes(pid)

        await leave(port, range(2_000, 12_000), chance)
        upstream.requests.clear()

        while count_files(pid) > files_before + len(upstream._tasks):  # noqa: ASYNC110 - the other process tells nobody
            await asyncio.sleep(0.01)
        grown = read_rss_bytes(pid) - rss_before
        print(
            f"10,000 clients left: RSS {rss_before >> 20} MiB, {grown >> 10:+} KiB; {len(upstream._tasks)} connections kept"
        )
        assert grown < RSS_BYTES_MAX
        assert proxy.process.poll() is None
        assert not [line for line in proxy.lines if "ERROR" in line or "Traceback" in line]
