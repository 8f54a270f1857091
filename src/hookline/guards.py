"""Guards: the error rule and the time budget of a hook, wrapped around one plugin's implementation.

Lives here: what an exception or a late answer means (open: as if it had answered None; closed: the call fails), and how it is told.
Elsewhere: which rule a hook has (hookspecs.py), who wraps (chain.py), the timer (call_timer.py).
Idea: the wrapper is made once at start-up, so the pipeline calls hooks without a thought for their failures. A coroutine is begun at once: one that ends
without waiting (stores in memory) costs no await and no timer; only one that waits comes back as `Waiting`, and so do the two hooks of ends."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
import types
from collections.abc import Callable, Coroutine, Generator
from types import NoneType
from typing import Any

from hookline.call_timer import CallTimer
from hookline.errors import InternalError, Rejected, Skip
from hookline.host import Counter, Histogram
from hookline.plugin_loading import said
from hookline.principal import Principal
from hookline.reply import Reply
from hookline.steps import Continue, Fallback, GiveUp, Retry

log = logging.getLogger("hookline.chain")


class LateError(Exception):
    """A hook outlived its time budget."""


MAY_REJECT = frozenset(
    {"authenticate", "prepare", "admit", "lookup", "select", "admit_attempt", "edit_reply", "edit_event"}
)
"""Hooks that may end the call by raising `Rejected`; from any other hook it is an error like every other."""

ANSWERS: dict[str, tuple[tuple[type, ...], str]] = {
    "authenticate": ((Principal, NoneType), "a Principal or None"),
    "admit": ((NoneType,), "a ticket (an object with settle) or None"),
    "lookup": ((Reply, NoneType), "a Reply, a ticket (an object with settle) or None"),
    "select": ((list,), "the list of targets it was given, edited or not"),
    "admit_attempt": ((NoneType,), "a ticket (an object with settle) or None"),
    "after_failure": ((Retry, Fallback, Continue, GiveUp, NoneType), "Retry, Fallback, Continue, GiveUp or None"),
    "rescue": ((Reply, NoneType), "a Reply or None"),
    "edit_reply": ((Reply,), "the reply it was given, edited or not"),
}
"""What a hook may answer. Whatever another hook returns is not looked at; events are checked where they are written."""
KNOWN_MAX = 100
ENDING_HOOKS = frozenset({"attempt_ended", "call_ended"})
"""What waits here goes on in a task of its own (settling.py), so it begins there too: timeouts and cancel scopes belong to the task they were entered in."""
TAKING_HOOKS = frozenset({"admit", "lookup", "admit_attempt"})


class Waiting:
    """A hook that has begun and waits for something: await this for its answer."""

    __slots__ = ("_call", "_guard", "_rest")

    def __init__(self, guard: Guard, rest: Coroutine[Any, Any, Any], call: Any) -> None:
        self._guard = guard
        self._rest = rest
        self._call = call

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._guard.go_on(self._rest, self._call._timer).__await__()


@types.coroutine
def _rest(hook: Coroutine[Any, Any, Any], waits_for: Any) -> Generator[Any, Any, Any]:
    """A coroutine from its second step on: `yield from` with the first step already made."""
    try:
        while True:
            try:
                sent = yield waits_for
            except GeneratorExit:
                hook.close()
                raise
            except BaseException as thrown:
                waits_for = hook.throw(thrown)
            else:
                waits_for = hook.send(sent)
    except StopIteration as ended:
        return ended.value


class Guard:
    """The rule of one implementation."""

    def __init__(self, *, plugin: str, hook: str, is_closed: bool, timeout_s: float, failures: Counter) -> None:
        self.plugin = plugin
        self.hook = hook
        self.is_closed = is_closed
        self.timeout_s = timeout_s
        self._failures = failures
        self._count = 0
        self._known: set[type] = set()
        """Classes of answers that were found right: looked up by class, because a check costs more."""
        self._signals: tuple[type[Exception], ...] = (Rejected,) if hook in MAY_REJECT else ()
        if hook == "admit_attempt":
            self._signals += (Skip,)

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` under this rule, to be called like it. What it returns is its answer, or `Waiting` if a coroutine function has to wait for something."""
        return self._wrap_async(function) if inspect.iscoroutinefunction(function) else self._wrap_sync(function)

    def _wrap_sync(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A plain function of a hook that takes may answer a coroutine, where it seldom has to wait: a coroutine per call costs 0.2 µs."""
        known, signals, may_wait = self._known, self._signals, self.hook in TAKING_HOOKS

        def guarded(*args: Any) -> Any:
            try:
                answer = function(*args)
                if type(answer) not in known:
                    if may_wait and inspect.iscoroutine(answer):
                        return Waiting(self, answer, args[0])
                    self._check(answer)
                return answer
            except signals:
                raise
            except Exception as error:
                return self._fail(error)

        return guarded

    def _wrap_async(self, function: Callable[..., Any]) -> Callable[..., Any]:
        known, signals = self._known, self._signals
        if self.hook in ENDING_HOOKS:
            return lambda *args: Waiting(self, function(*args), args[0])

        def guarded(*args: Any) -> Any:
            hook = function(*args)
            try:
                try:
                    waits_for = hook.send(None)
                except StopIteration as ended:
                    if type(ended.value) not in known:
                        self._check(ended.value)
                    return ended.value
            except signals:
                raise
            except asyncio.CancelledError:
                return self._fail_cancelled()
            except Exception as error:
                return self._fail(error)
            return Waiting(self, _rest(hook, waits_for), args[0])

        return guarded

    async def go_on(self, rest: Coroutine[Any, Any, Any], timer: CallTimer) -> Any:
        """The rest of a hook that waits, within its time budget."""
        timer.enter_hook(self.timeout_s)
        try:
            answer = await rest
            if type(answer) not in self._known:
                self._check(answer)
            return answer
        except self._signals:
            raise
        except asyncio.CancelledError:
            if timer.was_cancelled_for("hook"):
                return self._fail(LateError(f"no answer within {self.timeout_s:g} s"))
            return self._fail_cancelled()
        except Exception as error:
            return self._fail(error)
        finally:
            timer.leave_hook()

    def _check(self, answer: Any) -> None:
        """Raises TypeError for an answer that the hook can't have."""
        if self.hook in ANSWERS:
            kinds, wanted = ANSWERS[self.hook]
            if not isinstance(answer, kinds) and not (self.hook in TAKING_HOOKS and hasattr(answer, "settle")):
                returned = "None" if answer is None else type(answer).__name__
                raise TypeError(f"{self.hook} returned {returned}; return {wanted}")
        if len(self._known) < KNOWN_MAX:
            self._known.add(type(answer))

    def _fail_cancelled(self) -> None:
        """A CancelledError goes on if the call is being cancelled; else it leaked from something the hook waited for. To be called from its `except` block."""
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        self._fail(RuntimeError("what it waited for was cancelled"))

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
