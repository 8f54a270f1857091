"""Settling: giving back what was taken, once, whatever happens meanwhile.

Lives here: running the steps of an end so that a cancelled call still ends whole. Elsewhere: which steps, in which order (attempts.py, pipeline.py).
Idea: steps run inline as long as they are plain calls. The first one that has to be awaited moves the rest into a detached, shielded
task, because a half-run `settle` can be neither repeated nor skipped; purely in-memory chains never pay for a task."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator
from typing import Any

from hookline.attempt import Result, Ticket
from hookline.call import Call
from hookline.host import Counter

log = logging.getLogger("hookline.settling")

Steps = Iterator[Awaitable[Any]]
Detach = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


class Settlement:
    """The ends of one call's attempts and of the call itself, in order, also when a former end is still being awaited."""

    __slots__ = ("_call", "_detach", "_failures", "_task", "_timeout_s")

    def __init__(self, call: Call, *, detach: Detach, timeout_s: float, failures: Counter) -> None:
        self._call = call
        self._detach = detach
        self._timeout_s = timeout_s
        self._failures = failures
        self._task: asyncio.Task[None] | None = None

    def run(self, steps: Steps) -> Awaitable[None] | None:
        """Run all steps; what has to be waited for comes back, to be awaited. Cancelled meanwhile: the steps go on in their own task."""
        former = self._task if self._task is not None and not self._task.done() else None
        first = next(steps, None) if former is None else None
        if former is None and first is None:
            return None
        self._task = self._detach(self._drive(former, first, steps))
        return asyncio.shield(self._task)

    async def finish(self) -> None:
        """Wait for the end that is still going on in a task of its own, whose timer is the call's until then."""
        if self._task is not None and not self._task.done():
            await asyncio.shield(self._task)

    def settle(self, tickets: list[Ticket], result: Result) -> Steps:
        """Settle and empty `tickets`, last taken first. One that raises or is late is logged, counted and left to expiry."""
        while tickets:
            ticket = tickets.pop()  # before it is settled: it can't be settled twice
            try:
                pending = ticket.settle(result)
            except Exception as error:
                self._failed(ticket, f"{type(error).__name__}: {error}")
                continue
            if pending is not None:
                yield self._bounded(ticket, pending)

    async def _bounded(self, ticket: Ticket, pending: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await pending
        except asyncio.CancelledError:
            if is_being_cancelled():
                raise
            self._failed(ticket, "what it waited for was cancelled")
        except TimeoutError:
            self._failed(ticket, f"no answer within {self._timeout_s:g} s")
        except Exception as error:
            self._failed(ticket, f"{type(error).__name__}: {error}")

    async def _drive(self, former: asyncio.Task[None] | None, first: Awaitable[Any] | None, steps: Steps) -> None:
        if former is not None:
            await asyncio.wait({former})
        task = asyncio.current_task()
        assert task is not None
        # Hooks that run here have their time budget from a timer that cancels this task, not the call's.
        callers = self._call._timer
        assert callers is not None
        timer = self._call._timer = callers.for_end(task)
        try:
            if first is not None:
                await first
            for following in steps:
                await following
        finally:
            timer.stop()
            self._call._timer = callers

    def _failed(self, ticket: Ticket, said: str) -> None:
        self._failures.inc()
        log.error("call %s: %s did not settle: %s", self._call.id, type(ticket).__name__, said)


async def settled(pending: Awaitable[None] | None) -> None:
    """Wait for what `run` gave back, where that is rare enough to be written short."""
    if pending is not None:
        await pending


def is_being_cancelled() -> bool:
    """Whether a CancelledError just caught is meant for this task, and not leaked by something it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def end_tasks(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have ended, also when cancelled meanwhile: what they hold can't be closed before."""
    for task in tasks:
        task.cancel()
    interrupted: asyncio.CancelledError | None = None
    while running := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(running)
        except asyncio.CancelledError as error:
            interrupted = error
    for task in tasks:
        if not task.cancelled():
            task.exception()  # taken: nobody else will ask
    if interrupted is not None:
        raise interrupted
