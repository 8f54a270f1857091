"""A race: an attempt and its hedges, of which the first to begin a reply wins.

Lives here: when a race begins, who wins it, what becomes of the others, who is cancelled by whom. Elsewhere: opening, sending and ending one attempt (attempts.py, the `Runner`),
when a hedge is due, and how many there may be (builtins/hedging.py).
Idea: the first attempt always runs in the call's own task, so a call whose hedge never comes due pays for one timer. Only when it does, a task races: it sends the hedges, each in a
task of its own, and is told by a future how the first attempt ended.

Rules
- Whatever ends the race, every attempt of it but the winner is ended, and no task of it is left.
- If a hedge wins, the call's own task is cancelled out of its sending, and takes that one cancellation back; any other is the call's own and passes through.
- Hooks that wait while a hedge is opened or ended are timed on the race's own task: the call's timer would cancel the sending of the first attempt."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable
from typing import Any, Protocol

from hookline.attempt import Attempt, Outcome
from hookline.call import Call
from hookline.deployment import Target
from hookline.errors import UpstreamError
from hookline.reply import Reply
from hookline.settling import end_tasks, settled


class Runner(Protocol):
    """What a race asks for: the attempt loop."""

    call: Call
    waiting: deque[Target]

    async def open_hedge(self) -> Attempt | None: ...
    async def send(self, call: Call, attempt: Attempt, /) -> Reply | None: ...
    def end(self, attempt: Attempt, outcome: Outcome, /) -> Awaitable[None] | None: ...
    async def close(self, body: Any, /) -> None: ...


class Race:
    """One attempt, and the hedges it may come to."""

    __slots__ = ("_is_over", "_runner")

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._is_over = False

    async def run(self, attempt: Attempt) -> tuple[Attempt, Reply | None]:
        """Send `attempt` in the call's own task; who won, and its reply. None: all failed and were ended; the attempt is the last to fail."""
        runner = self._runner
        loop, own = asyncio.get_running_loop(), asyncio.current_task()
        hedge_after_s = attempt.target.hedge_after_s
        assert own is not None  # a coroutine runs in a task
        assert hedge_after_s is not None
        ended: asyncio.Future[Reply | None] = loop.create_future()
        racing: asyncio.Task[tuple[Attempt, Reply | None]] | None = None

        def begin() -> None:
            nonlocal racing
            racing = asyncio.ensure_future(self._race(attempt, ended, own))

        timer = loop.call_later(hedge_after_s, begin)
        try:
            reply = await runner.send(runner.call, attempt)
        except asyncio.CancelledError:
            ended.cancel()
            if racing is None:
                raise
            if not self._is_over or own.uncancel() > 0:  # it is the call that is cancelled
                await end_tasks({racing})
                raise
            return await racing
        finally:
            timer.cancel()
        if racing is None:
            if reply is None:
                await settled(runner.end(attempt, "upstream_error"))
            return attempt, reply
        if self._is_over:  # a provider that swallows it
            own.uncancel()
        ended.set_result(reply)
        return await racing

    async def _race(
        self, attempt: Attempt, ended: asyncio.Future[Reply | None], owner: asyncio.Task[Any]
    ) -> tuple[Attempt, Reply | None]:
        """Send hedges beside `attempt`, which `owner` sends; `ended` tells of it."""
        runner, call = self._runner, self._runner.call
        live: dict[asyncio.Future[Reply | None], Attempt] = {ended: attempt}
        failed, last, done = attempt, None, set[Any]()
        timer, own = call._timer, asyncio.current_task()
        assert timer is not None
        assert own is not None
        call._timer = timer.for_end(own)
        try:
            while live:
                if not done:
                    last = await runner.open_hedge()
                    if last is not None:
                        live[asyncio.ensure_future(runner.send(call, last))] = last
                hedge_after_s = last.target.hedge_after_s if last is not None and runner.waiting else None
                done, _ = await asyncio.wait(live, timeout=hedge_after_s, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in live if task in done]:  # of two at once, the one asked first
                    attempt = live.pop(task)
                    reply = task.result()
                    if reply is not None:
                        for loser in live.values():
                            loser.is_loser = True
                        return attempt, reply
                    failed = attempt if isinstance(attempt.error, UpstreamError) else failed
                    await settled(runner.end(attempt, "upstream_error"))
            return failed, None
        finally:
            call._timer.stop()
            call._timer = timer
            self._is_over = True
            if not ended.done():
                owner.cancel()
            await end_tasks([task for task in live if isinstance(task, asyncio.Task)])
            if not ended.done():
                await asyncio.wait({ended})
            for task, loser in live.items():
                if loser.is_loser:
                    if not task.cancelled() and (late := task.result()) is not None:
                        await runner.close(late.body)
                    await settled(runner.end(loser, "client_gone"))
