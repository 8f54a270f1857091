"""Rate limits: requests and tokens per minute, and calls in parallel.

Lives here: which ceilings a call draws on, 429s, the `x-ratelimit-*` headers. Elsewhere: the windows (the limits store), money (budget.py).
Idea: one question to the store decides over all scopes at once, all or nothing. Tokens are reserved by their upper bound and settled by usage, so that
parallel calls can't use more than the limit; a cache hit counts as a request and settles its tokens to 0."""

from __future__ import annotations

import itertools
import math
import uuid
from collections.abc import Awaitable, Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from hookline import (
    Attempt,
    Call,
    Host,
    Level,
    Limits,
    Principal,
    RateLimited,
    Refusal,
    Rejected,
    Reply,
    Result,
    Skip,
    Slot,
    Take,
    Target,
    Unavailable,
    bound_input,
    bound_output,
    hookimpl,
)

Count = Annotated[int, Field(ge=1)]
Kind = Literal["requests", "tokens", "parallel"]

MINUTE_S = 60.0
MINUTE_RESET = "1m0s"
"""`format_reset(MINUTE_S)`: what nearly every reply says."""
PLANS_MAX = 4_096
"""Principals times models whose ceilings are remembered; model names may come from clients."""
HEADERS = "x-ratelimit-"


class LimitTable(BaseModel):
    """Ceilings of each key, user, tenant, model or deployment that has none of its own."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    max_parallel: Count | None = None

    def to_limits(self) -> Limits:
        return Limits(self.requests_per_minute, self.tokens_per_minute, self.max_parallel)


class RateLimitOptions(BaseModel):
    """`[plugins.rate_limit]`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    per_key: LimitTable = LimitTable()
    per_user: LimitTable = LimitTable()
    per_tenant: LimitTable = LimitTable()
    per_model: LimitTable = LimitTable()
    per_deployment: LimitTable = LimitTable()
    everyone: LimitTable = Field(LimitTable(), alias="global", description="All calls together.")
    assumed_output_tokens: Count = Field(
        4_096, description="Reserved for the output of a request that sets no limit of its own."
    )


class Shown(NamedTuple):
    """The ceilings of one kind in a plan, by their index there, and the three headers that tell the tightest of them."""

    first: int
    others: tuple[int, ...]
    limit: str
    remaining: str
    reset: str


class Plan(NamedTuple):
    """The ceilings of one principal and model: parallel tuples."""

    takes: tuple[Take, ...]
    kinds: tuple[Kind, ...]
    tokens_at: tuple[int, ...]
    """Indices of the ceilings that count tokens."""
    ones: tuple[int, ...]
    """What a call draws on each, before its tokens are known."""
    shown: tuple[Shown, ...]


STANDING: Slot[tuple[Plan, Sequence[Level]]] = Slot("rate limit standing")
"""Where a call's ceilings stood when it was decided on."""


class Plugin:
    """Admits calls and attempts within their ceilings."""

    Options = RateLimitOptions
    has_model_options = False
    needs_shared_state = True

    def __init__(self, options: RateLimitOptions, host: Host) -> None:
        self._of_deployment = options.per_deployment.to_limits()
        self._assumed_output_tokens = options.assumed_output_tokens
        self._store = host.limits
        self._settings = host.settings
        self._defaults = {
            scope: table.to_limits()
            for scope, table in (
                ("key", options.per_key),
                ("user", options.per_user),
                ("tenant", options.per_tenant),
                ("model", options.per_model),
                ("global", options.everyone),
            )
        }
        self._plans: dict[tuple[int, str | None], tuple[Principal, Plan]] = {}
        self._deployment_plans: dict[str, Plan] = {}
        self._names = map(f"{uuid.uuid4().hex[:12]}.%d".__mod__, itertools.count())
        self._expires_s = float(host.settings.get("server", {}).get("total_timeout_s", 600.0)) + MINUTE_S
        self._refused = host.metrics.counter(
            "hookline_rate_limited_total", "Calls and attempts over a limit.", ("scope", "kind")
        )

    @hookimpl
    async def admit(self, call: Call) -> Hold | None:
        plan = self._find_plan(call)
        if not plan.takes:
            return None
        amounts = self._amounts(plan, call)
        answer = await self._ask(plan, amounts, name := next(self._names))
        if isinstance(answer, Refusal):
            call[STANDING] = (plan, answer.levels)
            raise Rejected(self._refuse(answer, plan, amounts))
        call[STANDING] = (plan, answer)
        return Hold(self._store, name, plan, amounts)

    @hookimpl
    async def admit_attempt(self, call: Call, target: Target, attempt: Attempt) -> Hold | None:
        deployment = target.deployment
        plan = self._deployment_plans.get(deployment.id)
        if plan is None:
            own = Limits(requests_per_minute=deployment.requests_per_minute)
            plan = _plan([(f"deployment:{deployment.id}", _merge(own, self._of_deployment))])
            if len(self._deployment_plans) >= PLANS_MAX:
                self._deployment_plans.clear()
            self._deployment_plans[deployment.id] = plan
        if not plan.takes:
            return None
        amounts = self._amounts(plan, call)
        answer = await self._ask(plan, amounts, name := next(self._names))
        if isinstance(answer, Refusal):
            error = self._refuse(answer, plan, amounts)
            raise Skip(error.message, error)
        return Hold(self._store, name, plan, amounts)

    @hookimpl
    def edit_reply(self, call: Call, reply: Reply) -> Reply:
        standing = call.slots.get(STANDING)
        if standing is None:
            return reply
        headers = reply.headers
        if HEADERS in " ".join(headers).lower():
            for name in [name for name in headers if name.lower().startswith(HEADERS)]:
                del headers[name]
        plan, levels = standing
        takes = plan.takes
        for shown in plan.shown:
            at = shown.first
            for index in shown.others:
                if levels[index].remaining < levels[at].remaining:
                    at = index
            remaining, reset_s = levels[at]
            headers[shown.limit] = str(takes[at].limit)
            headers[shown.remaining] = str(remaining) if remaining > 0 else "0"
            headers[shown.reset] = MINUTE_RESET if reset_s == MINUTE_S else format_reset(reset_s)
        return reply

    async def _ask(self, plan: Plan, amounts: Sequence[int], name: str) -> Sequence[Level] | Refusal:
        try:
            return await self._store.take(name, plan.takes, amounts, expires_s=self._expires_s)
        except Unavailable as error:
            raise Rejected(error) from error

    def _amounts(self, plan: Plan, call: Call) -> list[int]:
        amounts = [*plan.ones]
        if plan.tokens_at:
            tokens = bound_input(call).tokens + bound_output(call, default_tokens=self._assumed_output_tokens)
            for index in plan.tokens_at:
                amounts[index] = tokens
        return amounts

    def _find_plan(self, call: Call) -> Plan:
        key = (id(call.principal), call.model)
        found = self._plans.get(key)
        if found is not None and found[0] is call.principal:
            return found[1]
        plan = _plan(self._scopes(call.principal, call.model))
        if len(self._plans) >= PLANS_MAX:
            self._plans.clear()
        self._plans[key] = (call.principal, plan)
        return plan

    def _scopes(self, principal: Principal, model: str | None) -> Iterator[tuple[str, Limits]]:
        defaults = self._defaults
        yield f"key:{principal.key_id}", _merge(principal.limits, defaults["key"])
        if principal.user is not None:
            yield f"user:{principal.user}", _merge(self._own("users", principal.user), defaults["user"])
        yield f"tenant:{principal.tenant}", _merge(self._own("tenants", principal.tenant), defaults["tenant"])
        if model is not None:  # under one name, whichever of its aliases was asked for
            yield f"model:{self._settings.get('aliases', {}).get(model, model)}", defaults["model"]
        yield "global", _merge(Limits.from_table(self._settings.get("global", {})), defaults["global"])

    def _own(self, group: str, name: str) -> Limits:
        table: dict[str, Any] = self._settings.get(group, {}).get(name, {})
        return Limits.from_table(table)

    def _refuse(self, refusal: Refusal, plan: Plan, amounts: Sequence[int]) -> RateLimited:
        at = plan.takes.index(refusal.take)
        kind, limit = plan.kinds[at], refusal.take.limit
        scope = refusal.take.scope.rsplit("/", 1)[0]
        self._refused(scope.split(":", 1)[0], kind).inc()
        if math.isinf(refusal.retry_after_s):
            message = f"{scope}: this call may need {amounts[at]} {kind}, more than the limit of {limit} per minute; send less or set a lower max_tokens"
            return RateLimited(message, may_retry=False)
        unit = "calls in parallel" if kind == "parallel" else f"{kind} per minute"
        message = f"{scope}: limit of {limit} {unit} reached; try again in {format_reset(refusal.retry_after_s)}"
        return RateLimited(message, retry_after_s=refusal.retry_after_s)


class Hold:
    """What a call or attempt drew: a ticket."""

    __slots__ = ("_amounts", "_name", "_plan", "_store")

    def __init__(self, store: Any, name: str, plan: Plan, amounts: list[int]) -> None:
        self._store = store
        self._name = name
        self._plan = plan
        self._amounts = amounts

    def settle(self, result: Result) -> Awaitable[None] | None:
        amounts = self._amounts
        if self._plan.tokens_at:
            used = _used_tokens(result)
            if used is not None:
                amounts = [*amounts]  # the store has the other list
                for index in self._plan.tokens_at:
                    amounts[index] = used
        pending: Awaitable[None] | None = self._store.give_back(self._name, amounts)
        return pending


def _used_tokens(result: Result) -> int | None:
    """Tokens by usage; 0 where no upstream was paid; None where nobody knows: then the bound stands."""
    if result.source != "upstream":
        return 0
    if result.usage is not None:
        return result.usage.total_tokens
    return 0 if result.cost_nanousd == 0 else None


def _plan(scopes: Sequence[tuple[str, Limits]] | Iterator[tuple[str, Limits]]) -> Plan:
    takes: list[Take] = []
    kinds: list[Kind] = []
    for scope, limits in scopes:
        ceilings: tuple[tuple[Kind, int | None, float], ...] = (
            ("requests", limits.requests_per_minute, MINUTE_S),
            ("tokens", limits.tokens_per_minute, MINUTE_S),
            ("parallel", limits.max_parallel, 0.0),
        )
        for kind, limit, window_s in ceilings:
            if limit is not None:
                takes.append(Take(f"{scope}/{kind}", limit, window_s))
                kinds.append(kind)
    indices_by_kind = {of: tuple(i for i, kind in enumerate(kinds) if kind == of) for of in ("requests", "tokens")}
    shown = tuple(
        Shown(indices[0], indices[1:], f"{HEADERS}limit-{kind}", f"{HEADERS}remaining-{kind}", f"{HEADERS}reset-{kind}")
        for kind, indices in indices_by_kind.items()
        if indices
    )
    return Plan(tuple(takes), tuple(kinds), indices_by_kind["tokens"], (1,) * len(takes), shown)


def _merge(own: Limits, default: Limits) -> Limits:
    """Each ceiling of its own, else the default one."""

    def first(a: int | None, b: int | None) -> int | None:
        return b if a is None else a

    return Limits(
        first(own.requests_per_minute, default.requests_per_minute),
        first(own.tokens_per_minute, default.tokens_per_minute),
        first(own.max_parallel, default.max_parallel),
    )


def format_reset(seconds: float) -> str:
    """A time as OpenAI writes it in these headers: `120ms`, `8.64s`, `6m0s`."""
    if seconds < 1:
        return f"{max(math.ceil(seconds * 1000), 0)}ms"
    if seconds < 60:
        return f"{math.ceil(seconds * 100) / 100:g}s"
    whole = math.ceil(seconds)
    return f"{whole // 60}m{whole % 60}s"
