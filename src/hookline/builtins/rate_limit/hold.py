"""Holds: what a call or an attempt drew on its ceilings.

Lives here: the ticket, and what it settles to. Elsewhere: what was drawn (the plugin), the windows (the limits store).
Idea: requests stay, parallel slots end, tokens become what was used. Where nobody knows what was used (no usage, a call cut off) the bound stands."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

from hookline import Call, LimitStore, Reply, Result
from hookline.builtins.rate_limit.plans import Plan
from hookline.builtins.rate_limit.queue import Queue


class Hold:
    """A ticket. `queue` hears of what comes free."""

    __slots__ = ("_amounts", "_name", "_plan", "_queue", "_store")

    def __init__(self, store: LimitStore, name: str, plan: Plan, amounts: Sequence[int], queue: Queue | None) -> None:
        self._store = store
        self._name = name
        self._plan = plan
        self._amounts = amounts
        self._queue = queue

    def settle(self, result: Result) -> Awaitable[None] | None:
        amounts, plan = self._amounts, self._plan
        if plan.tokens_at and (used := used_tokens(result)) is not None:
            amounts = [*amounts]  # the store has the other list
            for index in plan.tokens_at:
                amounts[index] = used
        pending = self._store.give_back(self._name, amounts)
        if self._queue is None:
            return pending
        if pending is not None:
            return _tell_later(pending, self._queue, plan)
        if self._queue.lines:
            self._queue.freed(plan.takes)
        return None


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
