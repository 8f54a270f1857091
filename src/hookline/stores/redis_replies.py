"""Cached replies in Redis, and the two levels of them.

Lives here: `RedisReplies` (L2), `TwoLevelReplies` (this process, then L2). Elsewhere: L1 (memory.py), what may be cached (builtins/cache.py).
Idea: an entry carries its own end, so that L1 never keeps it longer; L1 keeps nothing longer than `l1_ttl_s` (1 s) either, and that is how soon a purge in another
process takes hold here. Redis being down means misses, never errors: a purge alone says so.

Each entry is a key of its own slot. A tag is a sorted set of keys by their end, cut whenever it grows, so it holds living entries only."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from functools import partial
from typing import Any

from hookline.errors import Unavailable
from hookline.stores.memory import MemoryReplies
from hookline.stores.protocols import Clock
from hookline.stores.redis_client import RedisClient

_END = struct.Struct(">Q")
"""In front of each value: its end, Unix milliseconds."""


class RedisReplies:
    """A `ReplyStore` for many processes. What bounds it is Redis's own `maxmemory`."""

    def __init__(self, client: RedisClient, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._entry, self._tag = f"{client.options.prefix}:e:".encode(), f"{client.options.prefix}:t:"

    async def get(self, key: bytes) -> bytes | None:
        found = await self.get_with_ttl(key)
        return None if found is None else found[0]

    async def get_with_ttl(self, key: bytes) -> tuple[bytes, float] | None:
        """The value, and for how many seconds it is good."""
        kept: bytes | None = await self._client.send("GET", self._entry + key)
        if kept is None or len(kept) < _END.size:
            return None
        ttl_s = _END.unpack_from(kept)[0] / 1000 - self._clock.time()
        return (kept[_END.size :], ttl_s) if ttl_s > 0 else None

    def put(self, key: bytes, value: bytes, *, ttl_s: float, tags: Sequence[str] = ()) -> asyncio.Future[Any]:
        now_ms, ttl_ms = round(self._clock.time() * 1000), max(round(ttl_s * 1000), 1)
        end_ms, send = now_ms + ttl_ms, self._client.send
        asked: list[asyncio.Future[Any]] = []
        for tag in tags:  # before the entry: an entry without its tags could not be purged
            name = self._tag + tag
            asked += (
                send("ZREMRANGEBYSCORE", name, "-inf", now_ms),
                send("ZADD", name, end_ms, key),
                send("PEXPIRE", name, ttl_ms, "NX"),
                send("PEXPIRE", name, ttl_ms, "GT"),
            )
        asked.append(send("SET", self._entry + key, _END.pack(end_ms) + value, "PX", ttl_ms))
        return asyncio.gather(*asked)

    async def delete(self, *, tag: str) -> int:
        name = self._tag + tag
        keys: list[bytes] = await self._client.send("ZRANGE", name, 0, -1)
        gone = await asyncio.gather(*(self._client.send("UNLINK", self._entry + key) for key in keys))
        if keys:
            await self._client.send("ZREM", name, *keys)
        return sum(gone)

    async def aclose(self) -> None:
        await self._client.aclose()


class TwoLevelReplies:
    """This process first, then Redis; both are written."""

    def __init__(self, l2: RedisReplies, clock: Clock, *, l1_ttl_s: float, l1_max_bytes: int) -> None:
        self._l2 = l2
        self._clock = clock
        self._l1_ttl_s = l1_ttl_s
        self._l1_max_bytes = l1_max_bytes
        self._l1 = MemoryReplies(clock, max_bytes=l1_max_bytes)
        self._putting: dict[bytes, asyncio.Future[Any]] = {}
        self.bypassed = 0
        """Reads and writes that Redis did not answer."""

    async def get(self, key: bytes) -> bytes | None:
        value = await self._l1.get(key)
        if value is not None:
            return value
        l1 = self._l1
        if (putting := self._putting.get(key)) is not None:
            await asyncio.wait((putting,))
        try:
            found = await self._l2.get_with_ttl(key)
        except Unavailable:
            self.bypassed += 1
            return None
        if found is None:
            return None
        value, ttl_s = found
        l1.put(key, value, ttl_s=min(ttl_s, self._l1_ttl_s))
        return value

    def put(self, key: bytes, value: bytes, *, ttl_s: float, tags: Sequence[str] = ()) -> None:
        """Kept here at once, in Redis soon: no call's end waits for it."""
        self._l1.put(key, value, ttl_s=min(ttl_s, self._l1_ttl_s), tags=tags)
        try:
            asked = self._l2.put(key, value, ttl_s=ttl_s, tags=tags)
        except Unavailable:
            self.bypassed += 1
            return
        self._putting[key] = asked
        asked.add_done_callback(partial(self._put_ended, key))

    async def delete(self, *, tag: str) -> int:
        """Raises `Unavailable` if Redis can't purge. L1 does not know the tags of what it got from there, so it goes whole."""
        self._l1 = MemoryReplies(self._clock, max_bytes=self._l1_max_bytes)
        if self._putting:
            await asyncio.wait(self._putting.values())
        return await self._l2.delete(tag=tag)

    async def aclose(self) -> None:
        if self._putting:
            await asyncio.wait(self._putting.values())
        await self._l1.aclose()
        await self._l2.aclose()

    def _put_ended(self, key: bytes, asked: asyncio.Future[Any]) -> None:
        if self._putting.get(key) is asked:
            del self._putting[key]
        if asked.cancelled() or asked.exception() is not None:
            self.bypassed += 1
