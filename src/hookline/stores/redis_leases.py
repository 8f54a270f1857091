"""Leases of money: what one worker may spend without asking Redis.

Lives here: `Lease`, what it holds and how it is told (lua/report.lua decides). Elsewhere: who reserves in it (redis_limits.py).
Idea: a lease is a reservation in Redis, in the same windows as the calls that draw on it, so that spent + reserved + leased <= limit is the old rule and nothing
more. The worker splits it into `outstanding` (bounds of its calls in flight) and `free`; what a call really cost leaves it and becomes spend with the next report.

Rules that keep it exact
- A report says absolute figures, all that was spent so far and all that is left, so one that got lost, or arrived and was not answered, is made good by the next.
- A lease only grows by an answer; while one that may say so is under way (`is_busy`), nothing else is told of the lease.
- A closed lease gives nothing any more; when its last call has settled it ends. A lease whose worker was silent for LEASE_S is charged whole, and its worker, if it
  lives, takes the difference back when its last call has settled."""

from __future__ import annotations

import asyncio
import itertools
import math
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from hookline.errors import Unavailable
from hookline.stores.lease_book import DeadBook, LeaseBook, find_dead, folder_for
from hookline.stores.protocols import Spend
from hookline.stores.redis_client import RedisClient
from hookline.stores.redis_scripts import LimitKeys

LEASE_S = 10.0
"""After so long without a word its worker counts as dead."""
CALLS_AHEAD = 64
"""How many of the largest bound seen a lease holds, at least; it doubles while that does not do."""
TELL_AFTER_S = 0.05
"""How long settlements are gathered: what a worker that dies leaves untold, so that it is charged with its lease."""
LEASES_MAX = 10_000
UNIT = 1_000_000
RECALLED, CHARGED, UNKNOWN = 1, 2, 3


class Lease:
    """Money of the windows of `spends`."""

    __slots__ = (
        "bound",
        "free",
        "id",
        "is_busy",
        "is_charged",
        "is_closed",
        "is_due",
        "is_known",
        "is_used",
        "outstanding",
        "place",
        "spends",
        "total",
        "want",
    )

    def __init__(self, id: str, spends: tuple[Spend, ...]) -> None:
        self.id = id
        self.spends = spends
        self.free = 0
        self.outstanding = 0
        self.total = 0
        """All that was spent of it."""
        self.bound = 0
        """The largest amount asked for."""
        self.want = 0
        self.is_busy = False
        self.is_closed = False
        self.is_charged = False
        self.is_due = False
        """Something has changed since it was last told."""
        self.is_known = False
        """Redis may have it."""
        self.place = -1
        """Where the lease book has it."""
        self.is_used = False

    def ask_for(self, amount: int) -> int:
        """How much the lease should be, now that `amount` did not fit."""
        self.bound = max(self.bound, amount)
        self.want = max(self.want * 2 if self.free + self.outstanding else self.want, CALLS_AHEAD * self.bound)
        return self.want

    def close(self) -> None:
        """What is free goes back with the next report."""
        self.is_closed = True
        self.free = 0
        self.is_due = True

    @property
    def left(self) -> int:
        return max(self.outstanding + self.free, 0)

    @property
    def is_over(self) -> bool:
        return self.is_closed and self.outstanding == 0

    @property
    def is_low(self) -> bool:
        return self.free < self.want // 2

    def describe(self) -> tuple[Any, ...]:
        """The part of a report's arguments that says what it is now."""
        wanted = 0 if self.is_closed or not self.is_low else self.want
        return (self.total, self.left, int(self.is_closed), int(self.is_over), wanted, self.bound)


def window_arguments(spends: Sequence[Spend]) -> tuple[int, ...]:
    """limit, is_hard, span_us, resets_us, line of each window."""
    arguments: list[int] = []
    for spend in spends:
        line = -1 if spend.alert_nanousd is None else spend.alert_nanousd
        arguments += (spend.limit_nanousd, int(spend.is_hard), to_us(spend.window_s), until_us(spend), line)
    return tuple(arguments)


def to_us(seconds: float) -> int:
    return round(seconds * UNIT)


def until_us(spend: Spend) -> int:
    return -1 if math.isinf(spend.resets_at) else to_us(spend.resets_at)


class LeaseKeeper:
    """The leases of this process. `get_epoch` and `now` are the limits store's."""

    def __init__(
        self, client: RedisClient, keys: LimitKeys, *, get_epoch: Callable[[], str], now: Callable[[], int | str]
    ) -> None:
        self._client = client
        self._keys = keys
        self._get_epoch = get_epoch
        self._now = now
        self._script, self._end = client.load("report", "end_lease")
        self._name, self._numbers = uuid.uuid4().hex, itertools.count(1)
        self._book: LeaseBook | None = None
        self._open: dict[tuple[Spend, ...], Lease] = {}
        self._known_as: dict[int, tuple[Sequence[Spend], Lease]] = {}
        """By identity: to hash the windows costs more than all else that a call does here."""
        self._closed: set[Lease] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_hurried = False

    @property
    def has_any(self) -> bool:
        return bool(self._open or self._closed)

    @property
    def free_nanousd(self) -> int:
        """What this process may spend without asking."""
        return sum(lease.free for lease in self._open.values())

    def find(self, spends: tuple[Spend, ...]) -> Lease | None:
        """The open lease of these windows."""
        known = self._known_as.get(id(spends))
        if known is not None and known[0] is spends and not known[1].is_closed:
            return known[1]
        lease = self._open.get(spends)
        if lease is not None:
            if len(self._known_as) >= LEASES_MAX:
                self._known_as.clear()
            self._known_as[id(spends)] = (spends, lease)
        return lease

    def make(self, spends: tuple[Spend, ...]) -> Lease:
        """A lease to ask for."""
        if len(self._open) >= LEASES_MAX:
            self.close(next(iter(self._open.values())))
        lease = self._open[spends] = Lease(f"lease:{self._name}.{next(self._numbers)}", spends)
        return lease

    def grown(self, lease: Lease, extra: int | None) -> None:
        """Redis has added `extra`; None: it may have added something."""
        lease.is_busy = False
        if extra != 0 and not lease.is_known:
            lease.is_known = True
            lease.place = self._get_book().enter(lease.id)
        if extra is None:
            self._due(lease)
        elif lease.is_closed:
            if lease.is_known:
                self._closed.add(lease)
                self._due(lease)
        elif extra:
            lease.is_used = lease.is_used or not lease.left
            lease.free += extra

    def draw(self, lease: Lease, amount: int) -> None:
        lease.free -= amount
        lease.outstanding += amount
        self._get_book().keep(lease.place, lease.total, lease.outstanding)
        lease.is_used = True
        if amount > lease.bound:
            lease.bound = amount
        if lease.is_low:
            self._due(lease)

    def settle(self, lease: Lease, bound: int, amount: int) -> None:
        """A call that drew `bound` has cost `amount`."""
        lease.outstanding -= bound
        lease.total += amount
        self._get_book().keep(lease.place, lease.total, lease.outstanding)
        if not lease.is_closed:
            lease.free += bound - amount
        self._due(lease)

    def close(self, lease: Lease) -> None:
        """Give back what is free."""
        if self._open.get(lease.spends) is lease:
            del self._open[lease.spends]
        lease.close()
        if lease.is_known:
            self._closed.add(lease)
            self._tell_soon()

    def recall(self, window: str) -> None:
        """Somebody needs what is free in this window."""
        for lease in [lease for lease in self._open.values() if any(s.window == window for s in lease.spends)]:
            self.close(lease)
        self.tell()

    def look_after(self) -> None:
        """Now and then: what nobody uses goes back, what is used is told, so that it does not expire."""
        for lease in list(self._open.values()):
            if not lease.is_used and not lease.outstanding:
                self.close(lease)
            lease.is_used = False
            lease.is_due = True
        for lease in self._closed:
            lease.is_due = True
        self.tell()
        self._end_those_of_the_dead()

    def ask_all(self) -> None:
        """Tell of all of them now: one may have been recalled."""
        for lease in self._open.values():
            lease.is_due = True
        self.tell()

    def tell(self) -> None:
        """Report what is due."""
        self._is_hurried = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for lease in [*self._open.values(), *self._closed]:
            if lease.is_due and lease.is_known and not lease.is_busy:
                lease.is_busy, lease.is_due = True, False
                was_over = lease.is_over
                try:
                    self._client.tell(self._script, self._report_of(lease), partial(self._told, lease, was_over))
                except Unavailable as error:
                    self._told(lease, was_over, error)

    def reports(self) -> list[tuple[Any, ...]]:
        """What a Redis that came back must know."""
        known = [lease for lease in (*self._open.values(), *self._closed) if lease.is_known]
        return [("EVALSHA", self._script.digest, *self._report_of(lease)) for lease in known]

    def lost_answers(self) -> None:
        """The connection has ended: what was under way is told anew."""
        for lease in (*self._open.values(), *self._closed):
            lease.is_due = True

    def stop(self) -> None:
        """Give everything back, for good."""
        for lease in list(self._open.values()):
            self.close(lease)
        self.tell()
        if self._timer is not None:
            self._timer.cancel()

    def close_book(self) -> None:
        """The last thing: what could not be told stays in it."""
        if self._book is not None:
            self._book.close()

    def _get_book(self) -> LeaseBook:
        if self._book is None:
            self._book = LeaseBook(folder_for(self._client.url), self._name)
        return self._book

    def _end_those_of_the_dead(self) -> None:
        """Charge what they had spent and had in flight, and give the rest back."""
        keys = self._keys
        for book in find_dead(folder_for(self._client.url)):
            missing = len(book.leases)
            if not missing:
                book.done()

            def told(answer: Any, book: DeadBook = book, left: list[int] = [missing], failed: list[Any] = []) -> None:  # noqa: B006
                left[0] -= 1
                if isinstance(answer, Unavailable):
                    failed.append(answer)
                if left[0] == 0:
                    book.leave() if failed else book.done()

            for lease_id, spent in book.leases:
                arguments = (2, keys.in_flight, keys.record + lease_id, self._now(), lease_id, spent)
                try:
                    self._client.tell(self._end, arguments, told)
                except Unavailable as error:
                    told(error)

    def _due(self, lease: Lease) -> None:
        is_urgent = lease.free < lease.bound and not lease.is_closed
        if not lease.is_due or (is_urgent and not self._is_hurried):
            lease.is_due = True
            self._tell_soon(is_urgent=is_urgent)

    def _tell_soon(self, *, is_urgent: bool = False) -> None:
        """Urgent: the next call would have to ask."""
        if self._timer is not None:
            if not is_urgent:
                return
            self._timer.cancel()
        self._is_hurried = is_urgent
        self._timer = asyncio.get_running_loop().call_later(0 if is_urgent else TELL_AFTER_S, self._tell_due)

    def _tell_due(self) -> None:
        self._timer = None
        self.tell()

    def _report_of(self, lease: Lease) -> tuple[Any, ...]:
        keys, spends = self._keys, lease.spends
        names = (keys.in_flight, keys.epoch, keys.record + lease.id, *(keys.money + s.window for s in spends))
        state = lease.describe()
        return (
            len(names),
            *names,
            self._now(),
            lease.id,
            keys.record,
            self._get_epoch(),
            to_us(LEASE_S),
            *state,
            *window_arguments(spends),
        )

    def _told(self, lease: Lease, was_over: bool, answer: Any) -> None:
        lease.is_busy = False
        if isinstance(answer, Unavailable):
            lease.is_due = True  # the next connection begins with it, or the next look
            return
        said, extra = answer
        if was_over or said == UNKNOWN:
            self._closed.discard(lease)
            self._get_book().erase(lease.place)
            lease.place = -1
            if self._open.get(lease.spends) is lease:
                del self._open[lease.spends]
                lease.close()
            return
        if said in (RECALLED, CHARGED) and not lease.is_closed:
            self.close(lease)
        elif extra:
            self.grown(lease, extra)
        if lease.is_over:
            lease.is_due = True
        if lease.is_due:
            self._tell_soon()
