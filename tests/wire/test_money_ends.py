"""Whatever ends a stream, wherever: the ledger, the window and the log say the same, never less than was made, and nothing stays reserved."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from hookline.testing.process import ProxyProcess
from hookline.testing.upstream import RESET, STALL, ScriptedUpstream, json_reply, sse_reply

ADMIN = {"authorization": "Bearer admin-key-of-this-test"}
KEY = {"authorization": "Bearer sk-ci"}
MADE = 20 * 1_000 + 5 * 2_000
"""Nano-dollars that the upstream has earned as soon as it has begun to answer."""
CONFIG = """
[server]
port = 0
[chain]
plugins = ["auth", "rate_limit", "budget", "fallback", {{ name = "logging", to = "calls.log" }}]
[providers.up]
kind = "openai"
base_url = "{url}"
default = true
[prices."m"]
input = 1.0
output = 2.0
[[plugins.auth.keys]]
name = "ci"
key = "sk-ci"
max_parallel = 1
budget = {{ total_usd = 1.0 }}
[admin]
key = "admin-key-of-this-test"
"""
COUNTED = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}
CHAT_EVENTS = [
    '{"id":"c","choices":[{"index":0,"delta":{"content":"ho"},"finish_reason":null}]}',
    '{"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}',
    json.dumps({"id": "c", "choices": [], "usage": COUNTED}),
    "[DONE]",
]
RESPONSE = {"id": "r", "output": [], "usage": {"input_tokens": 20, "output_tokens": 5, "total_tokens": 25}}
RESPONSES_EVENTS = [
    '{"type":"response.created","sequence_number":0}',
    '{"type":"response.output_text.delta","sequence_number":1,"delta":"ho"}',
    json.dumps({"type": "response.completed", "sequence_number": 2, "response": RESPONSE}),
]
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50}
WANTS_USAGE = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
ROUTES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("/v1/chat/completions", WANTS_USAGE, CHAT_EVENTS),
    ("/v1/chat/completions", {**CHAT, "stream": True}, CHAT_EVENTS),
    ("/v1/responses", {"model": "m", "input": "hi", "max_output_tokens": 50, "stream": True}, RESPONSES_EVENTS),
]
ODD: list[Any] = [
    {"prompt_tokens": "20", "completion_tokens": "5"}, {"prompt_tokens": -20, "completion_tokens": -5}, {"prompt_tokens": 20}, {"total_tokens": 25},
    {"prompt_tokens": None, "completion_tokens": None}, {"prompt_tokens": 10**18, "completion_tokens": 5}, {}, None, [], "many",
    {"prompt_tokens": 20.0, "completion_tokens": 5.0}, {"prompt_tokens": 20, "completion_tokens": 1, "total_tokens": 25}, COUNTED,
]  # fmt: skip


async def spent(session: aiohttp.ClientSession, url: str) -> int:
    async with session.get(f"{url}/admin/budgets?key=ci", headers=ADMIN) as reply:
        (window,) = (await reply.json())["data"]
    return int(Decimal(str(window["used_usd"])) * 10**9)


async def free(session: aiohttp.ClientSession, url: str) -> None:
    """Wait until the call before has ended: its key may make one at a time, and this one costs nothing."""
    while True:
        async with session.get(f"{url}/v1/files", headers=KEY) as reply:
            if reply.status != 429:
                return


async def end(proxy: ProxyProcess, folder: Path) -> tuple[list[int], list[int]]:
    """(costs in the ledger, costs in the log that are not 0)."""
    proxy.process.terminate()
    assert await asyncio.to_thread(proxy.wait) == 0, proxy.lines
    connection = sqlite3.connect(folder / "hookline.db")
    rows = [cost for (cost,) in connection.execute("SELECT cost_nanousd FROM ledger")]
    connection.close()
    logged = [json.loads(line)["cost_usd"] for line in (folder / "calls.log").read_text().splitlines()]
    return rows, [round(cost * 10**9) for cost in logged if cost]


@pytest.mark.parametrize("end_by", [RESET, STALL])
async def test_a_stream_that_ends_anywhere_costs_at_least_what_was_made(
    serve: Callable[..., ProxyProcess], upstream: ScriptedUpstream, tmp_path: Path, end_by: Any
) -> None:
    """STALL: the client leaves."""
    proxy, costs = serve(CONFIG.format(url=upstream.url)), []
    upstream.always(json_reply({"object": "list", "data": []}))

    async with aiohttp.ClientSession() as session:
        for path, payload, events in ROUTES:
            for number in range(len(events) + 1):
                before, asked = await spent(session, proxy.base_url), len(upstream.requests)
                upstream.play(sse_reply(*events[:number], end_by))
                posting = asyncio.create_task(read(session, proxy.base_url + path, payload))
                await upstream.wait_for_requests(asked + 1)
                if end_by is STALL:
                    posting.cancel()
                with suppress(asyncio.CancelledError, aiohttp.ClientError):
                    await posting
                await free(session, proxy.base_url)
                costs.append(await spent(session, proxy.base_url) - before)
    rows, logged = await end(proxy, tmp_path)

    assert min(costs) >= MADE
    assert sorted(costs) == sorted(rows) == sorted(logged)


async def read(session: aiohttp.ClientSession, url: str, payload: dict[str, Any]) -> None:
    async with session.post(url, json=payload, headers=KEY) as reply:
        await reply.read()


async def test_an_answer_with_an_odd_usage_costs_at_least_what_was_made(
    serve: Callable[..., ProxyProcess], upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    proxy, costs = serve(CONFIG.format(url=upstream.url)), []
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "ho"}}

    async with aiohttp.ClientSession() as session:
        for usage, is_stream in [(usage, is_stream) for usage in ODD for is_stream in (False, True)]:
            before = await spent(session, proxy.base_url)
            last = json.dumps({"id": "c", "choices": [], "usage": usage})
            whole = {"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage}
            upstream.play(sse_reply(*CHAT_EVENTS[:2], last, "[DONE]") if is_stream else json_reply(whole))
            await read(session, proxy.base_url + "/v1/chat/completions", WANTS_USAGE if is_stream else CHAT)
            costs.append(await spent(session, proxy.base_url) - before)
    rows, logged = await end(proxy, tmp_path)

    assert min(costs) == MADE
    assert costs[-6:] == [MADE] * 6
    assert all(MADE < cost < 300_000 for cost in costs[:-6])
    assert sorted(costs) == sorted(rows) == sorted(logged)
