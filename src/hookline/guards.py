"""Guards: the error rule and the time budget of a hook, wrapped around one plugin's implementation.

Lives here: what an exception or a late answer means (open: as if it had answered None; closed: the call fails), and how it is told.
Elsewhere: which rule a hook has (hookspecs.py), who wraps (chain.py), the timer (call_timer.py).
Idea: the wrapper is made once at start-up, so the pipeline calls hooks without a thought for their failures."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Callable
from typing import Any

from hookline.call_timer import LateError
from hookline.errors import InternalError, Rejected, Skip
from hookline.host import Counter, Histogram
from hookline.plugin_loading import said

log = logging.getLogger("hookline.chain")


MAY_REJECT = frozenset(
    {"authenticate", "prepare", "admit", "lookup", "select", "admit_attempt", "edit_reply", "edit_event"}
)
"""Hooks that may end the call by raising `Rejected`; from any other hook it is an error like every other."""


class Guard:
    """The rule of one implementation. `needs_answer`: None is a mistake, as in hooks that hand their argument on."""

    def __init__(
        self, *, plugin: str, hook: str, is_closed: bool, needs_answer: bool, timeout_s: float, failures: Counter
    ) -> None:
        self.plugin = plugin
        self.hook = hook
        self.is_closed = is_closed
        self.needs_answer = needs_answer
        self.timeout_s = timeout_s
        self._failures = failures
        self._count = 0
        self._signals: tuple[type[Exception], ...] = (Rejected,) if hook in MAY_REJECT else ()
        if hook == "admit_attempt":
            self._signals += (Skip,)

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` under this rule; a coroutine function stays one."""
        return self._wrap_async(function) if inspect.iscoroutinefunction(function) else self._wrap_sync(function)

    def _wrap_sync(self, function: Callable[..., Any]) -> Callable[..., Any]:
        needs_answer, signals = self.needs_answer, self._signals

        def guarded(*args: Any) -> Any:
            try:
                answer = function(*args)
                if answer is None and needs_answer:
                    raise TypeError(f"{self.hook} returned None; return what it was given, edited or not")
                return answer
            except signals:
                raise
            except Exception as error:
                return self._fail(error)

        return guarded

    def _wrap_async(self, function: Callable[..., Any]) -> Callable[..., Any]:
        needs_answer, signals, timeout_s = self.needs_answer, self._signals, self.timeout_s

        async def guarded(*args: Any) -> Any:
            timer = args[0]._timer
            timer.enter_hook(timeout_s)
            try:
                answer = await function(*args)
                if answer is None and needs_answer:
                    raise TypeError(f"{self.hook} returned None; return what it was given, edited or not")
                return answer
            except signals:
                raise
            except asyncio.CancelledError:
                if timer.was_cancelled_for("hook"):
                    return self._fail(LateError(f"no answer within {timeout_s:g} s"))
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                return self._fail(RuntimeError("what it waited for was cancelled"))
            except Exception as error:
                return self._fail(error)
            finally:
                timer.leave_hook()

        return guarded

    def _fail(self, error: Exception) -> None:
        self._failures.inc()
        self._count = count = self._count + 1
        if (
            count & (count - 1) == 0
        ):  # 1st, 2nd, 4th, 8th, ...: a plugin that fails on every call must not flood the log
            fate = "the call fails (closed)" if self.is_closed else "the call goes on (open)"
            told = 'plugin "%s", hook %s: %s; %s; %d so far'
            log.error(told, self.plugin, self.hook, said(error), fate, count, exc_info=error)
        if self.is_closed:
            message = f'plugin "{self.plugin}" failed in {self.hook}; see the log of the gateway'
            raise Rejected(InternalError(message)) from error


def timed(function: Callable[..., Any], seconds: Histogram) -> Callable[..., Any]:
    """`function` with its time observed, errors included."""
    if inspect.iscoroutinefunction(function):

        async def run_async(*args: Any) -> Any:
            start = time.perf_counter()
            try:
                return await function(*args)
            finally:
                seconds.observe(time.perf_counter() - start)

        return run_async

    def run(*args: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args)
        finally:
            seconds.observe(time.perf_counter() - start)

    return run
