"""Every resilience plugin at once, over upstreams that fail in every way: each call ends well or with an error, nothing is held afterwards, and the books are right.

Each plugin has tests of its own; here they meet: hedges of retries, rescues of continued streams, mirrors of both. Faults and calls are drawn by a seeded lot."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import orjson
import pytest

from hookline.testing.upstream import (
    CUT,
    RESET,
    STALL,
    RecordedRequest,
    Script,
    ScriptedUpstream,
    bytes_reply,
    json_reply,
    sse_reply,
)

IS_LONG = bool(os.environ.get("HOOKLINE_LONG"))
CALLS, CLIENTS = (4_000, 24) if IS_LONG else (400, 16)
NANO_PER_TOKEN = 1_000
NAMES = ("a", "b", "spare", "small")
TEXT = """
[server]
port = 0
total_timeout_s = 3
[chain]
plugins = ["auth", "load_shedding", "rate_limit", "idempotency", "cache", "budget", "model_selection", "circuit_breaker",
    "hedging", "fallback", "degradation", "mirror", "explain", "logging", "metrics"]
[admin]
key = "admin-key-0123"
[[plugins.auth.keys]]
name = "ci"
key = "sk-ci"
max_parallel = {clients}
requests_per_minute = 1000000
tokens_per_minute = 1000000000
budget = {{ daily_usd = 1000.0 }}
[models.m]
deployments = ["a/m", "b/m"]
timeouts = {{ first_byte_s = 0.3 }}
[models.m.plugins.fallback]
models = ["longer"]
max_retries = 1
backoff_s = 0.01
mid_stream = "continue"
[models.longer]
deployments = ["spare/m"]
timeouts = {{ first_byte_s = 0.3 }}
[models.tiny]
deployments = ["small/m"]
timeouts = {{ first_byte_s = 0.3 }}
[plugins.circuit_breaker]
open_s = 0.05
max_open_s = 0.1
cooldown_s = 0.05
[plugins.degradation]
model = "tiny"
static = "not now"
[plugins.hedging]
after_s = 0.05
percentile = 0
budget = 0.1
[plugins.mirror]
to = "small/m"
share = 0.2
timeout_s = 1
"""
PROVIDER = """
[providers.{name}]
kind = "openai"
base_url = "{url}"
api_key = "sk-none"
[prices."{name}/m"]
input = 1.0
output = 1.0
"""
HEAD = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
ERROR = {"error": {"message": "down", "type": "server_error"}}
WITHOUT_ANSWER: dict[str, Callable[[], Script]] = {
    "500": lambda: json_reply(ERROR, status=500),
    "429": lambda: json_reply(ERROR, status=429),
    "429 that says when": lambda: json_reply(ERROR, status=429, headers={"retry-after-ms": "20"}),
    "400": lambda: json_reply({"error": {"message": "no", "type": "invalid_request_error"}}, status=400),
    "HTML": lambda: bytes_reply(b"<html>", status=502, headers={"content-type": "text/html"}),
    "garbage": lambda: bytes_reply(b"<html>", headers={"content-type": "application/json"}),
    "reset": lambda: [RESET],
    "stall": lambda: [STALL],
}
IN_ANSWER = ("cut", "late", "error inside")


class Faulty:
    """An upstream that fails by lot until `is_healed`, and writes down what it bills: from the moment at which it has begun to answer."""

    def __init__(self, upstream: ScriptedUpstream, chance: random.Random, billed: dict[str, list[int]]) -> None:
        self.is_healed = False
        self._chance = chance
        self._billed = billed
        upstream.always(self._answer)

    def _answer(self, request: RecordedRequest) -> Script:
        asked, chance = request.json(), self._chance
        fault = ""
        if not self.is_healed and chance.random() < 0.35:
            fault = chance.choice((*WITHOUT_ANSWER, *IN_ANSWER))
        if fault in WITHOUT_ANSWER:
            return WITHOUT_ANSWER[fault]()
        inputs, outputs = chance.randint(1, 20), chance.randint(1, 40)
        self._billed[asked["user"]].append((inputs + outputs) * NANO_PER_TOKEN)
        usage = {"prompt_tokens": inputs, "completion_tokens": outputs, "total_tokens": inputs + outputs}
        thinking = asyncio.Event()
        asyncio.get_running_loop().call_later(0.1 if fault == "late" else 0.0, thinking.set)
        if asked.get("stream"):
            return [thinking, *self._stream(fault, usage)]
        message = {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
        whole = b"".join(
            json_reply({**HEAD, "object": "chat.completion", "choices": [message], "usage": usage})  # type: ignore[arg-type]
        )
        return [thinking, whole] if fault in ("", "late") else [thinking, whole[:-9], CUT]

    def _stream(self, fault: str, usage: dict[str, int]) -> Script:
        words = [told({"choices": [{"index": 0, "delta": {"content": f"w{n} "}}]}) for n in range(6)]
        if fault == "cut":
            return sse_reply(*words[:3], CUT)
        if fault == "error inside":
            return sse_reply(*words[:3], orjson.dumps(ERROR).decode())
        end = told({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        return sse_reply(*words, end, told({"choices": [], "usage": usage}), "[DONE]")


def told(event: dict[str, Any]) -> str:
    return orjson.dumps({**HEAD, **event}).decode()


class Clients:
    """What they asked and saw. `wrong`: what must not be, in words."""

    def __init__(self, http: aiohttp.ClientSession, chance: random.Random) -> None:
        self.ended = Counter[str]()
        self.wrong: list[str] = []
        self.whole: set[str] = set()
        self._http = http
        self._chance = chance

    async def ask(self, number: int) -> None:
        chance, name = self._chance, f"call-{number}"
        body: dict[str, Any] = {
            "model": "m", "user": name, "max_tokens": 50, "stream": chance.random() < 0.5, "messages": [{"role": "user", "content": name}],
        }  # fmt: skip
        headers = {"authorization": "Bearer sk-ci", "x-request-id": name}
        kind = chance.choice(("plain", "plain", "plain", "cold", "once", "explained", "hurried", "leaving"))
        if kind == "cold":
            body |= {"temperature": 0, "messages": [{"role": "user", "content": f"cold {number % 7}"}]}
        elif kind == "once":
            headers["idempotency-key"] = f"key-{number}"
        elif kind == "explained":
            headers["x-hookline-explain"] = "true"
        elif kind == "hurried":
            headers["x-hookline-timeout-s"] = "0.2"
        async with self._http.post("/v1/chat/completions", json=body, headers=headers) as reply:
            if kind == "leaving":
                await reply.content.read(10)
                reply.close()
                return
            seen, is_cut = b"", False
            try:
                async for chunk in reply.content.iter_any():
                    seen += chunk
            except aiohttp.ClientPayloadError:
                is_cut = True
        self._judge(name, kind, reply, seen, is_cut=is_cut, is_stream=body["stream"])

    def _judge(
        self, name: str, kind: str, reply: aiohttp.ClientResponse, seen: bytes, *, is_cut: bool, is_stream: bool
    ) -> None:
        if reply.status != 200:
            error = orjson.loads(seen)["error"]
            self.ended[f"{reply.status} {error.get('code')}"] += 1
            if reply.status == 500:
                self.wrong.append(f"{name}: {error}")
        elif is_stream and kind != "explained":
            is_whole = seen.endswith(b"data: [DONE]\n\n") and b'"error"' not in seen and seen.count(b"[DONE]") == 1
            is_broken = is_cut and b'"error"' in seen and b"[DONE]" not in seen
            self.ended["stream" if is_whole else "broken stream"] += 1
            if not is_whole and not is_broken:
                self.wrong.append(f"{name}: a stream that neither ends nor says why: {seen[-200:]!r}")
            elif is_whole:
                self.whole.add(name)
        else:
            self.ended["explained" if kind == "explained" else "whole"] += 1
            if kind != "explained":
                self.whole.add(name)
        if kind != "explained" and not {"x-hookline-deployment", "x-hookline-attempts"} <= {
            *map(str.lower, reply.headers)
        }:
            self.wrong.append(f"{name}: {reply.status} does not say who answered")


@pytest.fixture
async def upstreams() -> AsyncIterator[dict[str, ScriptedUpstream]]:
    async with AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(ScriptedUpstream()) for name in NAMES}


@pytest.mark.timeout(300 if IS_LONG else 120)
@pytest.mark.parametrize("seed", range(4) if IS_LONG else [1])
async def test_every_call_ends_and_the_books_are_right(
    start_gateway: Any, upstreams: dict[str, ScriptedUpstream], seed: int
) -> None:
    chance, billed = random.Random(seed), defaultdict[str, list[int]](list)
    faulty = [Faulty(upstream, chance, billed) for upstream in upstreams.values()]
    providers = "".join(PROVIDER.format(name=name, url=upstreams[name].url) for name in NAMES)
    gateway = await start_gateway(TEXT.format(clients=CLIENTS + 8) + providers)
    numbers = iter(range(CALLS))
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(60)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{gateway.port}", connector=connector, timeout=timeout) as http:
        clients = Clients(http, chance)

        async def run() -> None:
            for number in numbers:
                await clients.ask(number)

        await asyncio.gather(*(run() for _ in range(CLIENTS)))
        await gateway.idle()

        assert clients.wrong == []
        assert {"stream", "whole"} <= {*clients.ended}, clients.ended
        ledger = await read_ledger(http)
        booked = Counter[str]()
        for row in ledger:
            booked["-".join(row["call_id"].split("-")[:2])] += row["cost_nanousd"]
        assert {name: (booked[name], sums) for name, sums in billed.items() if booked[name] < sum(sums)} == {}
        used = (await admin(http, "budgets"))["data"][0]["used_usd"]
        assert round(used * 1e9) == sum(row["cost_nanousd"] for row in ledger if row["key"] == "ci")

        for one in faulty:
            one.is_healed = True
        before = clients.ended.copy()
        for number in range(CALLS, CALLS + 40):  # what was open is tried again
            await clients.ask(number)
        await gateway.idle()
        clients.ended.clear()
        await asyncio.gather(*(clients.ask(CALLS + 40 + number) for number in range(CLIENTS)))
        await gateway.idle()
        metrics = await admin(http, "/metrics")

    assert {*clients.ended} <= {"stream", "whole", "explained", "504 deadline_exceeded"}, (clients.ended, before)
    assert clients.wrong == []
    for gauge in ("hookline_shedding_in_flight", "hookline_settle_errors_total", "hookline_hook_errors_total"):
        assert [line for line in metrics.splitlines() if line.startswith(gauge) and not line.endswith(" 0.0")] == []


async def admin(http: aiohttp.ClientSession, path: str) -> Any:
    headers = {"authorization": "Bearer admin-key-0123"}
    async with http.get(path if path.startswith("/") else f"/admin/{path}", headers=headers) as reply:
        assert reply.status == 200, await reply.text()
        return await (reply.json() if reply.content_type == "application/json" else reply.text())


async def read_ledger(http: aiohttp.ClientSession) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    page = await admin(http, "ledger?limit=1000")
    while True:
        rows += page["data"]
        if not page["has_more"]:
            return rows
        page = await admin(http, f"ledger?limit=1000&after={page['last_id']}")
