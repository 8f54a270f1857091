"""Five hundred calls at once, on five routes, streams and not: never one too many, and afterwards exactly what fits.

Over real sockets; the scripted upstream counts what is in flight. The short form has one gateway in this process, and two `hookline serve` on one Redis;
`./scripts/test --long` (HOOKLINE_LONG=1) makes it four."""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest

from hookline.testing.process import ProxyProcess
from hookline.testing.raw_client import RawReply, read_reply
from hookline.testing.redis import RedisServer
from hookline.testing.upstream import RecordedRequest, Script, ScriptedUpstream, json_reply, sse_reply

IS_LONG = os.environ.get("HOOKLINE_LONG") == "1"
PROCESSES = 4 if IS_LONG else 2
CALLS = 500
PARALLEL, REQUESTS, TOKENS = 20, 100, 2_500
"""The limits. TOKENS pays for a hundred calls by what they use, and for seven by what they may need."""
PROXY = f"""
[chain]
plugins = ["auth", "rate_limit", "model_selection"]
[server]
port = 0
[state]
shared = "{{shared}}"
[providers.up]
kind = "openai"
base_url = "{{up}}"
default = true
max_connections = 2000
[[plugins.auth.keys]]
name = "parallel"
key = "sk-parallel"
max_parallel = {PARALLEL}
[[plugins.auth.keys]]
name = "requests"
key = "sk-requests"
requests_per_minute = {REQUESTS}
[[plugins.auth.keys]]
name = "tokens"
key = "sk-tokens"
tokens_per_minute = {TOKENS}
"""
MESSAGES = [{"role": "user", "content": "hi"}]
USED = 25
CHAT_USAGE = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": USED}
RESPONSE = {
    "id": "r",
    "object": "response",
    "status": "completed",
    "output": [],
    "usage": {"input_tokens": 20, "output_tokens": 5},
}
DELTA, FINISH = (
    '{"choices":[{"index":0,"delta":{"content":"ho"}}]}',
    '{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}',
)
TEXT, TEXT_END = '{"choices":[{"index":0,"text":"ho"}]}', '{"choices":[{"index":0,"text":"","finish_reason":"stop"}]}'
USAGE = orjson.dumps({"choices": [], "usage": CHAT_USAGE}).decode()
LAST = orjson.dumps({"type": "response.completed", "response": RESPONSE}).decode()

ROUTES: dict[str, tuple[dict[str, object], Callable[[asyncio.Event], Script]]] = {
    "chat/completions": (
        {"messages": MESSAGES, "max_tokens": 200},
        lambda done: [done, *json_reply({"choices": [{"index": 0, "message": {"content": "ho"}}], "usage": CHAT_USAGE})],
    ),
    "chat/completions stream": (
        {"messages": MESSAGES, "max_tokens": 200, "stream": True},
        lambda done: sse_reply(DELTA, done, FINISH, USAGE, "[DONE]"),
    ),
    "completions": (
        {"prompt": "hi", "max_tokens": 200},
        lambda done: [done, *json_reply({"choices": [{"index": 0, "text": "ho"}], "usage": CHAT_USAGE})],
    ),
    "completions stream": (
        {"prompt": "hi", "max_tokens": 200, "stream": True},
        lambda done: sse_reply(TEXT, done, TEXT_END, USAGE, "[DONE]"),
    ),
    "embeddings": (
        {"input": "hi"},
        lambda done: [done, *json_reply({"data": [{"embedding": [1.0]}], "usage": {"prompt_tokens": USED, "total_tokens": USED}})],
    ),
    "responses": ({"input": "hi", "max_output_tokens": 200}, lambda done: [done, *json_reply(RESPONSE)]),
    "responses stream": (
        {"input": "hi", "max_output_tokens": 200, "stream": True},
        lambda done: sse_reply('{"type":"response.output_text.delta","delta":"ho"}', done, LAST),
    ),
    "moderations": ({"input": "hi"}, lambda done: [done, *json_reply({"results": [{"flagged": False}]})]),
}  # fmt: skip
"""By route: the body, and the upstream's answer, which is held until `done`."""


def request_of(kind: str, key: str) -> bytes:
    body = orjson.dumps({"model": "m", **ROUTES[kind][0]})
    return (
        f"POST /v1/{kind.split()[0]} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body


class Flights:
    """What the upstream has begun to answer and has not ended. A flight is over for it before its last bytes leave."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self.most = 0
        self.held: list[asyncio.Event] = []
        self.arrived = asyncio.Event()
        self._chance = random.Random(3)
        upstream.always(self._answer)

    def _answer(self, request: RecordedRequest) -> Script:
        done = asyncio.Event()
        self.held.append(done)
        self.most = max(self.most, len(self.held))
        self.arrived.set()
        kind = request.target.removeprefix("/v1/") + (" stream" if b'"stream":true' in request.body else "")
        return ROUTES[kind][1](done)

    def end_one(self) -> None:
        self.held.pop(self._chance.randrange(len(self.held))).set()

    @asynccontextmanager
    async def ending(self) -> AsyncIterator[None]:
        """End flights in a random order, as long as there are any."""

        async def run() -> None:
            while True:
                while self.held:
                    self.end_one()
                    for _ in range(self._chance.randrange(30)):
                        await asyncio.sleep(0)
                self.arrived.clear()
                await self.arrived.wait()

        task = asyncio.ensure_future(run())
        try:
            yield
        finally:
            task.cancel()


async def ask(port: int, request: bytes) -> RawReply:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        writer.write(request)
        return await read_reply(reader)
    finally:
        writer.transport.abort()


async def ask_all(ports: Sequence[int], key: str, count: int = CALLS) -> list[tuple[str, RawReply]]:
    """`count` calls at once, every kind in turn, spread over the gateways."""
    kinds = [list(ROUTES)[n // len(ports) % len(ROUTES)] for n in range(count)]
    replies = await asyncio.gather(*(ask(ports[n % len(ports)], request_of(k, key)) for n, k in enumerate(kinds)))
    return list(zip(kinds, replies, strict=True))


def message_of(reply: RawReply) -> str:
    told = orjson.loads(reply.body)["error"]
    assert (reply.status, told["code"]) == (429, "rate_limit_exceeded"), told
    message: str = told["message"]
    return message


async def check_parallel(ports: Sequence[int], flights: Flights) -> None:
    flights.most = 0
    async with flights.ending():
        answers = await ask_all(ports, "sk-parallel")

    assert 1 < flights.most <= PARALLEL
    refused = [reply for _, reply in answers if reply.status != 200]
    assert all("key:parallel: limit of 20 calls in parallel" in message_of(reply) for reply in refused)
    assert CALLS - len(refused) >= PARALLEL
    assert all(reply.is_whole for _, reply in answers)

    calls = [asyncio.ensure_future(ask(ports[n % len(ports)], request_of("chat/completions", "sk-parallel"))) for n in range(30)]  # fmt: skip
    await next_done(calls, 30 - PARALLEL)
    assert [call.result().status for call in calls if call.done()] == [429] * (30 - PARALLEL)
    while len(flights.held) < PARALLEL:  # noqa: ASYNC110 - they are on their way
        await asyncio.sleep(0.001)
    assert len(flights.held) == PARALLEL
    while flights.held:
        flights.end_one()
    assert sorted([(await call).status for call in calls]) == [200] * PARALLEL + [429] * (30 - PARALLEL)


async def next_done(calls: Sequence[asyncio.Task[RawReply]], count: int) -> None:
    while (done := sum(call.done() for call in calls)) < count:
        await asyncio.wait([c for c in calls if not c.done()], return_when=asyncio.FIRST_COMPLETED)
    assert done == count


async def check_requests(ports: Sequence[int], flights: Flights) -> None:
    async with flights.ending():
        answers = await ask_all(ports, "sk-requests")
        after = [await ask(port, request_of("embeddings", "sk-requests")) for port in ports]

    statuses = [reply.status for _, reply in answers]
    assert (statuses.count(200), statuses.count(429)) == (REQUESTS, CALLS - REQUESTS)
    served = [reply for _, reply in answers if reply.status == 200]
    assert sorted(int(reply.headers["x-ratelimit-remaining-requests"]) for reply in served) == list(range(REQUESTS))
    for reply in [*(reply for _, reply in answers if reply.status == 429), *after]:
        assert "key:requests: limit of 100 requests per minute" in message_of(reply)
        assert 1 <= int(reply.headers["retry-after"]) <= 61
        assert reply.headers["x-ratelimit-remaining-requests"] == "0"


async def check_tokens(ports: Sequence[int], flights: Flights, used_now: Callable[[], int] | None) -> None:
    async with flights.ending():
        answers = await ask_all(ports, "sk-tokens")
        assert used_now is None or used_now() <= TOKENS
        single: list[tuple[str, RawReply]] = []
        while not single or single[-1][1].status == 200:
            single.append(("chat/completions", await ask(ports[len(single) % len(ports)], request_of("chat/completions", "sk-tokens"))))  # fmt: skip

    used = 0
    for kind, reply in [*answers, *single]:
        if reply.status == 200:
            used += len(orjson.dumps({"model": "m", **ROUTES[kind][0]})) + 8 if kind == "moderations" else USED
        else:
            taken, need = map(
                int, re.findall(r"(\d+) used or reserved; this call may need (\d+)", message_of(reply))[0]
            )
            assert TOKENS - need < taken <= TOKENS, "refused although it fits, or one too many"
    assert used <= TOKENS
    assert used_now is None or used_now() == used
    assert f"{used} used or reserved" in message_of(single[-1][1]), "settled to what was used, no more"


@pytest.mark.timeout(120)
async def test_five_hundred_calls_at_once_are_never_one_too_many(start_gateway, upstream: ScriptedUpstream) -> None:
    gateway = await start_gateway(PROXY.format(shared="memory", up=upstream.url))
    limits = gateway.app._process.stores.limits
    flights = Flights(upstream)

    await check_parallel([gateway.port], flights)
    await check_requests([gateway.port], flights)
    await check_tokens([gateway.port], flights, lambda: limits._windows["key:tokens/tokens/minute"].used)

    await gateway.idle()
    assert limits.in_flight == 0


@pytest.fixture
def processes(tmp_path: Path, upstream: ScriptedUpstream) -> Iterator[list[ProxyProcess]]:
    opened: list[ProxyProcess] = []
    with RedisServer(tmp_path) as redis:
        try:
            for number in range(PROCESSES):
                folder = tmp_path / str(number)
                folder.mkdir()
                opened.append(ProxyProcess(folder, PROXY.format(shared=redis.url, up=upstream.url)))
            yield opened
        finally:
            for process in opened:
                process.kill()


@pytest.mark.timeout(180)
async def test_processes_on_one_redis_are_never_one_too_many_together(
    processes: list[ProxyProcess], upstream: ScriptedUpstream
) -> None:
    ports = [int(process.base_url.rpartition(":")[2]) for process in processes]
    flights = Flights(upstream)

    await check_parallel(ports, flights)
    await check_requests(ports, flights)
    await check_tokens(ports, flights, None)
