"""Cached replies in Redis, and the two levels of them.

Lives here: `RedisReplies` (L2), `TwoLevelReplies` (this process, then L2). Elsewhere: L1 (memory.py), what may be cached (builtins/cache).
Idea: an entry carries its own end, so that L1 never keeps it longer; L1 keeps nothing longer than `l1_ttl_s` (1 s) either, and that is how soon a purge in another
process takes hold here, and how soon an answer that was asked anew elsewhere is seen. Redis being down means misses, never errors: a purge alone says so.

Each entry is a key of its own slot. A tag is a sorted set of keys by their end; what has ended is cut off it every TEND_S, so it holds living entries and a minute's dead ones."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from hookline.errors import Unavailable
from hookline.stores.memory import MemoryReplies
from hookline.stores.protocols import Clock
from hookline.stores.redis_client import Metrics, RedisClient, watch

_END = struct.Struct(">Q")
"""In front of each value: its end, Unix milliseconds."""
TEND_S = 60
"""Cutting a tag and moving its end at each put made 13 commands of a put with three tags; now there are 4."""
TAGS_MAX = 10_000
MGET_MAX = 512
"""Keys of one MGET: 512 KiB of vectors are 0.5 s of one connection at most."""


class RedisReplies:
    """A `ReplyStore` for many processes. What bounds it is Redis's own `maxmemory`."""

    is_shared = True

    def __init__(self, client: RedisClient, clock: Clock) -> None:
        self.client = client
        self._clock = clock
        self._entry, self._tag = f"{client.options.prefix}:e:".encode(), f"{client.options.prefix}:t:"
        self._tended: dict[str, tuple[float, float]] = {}
        """By tag: when it is tended next, and its end in Redis."""

    async def get(self, key: bytes) -> bytes | None:
        found = await self.get_with_ttl(key)
        return None if found is None else found[0]

    async def get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        return [None if found is None else found[0] for found in await self.get_many_with_ttl(keys)]

    async def get_with_ttl(self, key: bytes) -> tuple[bytes, float] | None:
        """The value, and for how many seconds it is good."""
        kept: bytes | None = await self.client.send("GET", self._entry + key)
        return self._read(kept, self._clock.time())

    async def get_many_with_ttl(self, keys: Sequence[bytes]) -> Sequence[tuple[bytes, float] | None]:
        names = [self._entry + key for key in keys]
        asked = [self.client.send("MGET", *names[i : i + MGET_MAX]) for i in range(0, len(names), MGET_MAX)]
        now_s = self._clock.time()
        return [self._read(kept, now_s) for part in await asyncio.gather(*asked) for kept in part]

    def put(self, key: bytes, value: bytes, *, ttl_s: float, tags: Sequence[str] = ()) -> asyncio.Future[Any]:
        return self.put_many({key: value}, ttl_s=ttl_s, tags=tags)

    def put_many(
        self, entries: Mapping[bytes, bytes], *, ttl_s: float, tags: Sequence[str] = ()
    ) -> asyncio.Future[Any]:
        now_ms, ttl_ms = round(self._clock.time() * 1000), max(round(ttl_s * 1000), 1)
        end_ms, send = now_ms + ttl_ms, self.client.send
        end = _END.pack(end_ms)
        asked: list[asyncio.Future[Any]] = []
        if entries:
            scored = [part for key in entries for part in (end_ms, key)]
            for tag in tags:  # before the entries: an entry without its tags could not be purged
                asked.append(send("ZADD", self._tag + tag, *scored))
                asked += self._tend(tag, now_ms, ttl_ms)
        asked += [send("SET", self._entry + key, end + value, "PX", ttl_ms) for key, value in entries.items()]
        return asyncio.gather(*asked)

    async def delete_tagged(self, tag: str) -> int:
        name = self._tag + tag
        keys: list[bytes] = await self.client.send("ZRANGE", name, 0, -1)
        gone = await self.delete(keys)
        for i in range(0, len(keys), MGET_MAX):
            await self.client.send("ZREM", name, *keys[i : i + MGET_MAX])
        return gone

    async def delete(self, keys: Sequence[bytes]) -> int:
        gone = 0
        for i in range(0, len(keys), MGET_MAX):
            part = keys[i : i + MGET_MAX]
            gone += sum(await asyncio.gather(*(self.client.send("UNLINK", self._entry + key) for key in part)))
        return gone

    async def aclose(self) -> None:
        await self.client.aclose()

    def _read(self, kept: bytes | None, now_s: float) -> tuple[bytes, float] | None:
        if kept is None or len(kept) < _END.size:
            return None
        ttl_s = _END.unpack_from(kept)[0] / 1000 - now_s
        return (kept[_END.size :], ttl_s) if ttl_s > 0 else None

    def _tend(self, tag: str, now_ms: int, ttl_ms: int) -> list[asyncio.Future[Any]]:
        """Give a tag an end beyond that of its entries, and cut what has ended; once in TEND_S, for it is then good for so long."""
        due_ms, end_ms = self._tended.get(tag, (0, 0))
        if now_ms < due_ms and now_ms + ttl_ms <= end_ms:
            return []
        if len(self._tended) >= TAGS_MAX:
            self._tended.clear()
        tag_ms = ttl_ms + 2 * TEND_S * 1000
        self._tended[tag] = (now_ms + TEND_S * 1000, now_ms + tag_ms)
        name, send = self._tag + tag, self.client.send
        return [
            send("ZREMRANGEBYSCORE", name, "-inf", now_ms),
            send("PEXPIRE", name, tag_ms, "NX"),
            send("PEXPIRE", name, tag_ms, "GT"),
        ]


class TwoLevelReplies:
    """This process first, then Redis; both are written."""

    is_shared = True

    def __init__(self, l2: RedisReplies, clock: Clock, *, l1_ttl_s: float, l1_max_bytes: int) -> None:
        self._l2 = l2
        self._clock = clock
        self._l1_ttl_s = l1_ttl_s
        self._l1_max_bytes = l1_max_bytes
        self._l1 = MemoryReplies(clock, max_bytes=l1_max_bytes)
        self._putting: dict[bytes, asyncio.Future[Any]] = {}
        self.bypassed = 0
        """Reads and writes that Redis did not answer."""
        self._count_bypassed: Callable[[], None] = lambda: None

    def report_to(self, metrics: Metrics) -> None:
        """Show the breaker, and what was done without Redis."""
        self._count_bypassed = watch(self._l2.client, metrics, "replies")

    async def get(self, key: bytes) -> bytes | None:
        value = await self._l1.get(key)
        return value if value is not None else (await self._fetch((key,)))[0]

    async def get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """L1's, and in one question those that it has not."""
        here = list(await self._l1.get_many(keys))
        missing = list({key: None for key, value in zip(keys, here, strict=True) if value is None})
        if not missing:
            return here
        there = dict(zip(missing, await self._fetch(missing), strict=True))
        return [there[key] if value is None else value for key, value in zip(keys, here, strict=True)]

    def put(self, key: bytes, value: bytes, *, ttl_s: float, tags: Sequence[str] = ()) -> None:
        """Kept here at once, in Redis soon: no call's end waits for it."""
        self.put_many({key: value}, ttl_s=ttl_s, tags=tags)

    def put_many(self, entries: Mapping[bytes, bytes], *, ttl_s: float, tags: Sequence[str] = ()) -> None:
        self._l1.put_many(entries, ttl_s=min(ttl_s, self._l1_ttl_s), tags=tags)
        try:
            asked = self._l2.put_many(entries, ttl_s=ttl_s, tags=tags)
        except Unavailable:
            self._bypass()
            return
        self._putting |= dict.fromkeys(entries, asked)
        asked.add_done_callback(partial(self._put_ended, tuple(entries)))

    async def delete_tagged(self, tag: str) -> int:
        """Raises `Unavailable` if Redis can't purge. L1 does not know the tags of what it got from there, so it goes whole."""
        await self._forget()
        return await self._l2.delete_tagged(tag)

    async def delete(self, keys: Sequence[bytes]) -> int:
        """Raises `Unavailable` if Redis can't purge."""
        await self._forget()
        return await self._l2.delete(keys)

    async def aclose(self) -> None:
        if self._putting:
            await asyncio.wait(set(self._putting.values()))
        await self._l1.aclose()
        await self._l2.aclose()

    async def _fetch(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        l1 = self._l1
        if self._putting and (putting := {self._putting[key] for key in keys if key in self._putting}):
            await asyncio.wait(putting)
        try:
            found = [await self._l2.get_with_ttl(keys[0])] if len(keys) == 1 else await self._l2.get_many_with_ttl(keys)
        except Unavailable:
            self._bypass()
            return [None] * len(keys)
        for key, one in zip(keys, found, strict=True):
            if one is not None:
                l1.put(key, one[0], ttl_s=min(one[1], self._l1_ttl_s))
        return [None if one is None else one[0] for one in found]

    async def _forget(self) -> None:
        """L1 goes whole, and what is on its way to Redis arrives there before it is purged. Reads that are on their way fill the old L1, which nobody reads."""
        self._l1 = MemoryReplies(self._clock, max_bytes=self._l1_max_bytes)
        if self._putting:
            await asyncio.wait(set(self._putting.values()))

    def _put_ended(self, keys: Sequence[bytes], asked: asyncio.Future[Any]) -> None:
        for key in keys:
            if self._putting.get(key) is asked:
                del self._putting[key]
        if asked.cancelled() or asked.exception() is not None:
            self._bypass()

    def _bypass(self) -> None:
        self.bypassed += 1
        self._count_bypassed()
