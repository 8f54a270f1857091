"""`hookline serve` processes on one Redis: what one has found dead, all leave alone, and an operator of one decides for all.

The short form starts two; `./scripts/test --long` (HOOKLINE_LONG=1) starts four."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import aiohttp
import pytest

from hookline.testing.process import ProxyProcess
from hookline.testing.redis import RedisServer
from hookline.testing.upstream import ScriptedUpstream, json_reply

PROCESSES = 4 if os.environ.get("HOOKLINE_LONG") == "1" else 2
TEXT = """
[server]
port = 0
[state]
shared = "{redis}"
[chain]
plugins = ["circuit_breaker", "fallback"]
[plugins.circuit_breaker]
open_s = 60
[providers.dead]
kind = "openai"
base_url = "{dead}"
[providers.well]
kind = "openai"
base_url = "{well}"
[models.m]
deployments = ["dead/m", "well/m"]
[admin]
key = "admin-key"
"""
REPLY = {"object": "chat.completion", "choices": [{"index": 0, "message": {"content": "ho"}, "finish_reason": "stop"}]}


@pytest.fixture
async def dead():
    async with ScriptedUpstream() as dead:
        dead.always(json_reply({"error": {"message": "no"}}, status=500))
        yield dead


@pytest.fixture
async def processes(tmp_path, dead: ScriptedUpstream, upstream: ScriptedUpstream):
    upstream.always(json_reply(REPLY))
    with RedisServer(tmp_path) as server:
        for number in range(PROCESSES):
            (tmp_path / str(number)).mkdir()
        text = TEXT.format(redis=server.url, dead=dead.url, well=upstream.url)
        starting = (asyncio.to_thread(ProxyProcess, tmp_path / str(number), text) for number in range(PROCESSES))
        started = await asyncio.gather(*starting)
        yield started
        for process in started:
            process.kill()


async def test_what_one_process_finds_dead_all_leave_alone_and_operators_decide_for_all(processes, dead):
    """One start carries the whole story."""
    first, *others = processes
    async with aiohttp.ClientSession(headers={"authorization": "Bearer admin-key"}) as client:

        async def ask(process: ProxyProcess) -> str:
            body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
            async with client.post(f"{process.base_url}/v1/chat/completions", json=body) as reply:
                return f"{reply.status} {reply.headers['x-hookline-deployment']} {reply.headers['x-hookline-attempts']}"

        async def decide(process: ProxyProcess, state: str) -> None:
            order = {"deployment": "dead/m", "state": state}
            async with client.post(f"{process.base_url}/admin/breakers", json=order) as reply:
                assert reply.status == 200

        async def told(process: ProxyProcess, pattern: str) -> Any:
            return await asyncio.to_thread(process.wait_for, pattern)

        assert [await ask(first) for _ in range(5)] == ["200 well/m 2"] * 5
        for process in others:
            await told(process, r"circuit of dead/m opened for .*consecutive_failures")
        assert [await ask(process) for process in processes] == ["200 well/m 1"] * PROCESSES
        assert len(dead.requests) == 5

        await decide(others[-1], "closed")
        await told(first, r"circuit of dead/m is forced_closed")
        assert await ask(first) == "200 well/m 2"

        await decide(others[-1], "open")
        await told(first, r"circuit of dead/m is forced_open")
        async with client.get(f"{first.base_url}/admin/breakers") as reply:
            listed = (await reply.json())["data"]
        assert [(one["deployment"], one["state"]) for one in listed] == [
            ("dead/m", "forced_open"),
            ("well/m", "closed"),
        ]
