"""Watchdog: notices a plain `def` hook that blocks the event loop, and names it.

Lives here: the beat of the loop, and the thread that listens for it. Elsewhere: the time budget of async hooks (call_timer.py).
Idea: a blocked loop can't tell on itself, so another thread looks at the stack of the loop's thread; the plugin is the one whose hook's code is on it."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

from hookline.host import Metrics

log = logging.getLogger("hookline.watchdog")

BLOCKED_AFTER_S = 1.0
BEAT_S = 0.25

Place = tuple[str, int]
"""File and first line of a hook's code."""


class Watchdog:
    """Watches the running loop from a daemon thread. `find_hooks` answers {place of a hook's code: (plugin, hook)}."""

    def __init__(
        self,
        metrics: Metrics,
        find_hooks: Callable[[], Mapping[Place, tuple[str, str]]],
        *,
        blocked_after_s: float = BLOCKED_AFTER_S,
    ) -> None:
        self._blocked = metrics.counter(
            "hookline_loop_blocked_total", "Times a plain hook (or the core) blocked the event loop.", ("plugin",)
        )
        self._find_hooks = find_hooks
        self._blocked_after_s = blocked_after_s
        self._stopped = threading.Event()
        self._beat_at = time.monotonic()
        self._handle: asyncio.TimerHandle | None = None
        self._loop_thread = 0

    def start(self) -> None:
        """Begin; called on the loop."""
        self._loop_thread = threading.get_ident()
        self._beat(asyncio.get_running_loop())
        threading.Thread(target=self._watch, name="hookline-watchdog", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()
        if self._handle is not None:
            self._handle.cancel()

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._beat_at = time.monotonic()
        self._handle = loop.call_later(min(BEAT_S, self._blocked_after_s / 4), self._beat, loop)

    def _watch(self) -> None:
        told_beat = 0.0
        while not self._stopped.wait(min(BEAT_S, self._blocked_after_s / 4)):
            beat_at = self._beat_at
            blocked_s = time.monotonic() - beat_at
            if blocked_s < self._blocked_after_s or beat_at == told_beat:
                continue
            told_beat = beat_at
            frame = sys._current_frames().get(self._loop_thread)
            if frame is not None:
                self._tell(frame, blocked_s)

    def _tell(self, frame: FrameType, blocked_s: float) -> None:
        at = f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"
        culprit = find_culprit(frame, self._find_hooks())
        if culprit is None:
            self._blocked("").inc()
            log.error("the event loop has stood still for %.1f s, at %s", blocked_s, at)
            return
        plugin, hook, place = culprit
        self._blocked(plugin).inc()
        log.error(
            'plugin "%s", hook %s (%s:%d) has blocked the event loop for %.1f s, now at %s; make it `async def` and await, '
            "or move the work to a thread",
            plugin, hook, *place, blocked_s, at,
        )  # fmt: skip


def find_culprit(frame: FrameType | None, hooks: Mapping[Place, tuple[str, str]]) -> tuple[str, str, Place] | None:
    """(plugin, hook, place) of the innermost hook on the stack; None if no hook is."""
    for inner in _outwards(frame):
        place = (inner.f_code.co_filename, inner.f_code.co_firstlineno)
        if place in hooks:
            return (*hooks[place], place)
    return None


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
