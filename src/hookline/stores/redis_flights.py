"""Flights in Redis: one call makes a reply, callers of all processes wait for it.

Lives here: `RedisFlights`. Elsewhere: what a claim means (protocols.py, flight_claims.py), the decisions (lua/flight_*.lua), carrying them (redis_client.py).
Idea: a claim is a key with a short end, which its holder moves on; a holder that dies loses it by itself. Every change names the claim it stands on, so a holder that was
late changes nothing.

A flight has three keys in one slot: what it holds, who waits, and what was shown so far. All have a TTL."""

from __future__ import annotations

import asyncio
from typing import Any

from hookline.stores.redis_client import RedisClient

WAITS_S = 3.0


class RedisFlights:
    """A `FlightStore` for many processes."""

    is_shared = True

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._prefix = client.options.prefix
        names = ("claim", "renew", "append", "peek", "keep", "release")
        self._scripts = dict(zip(names, client.load(*(f"flight_{name}" for name in names)), strict=True))

    async def claim(self, key: bytes, claim: bytes, *, ttl_s: float) -> bytes | None:
        asked = self._run("claim", key, claim, _ms(ttl_s), _ms(WAITS_S))
        try:
            held: bytes | None = await asyncio.shield(asked)
        except asyncio.CancelledError:
            asked.add_done_callback(lambda done: self._give_up(key, claim, done))
            raise
        return held

    async def renew(self, key: bytes, claim: bytes, *, ttl_s: float) -> bool | None:
        answer: int = await self._run("renew", key, claim, _ms(ttl_s))
        return None if answer < 0 else bool(answer)

    async def append(self, key: bytes, claim: bytes, piece: bytes) -> bool:
        return bool(await self._run("append", key, claim, piece))

    async def peek(self, key: bytes, offset: int) -> tuple[bytes | None, bytes]:
        held, piece = await self._run("peek", key, offset, _ms(WAITS_S))
        return held, piece

    async def read(self, key: bytes) -> bytes | None:
        held: bytes | None = await self._client.send("GET", self._keys(key)[0])
        return held[1:] if held is not None and held[:1] == b"=" else None

    def keep(self, key: bytes, claim: bytes | None, reply: bytes, *, ttl_s: float) -> asyncio.Future[Any]:
        return self._run("keep", key, claim or b"", b"=" + reply, _ms(ttl_s))

    async def release(self, key: bytes, claim: bytes, *, unless_wanted: bool) -> bool:
        return bool(await self._run("release", key, claim, int(unless_wanted)))

    async def aclose(self) -> None:
        await self._client.aclose()

    def _keys(self, key: bytes) -> list[str]:
        name = f"{self._prefix}:f:{{{key.hex()}}}"
        return [name, f"{name}:w", f"{name}:l"]

    def _run(self, script: str, key: bytes, *arguments: Any) -> asyncio.Future[Any]:
        return self._client.run(self._scripts[script], self._keys(key), *arguments)

    def _give_up(self, key: bytes, claim: bytes, asked: asyncio.Future[Any]) -> None:
        """Nobody is there any more to lead; else the key were taken until the claim's end."""
        if not asked.cancelled() and asked.exception() is None and asked.result() is None:
            released = self._run("release", key, claim, 0)
            released.add_done_callback(lambda done: done.cancelled() or done.exception())


def _ms(seconds: float) -> int:
    return max(round(seconds * 1000), 1)
