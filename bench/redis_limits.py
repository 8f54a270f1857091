"""What a decision in Redis costs: CPU of this process, time, round trips; alone and 64 in one tick.

source scripts/services.sh; start_redis; .venv/bin/python bench/redis_limits.py "$REDIS_URL"; stop_services"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

import uvloop

from hookline.stores.protocols import Spend, Take
from hookline.stores.redis_client import RedisClient
from hookline.stores.redis_limits import RedisLimits

N = 2_048
TAKES = tuple(
    Take(scope, 10**9, window_s)
    for scope, window_s in (
        ("key/requests", 60.0),
        ("key/tokens", 60.0),
        ("key/parallel", 0.0),
        ("tenant", 60.0),
        ("global", 60.0),
    )
)
SPENDS = tuple(Spend(scope, 10**15, float("inf")) for scope in ("key", "tenant", "global"))


async def measure(url: str) -> None:
    store = RedisLimits(RedisClient(url, monotonic=time.monotonic))

    async def ping(name: str) -> None:
        await store._client.send("PING")

    async def take(name: str) -> None:
        await store.take(name, TAKES, (1, 100, 1, 1, 1), expires_s=60)

    async def give_back(name: str) -> None:
        await (store.give_back(name, (1, 50, 0, 1, 1)) or asyncio.sleep(0))

    async def reserve(name: str) -> None:
        await store.reserve(name, SPENDS, 1_000, expires_s=60)

    async def settle(name: str) -> None:
        await store.settle(name, 500)

    asks: tuple[Callable[[str], Awaitable[None]], ...] = (ping, take, give_back, reserve, settle)
    for at_once in (1, 64):
        for ask in asks:
            cpu_s, wall_s, trips = time.process_time(), time.monotonic(), store._client.round_trips
            for first in range(0, N, at_once):
                await asyncio.gather(*(ask(f"{at_once}.{n}") for n in range(first, first + at_once)))
            cpu_us, wall_us = (time.process_time() - cpu_s) / N * 1e6, (time.monotonic() - wall_s) / N * 1e6
            trips_each = (store._client.round_trips - trips) / N
            print(
                f"{at_once:3} at once, {ask.__name__:9}: CPU {cpu_us:6.1f} us, {wall_us:6.1f} us in all, {trips_each:.3f} round trips"
            )
    await store.aclose()


if __name__ == "__main__":
    uvloop.run(measure(sys.argv[1]))
