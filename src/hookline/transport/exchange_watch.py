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
    """Watches one exchange from its start until `stop()`."""

    __slots__ = ("_connection", "_end", "_look", "_received_bytes", "_timeouts", "_was_paused")

    def __init__(self, connection: Connection, timeouts: Timeouts) -> None:
        self._connection = connection
        self._timeouts = timeouts
        self._received_bytes = 0
        self._was_paused = False
        loop = connection.loop
        self._end: asyncio.TimerHandle | None = None
        self._look: asyncio.TimerHandle | None = None
        if timeouts.total_s is not None:
            self._end = loop.call_later(timeouts.total_s, self._on_end)

    def received(self, body_bytes: int) -> None:
        """So much of the reply's body has arrived. The first of it begins the first window."""
        self._received_bytes += body_bytes
        if self._look is None and self._timeouts.min_bytes_per_s > 0:
            self._start_window(body_bytes)

    def stop(self) -> None:
        for timer in (self._end, self._look):
            if timer is not None:
                timer.cancel()

    def _on_end(self) -> None:
        self._connection.fail("total_timeout", f"did not end its reply within {self._timeouts.total_s:g} s")

    def _start_window(self, already_bytes: int = 0) -> None:
        self._received_bytes, self._was_paused = already_bytes, self._connection.is_reading_paused
        self._look = self._connection.loop.call_later(self._timeouts.throughput_window_s, self._on_look)

    def _on_look(self) -> None:
        """A window counts if its reader was the slow one at neither of its ends."""
        connection, timeouts, got_bytes = self._connection, self._timeouts, self._received_bytes
        window_s = timeouts.throughput_window_s
        is_fair = not (self._was_paused or connection.is_reading_paused)
        if is_fair and got_bytes < timeouts.min_bytes_per_s * window_s:
            told = f"sent {got_bytes} bytes of its reply in {window_s:g} s, fewer than {timeouts.min_bytes_per_s:g} a second"
            connection.fail("throughput_timeout", told)
            return
        self._start_window()
