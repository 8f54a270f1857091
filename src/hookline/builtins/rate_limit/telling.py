"""Telling: what a client hears about its limits.

Lives here: the 429s, the `x-ratelimit-*` headers, times as OpenAI writes them. Elsewhere: which ceilings there are (plans.py), who decides (the plugin).
Idea: nothing is told that would not come true: who waits as long as `retry-after` says fits, if nobody else was faster; who can't be helped by a retry is told not to."""

from __future__ import annotations

import math
from collections.abc import MutableMapping, Sequence

from hookline import Level, RateLimited, Refusal
from hookline.builtins.rate_limit.plans import MINUTE_S, Plan

SDK_WAITS_MAX_S = 60.0
"""OpenAI's SDKs don't wait longer, whatever `retry-after` says: they would try again at once, twice, for nothing."""
MINUTE_RESET = "1m0s"
"""`format_reset(MINUTE_S)`: what nearly every reply says."""


def refuse(refusal: Refusal, plan: Plan, amounts: Sequence[int], *, waited: str = "") -> RateLimited:
    """The 429 for a refusal, naming the scope that was hit."""
    at = plan.takes.index(refusal.take)
    scope, kind, unit = plan.ceilings[at]
    limit, amount, wait_s = refusal.take.limit, amounts[at], refusal.retry_after_s
    if math.isinf(wait_s):
        message = f"{scope}: this call may need {amount} {kind}, more than the limit of {limit} {unit}; send less or set a lower max_tokens"
        return RateLimited(message, may_retry=False)
    used = f", {max(limit - refusal.levels[at].remaining, 0)} used or reserved" if kind == "tokens" else ""
    need = f"; this call may need {amount}" if kind == "tokens" else ""
    message = f"{scope}: limit of {limit} {unit} reached{used}{need}{waited}; try again in {format_reset(wait_s)}"
    return RateLimited(
        message,
        retry_after_s=wait_s,
        may_retry=math.ceil(wait_s) <= SDK_WAITS_MAX_S,
        headers={"retry-after-ms": str(max(math.ceil(wait_s * 1000), 1))},
    )


def write_levels(headers: MutableMapping[str, str], plan: Plan, levels: Sequence[Level], unused_tokens: int) -> None:
    """Tell the tightest ceiling of each kind. `unused_tokens`: reserved for this call, and known not to be needed."""
    takes = plan.takes
    for first, others, is_tokens, limit_header, remaining_header, reset_header in plan.shown:
        at = first
        for index in others:
            if levels[index].remaining < levels[at].remaining:
                at = index
        remaining, reset_s = levels[at]
        if is_tokens:
            remaining += unused_tokens
        limit = takes[at].limit
        headers[limit_header] = str(limit)
        if remaining >= limit:
            headers[remaining_header] = str(limit)
            headers[reset_header] = "0s"
        else:
            headers[remaining_header] = str(remaining) if remaining > 0 else "0"
            headers[reset_header] = MINUTE_RESET if reset_s == MINUTE_S else format_reset(reset_s)


def format_reset(seconds: float) -> str:
    """A time as OpenAI writes it in these headers: `120ms`, `8.64s`, `6m0s`, `23h59m1s`."""
    if seconds <= 0:
        return "0s"
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds <= MINUTE_S - 0.01:
        return f"{math.ceil(seconds * 100) / 100:g}s"
    minutes, whole = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{whole}s" if hours else f"{minutes}m{whole}s"
