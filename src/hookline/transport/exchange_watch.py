"""The two limits on an exchange that silence does not break: its whole time, and how fast its reply comes.

Lives here: their timers. Elsewhere: the connection that has one (connection.py), its own timer for silence.
Idea: both are rare, so they have an object of their own, and an exchange without them pays for one comparison."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from hookline.transport.contract import Timeouts

if TYPE_CHECKING:
    from hookline.transport.connection import Connection


class ExchangeWatch:
    """Watches one exchange from its start until `stop()`. `received_bytes` is counted by the connection."""

    __slots__ = ("_connection", "_end", "_is_counting", "_look", "_seen_bytes", "_timeouts", "received_bytes")

    def __init__(self, connection: Connection, timeouts: Timeouts) -> None:
        self._connection = connection
        self._timeouts = timeouts
        self.received_bytes = self._seen_bytes = 0
        self._is_counting = False
        loop = connection.loop
        self._end: asyncio.TimerHandle | None = None
        self._look: asyncio.TimerHandle | None = None
        if timeouts.total_s is not None:
            self._end = loop.call_later(timeouts.total_s, self._on_end)
        if timeouts.min_bytes_per_s > 0:
            self._look = loop.call_later(timeouts.throughput_window_s, self._on_look)

    def stop(self) -> None:
        for timer in (self._end, self._look):
            if timer is not None:
                timer.cancel()

    def _on_end(self) -> None:
        self._connection.fail("total_timeout", f"did not end its reply within {self._timeouts.total_s:g} s")

    def _on_look(self) -> None:
        """A window counts if the reply had begun before it, and its reader was never the slow one at its ends."""
        connection, timeouts = self._connection, self._timeouts
        got_bytes, self._seen_bytes = self.received_bytes - self._seen_bytes, self.received_bytes
        was_counting, self._is_counting = self._is_counting, self._seen_bytes > 0 and not connection.is_reading_paused
        window_s = timeouts.throughput_window_s
        if was_counting and self._is_counting and got_bytes < timeouts.min_bytes_per_s * window_s:
            told = f"sent {got_bytes} bytes of its reply in {window_s:g} s, fewer than {timeouts.min_bytes_per_s:g} a second"
            connection.fail("throughput_timeout", told)
            return
        self._look = connection.loop.call_later(window_s, self._on_look)
