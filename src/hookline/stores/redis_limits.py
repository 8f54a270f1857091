"""Limits and money in flight in Redis, shared by many processes.

Lives here: `RedisLimits`: questions as script arguments, answers as the protocol's types. Elsewhere: the decisions (lua/), carrying them (redis_client.py).
Idea: one script decides over all scopes of a call, on the server's own clock, so workers need not agree on anything.

Keys all carry the hash tag `{PREFIX}`: a call of any key, tenant and model touches the global scope, so what one decision touches together is everything. In a
cluster all limits live on one of its nodes, and their rate is bounded by it (about 28,000 decisions a second: 35 µs each with five ceilings); cached replies spread.

- Windows are exact (windows.py in Lua). Who gave how much into which entry is remembered by the worker, so giving back needs no record in Redis.
- Parallel holds are members with an end: those of a dead worker leave by themselves.
- A reservation is a record; one whose worker died is charged whole by whoever comes next.
- Every key has a TTL. A budget window nobody has asked for in 400 days leaves, all others soon after their end.
- Epoch: a random value in Redis. When it is another than before, Redis came back empty: this store then raises `Unavailable` for every window that has not been
  restored since. Who gets that restores from the ledger, then asks again. What was in flight when Redis was lost is not in its new windows."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple, TypeVar

from hookline.errors import Unavailable
from hookline.stores.protocols import Clock, Level, Refusal, Spend, SpendAlert, SpendRefusal, Take
from hookline.stores.redis_client import RedisClient
from hookline.stores.redis_scripts import Script

UNIT = 1_000_000
T = TypeVar("T")


class _Hold(NamedTuple):
    keys: list[str]
    amounts: Sequence[int]
    entries: list[tuple[int, int]]


class RedisLimits:
    """A `LimitStore` for many processes. `clock` replaces the server's time; only tests give one."""

    def __init__(self, client: RedisClient, clock: Clock | None = None) -> None:
        self._client = client
        self._clock = clock
        tag = f"{{{client.options.prefix}}}"
        self._window, self._budget, self._record = f"{tag}:w:", f"{tag}:b:", f"{tag}:r:"
        self._in_flight, self._epoch_key = f"{tag}:in-flight", f"{tag}:epoch"
        self._scripts = {n: Script(n) for n in ("take", "give_back", "reserve", "settle", "restore", "spent")}
        self._holds: dict[str, _Hold] = {}
        self._spends: dict[str, Sequence[Spend]] = {}
        self._undoing: set[asyncio.Future[Any]] = set()
        self._epoch = ""
        self._must_know = False

    @property
    def in_flight(self) -> int:
        """Holds and reservations of this process that are not settled."""
        return len(self._holds) + len(self._spends)

    async def take(
        self, id: str, takes: Sequence[Take], amounts: Sequence[int], *, expires_s: float
    ) -> Sequence[Level] | Refusal:
        keys = [self._window + take.scope for take in takes]
        arguments: list[Any] = [self._now(), id, _us(expires_s)]
        for take, amount in zip(takes, amounts, strict=True):
            arguments += (take.limit, _us(take.window_s), amount)
        asked = self._client.run(self._scripts["take"], keys, *arguments)
        try:
            answer = await _answer_of(asked)
        except asyncio.CancelledError:
            self._undo_when_known(asked, lambda given: self._give_back(id, _hold_of(keys, amounts, given), None))
            raise
        if answer[0] == 0:
            levels = [Level(answer[i], answer[i + 1] / UNIT) for i in range(3, len(answer), 2)]
            return Refusal(takes[answer[1]], math.inf if answer[2] < 0 else answer[2] / UNIT, levels)
        self._holds[id] = _hold_of(keys, amounts, answer)
        return [Level(answer[i], answer[i + 1] / UNIT) for i in range(1, len(answer), 4)]

    def give_back(self, id: str, amounts: Sequence[int]) -> Awaitable[None] | None:
        hold = self._holds.pop(id, None)
        return None if hold is None else self._give_back(id, hold, amounts)

    async def reserve(
        self, id: str, spends: Sequence[Spend], amount_nanousd: int, *, expires_s: float
    ) -> SpendRefusal | None:
        keys = [self._in_flight, self._epoch_key, self._record + id, *(self._budget + s.scope for s in spends)]
        arguments: list[Any] = [self._now(), id, self._record, _us(expires_s), amount_nanousd]
        arguments += (self._epoch, uuid.uuid4().hex, int(self._must_know))
        for spend in spends:
            line = -1 if spend.alert_nanousd is None else spend.alert_nanousd
            arguments += (spend.limit_nanousd, int(spend.is_hard), _us(spend.window_s), _until(spend), line)
        asked = self._client.run(self._scripts["reserve"], keys, *arguments)
        try:
            answer = await _answer_of(asked)
        except asyncio.CancelledError:
            self._undo_when_known(asked, lambda given: self._settle(id, 0, ()))
            raise
        if answer[0] == 1:
            self._epoch = answer[1].decode()
            self._spends[id] = spends
            return None
        if answer[0] == 0:
            return SpendRefusal(spends[answer[1]], answer[2], answer[3], amount_nanousd)
        if answer[0] == 2:
            self._epoch, self._must_know = answer[1].decode(), True
            raise Unavailable("the shared store came back empty; budgets are read from the ledger", retry_after_s=1.0)
        raise Unavailable(f"{spends[answer[1]].scope} has not been restored since the shared store was empty")

    async def settle(self, id: str, amount_nanousd: int) -> Sequence[SpendAlert]:
        return await self._settle(id, amount_nanousd, self._spends.pop(id, ()))

    async def restore(self, spend: Spend, charges: Sequence[tuple[float, int]]) -> None:
        line = -1 if spend.alert_nanousd is None else spend.alert_nanousd
        arguments: list[Any] = [self._now(), _us(spend.window_s), _until(spend), line]
        for at_unix_s, amount_nanousd in charges:
            arguments += (_us(at_unix_s), amount_nanousd)
        await _answer_of(self._client.run(self._scripts["restore"], [self._budget + spend.scope], *arguments))

    async def spent(self, scopes: Sequence[str]) -> Sequence[int]:
        keys = [self._in_flight, *(self._budget + scope for scope in scopes)]
        answer: list[int] = await _answer_of(self._client.run(self._scripts["spent"], keys, self._now(), self._record))
        return answer

    async def aclose(self) -> None:
        if self._undoing:
            await asyncio.wait(self._undoing)
        await self._client.aclose()

    async def _settle(self, id: str, amount_nanousd: int, spends: Sequence[Spend]) -> Sequence[SpendAlert]:
        keys = [self._in_flight, self._record + id]
        answer = await _answer_of(self._client.run(self._scripts["settle"], keys, self._now(), id, amount_nanousd))
        if not spends:  # reserved by another process: nobody here knows whom to tell
            return ()
        return [SpendAlert(spends[answer[i]], answer[i + 1]) for i in range(0, len(answer), 2)]

    async def _give_back(self, id: str, hold: _Hold, amounts: Sequence[int] | None) -> None:
        arguments: list[Any] = [id]
        is_changed = False
        for i, ((index, first), before) in enumerate(zip(hold.entries, hold.amounts, strict=True)):
            change = before if index < 0 else (0 if amounts is None else amounts[i]) - before
            is_changed = is_changed or change != 0
            arguments += (index, first, change)
        if is_changed:
            await _answer_of(self._client.run(self._scripts["give_back"], hold.keys, *arguments))

    def _undo_when_known(self, asked: asyncio.Future[Any], undo: Any) -> None:
        """Give back what a cancelled caller was granted, as soon as the answer is there."""

        async def wait() -> None:
            try:
                answer = await asked
                if answer[0] == 1:
                    await undo(answer)
            except Unavailable:
                pass  # left to expiry, as with a worker that died

        task = asyncio.get_running_loop().create_task(wait())
        self._undoing.add(task)
        task.add_done_callback(self._undoing.discard)

    def _now(self) -> int | str:
        return "" if self._clock is None else _us(self._clock.time())


async def _answer_of(asked: asyncio.Future[Any]) -> Any:
    """The answer; who is cancelled here leaves it to come."""
    try:
        return await asyncio.shield(asked)
    except asyncio.CancelledError:
        asked.add_done_callback(lambda done: done.cancelled() or done.exception())
        raise


def _hold_of(keys: list[str], amounts: Sequence[int], answer: Sequence[int]) -> _Hold:
    return _Hold(keys, amounts, [(answer[i + 2], answer[i + 3]) for i in range(1, len(answer), 4)])


def _us(seconds: float) -> int:
    return round(seconds * UNIT)


def _until(spend: Spend) -> int:
    return -1 if math.isinf(spend.resets_at) else _us(spend.resets_at)
