"""Holds: what a call or an attempt drew on its ceilings.

Lives here: the ticket, and what it settles to. Elsewhere: what was drawn (the plugin), the windows (the limits store).
Idea: requests stay, parallel slots end, tokens become what was used. Where nobody knows what was used (no usage, a call cut off) the bound stands. What a call
drew is settled with the attempt that answered it, before its client sees the end: who has a reply in hand finds its slot free and its tokens counted, also at
another process. A call that ends in any other way settles after it, as every ticket does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence

from hookline import Call, LimitStore, Reply, Result
from hookline.builtins.rate_limit.plans import Plan
from hookline.builtins.rate_limit.queue import Queue


class Hold:
    """A ticket, of its call and of each of the call's attempts. `queue` hears of what comes free."""

    __slots__ = ("_amounts", "_is_continued", "_name", "_owed", "_plan", "_queue", "_store")

    def __init__(self, store: LimitStore, name: str, plan: Plan, amounts: Sequence[int], queue: Queue | None) -> None:
        self._store = store
        self._name = name
        self._plan = plan
        self._amounts = amounts
        self._queue = queue
        self._owed = 1
        """How often it will yet be settled; 0 when it has been given back."""
        self._is_continued = False
        """An attempt that did not answer had usage: the call's is the sum of several."""

    def for_attempt(self) -> Hold:
        """The ticket of one more attempt."""
        self._owed += 1
        return self

    def settle(self, result: Result) -> Awaitable[None] | None:
        """With the attempt that answers, else with the call, whose end comes last."""
        owed = self._owed
        if owed == 0:
            return None
        if owed > 1 and (result.outcome != "ok" or self._is_continued):
            self._owed = owed - 1
            self._is_continued = self._is_continued or result.usage is not None
            return None
        self._owed = 0
        amounts, plan = self._amounts, self._plan
        if plan.tokens_at and (used := used_tokens(result)) is not None:
            amounts = [*amounts]  # the store has the other list
            for index in plan.tokens_at:
                amounts[index] = used
        pending = self._store.give_back(self._name, amounts)
        queue = self._queue
        if queue is None:
            return pending
        if pending is not None:
            return _tell_later(pending, queue, plan)
        if queue.lines:
            queue.freed(plan.takes)
        return None


class Both:
    """Two tickets of one attempt: its deployment's and its call's."""

    __slots__ = ("_of_call", "_own")

    def __init__(self, own: Hold, of_call: Hold) -> None:
        self._own = own
        self._of_call = of_call

    def settle(self, result: Result) -> Awaitable[None] | None:
        own, of_call = self._own.settle(result), self._of_call.settle(result)
        if own is None or of_call is None:
            return own or of_call
        return _both(own, of_call)


async def _both(one: Awaitable[None], other: Awaitable[None]) -> None:
    await asyncio.gather(one, other)


async def _tell_later(pending: Awaitable[None], queue: Queue, plan: Plan) -> None:
    await pending
    queue.freed(plan.takes)


def used_tokens(result: Result) -> int | None:
    """Tokens by usage; 0 where no upstream was asked, or it took nothing; None where nobody knows."""
    if result.attempt is None:
        return 0
    if result.usage is not None:
        return result.usage.total_tokens
    return 0 if result.cost_nanousd == 0 else None


def foreseen_tokens(call: Call, reply: Reply) -> int | None:
    """What `used_tokens` will be once this reply has gone; None as long as that is open."""
    if not call.attempts:
        return 0
    attempt = call.attempts[-1]
    if attempt.usage is not None and isinstance(reply.body, bytes):
        return attempt.usage.total_tokens
    return None
