"""Stores in this process: limits and money in flight, cached replies.

Lives here: `MemoryLimits`, `MemoryReplies`. Elsewhere: the arithmetic of one window (windows.py), what outlives the process (sqlite.py).
Idea: one event loop and no await inside a decision make every decision atomic; methods are `async` where a
remote store must wait, and never suspend here.

What bounds the maps
- Windows: an idle one is dropped by a sweep that runs when the map has doubled since the last, so a sweep costs nothing per call. Beyond MAX_SCOPES that
  are in use, new scopes are refused (`Unavailable`): client-chosen names must not eat the memory.
- Holds and reservations end with their call; one whose call never came back ends by `expires_s`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import NamedTuple, TypeVar

from hookline.errors import Unavailable
from hookline.stores.protocols import Clock, Level, Notice, Refusal, Spend, SpendAlert, SpendRefusal, Take
from hookline.stores.windows import Entry, Window

MAX_SCOPES = 100_000
SWEEP_FROM_SCOPES = 1_024
SWEEP_GAP_S = 1.0
DRAWN_ON_MAX = 4_096
PARALLEL_RETRY_S = 1.0
"""When a parallel slot comes free is not known: calls end when they end."""
ENTRY_OVERHEAD_BYTES = 512
"""What an entry costs beside key and value: 440 bytes measured with tracemalloc on Python 3.11."""


class MemoryLimits:
    """A `LimitStore` for one process."""

    is_shared = False

    def __init__(self, clock: Clock, *, max_scopes: int = MAX_SCOPES) -> None:
        self._clock = clock
        self._max_scopes = max_scopes
        self._windows: dict[str, Window] = {}
        self._drawn_on: dict[int, tuple[Sequence[Take], list[Window]]] = {}
        self._budgets: dict[str, _BudgetWindow] = {}
        self._holds: dict[str, _Hold] = {}
        self._reservations: dict[str, _Reservation] = {}
        self._boards: dict[str, dict[str, tuple[Notice, float]]] = {}
        self._sweep_at = min(SWEEP_FROM_SCOPES, max_scopes)
        self._next_sweep_s = 0.0
        self._next_expiry_s = float("inf")

    async def take(
        self, id: str, takes: Sequence[Take], amounts: Sequence[int], *, expires_s: float
    ) -> Sequence[Level] | Refusal:
        now_s = self._clock.monotonic()
        if now_s >= self._next_expiry_s:
            self._expire(now_s)
        if len(self._windows) >= self._sweep_at:
            self._sweep(now_s)
        windows = self._find_windows(takes)
        levels: list[Level] = []
        fits = True
        for window, (_, limit, window_s), amount in zip(windows, takes, amounts, strict=True):
            if (entries := window.entries) and entries[0].last_s <= now_s - window_s:
                window.expire(now_s)
            left = limit - window.used - amount
            if left < 0:
                fits = False
            levels.append(_new(Level, (left, window_s if amount else window.reset_s(now_s))))
        if not fits:
            return _refusal(takes, amounts, windows, now_s)
        held = list(map(Window.add, windows, repeat(now_s), amounts))
        expires_at_s = now_s + expires_s
        self._holds[id] = _new(_Hold, (windows, held, amounts, expires_at_s))
        if expires_at_s < self._next_expiry_s:
            self._next_expiry_s = expires_at_s
        return levels

    def give_back(self, id: str, amounts: Sequence[int]) -> None:
        hold = self._holds.pop(id, None)
        if hold is None:
            return
        for window, entry, before, after in zip(hold.windows, hold.entries, hold.amounts, amounts, strict=True):
            if entry is None:
                window.used -= before
            elif before != after:
                window.correct(entry, after - before)

    async def reserve(
        self, id: str, spends: Sequence[Spend], amount_nanousd: int, *, expires_s: float
    ) -> SpendRefusal | None:
        now_s, now_unix_s = self._clock.monotonic(), self._clock.time()
        if now_s >= self._next_expiry_s:
            self._expire(now_s)
        known = self._budgets
        if len(known) >= self._sweep_at:
            self._sweep(now_s)
        budgets: list[_BudgetWindow] = []
        for spend in spends:
            budget = known.get(spend.window) or self._keep(known, spend.window, _BudgetWindow(spend))
            spent = budget.spent_at(now_unix_s)
            held = spent + budget.reserved
            if held + amount_nanousd > spend.limit_nanousd and spend.is_hard:
                return SpendRefusal(spend, spent, held, amount_nanousd)
            budgets.append(budget)
        for budget in budgets:
            budget.reserved += amount_nanousd
        expires_at_s = now_s + expires_s
        self._reservations[id] = _new(_Reservation, (spends, budgets, amount_nanousd, expires_at_s))
        if expires_at_s < self._next_expiry_s:
            self._next_expiry_s = expires_at_s
        return None

    def settle(self, id: str, amount_nanousd: int) -> Sequence[SpendAlert]:
        reservation = self._reservations.pop(id, None)
        if reservation is None:
            return ()
        if reservation.expires_at_s <= self._clock.monotonic():
            amount_nanousd = reservation.amount_nanousd
        return self._charge(reservation, amount_nanousd)

    async def restore(self, spend: Spend, charges: Sequence[tuple[float, int]]) -> None:
        if spend.window in self._budgets:
            return
        now_unix_s = self._clock.time()
        budget = self._keep(self._budgets, spend.window, _BudgetWindow(spend))
        for at_unix_s, amount_nanousd in charges:
            budget.add(at_unix_s, amount_nanousd)
        line = spend.alert_nanousd
        budget.is_alerted = line is not None and budget.spent_at(now_unix_s) >= line

    async def knows(self, spend: Spend) -> bool:
        return spend.window in self._budgets

    async def held(self, windows: Sequence[str]) -> Sequence[int]:
        now_s, now_unix_s = self._clock.monotonic(), self._clock.time()
        if now_s >= self._next_expiry_s:
            self._expire(now_s)
        budgets = [self._budgets.get(window) for window in windows]
        return [0 if b is None else b.spent_at(now_unix_s) + b.reserved for b in budgets]

    async def exchange(self, board: str, notices: Sequence[Notice]) -> Sequence[Notice]:
        now_s, kept = self._clock.monotonic(), self._boards.setdefault(board, {})
        for name in [name for name, (_, expires_at_s) in kept.items() if expires_at_s <= now_s]:
            del kept[name]
        for notice in notices:
            known = kept.get(notice.name)
            if known is None or notice.version >= known[0].version:
                kept[notice.name] = (notice._replace(ttl_s=0.0), now_s + notice.ttl_s)
        return [notice for notice, _ in kept.values()]

    async def aclose(self) -> None:
        return None

    @property
    def in_flight(self) -> int:
        """Holds and reservations that are not settled."""
        return len(self._holds) + len(self._reservations)

    @property
    def scopes(self) -> int:
        """Windows in memory."""
        return len(self._windows) + len(self._budgets)

    def _charge(self, reservation: _Reservation, amount_nanousd: int) -> Sequence[SpendAlert]:
        now_unix_s = self._clock.time()
        alerts: list[SpendAlert] = []
        for spend, budget in zip(reservation.spends, reservation.budgets, strict=True):
            budget.reserved -= reservation.amount_nanousd
            if amount_nanousd:
                budget.add(now_unix_s, amount_nanousd)
            line = spend.alert_nanousd
            if line is None:
                continue
            is_over = (spent := budget.spent_at(now_unix_s)) >= line
            if is_over and not budget.is_alerted:
                alerts.append(SpendAlert(spend, spent))
            budget.is_alerted = is_over
        return alerts

    def _expire(self, now_s: float) -> None:
        """End what has expired, at most once per SWEEP_GAP_S: a sweep reads everything in flight."""
        for id in [id for id, hold in self._holds.items() if hold.expires_at_s <= now_s]:
            hold = self._holds.pop(id)
            for window, entry, amount in zip(hold.windows, hold.entries, hold.amounts, strict=True):
                if entry is None:
                    window.used -= amount
        for id in [id for id, reserved in self._reservations.items() if reserved.expires_at_s <= now_s]:
            reservation = self._reservations.pop(id)
            for budget in reservation.budgets:
                budget.reserved -= reservation.amount_nanousd
                budget.add(self._clock.time(), reservation.amount_nanousd)
        earliest_s = min(
            min((hold.expires_at_s for hold in self._holds.values()), default=float("inf")),
            min((reserved.expires_at_s for reserved in self._reservations.values()), default=float("inf")),
        )
        self._next_expiry_s = max(earliest_s, now_s + SWEEP_GAP_S)

    def _sweep(self, now_s: float) -> None:
        """Drop idle windows. Only between decisions: one that has just been looked up is idle until something is added to it."""
        if now_s < self._next_sweep_s:
            return
        self._drawn_on.clear()
        now_unix_s = self._clock.time()
        for name in [name for name, window in self._windows.items() if _is_idle(window, now_s)]:
            del self._windows[name]
        for name in [name for name, budget in self._budgets.items() if budget.is_over_at(now_unix_s)]:
            del self._budgets[name]
        live = max(len(self._windows), len(self._budgets))
        self._sweep_at = min(max(2 * live, SWEEP_FROM_SCOPES), self._max_scopes)
        self._next_sweep_s = now_s + SWEEP_GAP_S

    def _find_windows(self, takes: Sequence[Take]) -> list[Window]:
        """The windows that these draw on, remembered until the next sweep: the same takes come again and again."""
        found = self._drawn_on.get(id(takes))
        if found is not None and found[0] is takes:
            return found[1]
        windows: list[Window] = []
        for scope, _, window_s in takes:
            window = self._windows.get(scope) or self._keep(self._windows, scope, Window(window_s))
            window.window_s = window_s  # a reload may have changed it
            windows.append(window)
        if len(self._drawn_on) >= DRAWN_ON_MAX:
            self._drawn_on.clear()
        self._drawn_on[id(takes)] = (takes, windows)
        return windows

    def _keep(self, windows: dict[str, _W], scope: str, window: _W) -> _W:
        if len(windows) >= self._max_scopes:
            raise Unavailable(
                f"limits: {self._max_scopes} scopes are in use, no room for another one; try again when calls have ended",
                retry_after_s=PARALLEL_RETRY_S,
            )
        windows[scope] = window
        return window


class _BudgetWindow:
    """Money of one budget window: spent, and reserved for calls in flight. Times are Unix seconds."""

    __slots__ = ("_rolling", "_spent", "is_alerted", "reserved", "resets_at")

    def __init__(self, spend: Spend) -> None:
        self._spent = 0
        self._rolling = Window(spend.window_s) if spend.window_s else None
        self.reserved = 0
        self.resets_at = spend.resets_at
        self.is_alerted = False

    def spent_at(self, now_unix_s: float) -> int:
        if self._rolling is None:
            return self._spent
        self._rolling.expire(now_unix_s)
        return self._rolling.used

    def add(self, at_unix_s: float, amount_nanousd: int) -> None:
        if self._rolling is None:
            self._spent += amount_nanousd
        else:
            self._rolling.add(at_unix_s, amount_nanousd)

    def is_over_at(self, now_unix_s: float) -> bool:
        """Nobody will ask for it again: its window has ended, or nothing is in a rolling one."""
        if self.reserved:
            return False
        return self.resets_at <= now_unix_s if self._rolling is None else self.spent_at(now_unix_s) == 0


class _Hold(NamedTuple):
    windows: Sequence[Window]
    entries: Sequence[Entry | None]
    """None: held in parallel."""
    amounts: Sequence[int]
    expires_at_s: float


class _Reservation(NamedTuple):
    spends: Sequence[Spend]
    budgets: Sequence[_BudgetWindow]
    amount_nanousd: int
    expires_at_s: float


_W = TypeVar("_W")
_new = tuple.__new__
"""Half the cost of a NamedTuple's own constructor, where several are made per call."""


def _refusal(takes: Sequence[Take], amounts: Sequence[int], windows: Sequence[Window], now_s: float) -> Refusal:
    worst, worst_s, levels = takes[0], -1.0, []
    for take, amount, window in zip(takes, amounts, windows, strict=True):
        levels.append(Level(max(take.limit - window.used, 0), window.reset_s(now_s) if take.window_s else 0.0))
        if window.used + amount <= take.limit:
            continue
        if amount > take.limit:
            after_s = float("inf")
        elif take.window_s:
            after_s = window.fits_after_s(now_s, take.limit - amount)
        else:
            after_s = PARALLEL_RETRY_S
        if after_s > worst_s:
            worst, worst_s = take, after_s
    return Refusal(worst, worst_s, levels)


def _is_idle(window: Window, now_s: float) -> bool:
    window.expire(now_s)
    return not window.entries and not window.used


class _Cached(NamedTuple):
    value: bytes
    expires_at_s: float
    tags: Sequence[str]
    size_bytes: int


class MemoryReplies:
    """A `ReplyStore` for one process: least recently used first out, bounded by bytes, its own overhead included."""

    is_shared = False

    def __init__(self, clock: Clock, max_bytes: int = 16 * 2**20) -> None:
        self._clock = clock
        self._max_bytes = max_bytes
        self._cached: OrderedDict[bytes, _Cached] = OrderedDict()
        self._bytes = 0

    async def get(self, key: bytes) -> bytes | None:
        cached = self._cached.get(key)
        if cached is None:
            return None
        if cached.expires_at_s <= self._clock.monotonic():
            self._remove(key)
            return None
        self._cached.move_to_end(key)
        return cached.value

    async def get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        return [await self.get(key) for key in keys]

    def put(self, key: bytes, value: bytes, *, ttl_s: float, tags: Sequence[str] = ()) -> None:
        self._remove(key)
        size_bytes = len(key) + len(value) + ENTRY_OVERHEAD_BYTES
        if size_bytes > self._max_bytes:
            return
        self._cached[key] = _Cached(value, self._clock.monotonic() + ttl_s, tags, size_bytes)
        self._bytes += size_bytes
        while self._bytes > self._max_bytes:
            self._bytes -= self._cached.popitem(last=False)[1].size_bytes

    def put_many(self, entries: Mapping[bytes, bytes], *, ttl_s: float, tags: Sequence[str] = ()) -> None:
        for key, value in entries.items():
            self.put(key, value, ttl_s=ttl_s, tags=tags)

    async def delete_tagged(self, tag: str) -> int:
        keys = [key for key, cached in self._cached.items() if tag in cached.tags]
        for key in keys:
            self._remove(key)
        return len(keys)

    async def delete(self, keys: Sequence[bytes]) -> int:
        known = {key for key in keys if key in self._cached}
        for key in known:
            self._remove(key)
        return len(known)

    async def aclose(self) -> None:
        self._cached.clear()
        self._bytes = 0

    def _remove(self, key: bytes) -> None:
        cached = self._cached.pop(key, None)
        if cached is not None:
            self._bytes -= cached.size_bytes
