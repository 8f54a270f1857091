"""Rate limits: requests and tokens per window, and calls in parallel.

Lives here: the plugin: what a call and an attempt draw, on what, and what happens to one that does not fit. Elsewhere: options (options.py), which ceilings there
are (plans.py), what is given back (hold.py), what clients are told (telling.py), waiting in place of a 429 (queue.py), the windows (the limits store), money (builtins/budget).
Idea: one question to the store decides over all scopes at once, all or nothing. Tokens are reserved by their upper bound and settled by usage, so that
parallel calls can't use more than the limit; a cache hit counts as a request and settles its tokens to 0."""

from __future__ import annotations

import asyncio
import itertools
import math
import uuid
from collections.abc import Sequence

from hookline import (
    FINDINGS,
    Attempt,
    Call,
    Deployment,
    Host,
    Level,
    Principal,
    RateLimited,
    Refusal,
    Rejected,
    Reply,
    Skip,
    Slot,
    Target,
    Unavailable,
    bound_input,
    bound_output,
    hookimpl,
)
from hookline.builtins.rate_limit.hold import Both, Hold, foreseen_tokens
from hookline.builtins.rate_limit.options import RateLimitOptions
from hookline.builtins.rate_limit.plans import HEADERS, MINUTE_S, Plan, Scopes
from hookline.builtins.rate_limit.queue import Queue, Waiter
from hookline.builtins.rate_limit.telling import format_reset, refuse, write_levels

PLANS_MAX = 4_096
"""Principals times models whose ceilings are remembered; model names may come from clients."""
WAIT_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60)

STANDING: Slot[tuple[Plan, Sequence[Level], int, Hold | None]] = Slot("rate limit standing")
"""Where a call's ceilings stood when it was decided on, the tokens reserved for it, and what it holds."""
WAITED: Slot[tuple[int, float]] = Slot("rate limit wait")
"""A call's place in the queue when it joined, and how long it waited (seconds)."""


class Plugin:
    """Admits calls and attempts within their ceilings."""

    Options = RateLimitOptions
    has_model_options = False
    needs_shared_state = True
    supports_dry_run = True

    def __init__(self, options: RateLimitOptions, host: Host) -> None:
        self._options = options
        self._store = host.limits
        self._clock = host.clock
        self._scopes = Scopes(
            host.settings,
            {
                "key": options.per_key.to_limits(),
                "user": options.per_user.to_limits(),
                "tenant": options.per_tenant.to_limits(),
                "model": options.per_model.to_limits(),
                "deployment": options.per_deployment.to_limits(),
                "global": options.everyone.to_limits(),
            },
        )
        self._plans: dict[tuple[int, str | None], tuple[Principal, Plan]] = {}
        self._deployment_plans: dict[str, Plan] = {}
        self._names = map(f"{uuid.uuid4().hex[:12]}.%d".__mod__, itertools.count())
        self._expires_s = float(host.settings.get("server", {}).get("total_timeout_s", 600.0)) + MINUTE_S
        self._refused = host.metrics.counter(
            "hookline_rate_limited_total", "Calls and attempts over a limit.", ("scope", "kind")
        )
        waiting = host.metrics.gauge("hookline_rate_limit_waiting_calls", "Calls that wait for their turn.")
        self._waits = host.metrics.histogram(
            "hookline_rate_limit_wait_seconds",
            "How long calls waited for their turn, by what came of it: admitted, refused, gone.",
            ("outcome",),
            buckets=WAIT_BUCKETS,
        )
        self._queue = None
        if options.max_wait_s > 0:
            self._queue = Queue(max_wait_s=options.max_wait_s, max_queue=options.max_queue, gauge=waiting())

    @hookimpl
    async def admit(self, call: Call) -> Hold | None:
        plan = self._find_plan(call)
        if not plan.takes:
            return None
        amounts = self._amounts(plan, call)
        queue = self._queue
        if call.is_dry_run:
            self._answer_dry_run(call, plan, amounts, await self._look(plan, amounts))
            return None
        name = next(self._names)
        if queue is None:
            try:  # `_ask` without its coroutine: nearly every call comes here
                answer = await self._store.take(name, plan.takes, amounts, expires_s=self._expires_s)
            except Unavailable as error:
                raise Rejected(error) from error
        else:
            answer = await self._ask_or_wait(call, queue, plan, amounts, name)
        if type(answer) is Refusal:
            call[STANDING] = (plan, answer.levels, 0, None)
            raise Rejected(self._refuse(answer, plan, amounts, call))
        hold = Hold(self._store, name, plan, amounts, queue)
        call.slots[STANDING] = (plan, answer, amounts[plan.tokens_at[0]] if plan.tokens_at else 0, hold)
        return hold

    @hookimpl
    async def admit_attempt(self, call: Call, target: Target, attempt: Attempt) -> Hold | Both | None:
        deployment = target.deployment
        standing = call.slots.get(STANDING)
        of_call = standing[3] if standing is not None else None
        if self._options.cap_output and standing is not None and standing[2]:
            self._cap_output(call, attempt)
        plan = self._deployment_plans.get(deployment.id) or self._plan_deployment(deployment)
        if target.model is not None:
            plan = self._scopes.of_other_model(deployment.id, deployment.limits, call.principal, target.model)
        if not plan.takes:
            return of_call.for_attempt() if of_call is not None else None
        amounts = self._amounts(plan, call)
        if call.is_dry_run:
            answer, name = await self._look(plan, amounts), ""
        else:
            answer = await self._ask(plan, amounts, name := next(self._names))
        if call.is_dry_run:
            _tell_limits(call, plan, amounts, answer)
        if isinstance(answer, Refusal):
            error = self._refuse(answer, plan, amounts, call)
            raise Skip(error.message, error)
        if call.is_dry_run:
            return None
        own = Hold(self._store, name, plan, amounts, None)
        return own if of_call is None else Both(own, of_call.for_attempt())

    @hookimpl
    def edit_reply(self, call: Call, reply: Reply) -> Reply:
        standing = call.slots.get(STANDING)
        if standing is None:
            return reply
        headers = reply.headers
        if HEADERS in " ".join(headers).lower():
            for name in [name for name in headers if name.lower().startswith(HEADERS)]:
                del headers[name]
        plan, levels, reserved, _ = standing
        unused = 0
        if reserved and (used := foreseen_tokens(call, reply)) is not None:
            unused = reserved - used
        write_levels(headers, plan, levels, unused)
        if self._queue is not None and (waited := call.find(WAITED)) is not None:
            headers["x-hookline-queue-position"] = str(waited[0])
            headers["x-hookline-queue-wait-ms"] = str(round(waited[1] * 1000))
        return reply

    async def _ask(self, plan: Plan, amounts: Sequence[int], name: str) -> Sequence[Level] | Refusal:
        try:
            return await self._store.take(name, plan.takes, amounts, expires_s=self._expires_s)
        except Unavailable as error:
            raise Rejected(error) from error

    async def _look(self, plan: Plan, amounts: Sequence[int]) -> Sequence[Level] | Refusal:
        """What the store would answer. Nothing stays taken: with a store in this process nobody else can even notice."""
        answer = await self._ask(plan, amounts, name := next(self._names))
        if not isinstance(answer, Refusal):
            pending = self._store.give_back(name, [0] * len(amounts))
            if pending is not None:
                await asyncio.shield(pending)  # half given back would stay taken
        return answer

    async def _ask_or_wait(
        self, call: Call, queue: Queue, plan: Plan, amounts: Sequence[int], name: str
    ) -> Sequence[Level] | Refusal:
        """The answer to a call that may wait for its turn."""
        scope = queue.find_line(plan.takes) if queue.lines else None
        said: Refusal | None = None
        if scope is None:
            answer = await self._ask(plan, amounts, name)
            if not isinstance(answer, Refusal) or not self._may_help(answer, plan):
                return answer
            scope, said = answer.take.scope, answer
        if not queue.has_room(scope):
            return said or await self._look_behind(plan, amounts, scope)
        waiter = Waiter(call.principal.tenant)
        costs = dict(zip((take.scope for take in plan.takes), amounts, strict=True))
        started_at, outcome = self._clock.monotonic(), "gone"
        try:
            answer = await call.wait(
                queue.wait(
                    waiter,
                    scope,
                    ask=lambda: self._ask(plan, amounts, name),
                    look=lambda: self._look_behind(plan, amounts, scope),
                    cost_at=costs.__getitem__,
                    said=said,
                )
            )
            outcome = "refused" if isinstance(answer, Refusal) else "admitted"
            return answer
        finally:
            waited_s = self._clock.monotonic() - started_at
            call[WAITED] = (waiter.position, waited_s)
            self._waits(outcome).observe(waited_s)

    async def _look_behind(self, plan: Plan, amounts: Sequence[int], scope: str) -> Refusal:
        """The refusal of a call that may not ask because others stand before it."""
        answer = await self._look(plan, amounts)
        if isinstance(answer, Refusal):
            return answer
        take = next(take for take in plan.takes if take.scope == scope)
        levels = [Level(level.remaining + amount, level.reset_s) for level, amount in zip(answer, amounts, strict=True)]
        return Refusal(take, 1.0, levels)

    def _may_help(self, refusal: Refusal, plan: Plan) -> bool:
        """Whether waiting can help: requests leave their window when they leave it; tokens and slots may come free at any time."""
        if math.isinf(refusal.retry_after_s):
            return False
        kind = plan.ceilings[plan.takes.index(refusal.take)].kind
        return kind != "requests" or refusal.retry_after_s <= self._options.max_wait_s

    def _answer_dry_run(
        self, call: Call, plan: Plan, amounts: Sequence[int], answer: Sequence[Level] | Refusal
    ) -> None:
        _tell_limits(call, plan, amounts, answer)
        if isinstance(answer, Refusal):
            raise Rejected(self._refuse(answer, plan, amounts, call))
        call.note("rate_limit", "fits", f"{len(plan.takes)} limits")

    def _amounts(self, plan: Plan, call: Call) -> list[int]:
        amounts = [*plan.ones]
        if plan.tokens_at:
            bound = bound_input(call)
            tokens = bound.tokens + bound_output(call, default_tokens=self._options.assumed_output_tokens)
            if bound.open_field is not None:
                tokens += self._options.assumed_input_tokens
            for index in plan.tokens_at:
                amounts[index] = tokens
        return amounts

    def _cap_output(self, call: Call, attempt: Attempt) -> None:
        """Make what was assumed true, for a token limit stands on it."""
        if call.chat.max_output_tokens is None and bound_output(call, default_tokens=1):
            attempt.lower_output_cap(self._options.assumed_output_tokens)

    def _find_plan(self, call: Call) -> Plan:
        key = (id(call.principal), call.model)
        found = self._plans.get(key)
        if found is not None and found[0] is call.principal:
            return found[1]
        plan = self._scopes.of_call(call.principal, call.model)
        if len(self._plans) >= PLANS_MAX:
            self._plans.clear()
        self._plans[key] = (call.principal, plan)
        return plan

    def _plan_deployment(self, deployment: Deployment) -> Plan:
        plan = self._scopes.of_deployment(deployment.id, deployment.limits)
        if len(self._deployment_plans) >= PLANS_MAX:
            self._deployment_plans.clear()
        self._deployment_plans[deployment.id] = plan
        return plan

    def _refuse(self, refusal: Refusal, plan: Plan, amounts: Sequence[int], call: Call) -> RateLimited:
        ceiling = plan.ceilings[plan.takes.index(refusal.take)]
        if not call.is_dry_run:
            self._refused(ceiling.scope.split(":", 1)[0], ceiling.kind).inc()
        waited = call.find(WAITED)
        told = f" after {format_reset(waited[1])} in the queue" if waited is not None else ""
        return refuse(refusal, plan, amounts, waited=told)


def _tell_limits(call: Call, plan: Plan, amounts: Sequence[int], answer: Sequence[Level] | Refusal) -> None:
    """For an explanation: what is left now, before this call, and what it would draw."""
    is_refused = isinstance(answer, Refusal)
    levels: Sequence[Level] = answer.levels if isinstance(answer, Refusal) else answer
    told = call.slots.setdefault(FINDINGS, {}).setdefault("limits", [])
    for take, ceiling, amount, level in zip(plan.takes, plan.ceilings, amounts, levels, strict=True):
        left = level.remaining if is_refused else level.remaining + amount
        told.append(
            {
                "scope": ceiling.scope,
                "unit": ceiling.unit,
                "limit": take.limit,
                "remaining": left,
                "draws": amount,
                "fits": amount <= left,
                "resets_in_s": round(level.reset_s, 3),
            }
        )
