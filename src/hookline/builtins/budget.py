"""Budgets: money per day, month, in total and in rolling windows, that holds under any concurrency.

Lives here: which windows pay, the bound of a call's cost, refusals, the ledger row of each attempt. Elsewhere: the windows (the limits store), tokens (bounds.py),
prices (the deployment's).
Idea: before an upstream is called, an upper bound of the cost is reserved in every window that pays, all or none; the end of the attempt settles the exact cost
before the last bytes leave. So what was spent and what may still be spent is never above a hard limit.

A hard budget refuses what has no bound: a route without a price, a reference outside the request to a model whose context window is not known, hosted tools."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any, NamedTuple
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field

from hookline import (
    AddRoute,
    AddWorker,
    ApiError,
    Attempt,
    BadRequest,
    Budget,
    Call,
    Deployment,
    Host,
    InputBound,
    InsufficientQuota,
    LedgerEntry,
    Outcome,
    Principal,
    Rejected,
    Result,
    Skip,
    Spend,
    SpendAlert,
    SpendRefusal,
    Target,
    Unavailable,
    Usage,
    bound_input,
    bound_output,
    format_usd,
    hookimpl,
)
from hookline.builtins.recovery import settle_the_dead
from hookline.builtins.spend_report import register_spend_routes

NEVER = float("inf")
PLANS_MAX = 4_096
ENDPOINTS_WITH_OUTPUT = frozenset({"chat", "completions", "responses"})
FREE_METHODS = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
FREE_PATHS = ("/v1/files", "/v1/uploads", "/v1/vector_stores")
FREE_TOOLS = frozenset({"function", "custom"})
COUNTS = ("max_completion_tokens", "max_output_tokens", "max_tokens", "n", "best_of")
"""What multiplies the output. A laxer reader than ours takes "100000" and 100.0 for numbers."""
CHARGED_APART = {
    "background": "its cost is known only after the reply",
    "web_search_options": "searches cost money of their own",
    "service_tier": "other tiers have other prices",
}
HARMLESS = (None, False, "auto", "default")
COSTLY = frozenset({*COUNTS, *CHARGED_APART, "tools"})
"""Members that are looked at; most requests have at most a limit of them."""
MARGIN_S = 60.0
"""A reservation outlives the deadline of its call by this, then it is charged whole."""


class BudgetOptions(BaseModel):
    """`[plugins.budget]`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    max_output_tokens: Annotated[int, Field(ge=1)] = Field(
        4_096, description="Cap of an answer on a hard budget where the request sets no limit of its own."
    )
    clamp: bool = Field(
        False, description="Lower a request's own completion limit to what is left, instead of refusing it."
    )


class Window(NamedTuple):
    """One budget window that pays, and how errors call it."""

    spend: Spend
    name: str


class Plan(NamedTuple):
    """Who pays for a principal's calls until `valid_until` (Unix seconds)."""

    windows: tuple[Window, ...]
    spends: tuple[Spend, ...]
    is_hard: bool
    payers: tuple[str, ...]
    valid_until: float


class Plugin:
    """Reserves before each attempt, settles after it, books it."""

    Options = BudgetOptions
    has_model_options = False
    needs_shared_state = True
    on_error = "closed"

    def __init__(self, options: BudgetOptions, host: Host) -> None:
        self._max_output_tokens = options.max_output_tokens
        self._may_clamp = options.clamp
        self._host = host
        self._clock = host.clock
        self._limits = host.limits
        self._records = host.records
        self._settings = host.settings
        self._plans: dict[int, tuple[Principal, Plan]] = {}
        self._names = map(f"{uuid.uuid4().hex[:12]}.%d".__mod__, itertools.count())
        self._expires_s = float(self._settings.get("server", {}).get("total_timeout_s", 600.0)) + MARGIN_S
        self._refused = host.metrics.counter("hookline_budget_refused_total", "Attempts that did not fit.", ("scope",))
        self._alerts = host.metrics.counter(
            "hookline_budget_alerts_total", "Budget windows that reached their alert line.", ("scope",)
        )

    @hookimpl
    def register_routes(self, add: AddRoute) -> None:
        register_spend_routes(add, self._records)

    @hookimpl
    def register_workers(self, add: AddWorker) -> None:
        add("settle the dead", partial(settle_the_dead, self._records, self._limits))

    @hookimpl
    async def admit_attempt(self, call: Call, target: Target, attempt: Attempt) -> Payment | None:
        if is_free(call):
            return None
        now = self._clock.time()
        known = self._plans.get(id(call.principal))
        if known is not None and known[0] is call.principal and now < known[1].valid_until:
            plan = known[1]
        else:
            plan = await self._make_plan(call.principal, now)
        deployment = target.deployment
        name = next(self._names)
        if not plan.spends:
            payment = Payment(self, call, plan, deployment, name, None, 0)
            with suppress(Unavailable):  # it is served all the same, and booked if there is room then
                self._intend(payment, None)
            return payment
        bound = bound_input(call)
        if plan.is_hard:
            problem = find_unbounded(call, deployment, bound)
            if problem is not None:
                raise Skip(problem.message, problem)
            if call.endpoint in ENDPOINTS_WITH_OUTPUT and call.chat.max_output_tokens is None:
                attempt.lower_output_cap(self._output_cap(deployment))
        input_tokens = bound.tokens
        context = deployment.context_tokens
        if context is not None and (input_tokens > context or bound.open_field is not None):
            input_tokens = context
        amount = self._cost_bound(call, deployment, input_tokens)
        try:
            refusal = await self._limits.reserve(name, plan.spends, amount, expires_s=self._expires_s)
            if refusal is not None and self._may_clamp:
                clamped = self._clamped_output(call, deployment, refusal, input_tokens)
                if clamped is not None:
                    output_tokens, amount = clamped
                    attempt.lower_output_cap(output_tokens)
                    refusal = await self._limits.reserve(name, plan.spends, amount, expires_s=self._expires_s)
        except Unavailable as error:
            self._plans.pop(id(call.principal), None)  # a store that came back empty is told anew what was spent
            raise Rejected(error) from error
        if refusal is not None:
            told = self._refuse(refusal, plan)
            raise Skip(told.message, told)
        payment = Payment(self, call, plan, deployment, name, input_tokens, amount)
        try:
            self._intend(payment, amount)
        except Unavailable as error:
            if isinstance(settling := self._limits.settle(name, 0), Awaitable):
                await settling
            raise Rejected(error) from error
        return payment

    def _output_cap(self, deployment: Deployment) -> int:
        """The completion limit that a hard budget sets."""
        cap = self._max_output_tokens
        return cap if deployment.max_output_tokens is None else min(cap, deployment.max_output_tokens)

    def _cost_bound(self, call: Call, deployment: Deployment, input_tokens: int) -> int:
        if deployment.price is None:
            return 0
        output_tokens = bound_output(
            call, default_tokens=self._max_output_tokens, model_max_tokens=deployment.max_output_tokens
        )
        return deployment.price.bound_nanousd(input_tokens, output_tokens)

    def _clamped_output(
        self, call: Call, deployment: Deployment, refusal: SpendRefusal, input_tokens: int
    ) -> tuple[int, int] | None:
        """(the completion limit that still fits, its bound); None if not even one token does."""
        price = deployment.price
        if price is None or not price.output_picousd or call.endpoint not in ENDPOINTS_WITH_OUTPUT:
            return None
        left = refusal.spend.limit_nanousd - refusal.held_nanousd - price.bound_nanousd(input_tokens, 0)
        tokens = left * 1_000 // price.output_picousd // call.chat.choices - 1
        if tokens < 1:
            return None
        return tokens, price.bound_nanousd(input_tokens, tokens * call.chat.choices)

    async def _make_plan(self, principal: Principal, now: float) -> Plan:
        """The windows that are open now; a window that this process has not met is told what the ledger knows of it."""
        windows: list[Window] = []
        payers = [f"key:{principal.key_id}", f"tenant:{principal.tenant}", "global"]
        budgets = [(payers[0], principal.budget)]
        if principal.user is not None:
            payers.insert(1, f"user:{principal.user}")
            budgets.append((payers[1], self._own("users", principal.user)))
        budgets.append((f"tenant:{principal.tenant}", self._own("tenants", principal.tenant)))
        budgets.append(("global", _from(self._settings.get("global", {}))))
        for payer, budget in budgets:
            if budget is None:
                continue
            for window, since in open_windows(payer, budget, now):
                try:
                    spent = await self._records.spent_in(payer, since=since)
                    await self._limits.restore(window.spend, [(now, spent)] if spent else [])
                except Unavailable as error:
                    raise Rejected(error) from error
                windows.append(window)
        spends = tuple(window.spend for window in windows)
        valid_until = min((spend.resets_at for spend in spends), default=NEVER)
        is_hard = any(spend.is_hard for spend in spends)
        plan = Plan(tuple(windows), spends, is_hard, tuple(payers), valid_until)
        if len(self._plans) >= PLANS_MAX:
            self._plans.clear()
        self._plans[id(principal)] = (principal, plan)
        return plan

    def _own(self, group: str, name: str) -> Budget | None:
        return _from(self._settings.get(group, {}).get(name, {}))

    def _refuse(self, refusal: SpendRefusal, plan: Plan) -> InsufficientQuota:
        spend = refusal.spend
        name = next(window.name for window in plan.windows if window.spend is spend)
        self._refused(spend.scope.split(":", 1)[0]).inc()
        reserved = refusal.held_nanousd - refusal.spent_nanousd
        held = f" and {format_usd(reserved)} reserved by calls in flight" if reserved else ""
        until = "" if spend.resets_at == NEVER else f"; resets {_utc(spend.resets_at)}"
        return InsufficientQuota(
            f"budget {name} spent: {format_usd(refusal.spent_nanousd)} of {format_usd(spend.limit_nanousd)} USD{held}{until}; "
            f"this call may cost up to {format_usd(refusal.amount_nanousd)} USD, which does not fit"
        )

    def tell(self, alerts: Sequence[SpendAlert], plan: Plan) -> None:
        """Log and count windows that have reached their alert line."""
        for alert in alerts:
            name = next((w.name for w in plan.windows if w.spend.scope == alert.spend.scope), alert.spend.scope)
            self._alerts(alert.spend.scope.split(":", 1)[0]).inc()
            told = "budget %s has reached its alert line: %s of %s USD spent"
            self._host.log.warning(told, name, format_usd(alert.spent_nanousd), format_usd(alert.spend.limit_nanousd))

    def _intend(self, payment: Payment, amount_nanousd: int | None) -> None:
        """Have the ledger charge the whole reservation if this process dies before `book` or `withdraw`."""
        self._records.intend(self._entry(payment, "upstream_lost", Usage(), amount_nanousd, is_estimated=True))

    def book(self, payment: Payment, result: Result, cost_nanousd: int | None) -> None:
        """Keep the ledger row of an attempt."""
        usage, is_estimated = result.usage or Usage(), result.is_estimated
        self._records.book(self._entry(payment, result.outcome, usage, cost_nanousd, is_estimated=is_estimated))

    def _entry(
        self, payment: Payment, outcome: Outcome, usage: Usage, cost_nanousd: int | None, *, is_estimated: bool
    ) -> LedgerEntry:
        call, principal = payment.call, payment.call.principal
        return LedgerEntry(
            payment.name,
            call.id,
            self._clock.time(),
            principal.tenant,
            principal.key_id,
            principal.user,
            call.model or "",
            payment.deployment.id,
            call.endpoint,
            outcome,
            usage.input_tokens,
            usage.output_tokens,
            usage.cached_tokens,
            cost_nanousd,
            is_estimated,
            payment.plan.payers,
            tags=(*principal.tags, *call.tags),
        )


class Payment:
    """One attempt's reservation, a ticket. `input_tokens` is None where no budget pays: then the attempt is only booked."""

    __slots__ = ("_amount", "_input_tokens", "_plugin", "call", "deployment", "name", "plan")

    def __init__(
        self,
        plugin: Plugin,
        call: Call,
        plan: Plan,
        deployment: Deployment,
        name: str,
        input_tokens: int | None,
        amount_nanousd: int,
    ) -> None:
        self._plugin = plugin
        self._input_tokens = input_tokens
        self._amount = amount_nanousd
        self.call = call
        self.plan = plan
        self.deployment = deployment
        self.name = name

    def settle(self, result: Result) -> Awaitable[None] | None:
        cost = self._cost(result)
        if cost != 0 or result.outcome == "ok":
            self._plugin.book(self, result, cost)
        else:
            self._plugin._records.withdraw(self.name)
        if self._input_tokens is None:
            return None
        alerts = self._plugin._limits.settle(self.name, cost or 0)
        if not alerts:
            return None
        if isinstance(alerts, Awaitable):
            return self._tell_later(alerts)
        self._plugin.tell(alerts, self.plan)
        return None

    async def _tell_later(self, settling: Awaitable[Sequence[SpendAlert]]) -> None:
        self._plugin.tell(await settling, self.plan)

    def _cost(self, result: Result) -> int | None:
        """What the attempt cost: by usage; by its bounds where usage was cut; the whole reservation where nobody knows."""
        price = self.deployment.price
        if price is None:
            return None if result.cost_nanousd is None else 0
        if result.cost_nanousd is None:
            return self._amount if self._input_tokens is not None else price.call_nanousd or None
        if result.usage is None or not result.usage.is_estimated or self._input_tokens is None:
            return result.cost_nanousd
        return min(price.bound_nanousd(self._input_tokens, result.usage.output_tokens), self._amount)


def is_free(call: Call) -> bool:
    """Calls that no provider charges for: reading, deleting, files, uploads, vector stores (not searching them)."""
    if call.method in FREE_METHODS:
        return True
    if call.endpoint != "relay":
        return False
    path = call.path
    return any(path == p or path.startswith(f"{p}/") for p in FREE_PATHS) and not path.endswith("/search")


def find_unbounded(call: Call, deployment: Deployment, bound: InputBound) -> ApiError | None:
    """Why a hard budget can't take this call: nothing bounds its cost. None if something does."""
    payload: Mapping[str, Any] = call.payload or {}
    price = deployment.price
    if price is None:
        line = f'[prices."{deployment.model}"]' if deployment.model else f'[prices."{call.method} {call.path}"]'
        more = "with `input` and `output`" if deployment.model else "with `call`, in USD"
        return BadRequest(
            f"{deployment.id} has no price for {call.method} {call.path}, and a hard budget pays for this key; add {line} {more}",
            code="unpriced_route",
        )
    if not COSTLY.isdisjoint(payload) and (problem := _find_costly(payload)) is not None:
        return problem
    if not price.has_token_price:
        return None
    if call.endpoint in ("relay", "models"):
        message = f'{call.method} {call.path} has no bound by tokens; add [prices."{call.method} {call.path}"] with `call`, in USD'
        return BadRequest(message, code="unpriced_route")
    field = bound.open_field
    if field is not None and deployment.context_tokens is None:
        return BadRequest(
            f'"{field}" refers outside the request, and the context window of {deployment.id} is not known, so nothing bounds the cost; '
            "set context_tokens on the deployment, or send the content itself",
            code="unbounded_cost",
            param=field,
        )
    return None


def _find_costly(payload: Mapping[str, Any]) -> BadRequest | None:
    for name in COUNTS:
        count = payload.get(name)
        if count is not None and (type(count) is not int or count < 0):
            told = f'"{name}" on a hard budget must be a whole number, not negative: nothing else bounds the cost'
            return BadRequest(told, code="unbounded_cost", param=name)
    for name, why in CHARGED_APART.items():
        if payload.get(name) not in HARMLESS:
            return _unpriced(name, why, f"send it without {name}")
    tools = payload.get("tools")
    if isinstance(tools, list):
        for tool in tools:
            if isinstance(tool, dict) and tool.get("type", "function") not in FREE_TOOLS:
                return _unpriced("tools", "hosted tools cost money of their own", "use function tools")
    return None


def open_windows(payer: str, budget: Budget, now: float) -> list[tuple[Window, float]]:
    """The windows of a budget that are open at `now`, each with its beginning (Unix seconds)."""
    zone = ZoneInfo(budget.time_zone)
    today = datetime.fromtimestamp(now, zone).replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    tomorrow = _midnight(today + timedelta(days=1))
    this_month = today.replace(day=1)
    next_month = _midnight(this_month + timedelta(days=32)).replace(day=1)
    who = f'"{payer.partition(":")[2]}"' if ":" in payer else "of everyone"
    kind = payer.partition(":")[0]
    found: list[tuple[Window, float]] = []

    def add(scope: str, limit: int | None, since: float, resets_at: float, what: str, window_s: float = 0.0) -> None:
        if limit is not None:
            line = int(limit * budget.alert_at)
            spend = Spend(f"{payer}/{scope}", limit, resets_at, budget.mode == "hard", window_s, line)
            found.append((Window(spend, f"{who} ({kind}, {what})"), since))

    add(f"day:{today:%Y-%m-%d}", budget.daily_nanousd, today.timestamp(), tomorrow.timestamp(), "daily")
    add(f"month:{today:%Y-%m}", budget.monthly_nanousd, this_month.timestamp(), next_month.timestamp(), "monthly")
    add("total", budget.total_nanousd, 0.0, NEVER, "total")
    for hours, limit in budget.rolling:
        window_s = hours * 3600
        add(f"rolling:{hours:g}h", limit, now - window_s, NEVER, f"rolling {hours:g} h", window_s)
    return found


def _midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)


def _from(table: Mapping[str, Any]) -> Budget | None:
    return None if table.get("budget") is None else Budget.from_table(table["budget"])


def _unpriced(field: str, why: str, what_to_do: str) -> BadRequest:
    return BadRequest(f'"{field}" on a hard budget: {why}; {what_to_do}', code="unpriced_route", param=field)


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%MZ")
