"""Results: what an attempt came to, and several of them together.

Lives here: cost and usage of an end, whose reply it is. Elsewhere: who ends an attempt (attempts.py), what a budget charges (builtins/budget), what is free (free_routes.py).
Idea: the core knows the cost that follows from usage and price, and what is certainly free; a ticket that keeps books may know more, and what it has charged is what
the reply, the log and the metrics say."""

from __future__ import annotations

from collections.abc import Sequence

from hookline.attempt import Attempt, Outcome, Result
from hookline.call import Call
from hookline.errors import UpstreamError
from hookline.flight import SHARE
from hookline.free_routes import is_free
from hookline.money import Usage
from hookline.reply import Reply
from hookline.slots import Slot

SKIPPED: Slot[list[tuple[str, str]]] = Slot("skipped")
"""(deployment, reason) of each target that was passed by: left out by `select`, or kept from being tried by `admit_attempt`. Read by `logging`."""

NO_DEPLOYMENT = "none"
"""In `x-hookline-deployment`: no deployment made this reply. The id of one always has a slash."""

_new = tuple.__new__
"""Half the cost of a NamedTuple's own constructor."""


def end_of(call: Call, attempt: Attempt, outcome: Outcome) -> Result:
    """The attempt's end. What an upstream refused, redirected or never received costs nothing; where usage or price is missing, the cost is unknown."""
    usage, price, error = attempt.usage, attempt.target.deployment.price, attempt.error
    cost: int | None = None
    if usage is not None and price is not None:
        cost = price.cost_nanousd(usage)
    elif usage is None:
        if error is None:
            status = attempt.status
            is_nothing = attempt.is_complete and status is not None and 300 <= status < 400
        else:
            is_sent = isinstance(error, UpstreamError) and error.upstream_status is None and error.is_written
            is_nothing = outcome == "upstream_error" and not is_sent
        if is_nothing or is_free(call.method, call.path):
            cost = 0
    is_estimated = cost is None if usage is None else usage.is_estimated
    ended_at, first_byte_at = attempt.ended_at or 0.0, attempt.first_byte_at
    values = (outcome, "upstream", attempt, attempt.status, usage, cost, is_estimated, error, ended_at, first_byte_at)
    return _new(Result, values)


def cost_of(end: Result) -> tuple[int | None, bool]:
    """(nano-dollars, whether that is an estimate) of an attempt's end: what was charged for it, else what the core knows."""
    _, _, attempt, _, _, cost, is_estimated, *_ = end
    if attempt is not None and attempt.charged_nanousd is not None:
        return attempt.charged_nanousd, attempt.is_charge_estimated
    return cost, is_estimated


def sum_of(ends: Sequence[Result]) -> Usage | None:
    """The usage of the attempts that were answered: two where a stream was continued."""
    usages = [
        end.usage for end in ends if end.usage is not None and end.attempt is not None and not end.attempt.is_loser
    ]
    if len(usages) < 2:
        return usages[0] if usages else None
    return Usage(
        sum(u.input_tokens for u in usages),
        sum(u.output_tokens for u in usages),
        sum(u.cached_tokens for u in usages),
        sum(u.cache_write_tokens for u in usages),
        sum(u.reasoning_tokens for u in usages),
        is_estimated=any(u.is_estimated for u in usages),
        audio_input_tokens=sum(u.audio_input_tokens for u in usages),
        audio_output_tokens=sum(u.audio_output_tokens for u in usages),
        tool_calls=tuple(call for u in usages for call in u.tool_calls),
    )


def with_share(call: Call, result: Result) -> Result:
    """The call's end with what it paid as a follower, if it did; its tickets have settled."""
    share = call.slots.get(SHARE)
    if share is None or result.attempt is not None:
        return result
    return result._replace(cost_nanousd=share.cost_nanousd, is_estimated=share.is_estimated)


def named(reply: Reply, call: Call, attempt: Attempt | None) -> Reply:
    """`reply`, saying which deployment it is from and how many were asked. Without an attempt it is a plugin's, which may have said so itself, or a refusal."""
    headers = reply.headers
    if attempt is None:
        if call.local is None:
            headers.setdefault("x-hookline-deployment", NO_DEPLOYMENT)
            headers.setdefault("x-hookline-attempts", str(len(call.attempts)))
        return reply
    headers["x-hookline-deployment"] = attempt.deployment.id
    headers["x-hookline-attempts"] = str(len(call.attempts))
    if attempt.output_cap is not None:
        limit = call.chat.max_output_tokens
        if limit is None or attempt.output_cap < limit:
            headers["x-hookline-output-capped"] = str(attempt.output_cap)
    return reply
