"""The one timer of a call: its deadline, and the time budget of the async hook that runs right now.

Lives here: when a call's task is cancelled for lateness, and by which of the two. Elsewhere: what lateness means (chain.py for hooks, pipeline.py for the deadline).
Idea: the timer is armed once and re-armed lazily when it fires too early, because `asyncio.timeout` costs 3 µs at each use and hooks are many."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

NEVER = float("inf")
FIRST_LOOK_S = 5.0
"""The timer first fires after this, not at the deadline: hooks with the usual budget then never have to arm it again (2 µs a call)."""


class LateError(Exception):
    """A hook outlived its time budget."""


class CallTimer:
    """Cancels `task` when the hook budget or the deadline has passed. All times are the loop's seconds."""

    __slots__ = ("_armed_for", "_deadline", "_handle", "_hook_limit", "_loop", "_task", "expired")

    def __init__(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any], timeout_s: float) -> None:
        self._loop = loop
        self._task: asyncio.Future[Any] = task
        now = loop.time()
        self._deadline = now + timeout_s
        self._hook_limit = NEVER
        self._armed_for = now + min(timeout_s, FIRST_LOOK_S)
        self._handle = loop.call_at(self._armed_for, self._fire)
        self.expired: Literal["hook", "deadline"] | None = None

    def set_deadline(self, timeout_s: float) -> None:
        """Move the deadline to `timeout_s` from now."""
        self._deadline = self._loop.time() + timeout_s
        self._arm(min(self._deadline, self._hook_limit))

    def enter_hook(self, budget_s: float) -> None:
        self._hook_limit = self._loop.time() + budget_s
        if self._armed_for > self._hook_limit:
            self._arm(self._hook_limit)

    def leave_hook(self) -> None:
        self._hook_limit = NEVER
        if self.expired == "hook":  # the hook swallowed it; it must not hit whoever waits next
            self.was_cancelled_for("hook")

    def pause_hook_budget(self) -> float:
        """Stop the hook's clock; returns what is left of it."""
        left = self._hook_limit - self._loop.time()
        self._hook_limit = NEVER
        return left

    def resume_hook_budget(self, left: float) -> None:
        if left < NEVER:
            self.enter_hook(max(left, 0.0))

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

    def stop(self) -> None:
        self._handle.cancel()

    def _arm(self, when: float) -> None:
        self._handle.cancel()
        self._armed_for = when
        if when < NEVER:
            self._handle = self._loop.call_at(when, self._fire)

    def _fire(self) -> None:
        now = self._loop.time()
        if now >= self._deadline:
            self._deadline = NEVER  # it passes once; hooks that see to the answer still have their budget
            self._cancel("deadline")
        elif now >= self._hook_limit:
            self._hook_limit = NEVER
            self._cancel("hook")
        self._arm(min(self._deadline, self._hook_limit))

    def _cancel(self, reason: Literal["hook", "deadline"]) -> None:
        if self.expired is None:  # else the task is being cancelled already: once is enough
            self._task.cancel()
        self.expired = reason
