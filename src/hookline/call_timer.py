"""The one timer of a call: its deadline, and the time budget of the async hook that waits right now.

Lives here: when a call's task is cancelled for lateness, and by which of the two. Elsewhere: what lateness means (guards.py for hooks, pipeline.py for the deadline).
Idea: most calls are never late, and most hooks never wait. So deadlines that are all equally far away share one timer of the loop (`SharedDeadline`), and a
call arms its own only for a hook that waits or a deadline of its own: `asyncio.timeout` would cost 3 µs at each use, an own timer 3 µs a call."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

NEVER = float("inf")


class SharedDeadline:
    """Calls whose deadline is `timeout_s` after their start, soonest first, under one timer of the loop."""

    __slots__ = ("_handle", "_timers", "loop", "timeout_s")

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self.loop = loop
        self.timeout_s = timeout_s
        self._timers: dict[CallTimer, None] = {}
        self._handle: asyncio.TimerHandle | None = None

    def start(self, task: asyncio.Task[Any]) -> CallTimer:
        """A timer for the call that runs in `task`; `stop()` it at the call's end."""
        timer = CallTimer(self.loop, task, self.timeout_s, self)
        self._timers[timer] = None
        if self._handle is None:
            self._handle = self.loop.call_at(timer.deadline, self._fire)
        return timer

    def leave(self, timer: CallTimer) -> None:
        self._timers.pop(timer, None)

    def _fire(self) -> None:
        now = self.loop.time()
        self._handle = None
        for timer in list(self._timers):
            if timer.deadline > now:
                self._handle = self.loop.call_at(timer.deadline, self._fire)
                return
            del self._timers[timer]
            timer.pass_deadline()


class CallTimer:
    """Cancels `task` when the hook budget or the deadline has passed. All times are the loop's seconds."""

    __slots__ = (
        "_armed_for", "_handle", "_hook_limit", "_loop", "_owed_s", "_pauses", "_shared", "_task", "deadline", "expired",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        task: asyncio.Future[Any],
        timeout_s: float,
        shared: SharedDeadline | None = None,
    ) -> None:
        self._loop = loop
        self._task = task
        self._shared = shared
        self.deadline = loop.time() + timeout_s
        self.expired: Literal["hook", "deadline"] | None = None
        self._hook_limit = NEVER
        self._pauses = 0
        self._owed_s = NEVER
        """The budget of a hook that paused before it had begun to count."""
        self._armed_for = NEVER
        self._handle: asyncio.TimerHandle | None = None

    def for_end(self, task: asyncio.Task[Any]) -> CallTimer:
        """A timer for hooks that end a call, or an attempt, in `task`: they have their budget, and no deadline."""
        return CallTimer(self._loop, task, NEVER)

    def set_deadline(self, timeout_s: float) -> None:
        """Move the deadline to `timeout_s` from now."""
        if self._shared is not None:
            self._shared.leave(self)
        self.deadline = self._loop.time() + timeout_s
        self._arm()

    @property
    def allowed_s(self) -> float:
        """From the call's start, where it has no deadline of its own."""
        return self._shared.timeout_s if self._shared is not None else NEVER

    def pass_deadline(self) -> None:
        """The deadline has come. It passes once; hooks that see to the answer still have their budget."""
        self.deadline = NEVER
        self._cancel("deadline")

    def enter_hook(self, budget_s: float) -> None:
        """A hook has begun to wait."""
        if self._pauses:
            self._owed_s = budget_s
            return
        self._hook_limit = self._loop.time() + budget_s
        if self._armed_for > self._hook_limit:
            self._arm()

    def leave_hook(self) -> None:
        self._hook_limit = self._owed_s = NEVER
        if self.expired == "hook":  # the hook swallowed it; it must not hit whoever waits next
            self.was_cancelled_for("hook")

    def pause_hook_budget(self) -> float:
        """Stop the hook's clock; returns what is left of it, NEVER if it stands already."""
        left = self._hook_limit - self._loop.time()
        self._hook_limit = NEVER
        self._pauses += 1
        return left

    def resume_hook_budget(self, left: float) -> None:
        self._pauses -= 1
        left, self._owed_s = min(left, self._owed_s), NEVER
        if left < NEVER:
            self.enter_hook(max(left, 0.0))  # while another pause lasts it is owed

    def was_cancelled_for(self, reason: Literal["hook", "deadline"]) -> bool:
        """Whether the CancelledError just caught is this timer's, and for `reason`; if so, the task's cancellation is taken back."""
        if self.expired != reason:
            return False
        self.expired = None
        # Somebody else's cancel may have come in the same tick: it must not be swallowed with ours.
        return isinstance(self._task, asyncio.Task) and self._task.uncancel() == 0

    def rebind(self, task: asyncio.Future[Any]) -> None:
        """From here on it is `task` that is cancelled: the call's work has moved there."""
        self._task = task

    def hand_over(self, task: asyncio.Future[Any]) -> float:
        """`rebind` without the deadline, which is answered: it stays with the client that `task` no longer works for alone."""
        self._task = task
        if self._shared is not None:
            self._shared.leave(self)
        deadline, self.deadline = self.deadline, NEVER
        return deadline

    def stop(self) -> None:
        if self._shared is not None:
            self._shared.leave(self)
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _arm(self) -> None:
        """See to it that the timer fires at the hook's limit, or at a deadline of our own. It may fire too early: it looks again."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._armed_for = min(self.deadline, self._hook_limit)
        if self._armed_for < NEVER:
            self._handle = self._loop.call_at(self._armed_for, self._fire)

    def _fire(self) -> None:
        now = self._loop.time()
        if now >= self.deadline:
            if self._shared is not None:
                self._shared.leave(self)
            self.pass_deadline()
        elif now >= self._hook_limit:
            self._hook_limit = NEVER
            self._cancel("hook")
        self._arm()

    def _cancel(self, reason: Literal["hook", "deadline"]) -> None:
        if self.expired is None:  # else the task is being cancelled already: once is enough
            self._task.cancel()
        self.expired = reason
