"""Overload: more calls than the upstream has places for, in three classes, through a running gateway.

Lives here: an upstream with a number of places, the calls, what they saw. Elsewhere: the same in made-up time (tests/simulations), the bound (slo.py).
Idea: an open loop: calls come at their rate whatever becomes of the others, as they do in an overload."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from bench.streams import Door

PLACES, SERVICE_S = 20, 0.2
CAPACITY_PER_S = PLACES / SERVICE_S
MIX = {"high": 0.2, "normal": 0.4, "low": 0.4}
PATIENCE_S = 10.0
_BODY = (
    b'{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":"ok"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10}}'
)
_REPLY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(_BODY), _BODY)


@dataclass(slots=True)
class Seen:
    """What the callers of one phase saw. Latencies in seconds, by class."""

    span_s: float
    served: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in MIX})
    refused: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MIX, 0))
    failed: int = 0

    @property
    def goodput(self) -> float:
        """Answers as a share of what the upstream can serve."""
        return sum(map(len, self.served.values())) / (self.span_s * CAPACITY_PER_S)

    def p99(self, priority: str) -> float:
        ordered = sorted(self.served[priority])
        return ordered[int(0.99 * len(ordered))] if ordered else float("inf")


@contextlib.asynccontextmanager
async def upstream_with_places() -> AsyncIterator[int]:
    """Serves PLACES calls at a time, SERVICE_S each, first come, first served. Yields its port."""
    places = asyncio.Semaphore(PLACES)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
                )
                await reader.readexactly(length)
                async with places:
                    await asyncio.sleep(SERVICE_S)
                writer.write(_REPLY)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def call_at(port: int, load: float, span_s: float, *, seed: int = 5) -> Seen:
    """In: the load as a share of capacity. Out: what all its calls saw."""
    draw, seen, tasks = random.Random(seed), Seen(span_s), set[asyncio.Task[None]]()
    doors = {name: Door(port, key=f"sk-{name}", headers={"connection": "close"}) for name in MIX}
    loop = asyncio.get_running_loop()
    began_at = due_at = loop.time()
    number = 0
    while due_at < began_at + span_s:
        (priority,) = draw.choices(list(MIX), list(MIX.values()))
        number += 1
        request = doors[priority].build_request(f"{number:012d}", stream=False)
        tasks.add(loop.create_task(_call(port, request, priority, seen)))
        due_at += draw.expovariate(load * CAPACITY_PER_S)
        await asyncio.sleep(max(due_at - loop.time(), 0.0))
    await asyncio.gather(*tasks)
    return seen


async def _call(port: int, request: bytes, priority: str, seen: Seen) -> None:
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    try:
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(request)
                status = int((await reader.readline()).split()[1])
                await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError, IndexError):
        seen.failed += 1
        return
    if status == 200:
        seen.served[priority].append(loop.time() - began_at)
    elif status == 503:
        seen.refused[priority] += 1
    else:
        seen.failed += 1
