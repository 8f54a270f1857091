"""Budgets: money per day, month, in total and in rolling windows, that holds under any concurrency.

Lives here: reserving before an attempt. Elsewhere: what bounds a call (rules.py), what an attempt cost (charges.py), settling and booking (payment.py), over which times
money is counted (windows.py), who is told (alerts.py), what operators ask (admin.py); the windows' sums are the limits store's.
Idea: before an upstream is called, an upper bound of the cost is reserved in every window that pays, all or none; the end of the attempt settles the exact cost
before the last bytes leave. So what was spent and what may still be spent is never above a hard limit.

A hard budget refuses what has no bound: a route without a price, a reference outside the request to a model whose context window is not known, hosted tools without
`max_tool_calls`."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Awaitable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from hookline import (
    BUDGET_LEFT,
    RESERVE_FOR_FOLLOWER,
    AddCommand,
    AddRoute,
    AddWorker,
    Attempt,
    Call,
    Deployment,
    Host,
    LedgerEntry,
    Principal,
    Rejected,
    Skip,
    Spend,
    SpendRefusal,
    Target,
    Ticket,
    Unavailable,
    bound_input,
    hookimpl,
    is_free,
)
from hookline.builtins.alert_webhook import LAST_WAIT_S
from hookline.builtins.budget.admin import CHECKS, BudgetRoutes, Check
from hookline.builtins.budget.alerts import Alerts
from hookline.builtins.budget.late import LateUsage
from hookline.builtins.budget.options import BudgetOptions
from hookline.builtins.budget.payment import NO_USAGE, Payment, add_to_windows
from hookline.builtins.budget.rules import ENDPOINTS_WITH_OUTPUT, Bound, bound_of, find_unbounded
from hookline.builtins.budget.windows import (
    Opened,
    OpenWindows,
    Plan,
    budgets_of,
    open_windows,
    payers_of,
    quota_error,
    windows_of,
)
from hookline.builtins.recovery import settle_the_dead
from hookline.builtins.spend_report import SpendReports

__all__ = ["BudgetOptions", "Plugin", "find_unbounded", "open_windows"]

PLANS_MAX = 4_096
MARGIN_S = 60.0
"""A reservation outlives the deadline of its call by this, then it is charged whole."""


class Plugin:
    """Reserves before each attempt, settles after it, books it."""

    Options = BudgetOptions
    has_model_options = False
    needs_shared_state = True
    supports_dry_run = True
    on_error = "closed"

    def __init__(self, options: BudgetOptions, host: Host) -> None:
        self._max_output_tokens = options.max_output_tokens
        self._may_clamp = options.clamp
        self._serves_unasked = options.when_store_is_away == "serve"
        self._host = host
        self._clock = host.clock
        host.offers[RESERVE_FOR_FOLLOWER] = self.admit_attempt
        host.offers[BUDGET_LEFT] = self.find_left
        self.limits = host.limits
        self.records = host.records
        self.settings = host.settings
        self.open = OpenWindows.of(host.limits)
        self.late = LateUsage(self, host.replies)
        self.alerts = Alerts(host, options.alert_webhook)
        self._routes = BudgetRoutes(self, host)
        self._plans: dict[int, tuple[Principal, Plan]] = {}
        self._adjusting: set[asyncio.Task[None]] = set()
        self._making: dict[int, asyncio.Task[Plan]] = {}
        self._names = map(f"{uuid.uuid4().hex[:12]}.%d".__mod__, itertools.count())
        self._expires_s = float(host.settings.get("server", {}).get("total_timeout_s", 600.0)) + MARGIN_S
        self._unasked = host.metrics.counter(
            "hookline_budget_unasked_total", "Attempts that were served without asking budgets: the store was away."
        )
        self._refused = host.metrics.counter("hookline_budget_refused_total", "Attempts that did not fit.", ("scope",))

    def start(self) -> None:
        """Begin to send alerts."""
        self.alerts.start()

    async def stop(self) -> None:
        """Finish corrections, and let alerts that wait go out."""
        if self._adjusting:
            await asyncio.wait(self._adjusting, timeout=LAST_WAIT_S)
        await self.alerts.stop()

    @hookimpl
    def register_routes(self, add: AddRoute) -> None:
        self._routes.register(add)
        SpendReports(self.records, self._host.find_principal).register(add)

    @hookimpl
    def register_commands(self, add: AddCommand) -> None:
        from hookline.builtins.budget.commands import make_ledger, make_spend  # typer is for the command line only

        reports = SpendReports(self.records, self._host.find_principal)
        add("spend", make_spend(reports))
        add("ledger", make_ledger(reports))

    @hookimpl
    def register_workers(self, add: AddWorker) -> None:
        add("settle the dead", partial(settle_the_dead, self.records, self.limits))

    @hookimpl
    async def admit_attempt(self, call: Call, target: Target, attempt: Attempt) -> Ticket | None:
        endpoint = call.endpoint
        if endpoint in ("relay", "models") and is_free(call.method, call.path):
            return self.late.find(call)
        now = self._clock.time()
        known = self._plans.get(id(call.principal))
        if known is not None and known[0] is call.principal and now < known[1].valid_until:
            plan = known[1]
        else:
            try:
                plan = await self.make_plan(call.principal, now)
            except Rejected:
                if not self._serves_unasked:
                    raise
                if call.is_dry_run:
                    return None
                return self._serve_unasked(call, target.deployment, now)
        deployment = target.deployment
        if call.is_dry_run:
            await self._check(call, deployment, plan)
            return None
        name = next(self._names)
        if not plan.spends:
            return self._only_book(call, deployment, plan, name, now)
        is_hard = plan.is_hard
        bound = self._bound(call, deployment, is_hard)
        if is_hard and endpoint in ENDPOINTS_WITH_OUTPUT and call.chat.max_output_tokens is None:
            attempt.lower_output_cap(self._output_cap(deployment))
        expires_s = self._expires_s if call.deadline is None else self._expires_after(call.deadline)
        try:
            try:
                refusal = await self.limits.reserve(name, plan.spends, bound.amount_nanousd, expires_s=expires_s)
            except Unavailable:
                # A store that came back empty is told anew what was spent; one that is away refuses that, and the plan stays with what is leased for it.
                plan = await self.make_plan(call.principal, now)
                refusal = await self.limits.reserve(name, plan.spends, bound.amount_nanousd, expires_s=expires_s)
            if refusal is not None and self._may_clamp:
                clamped = _clamp(call, deployment, refusal, bound)
                if clamped is not None:
                    output_tokens, bound = clamped
                    attempt.lower_output_cap(output_tokens)
                    refusal = await self.limits.reserve(name, plan.spends, bound.amount_nanousd, expires_s=expires_s)
        except (Unavailable, Rejected) as error:
            if self._serves_unasked:
                return self._serve_unasked(call, deployment, now)
            raise Rejected(error) if isinstance(error, Unavailable) else error from error
        if refusal is not None:
            self._refused(refusal.spend.window.split(":", 1)[0].split("/", 1)[0]).inc()
            told = quota_error(refusal, plan.name_of(refusal.spend))
            raise Skip(told.message, told)
        payment = Payment(self, call, plan, deployment, name, bound, now)
        try:
            self.records.intend(payment.row("upstream_lost", NO_USAGE, bound.amount_nanousd, True))
        except Unavailable as error:
            if isinstance(settling := self.limits.settle(name, 0), Awaitable):
                await settling
            raise Rejected(error) from error
        return payment

    def _serve_unasked(self, call: Call, deployment: Deployment, now: float) -> Payment:
        """The operator would rather have calls than budgets: booked, and in no window."""
        self._unasked().inc()
        return self._only_book(call, deployment, Plan(payers_of(call.principal), ()), next(self._names), now)

    def _only_book(self, call: Call, deployment: Deployment, plan: Plan, name: str, now: float) -> Payment:
        payment = Payment(self, call, plan, deployment, name, None, now)
        with suppress(Unavailable):  # nobody's budget hangs on it: it is served, and booked if there is room then
            self.records.intend(payment.row("upstream_lost", NO_USAGE, None, True))
        return payment

    def adjust(self, spends: Sequence[Spend], nanousd: int) -> None:
        """Count money in windows that did not reserve it, off the call's path."""
        if spends and nanousd:
            self._later(self._adjust(spends, nanousd))

    def book_and_adjust(self, row: LedgerEntry, spends: Sequence[Spend]) -> None:
        """Book an attempt that has ended, and count it in windows that came while it was under way.

        While one of them is being told what the ledger knows, the row waits: its intent is in the journal, and counted twice it would be in the sum and after it."""
        if self.open.is_whole:
            self.records.book(row)
            self.adjust(spends, row.cost_nanousd or 0)
        else:
            self._later(self._book_then_adjust(row, spends))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """Off the call's path, and done before this configuration is."""
        task = asyncio.get_running_loop().create_task(work, name="budget: adjust")
        self._adjusting.add(task)
        task.add_done_callback(self._adjusting.discard)

    async def find_left(self, principal: Principal) -> float | None:
        """See `BUDGET_LEFT`."""
        now, known = self._clock.time(), self._plans.get(id(principal))
        is_known = known is not None and known[0] is principal and now < known[1].valid_until
        spends = (known[1] if known is not None and is_known else await self.make_plan(principal, now)).spends
        held = await self.limits.held([spend.window for spend in spends]) if spends else ()
        left = [1 - one / max(spend.limit_nanousd, 1) for one, spend in zip(held, spends, strict=True)]
        return max(min(left), 0.0) if left else None

    async def make_plan(self, principal: Principal, now: float) -> Plan:
        """The windows that are open now; a window that the store has not met is told what the ledger knows of it.

        Many first calls at once ask once. Raises Rejected where the ledger or the store can't be asked."""
        key = id(principal)
        making = self._making.get(key)
        if making is None:
            making = self._making[key] = asyncio.get_running_loop().create_task(self._make_plan(principal, now))
            making.add_done_callback(lambda done: self._made(key, done))
        return await asyncio.shield(making)  # who asked first may leave

    def _made(self, key: int, done: asyncio.Task[Plan]) -> None:
        del self._making[key]
        if not done.cancelled():
            done.exception()  # taken: all who asked may have left

    async def _make_plan(self, principal: Principal, now: float) -> Plan:
        opened = windows_of(budgets_of(principal, self.settings), now)
        await self.restore(opened, now)
        plan = Plan(payers_of(principal), tuple(one.window for one in opened))
        if len(self._plans) >= PLANS_MAX:
            self._plans.clear()
        self._plans[id(principal)] = (principal, plan)
        return plan

    async def restore(self, opened: Sequence[Opened], now: float) -> None:
        """Tell the store what the ledger knows of these windows, at the quarter of an hour. Raises Rejected where either can't be asked.

        They are open before the ledger is asked; what ends meanwhile is booked and counted after it, so that nothing is counted twice."""
        following = [self.open.follows(one) for one in opened]
        with self.open.adding(opened):
            try:
                for one, is_next in zip(opened, following, strict=True):
                    await self._restore(one, now, is_next=is_next)
            except Unavailable as error:
                raise Rejected(error) from error

    async def _restore(self, opened: Opened, now: float, *, is_next: bool) -> None:
        """Once more where the store says that it waited for rows to reach the ledger. Raises Unavailable.

        Without the ledger, a window will do that another process has told, and one that began while its budget stood here (`is_next`): all that was
        spent in it passed through the store, which itself refuses what it may have lost."""
        for is_last in (False, True):
            try:
                charges = await self._charges_of(opened, now)
            except Unavailable:
                if is_next or await self.limits.knows(opened.window.spend):
                    return
                raise
            try:
                await self.limits.restore(opened.window.spend, charges)
                return
            except Unavailable:
                if is_last:
                    raise

    async def _charges_of(self, opened: Opened, now: float) -> list[tuple[float, int]]:
        spend = opened.window.spend
        if spend.window_s:
            charges = await self.records.charges_in(opened.payer, since=now - spend.window_s)
            return [(min(at, now), nanousd) for at, nanousd in charges]
        spent = await self.records.spent_in(opened.payer, since=opened.since)
        return [(now, spent)] if spent else []

    def known_principals(self) -> list[Principal]:
        """Who has called since the start, as far as it is remembered."""
        return [principal for principal, _ in self._plans.values()]

    def _bound(self, call: Call, deployment: Deployment, is_hard: bool) -> Bound:
        """Raises Skip for what a hard budget can't bound."""
        measured = bound_input(call)
        if is_hard and (problem := find_unbounded(call, deployment, measured)) is not None:
            raise Skip(problem.message, problem)
        return bound_of(call, deployment, measured, self._max_output_tokens, is_capped=is_hard)

    def _output_cap(self, deployment: Deployment) -> int:
        """The completion limit that a hard budget sets."""
        cap = self._max_output_tokens
        return cap if deployment.max_output_tokens is None else min(cap, deployment.max_output_tokens)

    def _expires_after(self, deadline: float) -> float:
        return max(deadline - self._clock.monotonic(), 0.0) + MARGIN_S

    async def _check(self, call: Call, deployment: Deployment, plan: Plan) -> None:
        """A dry run: what would be reserved and where it would not fit. Raises Skip as the real one."""
        check = Check(deployment, plan)
        call.slots.setdefault(CHECKS, []).append(check)
        try:
            await self._look(call, check)
        finally:
            check.tell(call)

    async def _look(self, call: Call, check: Check) -> None:
        """Takes nothing. What does not seem to fit is tried and given back at once, for money that other processes have leased would be recalled for it."""
        deployment, plan = check.deployment, check.plan
        scopes = [spend.window for spend in plan.spends]
        if not scopes:  # nobody's store is asked for the call either
            check.bound = self._bound(call, deployment, plan.is_hard)
            return
        try:
            check.held_nanousd = list(await self.limits.held(scopes))
            bound = check.bound = self._bound(call, deployment, plan.is_hard)
            if all(map(check.has_room, plan.spends, check.held_nanousd)):
                return
            refusal = await self._try(plan.spends, bound)
            clamped = _clamp(call, deployment, refusal, bound) if refusal is not None and self._may_clamp else None
            if clamped is not None:
                check.bound = clamped[1]
                refusal = await self._try(plan.spends, clamped[1])
            check.held_nanousd = list(await self.limits.held(scopes))
        except Unavailable as error:
            if self._serves_unasked:
                return
            raise Rejected(error) from error
        if refusal is not None:
            told = quota_error(refusal, plan.name_of(refusal.spend))
            raise Skip(told.message, told)

    async def _try(self, spends: Sequence[Spend], bound: Bound) -> SpendRefusal | None:
        """Whether it fits. Nothing stays reserved."""
        refusal = await self.limits.reserve(name := next(self._names), spends, bound.amount_nanousd, expires_s=MARGIN_S)
        if refusal is None and isinstance(settling := self.limits.settle(name, 0), Awaitable):
            await asyncio.shield(settling)
        return refusal

    async def _book_then_adjust(self, row: LedgerEntry, spends: Sequence[Spend]) -> None:
        try:
            await self.open.whole()
        finally:
            self.records.book(row)
        await self._adjust(spends, row.cost_nanousd or 0)

    async def _adjust(self, spends: Sequence[Spend], nanousd: int) -> None:
        try:
            await self.open.whole()
            await add_to_windows(self.limits, next(self._names), spends, nanousd)
        except Unavailable as error:
            self._host.log.warning("windows were not corrected by %d nano-dollars; the ledger is: %s", nanousd, error)


def _clamp(call: Call, deployment: Deployment, refusal: SpendRefusal, bound: Bound) -> tuple[int, Bound] | None:
    """(the completion limit that still fits, its bound); None if not even one token does."""
    price = deployment.price
    if price is None or not price.output_picousd or call.endpoint not in ENDPOINTS_WITH_OUTPUT:
        return None
    has_audio = bound_input(call).has_audio
    if has_audio or (call.payload or {}).get("prediction"):
        return None
    tiers = [tier.output_picousd for above, tier in price.tiers if bound.input_tokens > above]
    without = price.bound_nanousd(bound.input_tokens, 0) + bound.tool_nanousd
    left = refusal.spend.limit_nanousd - refusal.held_nanousd - without
    tokens = left * 1_000 // max([price.output_picousd, *tiers]) // call.chat.choices - 1
    if tokens < 1 or tokens * call.chat.choices >= bound.output_tokens:
        return None
    amount = price.bound_nanousd(bound.input_tokens, tokens * call.chat.choices) + bound.tool_nanousd
    return tokens, bound._replace(output_tokens=tokens * call.chat.choices, amount_nanousd=amount)
