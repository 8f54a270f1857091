"""Asking anew in the background.

Lives here: `Refresher`: one call per stale answer that was served. Elsewhere: when an answer is stale (entry.py), where the new one is kept (__init__.py).
Idea: a refresh is a call like any other, through the whole chain, as the same principal and at its cost; it asks with `cache-control: no-cache`, so it keeps what it gets.

At most REFRESHES_MAX at a time in a process, one per key. A key whose refresh failed is left alone for PAUSE_S. A chain that edits an edited request again (a `prepare` that is not
idempotent) would ask something else: such a refresh ends before an upstream is asked (__init__.py compares the keys)."""

from __future__ import annotations

import asyncio

import orjson
from multidict import CIMultiDict

from hookline import IN_BACKGROUND, Call, Host, Slot, derive_call

REFRESHES_MAX = 32
PAUSE_S = 5.0
_NOT_AGAIN = ("cache-control", "idempotency-key", "x-request-id")

EXPECTED_KEY: Slot[bytes] = Slot("cache_expected_key")
"""On a refresh: the key under which its answer is wanted."""


class Refresher:
    """What is being asked anew by this process."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._running: set[bytes] = set()
        refreshes = host.metrics.counter(
            "hookline_cache_refreshes_total", "Stale answers that were asked anew.", ("outcome",)
        )
        self._ok, self._failed, self._left_out = (refreshes(outcome) for outcome in ("ok", "failed", "left_out"))

    def start(self, call: Call, key: bytes) -> None:
        """Ask anew what `call` asked, unless that is done already."""
        if key in self._running:
            return
        if len(self._running) >= REFRESHES_MAX:
            self._left_out.inc()
            return
        self._running.add(key)
        self._host.spawn("refresh", self._refresh(_again(call, key, self._host), key))

    async def _refresh(self, call: Call, key: bytes) -> None:
        try:
            reply = await self._host.run(call)
            if reply.status == 200:
                self._ok.inc()
            else:
                self._failed.inc()
                await asyncio.sleep(PAUSE_S)
        finally:
            self._running.discard(key)


def _again(call: Call, key: bytes, host: Host) -> Call:
    headers = CIMultiDict(call.headers)
    for name in _NOT_AGAIN:
        headers.pop(name, None)
    headers["cache-control"] = "no-cache"
    again = derive_call(call, "refresh", host.clock, surface="refresh", headers=headers)
    again.tags = [*call.tags, "cache-refresh"]
    again.set_json(call.body, orjson.loads(call.body))
    again[IN_BACKGROUND] = True
    again[EXPECTED_KEY] = key
    return again
