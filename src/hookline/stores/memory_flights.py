"""Flights in this process: replies kept by key, and claims, which only tests of more than one need.

Lives here: `MemoryFlights`. Elsewhere: the protocol (protocols.py), who leads (flights.py), many processes (redis_flights.py).
Idea: what is kept must not be pushed out by what is only cached, so it has a room of its own: the oldest leaves when it is full.

Nothing here outlives the process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from hookline.errors import Unavailable
from hookline.stores.protocols import Clock

OVERHEAD_BYTES = 512
WAITS_S = 3.0
CLAIMS_MAX = 100_000


class _Claimed:
    __slots__ = ("claim", "expires_at_s", "log", "wanted_until_s")

    def __init__(self, claim: bytes, expires_at_s: float) -> None:
        self.claim = claim
        self.expires_at_s = expires_at_s
        self.wanted_until_s = 0.0
        self.log = bytearray()


class MemoryFlights:
    """A `FlightStore` for one process, bounded by bytes."""

    is_shared = False

    def __init__(self, clock: Clock, max_bytes: int = 32 * 2**20) -> None:
        self._clock = clock
        self._max_bytes = max_bytes
        self._claims: dict[bytes, _Claimed] = {}
        self._kept: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()
        self._bytes = 0

    async def claim(self, key: bytes, claim: bytes, *, ttl_s: float) -> bytes | None:
        now_s = self._clock.monotonic()
        kept = self._find(key)
        if kept is not None:
            return b"=" + kept
        held = self._held(key)
        if held is not None:
            held.wanted_until_s = now_s + WAITS_S
            return held.claim
        if len(self._claims) >= CLAIMS_MAX:
            self._claims = dict(self._living())
            if len(self._claims) >= CLAIMS_MAX:
                raise Unavailable(f"flights: {CLAIMS_MAX} are in the air", retry_after_s=1.0)
        self._claims[key] = _Claimed(claim, now_s + ttl_s)
        return None

    async def renew(self, key: bytes, claim: bytes, *, ttl_s: float) -> bool | None:
        held = self._held(key)
        if held is None or held.claim != claim:
            return None
        now_s = self._clock.monotonic()
        held.expires_at_s = now_s + ttl_s
        return held.wanted_until_s > now_s

    async def append(self, key: bytes, claim: bytes, piece: bytes) -> bool:
        held = self._held(key)
        if held is None or held.claim != claim:
            return False
        held.log += piece
        return True

    async def peek(self, key: bytes, offset: int) -> tuple[bytes | None, bytes]:
        kept = self._find(key)
        if kept is not None:
            return b"=" + kept, b""
        held = self._held(key)
        if held is None:
            return None, b""
        held.wanted_until_s = self._clock.monotonic() + WAITS_S
        return held.claim, bytes(held.log[offset:])

    async def read(self, key: bytes) -> bytes | None:
        return self._find(key)

    def keep(self, key: bytes, claim: bytes | None, reply: bytes, *, ttl_s: float) -> None:
        held = self._held(key)
        if claim is not None and ((held is not None and held.claim != claim) or self._find(key) is not None):
            return
        self._claims.pop(key, None)
        self._remove(key)
        size_bytes = len(key) + len(reply) + OVERHEAD_BYTES
        if size_bytes > self._max_bytes:
            return
        self._kept[key] = (reply, self._clock.monotonic() + ttl_s)
        self._bytes += size_bytes
        while self._bytes > self._max_bytes:
            self._remove(next(iter(self._kept)))

    async def release(self, key: bytes, claim: bytes, *, unless_wanted: bool) -> bool:
        held = self._held(key)
        if held is None or held.claim != claim:
            return False
        if unless_wanted and held.wanted_until_s > self._clock.monotonic():
            return True
        del self._claims[key]
        return False

    async def aclose(self) -> None:
        self._claims.clear()
        self._kept.clear()
        self._bytes = 0

    def _find(self, key: bytes) -> bytes | None:
        kept = self._kept.get(key)
        if kept is None:
            return None
        if kept[1] <= self._clock.monotonic():
            self._remove(key)
            return None
        return kept[0]

    def _held(self, key: bytes) -> _Claimed | None:
        held = self._claims.get(key)
        if held is not None and held.expires_at_s <= self._clock.monotonic():
            del self._claims[key]
            return None
        return held

    def _living(self) -> Iterator[tuple[bytes, _Claimed]]:
        now_s = self._clock.monotonic()
        return ((key, held) for key, held in self._claims.items() if held.expires_at_s > now_s)

    def _remove(self, key: bytes) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._bytes -= len(key) + len(kept[0]) + OVERHEAD_BYTES
