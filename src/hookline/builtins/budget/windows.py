"""Windows: over which times and for whom money is counted.

Lives here: the windows of a budget at a moment, who pays for a principal, what refusals say of a window. Elsewhere: what is spent in them (the limits store), what was
spent before (the ledger), who asks (the package).
Idea: a window's name holds its day or month, so the next one starts at 0 by itself; midnights are those of the budget's time zone, through changes of clocks.

A user belongs to a tenant, so two tenants' "ann" are two payers; their names are quoted, so that neither can be made to mean the other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, NamedTuple
from urllib.parse import quote
from weakref import WeakKeyDictionary
from zoneinfo import ZoneInfo

from hookline import ANONYMOUS, Budget, InsufficientQuota, LimitStore, Principal, Spend, SpendRefusal, format_usd

NEVER = float("inf")
PAYERS_MAX = 4_096


class Window(NamedTuple):
    """One budget window that pays, and how errors call it."""

    spend: Spend
    name: str


class Opened(NamedTuple):
    """A window, its payer ("key:ci", "user:acme/ann"), and when it began (Unix seconds; 0: it always was)."""

    payer: str
    window: Window
    since: float


class Plan:
    """Who pays for a principal's calls until `valid_until` (Unix seconds)."""

    __slots__ = ("edition", "is_hard", "payers", "spends", "valid_until", "windows")

    def __init__(self, payers: tuple[str, ...], windows: tuple[Window, ...]) -> None:
        self.payers = payers
        self.windows = windows
        self.spends = tuple(window.spend for window in windows)
        self.is_hard = any(spend.is_hard for spend in self.spends)
        self.valid_until = min((spend.resets_at for spend in self.spends), default=NEVER)
        self.edition = -1
        """Of `OpenWindows`: up to there it is known that no window of the payers is missing here."""

    def name_of(self, spend: Spend) -> str:
        return next((window.name for window in self.windows if window.spend.window == spend.window), spend.window)


class OpenWindows:
    """The windows of this process by payer. Reloads share it, so that a call that was under way before a budget came counts in it too."""

    _by_store: ClassVar[WeakKeyDictionary[LimitStore, OpenWindows]] = WeakKeyDictionary()

    def __init__(self) -> None:
        self.edition = 0
        self._by_payer: dict[str, dict[str, Opened]] = {}
        self._adding = 0
        self._became_whole = asyncio.Event()
        self._became_whole.set()

    @classmethod
    def of(cls, limits: LimitStore | None) -> OpenWindows:
        """Those that stand in this store; where there is none (a plugin that is only described), some of their own."""
        if limits is None:
            return cls()
        found = cls._by_store.get(limits)
        if found is None:
            found = cls._by_store[limits] = cls()
        return found

    def follows(self, opened: Opened) -> bool:
        """The payer had a window of this kind when this one began."""
        kind = kind_of(opened.window.spend.window)
        known = self._by_payer.get(opened.payer, {})
        return any(kind_of(name) == kind and one.since < opened.since for name, one in known.items())

    @contextmanager
    def adding(self, opened: Iterable[Opened]) -> Iterator[None]:
        """These windows pay from now on; what is known of them comes inside. If that fails, they are as unknown as before."""
        new = [one for one in opened if self._add(one)]
        self._adding += 1
        self._became_whole.clear()
        try:
            yield
        except BaseException:
            for one in new:
                self._by_payer.get(one.payer, {}).pop(one.window.spend.window, None)
            raise
        finally:
            self._adding -= 1
            if not self._adding:
                self._became_whole.set()

    @property
    def is_whole(self) -> bool:
        """Nobody is being told what was spent."""
        return not self._adding

    async def whole(self) -> None:
        """Wait for that."""
        while self._adding:
            await self._became_whole.wait()

    def _add(self, opened: Opened) -> bool:
        """True: it was not known."""
        if len(self._by_payer) >= PAYERS_MAX and opened.payer not in self._by_payer:
            self._by_payer.clear()
        known = self._by_payer.setdefault(opened.payer, {})
        window = opened.window.spend.window
        if window in known:
            known[window] = opened
            return False
        kind = kind_of(window)
        for other in [other for other in known if kind_of(other) == kind]:
            del known[other]  # yesterday's
        known[window] = opened
        self.edition += 1
        return True

    def missing(self, plan: Plan, at: float) -> list[Spend]:
        """What was open at `at` for the payers of a plan and is not in it: the plan is older than the budget."""
        if plan.edition == self.edition:
            return []
        known = {spend.window for spend in plan.spends}
        found = [
            opened.window.spend
            for payer in plan.payers
            for window, opened in self._by_payer.get(payer, {}).items()
            if window not in known and opened.since <= at
        ]
        if not found:
            plan.edition = self.edition
        return found


def kind_of(window: str) -> str:
    """A window without its day or month."""
    head, slash, tail = window.rpartition("/")
    return f"{head}{slash}{tail.partition(':')[0]}" if tail.startswith(("day:", "month:")) else window


def payer_of(window: str) -> str:
    """Whose window it is: "key:ci" of "key:ci/day:2026-11-24"."""
    return window.rpartition("/")[0]


def payers_of(principal: Principal) -> tuple[str, ...]:
    """Who pays for a principal's calls: its key, its user, its tenant, everyone."""
    key, tenant = f"key:{principal.key_id}", f"tenant:{principal.tenant}"
    return (key, tenant, "global") if principal.user is None else (key, user_payer(principal), tenant, "global")


def user_payer(principal: Principal) -> str:
    """The user of a principal, as a payer: "user:acme/ann"."""
    return f"user:{quote(principal.tenant, safe='')}/{quote(principal.user or '', safe='')}"


def budgets_of(principal: Principal, settings: Mapping[str, Any]) -> Iterator[tuple[str, str, Budget]]:
    """The budgets that pay for a principal, each with its payer, and with its name for people."""
    if principal.budget is not None:
        is_named = principal.key_name != ANONYMOUS.key_name  # else whoever authenticated gave it no name
        yield f"key:{principal.key_id}", principal.key_name if is_named else principal.key_id, principal.budget
    tables = [
        (user_payer(principal), principal.user or "", settings.get("users", {}).get(principal.user, {})),
        (f"tenant:{principal.tenant}", principal.tenant, settings.get("tenants", {}).get(principal.tenant, {})),
        ("global", "", settings.get("global", {})),
    ]
    for payer, name, table in tables:
        if table.get("budget") is not None:
            yield payer, name, Budget.from_table(table["budget"])


def shared_budgets(settings: Mapping[str, Any]) -> Iterator[tuple[str, str, Budget]]:
    """The budgets of tenants and everyone, as `budgets_of` has them."""
    for name, table in settings.get("tenants", {}).items():
        if table.get("budget") is not None:
            yield f"tenant:{name}", name, Budget.from_table(table["budget"])
    everyone = settings.get("global", {}).get("budget")
    if everyone is not None:
        yield "global", "", Budget.from_table(everyone)


def windows_of(budgets: Iterable[tuple[str, str, Budget]], now: float) -> list[Opened]:
    """All windows of these budgets that are open at `now`."""
    return [
        Opened(payer, *found) for payer, name, budget in budgets for found in open_windows(payer, name, budget, now)
    ]


def open_windows(payer: str, name: str, budget: Budget, now: float) -> list[tuple[Window, float]]:
    """The windows of a budget that are open at `now`, each with its beginning (Unix seconds). `name` is the payer's for people, "" for everyone."""
    zone = ZoneInfo(budget.time_zone)
    today = datetime.fromtimestamp(now, zone).replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    tomorrow = _midnight(today + timedelta(days=1))
    this_month = today.replace(day=1)
    next_month = _midnight(this_month + timedelta(days=32)).replace(day=1)
    kind = payer.partition(":")[0]
    who = f'"{name}"' if name else "of everyone"
    of_zone = (
        "" if budget.time_zone == "UTC" else f"@{quote(budget.time_zone, safe='')}"
    )  # another zone's day is another day
    found: list[tuple[Window, float]] = []

    def add(window: str, limit: int | None, since: float, resets_at: float, what: str, window_s: float = 0.0) -> None:
        if limit is not None:
            line = max(int(limit * budget.alert_at), 1)  # nothing spent is no reason for an alert
            spend = Spend(f"{payer}/{window}", limit, resets_at, budget.mode == "hard", window_s, line)
            found.append((Window(spend, f"{who} ({kind}, {what})"), since))

    add(f"day:{today:%Y-%m-%d}{of_zone}", budget.daily_nanousd, today.timestamp(), tomorrow.timestamp(), "daily")
    add(
        f"month:{today:%Y-%m}{of_zone}",
        budget.monthly_nanousd,
        this_month.timestamp(),
        next_month.timestamp(),
        "monthly",
    )
    add("total", budget.total_nanousd, 0.0, NEVER, "total")
    for hours, limit in budget.rolling:
        add(f"rolling:{hours:g}h", limit, 0.0, NEVER, f"rolling {hours:g} h", hours * 3600)
    return found


def quota_error(refusal: SpendRefusal, name: str) -> InsufficientQuota:
    """What a client is told whose call does not fit into a window."""
    spend = refusal.spend
    reserved = refusal.held_nanousd - refusal.spent_nanousd
    held = f" and {format_usd(reserved)} reserved by calls in flight" if reserved else ""
    return InsufficientQuota(
        f"budget {name} spent: {format_usd(refusal.spent_nanousd)} of {format_usd(spend.limit_nanousd)} USD{held}; {reset_text(spend)}; "
        f"this call may cost up to {format_usd(refusal.amount_nanousd)} USD, which does not fit"
    )


def reset_text(spend: Spend) -> str:
    """When a window is empty again, in words."""
    if spend.window_s:
        return f"what was spent leaves this window after {spend.window_s / 3600:g} h"
    return "it never resets" if spend.resets_at == NEVER else f"resets {utc(spend.resets_at)}"


def utc(at: float) -> str:
    """Unix seconds for people: `2026-12-01T00:00Z`."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%MZ")


def _midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
