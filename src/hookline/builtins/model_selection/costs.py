"""Costs: what a call would cost at a deployment, and what it may.

Lives here: the two ceilings a cost can have. Elsewhere: prices (money.py, prices.py), who goes first by cost (orders.py), what bounds a call (builtins/budget/rules.py).
Idea: a ceiling needs a bound, the same that a budget would reserve; where nothing bounds a cost, the deployment is left out and the reason says what is missing."""

from __future__ import annotations

from hookline import Call, Deployment, Usage, bound_input, bound_output, format_usd
from hookline.builtins.budget.rules import TYPICAL_OUTPUT_TOKENS, bound_of, find_unbounded
from hookline.builtins.model_selection.needs import Needs


def expected_usage(needs: Needs) -> Usage:
    """What prices are compared by."""
    return Usage(needs.input_tokens, needs.output_tokens or TYPICAL_OUTPUT_TOKENS)


def has_output(call: Call) -> bool:
    """Whether its answer has tokens that could be limited."""
    return bound_output(call, default_tokens=1) > 0


def dearer_than(deployment: Deployment, per_1k_nanousd: int) -> str | None:
    """Why 1,000 tokens of a deployment cost too much, on any of its tiers."""
    price = deployment.price
    if price is None:
        return "has no known price"
    # Pico-dollars a token are nano-dollars per 1,000.
    dearest = max(max(p.input_picousd, p.output_picousd) for p in (price, *(tier for _, tier in price.tiers)))
    if dearest <= per_1k_nanousd:
        return None
    return f"costs up to {format_usd(dearest)} USD per 1,000 tokens, {format_usd(per_1k_nanousd)} allowed"


def costs_more_than(call: Call, deployment: Deployment, nanousd: int, assumed_output_tokens: int) -> str | None:
    """Why a call may cost too much at a deployment, by the bound that budgets reserve."""
    measured = bound_input(call)
    problem = find_unbounded(call, deployment, measured)
    if problem is not None:
        unknown = f' for "{problem.param}"' if problem.param else ""
        return "has no known price" if deployment.price is None else f"has no bound of its cost{unknown}"
    bound = bound_of(call, deployment, measured, assumed_output_tokens, is_capped=True)
    if bound.amount_nanousd <= nanousd:
        return None
    is_assumed = call.chat.max_output_tokens is None and bound.output_tokens
    length = f" with an answer of {bound.output_tokens} tokens" if is_assumed else ""
    return f"may cost {format_usd(bound.amount_nanousd)} USD{length}, {format_usd(nanousd)} allowed"
