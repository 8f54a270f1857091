"""The fair queue: calls that wait for their turn at a ceiling, in place of a 429.

Lives here: who waits where, whose turn it is, when somebody tries again. Elsewhere: whether a call fits (the limits store, asked by whoever has the turn), what
a call is told of its wait (the plugin).
Idea: a turn is a baton. In each line one call has it: it asks the store, in its own task; it leaves (granted, late, gone) or stays, and passes the baton on in
either case. So nobody polls, and a call that is cancelled anywhere can't hold anybody up.

- A line is what waits at one ceiling; a call stands in one line, that of the ceiling that refused it last. Who comes while somebody stands at one of its
  ceilings joins that line without asking: nobody overtakes, so nobody starves, a large call behind small ones neither.
- Fair between tenants: the next turn is that of the tenant that was granted least here since it began to wait (start-time fair queueing); of one tenant's calls,
  the oldest. Granted is what the ceiling counts: calls, or tokens.
- A line wakes when a call of this process gives something back there, and when its last refusal said that something fits. What other processes give back is
  noticed by the latter alone.
- Bounds: `max_queue` calls in a line, WAITING_MAX in the process, `max_wait_s` each."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from hookline import Level, Refusal, Take

Answer = Sequence[Level] | Refusal
Ask = Callable[[], Awaitable[Answer]]

WAITING_MAX = 10_000
SOONEST_S = 0.001
"""A timer of the loop may fire a little before its time: then the store refuses once more, and says nearly nothing."""


class Gauge(Protocol):
    """What is told how many wait."""

    def set(self, value: float, /) -> None: ...


class Waiter:
    """One call that waits. `position` is its place when it joined, 1 for the next."""

    __slots__ = ("is_late", "number", "position", "tenant", "turn")

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.number = 0
        self.position = 0
        self.is_late = False
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def give_up(self) -> None:
        """Its time is over."""
        self.is_late = True
        self.call()

    def call(self) -> None:
        if not self.turn.done():
            self.turn.set_result(None)


class Line:
    """What waits at one ceiling."""

    __slots__ = ("_floor", "_granted", "_timer", "has_changed", "head", "length", "scope", "waiting")

    def __init__(self, scope: str) -> None:
        self.scope = scope
        self.waiting: dict[str, deque[Waiter]] = {}
        """By tenant; no tenant without a call that waits."""
        self.length = 0
        self.head: Waiter | None = None
        """Who has the turn."""
        self.has_changed = False
        """Something was given back while somebody had the turn."""
        self._granted: dict[str, float] = {}
        self._floor = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def position_of(self, tenant: str) -> int:
        """The place of a call that joins now, if all cost the same."""
        mine = len(self.waiting.get(tenant, ()))
        return 1 + mine + sum(min(len(calls), mine + 1) for other, calls in self.waiting.items() if other != tenant)

    def join(self, waiter: Waiter, *, is_first: bool) -> None:
        calls = self.waiting.get(waiter.tenant)
        if calls is None:
            calls = self.waiting[waiter.tenant] = deque()
            self._granted[waiter.tenant] = max(self._granted.get(waiter.tenant, 0.0), self._floor)
        if is_first:
            calls.appendleft(waiter)
        else:
            calls.append(waiter)
        self.length += 1

    def leave(self, waiter: Waiter) -> None:
        calls = self.waiting[waiter.tenant]
        calls.remove(waiter)
        self.length -= 1
        if not calls:
            del self.waiting[waiter.tenant]
        if self.head is waiter:
            self.head = None

    def count(self, waiter: Waiter, cost: int) -> None:
        """It was granted what it waited for."""
        tenant = waiter.tenant
        self._floor = self._granted[tenant]
        self._granted[tenant] += cost
        if len(self._granted) > 2 * len(self.waiting) + 16:
            self._granted = {
                name: granted
                for name, granted in self._granted.items()
                if name in self.waiting or granted > self._floor
            }

    def find_next(self) -> Waiter | None:
        """Whose turn is next."""
        if not self.waiting:
            return None
        granted = self._granted
        return min((calls[0] for calls in self.waiting.values()), key=lambda call: (granted[call.tenant], call.number))

    def pass_on(self) -> None:
        """Give the turn to the next, if nobody has it."""
        self.stop_timer()
        if self.head is None and (waiter := self.find_next()) is not None:
            self.has_changed = False
            self.head = waiter
            waiter.call()

    def park(self, waiter: Waiter, retry_after_s: float) -> None:
        """`waiter` tried and was refused: the turn comes again after `retry_after_s`, or when something is given back."""
        waiter.turn = asyncio.get_running_loop().create_future()
        if self.head is waiter:
            self.head = None
        if self.has_changed:
            self.pass_on()
            return
        loop = waiter.turn.get_loop()
        at = loop.time() + max(retry_after_s, SOONEST_S)
        if self.head is None and (self._timer is None or self._timer.when() > at):
            self.stop_timer()
            self._timer = loop.call_at(at, self.pass_on)

    def stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Queue:
    """All lines of this process."""

    def __init__(self, *, max_wait_s: float, max_queue: int, gauge: Gauge) -> None:
        self._max_wait_s = max_wait_s
        self._max_queue = max_queue
        self._gauge = gauge
        self.lines: dict[str, Line] = {}
        """By the name of the ceiling; no line without a call that waits."""
        self.length = 0
        self._joined = 0

    def find_line(self, takes: Sequence[Take]) -> str | None:
        """The ceiling at which a call that draws on these has to stand; None if nobody waits at any."""
        lines = self.lines
        return next((scope for scope, _, _ in takes if scope in lines), None)

    def has_room(self, scope: str) -> bool:
        line = self.lines.get(scope)
        return self.length < WAITING_MAX and (line is None or line.length < self._max_queue)

    async def wait(
        self, waiter: Waiter, scope: str, *, ask: Ask, look: Ask, cost_at: Callable[[str], int], said: Refusal | None
    ) -> Answer:
        """Stand at `scope` until `ask` grants; after `max_wait_s` answer what `look` says, which takes nothing.

        `said`: what the store has said already; None if nobody asked it. Cancelled at any time: the call has left, and the turn is passed on."""
        self._joined += 1
        waiter.number = self._joined
        line = self._line(scope)
        waiter.position = line.position_of(waiter.tenant)
        self._stand(waiter, line, is_first=False)
        late = waiter.turn.get_loop().call_later(self._max_wait_s, waiter.give_up)
        try:
            if said is not None and line.length == 1:
                line.park(waiter, said.retry_after_s)
            elif line.find_next() is waiter:
                line.pass_on()
            while True:
                await waiter.turn
                if line.head is not waiter:  # late
                    if line.head is not None or line.find_next() is not waiter:
                        return await look()  # anything else would overtake
                    line.head = waiter
                answer = await ask()
                if not isinstance(answer, Refusal):
                    line.count(waiter, cost_at(line.scope))
                    return answer
                if waiter.is_late or math.isinf(answer.retry_after_s):
                    return answer
                if answer.take.scope != line.scope:
                    self._leave(waiter, line)
                    line = self._line(answer.take.scope)
                    self._stand(waiter, line, is_first=True)
                line.park(waiter, answer.retry_after_s)
        finally:
            late.cancel()
            self._leave(waiter, line)

    def freed(self, takes: Sequence[Take]) -> None:
        """Something was given back at these ceilings."""
        lines = self.lines
        for scope, _, _ in takes:
            line = lines.get(scope)
            if line is not None:
                line.has_changed = True
                line.pass_on()

    def _line(self, scope: str) -> Line:
        line = self.lines.get(scope)
        if line is None:
            line = self.lines[scope] = Line(scope)
        return line

    def _stand(self, waiter: Waiter, line: Line, *, is_first: bool) -> None:
        line.join(waiter, is_first=is_first)
        self.length += 1
        self._gauge.set(self.length)

    def _leave(self, waiter: Waiter, line: Line) -> None:
        line.leave(waiter)
        self.length -= 1
        self._gauge.set(self.length)
        if line.length:
            line.pass_on()
        else:
            line.stop_timer()
            self.lines.pop(line.scope, None)
