"""Model selection and load balancing: which deployments of a model can take a call, and in which order they are tried.

Lives here: the plugin: names, choice, order, and what attempts teach. Elsewhere: options (options.py) and what they are made into (policies.py), what a name means (naming.py), what a request says
(wishes.py), needs (needs.py), how hard it is (complexity.py), who may serve (qualifying.py), who goes first (ranking.py, orders.py), how busy everybody is (loads.py).
Which deployments a name has: `[models]`, catalog.py. Which of them are ill: circuit_breaker. Going on to the next: fallback. Limits that operators set for a deployment: rate_limit.
Idea: two pure questions: who may serve, and who goes first. Models with one deployment pay for neither."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import cast

from hookline import (
    BUDGET_LEFT,
    CACHE_VARY,
    COMPLEXITY,
    EXPOSED_HEADERS,
    IS_EVIDENCE,
    LACKS,
    LONGER_MODELS,
    REPEATS,
    Attempt,
    Call,
    Deployment,
    Host,
    Principal,
    RateLimited,
    Rejected,
    Reply,
    Skip,
    Slot,
    StartupError,
    Target,
    Unavailable,
    hookimpl,
    is_free,
    read_told,
)
from hookline.builtins.model_selection import orders
from hookline.builtins.model_selection.affinity import affinity_of
from hookline.builtins.model_selection.complexity import CLASSES, estimate
from hookline.builtins.model_selection.costs import expected_usage, has_output
from hookline.builtins.model_selection.loads import Load, Loads
from hookline.builtins.model_selection.naming import Naming
from hookline.builtins.model_selection.needs import needs_of
from hookline.builtins.model_selection.options import Place, SelectionOptions
from hookline.builtins.model_selection.policies import Policy, option_problems
from hookline.builtins.model_selection.qualifying import NO_DEMAND, Demand, exclusions, qualify
from hookline.builtins.model_selection.ranking import Rank, arrange, ranks_of, why_first
from hookline.builtins.model_selection.wishes import NONE, WISHES, Wishes, take_wishes

__all__ = ["Plugin", "SelectionOptions"]

TURNS_MAX = 4_096

TOKENS: Slot[tuple[int, int]] = Slot("selection tokens")
"""What a call reads and writes at least, where an upstream has told how many tokens it would take."""
OUTPUT_CAP: Slot[int] = Slot("selection output cap")
"""The length of the answer that a cost was counted with."""


class Plugin:
    """Says what a name means, leaves out what may not serve, puts the rest in order."""

    Options = SelectionOptions
    supports_dry_run = True

    def __init__(self, options: SelectionOptions, host: Host) -> None:
        problems = list(option_problems(options, host.options_by_model, host.settings))
        if problems:
            raise StartupError([f"[plugins.model_selection] {text}" if text[0] != "[" else text for text in problems])
        self._host = host
        host.offers[LACKS] = self._lacks
        self._clock = host.clock
        self._naming = Naming(options.aliases, options.mappings, host.settings.get("aliases", {}))
        self._policy = Policy(options)
        self._policies = {name: Policy(own, options.places) for name, own in host.options_by_model.items()}
        self._loads = Loads(host.clock)
        self._turns: dict[str | None, int] = {}
        self._draw = random.Random().random
        if any(policy.cheapest_below for policy in (self._policy, *self._policies.values())):
            self.select = self._select_by_budget()  # type: ignore[method-assign,assignment]

    def start(self) -> None:
        """Refuse what only the whole chain shows."""
        asks = any(policy.cheapest_below for policy in (self._policy, *self._policies.values()))
        if asks and BUDGET_LEFT not in self._host.offers:
            raise StartupError(['cheapest_below needs "budget" in [chain] plugins: nobody else knows what is left'])

    @hookimpl
    def prepare(self, call: Call) -> None:
        if (found := self._naming.find(call)) is not None:
            model, why = found
            call.note("model_selection", why, f'"{call.model}" means "{model}"')
            call.model = model
            if call.payload is not None:
                call.edit_payload()["model"] = model
        policy = self._policies.get(call.model or "") or self._policy
        wishes = take_wishes(call, is_followed=policy.client_wishes)
        if wishes is NONE:
            return
        call[WISHES] = wishes
        if wishes.vary:
            call[CACHE_VARY] = wishes.vary

    @hookimpl
    def select(self, call: Call, targets: list[Target]) -> list[Target]:
        policy = self._policies.get(call.model or "") or self._policy
        wishes = call.slots.get(WISHES, NONE)
        if len(targets) < 2 and is_plain(call, policy, wishes):
            return targets
        return self._choose(call, targets, policy, wishes, is_low=False)

    def _select_by_budget(self) -> object:
        """The same where a budget is asked first. A hook of its own, for an async one costs every call."""

        @hookimpl
        async def select(call: Call, targets: list[Target]) -> list[Target]:
            policy = self._policies.get(call.model or "") or self._policy
            wishes = call.slots.get(WISHES, NONE)
            if len(targets) < 2 and is_plain(call, policy, wishes):
                return targets
            is_low = False
            if policy.cheapest_below and len(targets) > 1:
                left = await self._find_left(call.principal)
                is_low = left is not None and left < policy.cheapest_below
                if is_low:
                    call.note("model_selection", "low budget", f"{left:.0%} left: the cheapest goes first")
            return self._choose(call, targets, policy, wishes, is_low=is_low)

        return select

    @hookimpl
    def admit_attempt(self, call: Call, target: Target, attempt: Attempt) -> Load | None:
        if (cap := call.slots.get(OUTPUT_CAP)) is not None:
            limit = target.deployment.max_output_tokens
            attempt.lower_output_cap(cap if limit is None else min(cap, limit))
        load = self._loads.find(target.deployment.id)
        if load is None:
            return None
        if load.told and not target.is_forced and (wait_s := load.wait_s(*call.slots.get(TOKENS, ()))):
            reason = f"its upstream has told that its limit is used up; more in {wait_s:.1f} s"
            raise Skip(reason, RateLimited(f"{target.deployment.id}: {reason}", retry_after_s=wait_s))
        return None if call.is_dry_run or IS_EVIDENCE in call.slots else load.begin()  # a probe's pace is not a call's

    @hookimpl
    def edit_reply(self, call: Call, reply: Reply) -> Reply:
        """Learn from a stream's head. Of other replies an attempt's end tells; here their headers may be somebody else's."""
        if not isinstance(reply.body, bytes) and call.attempts:
            attempt = call.attempts[-1]
            load = self._loads.find(attempt.target.deployment.id)
            if load is not None and attempt.reply is reply:
                load.learn(read_told(reply.headers, self._clock.time()), self._clock.monotonic())
        return reply

    def _choose(
        self, call: Call, targets: list[Target], policy: Policy, wishes: Wishes, *, is_low: bool
    ) -> list[Target]:
        """Who may serve, then who goes first. `is_low`: only what it costs counts."""
        has_classes = policy.has_classes and not is_low and len(targets) > 1
        class_at = self._class_of(call, wishes) if has_classes else None
        qualified = self._qualify(call, targets, self._demand(call, policy, wishes, class_at), policy)
        if len(qualified) < 2:
            call.note("model_selection", "kept", f"{qualified[0].deployment.id}: the only one that may serve")
            return qualified
        loads = [self._loads.get(target.deployment.id, policy.latency_decay_s) for target in qualified]
        strategy = orders.strategy_for(policy.strategy if not is_low else "cheapest", qualified)
        order = None if strategy is None else self._order(call, strategy, policy, qualified, loads)
        ranks = self._ranks(call, qualified, loads, policy, class_at, wishes.prefer_provider, is_low=is_low)
        arranged = arrange(qualified, ranks, order)
        if not arranged[0].reason:
            arranged[0].reason = why_first("low budget: cheapest" if is_low else strategy or "listed", qualified, ranks)
        if call.is_explained:
            _explain(call, qualified, arranged, ranks, strategy or "listed")
        return arranged

    def _ranks(
        self, call: Call, targets: Sequence[Target], loads: Sequence[Load], policy: Policy, class_at: int | None,
        wished: str | None, *, is_low: bool,
    ) -> list[Rank] | None:  # fmt: skip
        """None: all are alike."""
        waits = self._waits(call, loads) if any(load.told for load in loads) else None
        if is_low:
            since = waits or [0.0] * len(loads)
            return [Rank(wait_s, not t.deployment.weight) for wait_s, t in zip(since, targets, strict=True)]
        if waits is None and class_at is None and (wished or policy.prefer_provider) is None:
            has_tiers = any([t.deployment.priority or not t.deployment.weight for t in targets])  # noqa: C419
            return ranks_of(targets, [0.0] * len(loads), policy, None, None) if has_tiers else None
        return ranks_of(targets, waits or [0.0] * len(loads), policy, class_at, wished)

    def _waits(self, call: Call, loads: Sequence[Load]) -> list[float]:
        needs = needs_of(call)
        tokens = call[TOKENS] = (needs.input_tokens, needs.output_tokens or 0)
        return [load.wait_s(*tokens) for load in loads]

    def _qualify(self, call: Call, targets: list[Target], demand: Demand, policy: Policy) -> list[Target]:
        """The targets that may serve; of longer models, where all of these are too small. Raises Rejected."""
        try:
            return qualify(call, targets, demand, policy)
        except Rejected as rejected:
            longer = self._host.offers.get(LONGER_MODELS)
            if longer is None or rejected.error.error_code != "context_length_exceeded":
                raise
            if not (found := longer(call, targets)):
                raise
            return cast("list[Target]", found)

    def _lacks(self, call: Call, deployment: Deployment) -> Iterator[str]:
        """Why a deployment of another model may not serve: what the request needs, and what is demanded whatever the model."""
        policy = self._policies.get(call.model or "") or self._policy
        demand = self._demand(call, policy, call.slots.get(WISHES, NONE), None)
        return exclusions(call, deployment, needs_of(call), demand, policy)

    def _demand(self, call: Call, policy: Policy, wishes: Wishes, class_at: int | None) -> Demand:
        if class_at is None and wishes is NONE and not policy.is_strict and REPEATS not in call.slots:
            return NO_DEMAND
        places = self._places_of(call, policy)
        if call.endpoint in ("relay", "models") and is_free(call.method, call.path):
            return Demand(places)
        demand = Demand(
            places,
            class_at,
            _least(policy.max_cost_nanousd, wishes.max_cost_nanousd),
            _least(policy.max_per_1k_nanousd, wishes.max_per_1k_nanousd),
        )
        if demand.max_cost_nanousd is not None and call.chat.max_output_tokens is None and has_output(call):
            call[OUTPUT_CAP] = policy.assumed_output_tokens
        return demand

    def _places_of(self, call: Call, policy: Policy) -> list[Place]:
        """Where a call may go: a mirror of another one only where both may."""
        places = [place for place in policy.places if place.includes(call.principal, call.tags)]
        if (first := call.slots.get(REPEATS)) is not None:
            places += self._places_of(first, self._policies.get(first.model or "") or self._policy)
        return places

    def _order(
        self, call: Call, strategy: str, policy: Policy, targets: Sequence[Target], loads: Sequence[Load]
    ) -> orders.Order:
        """The order within one group."""
        load_of = {id(target): load for target, load in zip(targets, loads, strict=True)}
        draw = self._draw
        if strategy == "weighted":
            return partial(orders.at_random, draw=draw)
        if strategy == "listed":
            return partial(orders.as_listed, turn=self._next_turn(call))
        if strategy == "round_robin":
            return partial(orders.by_turn, turn=self._next_turn(call))
        if strategy == "least_in_flight":
            return partial(orders.by_in_flight, load_of=load_of, draw=draw)
        if strategy == "lowest_latency":
            now = self._clock.monotonic()
            return partial(orders.by_latency, load_of=load_of, draw=draw, is_stream=call.is_stream, now=now)
        if strategy == "cheapest":
            return partial(orders.by_cost, usage=expected_usage(needs_of(call)), draw=draw)
        return partial(orders.by_hash, who=affinity_of(call, policy.sticky_by))

    def _next_turn(self, call: Call) -> int:
        turn = self._turns.get(call.model, 0)
        if not call.is_dry_run:
            if len(self._turns) >= TURNS_MAX:
                self._turns.clear()
            self._turns[call.model] = turn + 1
        return turn

    def _class_of(self, call: Call, wishes: Wishes) -> int:
        """The class of a request: what it says, else what a plugin said of it, else the estimate."""
        said, judged = wishes.complexity, call.slots.get(COMPLEXITY)
        if said is not None:
            found, why = said, "the request says so"
        elif judged in CLASSES:
            found, why = judged, "a plugin said so"
        else:
            made = estimate(call)
            found, why = made.complexity, str(made)
        call.note("model_selection", "complexity", f"{found}: {why}")
        call.slots.setdefault(EXPOSED_HEADERS, {})["x-hookline-complexity"] = found
        return CLASSES.index(found)

    async def _find_left(self, principal: Principal) -> float | None:
        """The share that is left of the principal's tightest budget; None where none pays or nobody can say."""
        try:
            return cast("float | None", await self._host.offers[BUDGET_LEFT](principal))
        except (Unavailable, Rejected):  # budgets themselves decide what comes of such a call
            self._host.log.debug("what is left of the budgets of %s is not known", principal.key_name)
            return None


def is_plain(call: Call, policy: Policy, wishes: Wishes) -> bool:
    """Whether a lone deployment need not be looked at."""
    return wishes is NONE and not policy.is_strict and not call.is_explained and REPEATS not in call.slots


def _least(one: int | None, other: int | None) -> int | None:
    return one if other is None else other if one is None else min(one, other)


def _explain(
    call: Call, targets: Sequence[Target], arranged: Sequence[Target], ranks: Sequence[Rank] | None, strategy: str
) -> None:
    rank_of_target = dict(zip(map(id, targets), ranks or (), strict=False))
    for place, target in enumerate(arranged, 1):
        rank = rank_of_target.get(id(target), Rank())
        reasons = ", ".join([f"strategy {strategy}", *rank.reasons()])
        call.note("model_selection", "ranked", f"{place}. {target.deployment.id}: {reasons}")
