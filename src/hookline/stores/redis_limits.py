"""Limits and money in flight in Redis, shared by many processes.

Lives here: `RedisLimits`: questions as script arguments, answers as the protocol's types. Elsewhere: the decisions (lua/), money a worker may spend unasked
(redis_leases.py), what becomes of all that when Redis was away (redis_presence.py), carrying it (redis_client.py).
Idea: one script decides over all scopes of a call, on the server's own clock, so workers need not agree on anything.

Keys all carry the hash tag `{PREFIX}`: a call of any key, tenant and model touches the global scope, so what one decision touches together is everything. In a
cluster all limits live on one of its nodes, and their rate is bounded by it (about 28,000 decisions a second: 35 µs each with five ceilings); cached replies spread.

- Windows are exact (windows.py in Lua). Who gave how much into which entry is remembered by the worker, so giving back needs no record in Redis, and no answer:
  what is asked later on the same connection comes later.
- Parallel holds are members with an end: those of a dead worker leave by themselves.
- A reservation is a record; one whose worker died is charged whole by whoever comes next. A lease is one too.
- Every key has a TTL, but for the epoch. A budget window nobody has asked for in 400 days leaves, all others soon after their end."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from hookline.errors import Unavailable
from hookline.stores.memory import MemoryLimits
from hookline.stores.protocols import Clock, Level, Notice, Refusal, Spend, SpendAlert, SpendRefusal, Take
from hookline.stores.redis_client import Asked, Metrics, RedisClient, watch
from hookline.stores.redis_leases import LEASE_S, UNIT, Lease, LeaseKeeper, to_us, until_us, window_arguments
from hookline.stores.redis_presence import SLOT_S, Presence
from hookline.stores.redis_scripts import LimitKeys

TIMER_S = 0.01
"""A loop's timers may come a millisecond early, and who asks then is told to wait once more."""
RECALL_WAIT_S = 0.5
"""How long a call waits for leases of other workers to come back before it is refused; a worker that does not answer is dead or cut off."""
RECALL_LOOK_S = 0.02
PLANS_MAX = 4_096
LEASE_US = to_us(LEASE_S)


class _Hold(NamedTuple):
    keys: tuple[str, ...]
    amounts: Sequence[int]
    answer: Sequence[int]
    """1, then remaining, reset, entry (-1: parallel), entry's beginning of each."""
    ends_at_s: float


class _Drawn(NamedTuple):
    lease: Lease
    amount: int
    ends_at_s: float


class Reserved(NamedTuple):
    """A reservation that Redis knows by its id."""

    spends: Sequence[Spend]
    amount: int
    ends_at_s: float


class RedisLimits:
    """A `LimitStore` for many processes. `workers`: so many share it at least. `clock` replaces the server's time; only tests give one."""

    is_shared = True

    def __init__(self, client: RedisClient, clock: Clock | None = None, *, workers: int = 1) -> None:
        self._client = client
        self._clock = clock
        self._slot_s = SLOT_S if clock is None else math.inf
        self._keys = keys = LimitKeys(client.options.prefix)
        self._take, self._give, self._reserve, self._settle, self._restore, self._spent, self._exchange = client.load(
            "take", "give_back", "reserve", "settle", "restore", "spent", "exchange"
        )
        self._monotonic: Callable[[], float] = client.monotonic if clock is None else clock.monotonic
        self._plans: dict[int, tuple[Sequence[Take], tuple[str, ...], tuple[Any, ...]]] = {}
        self._holds: dict[str, _Hold] = {}
        self._drawn: dict[str, _Drawn] = {}
        self._reserved: dict[str, Reserved] = {}
        self._leases = LeaseKeeper(client, keys, get_epoch=lambda: self._presence.epoch, now=self._now)
        self._local = MemoryLimits(clock or client)
        self._local_ids: set[str] = set()
        self._presence = Presence(
            client, keys, self._leases, self._reserved, workers, find_slots=self._slots, now=self._now
        )
        self._presence.look_after = self._look_after
        self.bypassed = 0
        """Decisions made while Redis was away: by this worker's share of a limit, or by its lease."""
        self._count_bypassed: Callable[[], None] = lambda: None

    @property
    def in_flight(self) -> int:
        """Holds and reservations of this process that are not settled."""
        return len(self._holds) + len(self._drawn) + len(self._reserved) + self._local.in_flight

    @property
    def is_open(self) -> bool:
        """Whether Redis is away."""
        return self._client.is_open

    def report_to(self, metrics: Metrics) -> None:
        """Show the breaker, what was decided without Redis, and what is leased."""
        self._count_bypassed = watch(self._client, metrics, "limits")

    async def take(
        self, id: str, takes: Sequence[Take], amounts: Sequence[int], *, expires_s: float
    ) -> Sequence[Level] | Refusal:
        plan = self._plans.get(_identity(takes))
        keys, head = plan[1:] if plan is not None and plan[0] is takes else self._plan_of(takes)
        try:
            asked = self._client.ask(
                self._take, (*head, self._now(), id, to_us(min(expires_s, self._slot_s)), *amounts)
            )
            answer = await asked.future  # type: ignore[misc]
        except asyncio.CancelledError:
            asked.leave(lambda given: self._undo_take(id, keys, takes, amounts, given))
            raise
        except Unavailable:
            self._presence.free_later(id, _slot_keys(keys, takes, amounts))  # it may have been granted
            return await self._take_here(id, takes, amounts, expires_s)
        if answer[0] == 0:
            levels = [Level(answer[i], answer[i + 1] / UNIT) for i in range(3, len(answer), 2)]
            return Refusal(takes[answer[1]], math.inf if answer[2] < 0 else answer[2] / UNIT, levels)
        self._holds[id] = _new(_Hold, (keys, amounts, answer, self._monotonic() + expires_s))
        return [_new(Level, (answer[i], answer[i + 1] / UNIT)) for i in range(1, len(answer), 4)]

    def give_back(self, id: str, amounts: Sequence[int]) -> None:
        hold = self._holds.pop(id, None)
        if hold is not None:
            self._give_back(id, hold, amounts)
        elif id in self._local_ids:
            self._local_ids.discard(id)
            self._local.give_back(id, amounts)

    async def reserve(
        self, id: str, spends: Sequence[Spend], amount_nanousd: int, *, expires_s: float
    ) -> SpendRefusal | None:
        lease = self._leases.find(spends) if type(spends) is tuple else None
        if lease is not None and lease.free >= amount_nanousd:
            self._leases.draw(lease, amount_nanousd)
            self._drawn[id] = _new(_Drawn, (lease, amount_nanousd, self._monotonic() + expires_s))
            if self._client.is_open:
                self._bypass()
            return None
        waited_s = 0.0
        while True:
            answer = await self._ask_to_reserve(id, spends, amount_nanousd, expires_s)
            kind = answer[0]
            if kind == 1:
                self._presence.learn(answer[1])
                self._reserved[id] = Reserved(spends, amount_nanousd, self._monotonic() + expires_s)
                return None
            if kind == 0 or (kind == 4 and waited_s >= RECALL_WAIT_S):
                return SpendRefusal(spends[answer[1]], answer[2], answer[3], amount_nanousd)
            if kind == 4:
                self._leases.recall(spends[answer[1]].window)
                await asyncio.sleep(RECALL_LOOK_S)
                waited_s += RECALL_LOOK_S
            elif kind == 5:
                await asyncio.sleep(answer[1] / UNIT)
            elif kind == 2:
                self._presence.learn(answer[1])
            else:
                raise Unavailable(
                    f"{spends[answer[1]].window} has not been restored since the shared store was empty; budgets are read from the ledger",
                    retry_after_s=1.0,
                )

    def settle(self, id: str, amount_nanousd: int) -> Awaitable[Sequence[SpendAlert]] | Sequence[SpendAlert]:
        drawn = self._drawn.pop(id, None)
        if drawn is None:
            return self._settle_shared(id, amount_nanousd, self._reserved.pop(id, None))
        lease, bound, ends_at_s = drawn
        self._leases.settle(lease, bound, bound if ends_at_s <= self._monotonic() else amount_nanousd)
        return ()

    async def restore(self, spend: Spend, charges: Sequence[tuple[float, int]]) -> None:
        line = -1 if spend.alert_nanousd is None else spend.alert_nanousd
        keys = [self._keys.epoch, self._keys.money + spend.window]
        arguments: list[Any] = [self._now(), self._presence.fresh(), to_us(spend.window_s), until_us(spend), line]
        for at_unix_s, amount_nanousd in charges:
            arguments += (to_us(at_unix_s), amount_nanousd)
        answer = await self._client.run(self._restore, keys, *arguments)
        if answer[0] == 5:
            await asyncio.sleep(answer[1] / UNIT + TIMER_S)
            raise Unavailable("the shared store came back empty; the ledger must be asked once more", retry_after_s=1.0)

    async def knows(self, spend: Spend) -> bool:
        return bool(await self._client.send("HEXISTS", self._keys.money + spend.window, "k"))

    async def held(self, windows: Sequence[str]) -> Sequence[int]:
        keys = [self._keys.in_flight, *(self._keys.money + window for window in windows)]
        answer: list[int] = await self._client.run(self._spent, keys, self._now(), self._keys.record)
        return answer

    async def exchange(self, board: str, notices: Sequence[Notice]) -> Sequence[Notice]:
        arguments: list[Any] = [self._now()]
        for notice in notices:
            arguments += (notice.name, notice.version, to_us(notice.ttl_s), notice.value)
        answer = await self._client.run(self._exchange, [self._keys.board + board], *arguments)
        return [Notice(answer[i].decode(), int(answer[i + 1]), answer[i + 2]) for i in range(0, len(answer), 3)]

    async def aclose(self) -> None:
        await self._presence.aclose()
        self._leases.stop()
        with suppress(Unavailable):
            await self._client.send("PING")  # what was under way may have made a lease grow
        self._leases.tell()
        await self._client.aclose()
        self._leases.close_book()

    def _look_after(self) -> None:
        """Now and then: leases, and what was never given back, as the other workers see it already."""
        self._leases.look_after()
        now_s = self._monotonic()
        for id in [id for id, drawn in self._drawn.items() if drawn.ends_at_s <= now_s]:
            self.settle(id, 0)
        for id in [id for id, hold in self._holds.items() if hold.ends_at_s <= now_s]:
            del self._holds[id]

    async def _ask_to_reserve(self, id: str, spends: Sequence[Spend], amount: int, expires_s: float) -> Any:
        keys, presence = self._keys, self._presence
        lease = self._lease_to_ask_for(spends)
        want = 0
        if lease is not None:
            want, lease.is_busy = lease.ask_for(amount), True
        names = (keys.in_flight, keys.epoch, keys.record + id, keys.record + (lease.id if lease else ""))
        windows = tuple(keys.money + spend.window for spend in spends)
        arguments: tuple[Any, ...] = (
            self._now(),
            id,
            keys.record,
            to_us(expires_s),
            amount,
            presence.epoch,
            presence.fresh(),
        )
        arguments += (int(presence.must_know), lease.id if lease else "", want, LEASE_US, *window_arguments(spends))

        def grown(answer: Any) -> None:
            if lease is not None and isinstance(answer, Unavailable):
                self._leases.grown(lease, None)
            elif lease is not None:
                self._leases.grown(lease, answer[2] if answer[0] == 1 else 0)

        def undo(answer: Any) -> None:
            grown(answer)
            if isinstance(answer, Unavailable) or answer[0] == 1:
                presence.settle_later(id, 0)

        asked: Asked | None = None
        try:
            asked = self._client.ask(self._reserve, (4 + len(windows), *names, *windows, *arguments))
            answer = await asked.future  # type: ignore[misc]
        except asyncio.CancelledError:
            if asked is not None:
                asked.leave(undo)
            raise
        except Unavailable as error:
            undo(error)
            raise
        grown(answer)
        return answer

    def _lease_to_ask_for(self, spends: Sequence[Spend]) -> Lease | None:
        """Only what is the same for many calls can have a lease, and only one question at a time may make it grow."""
        if not self._client.options.leases or not isinstance(spends, tuple) or not spends:
            return None
        lease = self._leases.find(spends) or self._leases.make(spends)
        return None if lease.is_busy else lease

    async def _settle_shared(self, id: str, amount_nanousd: int, reserved: Reserved | None) -> Sequence[SpendAlert]:
        names = (self._keys.in_flight, self._keys.record + id)
        asked: Asked | None = None
        try:
            asked = self._client.ask(self._settle, (2, *names, self._now(), id, amount_nanousd))
            answer = await asked.future  # type: ignore[misc]
        except asyncio.CancelledError:
            if asked is not None:
                asked.leave(
                    lambda told: (
                        self._presence.settle_later(id, amount_nanousd) if isinstance(told, Exception) else None
                    )
                )
            raise
        except Unavailable:
            if reserved is None:
                raise  # another process's: who asked will ask again
            self._presence.settle_later(id, amount_nanousd)
            return ()
        if reserved is None:  # nobody here knows whom to tell
            return ()
        return [SpendAlert(reserved.spends[answer[i]], answer[i + 1]) for i in range(0, len(answer), 2)]

    async def _take_here(
        self, id: str, takes: Sequence[Take], amounts: Sequence[int], expires_s: float
    ) -> Sequence[Level] | Refusal:
        """This worker's share of each limit, while Redis is away."""
        self._bypass()
        workers = self._presence.workers
        shares = [Take(take.scope, max(take.limit // workers, 1), take.window_s) for take in takes]
        # What is more than a share, and not more than the limit, may pass alone.
        given = [min(a, share.limit) if a <= t.limit else a for a, share, t in zip(amounts, shares, takes, strict=True)]
        answer = await self._local.take(id, shares, given, expires_s=expires_s)
        if isinstance(answer, Refusal):
            return answer._replace(take=takes[shares.index(answer.take)])
        self._local_ids.add(id)
        return answer

    def _bypass(self) -> None:
        self.bypassed += 1
        self._count_bypassed()

    def _plan_of(self, takes: Sequence[Take]) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        """The keys of these ceilings, and the arguments that are the same for every call."""
        keys = tuple(self._keys.window + take.scope for take in takes)
        constant = [n for take in takes for n in (take.limit, to_us(take.window_s))]
        head = (len(keys), *keys, *constant)
        if isinstance(takes, tuple):
            if len(self._plans) >= PLANS_MAX:
                self._plans.clear()
            self._plans[_identity(takes)] = (takes, keys, head)
        return keys, head

    def _give_back(self, id: str, hold: _Hold, amounts: Sequence[int] | None) -> None:
        arguments: list[Any] = [len(hold.keys), *hold.keys, id]
        is_changed, slots, at = False, [], 3
        for key, before, after in zip(hold.keys, hold.amounts, amounts or (0,) * len(hold.keys), strict=True):
            index = hold.answer[at]
            change = before if index < 0 else after - before
            if change:
                is_changed = True
                if index < 0:
                    slots.append((key, before))
            arguments += (index, hold.answer[at + 1], change)
            at += 4

        def told(answer: Any) -> None:
            if isinstance(answer, Unavailable):
                self._presence.free_later(id, slots)

        if is_changed:
            try:
                self._client.tell(self._give, tuple(arguments), told if slots else None)
            except Unavailable as error:
                told(error)

    def _undo_take(
        self, id: str, keys: tuple[str, ...], takes: Sequence[Take], amounts: Sequence[int], answer: Any
    ) -> None:
        """Give back what a cancelled caller was granted."""
        if isinstance(answer, Unavailable):
            self._presence.free_later(id, _slot_keys(keys, takes, amounts))
        elif answer[0] == 1:
            self._give_back(id, _Hold(keys, amounts, answer, 0.0), None)

    def _slots(self) -> list[tuple[str, float, list[tuple[str, int]]]]:
        """Parallel slots of calls in flight: id, seconds left, (key, how many)."""
        now_s, found = self._monotonic(), []
        for id, hold in self._holds.items():
            parallel = [
                (key, n)
                for i, (key, n) in enumerate(zip(hold.keys, hold.amounts, strict=True))
                if hold.answer[3 + i * 4] < 0 < n
            ]
            if parallel:
                found.append((id, min(hold.ends_at_s - now_s, self._slot_s), parallel))
        return found

    def _now(self) -> int | str:
        return "" if self._clock is None else to_us(self._clock.time())


def _slot_keys(keys: Sequence[str], takes: Sequence[Take], amounts: Sequence[int]) -> list[tuple[str, int]]:
    return [(key, n) for key, take, n in zip(keys, takes, amounts, strict=True) if not take.window_s and n]


_new = tuple.__new__
_identity = id
