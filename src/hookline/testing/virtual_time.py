"""An event loop whose time is made up: it never waits, it jumps to the next timer.

Lives here: `run_in_virtual_time` and the clock that goes with it. Elsewhere: a clock moved by hand (clock.py), the pipeline to run in it (kit.py).
Idea: a loop that has nothing to do sleeps until its next timer; here that sleep is an addition. So an hour of calls with real timeouts, hedges and queues takes as long as
their code, and the same seed gives the same hour. Without sockets and threads only: they would not move with the time.

    async def hour(clock): ...                      # asyncio.sleep(3600) returns at once
    run_in_virtual_time(hour)"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from hookline.testing.clock import FakeClock

T = TypeVar("T")


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = FakeClock()
        super().__init__(_Selector(self.clock))

    def time(self) -> float:
        return self.clock.monotonic()


class _Selector(selectors.SelectSelector):
    """Adds to the clock what it should have waited."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "nothing will ever happen: every task waits for something without a timer"
            if timeout > 0:
                self._clock.advance(timeout)
        return ready


def run_in_virtual_time(main: Callable[[FakeClock], Awaitable[T]]) -> T:
    """Run `main(clock)` to its end. The clock and the loop have the same time."""
    loop = _Loop()
    try:
        return loop.run_until_complete(_awaited(main, loop.clock))
    finally:
        loop.close()


async def _awaited(main: Callable[[FakeClock], Awaitable[T]], clock: FakeClock) -> T:
    return await main(clock)
