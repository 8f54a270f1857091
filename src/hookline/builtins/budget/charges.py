"""Charges: what an attempt cost, by how it ended.

Lives here: the table below as code. Elsewhere: what can be known of an end at all (hookline's results), bounds (rules.py), who pays (payment.py).
Idea: never less than the true cost. What is not known exactly is charged by the tightest bound that is left, and marked estimated.

| how it ended | cost |
|---|---|
| never written to the socket, or a complete 3xx, 4xx, 5xx | 0 |
| complete with usage | exact |
| stream with usage missing, or cut | input bound + bytes of text and arguments seen as tokens; the reservation where the model may have thought unseen |
| no reply: client gone, timeout, reset | the reservation |
| complete 2xx without usage | the `call` price if that is all there is; JSON: input bound + bytes of output as tokens; else the reservation |
| no price | unknown |"""

from __future__ import annotations

import re
from typing import NamedTuple

from hookline import Call, Price, Result
from hookline.builtins.budget.rules import Bound

_THINKS = re.compile(
    r"(?:^|/)(?:o\d|gpt-5|gpt-oss|gemini-(?:2\.5|[3-9])|grok-(?:3-mini|[4-9])|magistral|qwq|qwen3|.*(?:reason|think|deepseek-r))",
    re.IGNORECASE,
)


UNREAD_CALLS = (("unread", 0),)
"""What a usage says of hosted tools where nobody could count them."""


class Charge(NamedTuple):
    """Nano-dollars, None where no price is known; `is_estimated`: a bound and not the bill, or no usage either."""

    nanousd: int | None
    is_estimated: bool


FREE = Charge(0, False)
UNKNOWN = Charge(None, True)


def charge_of(call: Call, result: Result, price: Price | None, bound: Bound | None) -> Charge:
    """What the attempt that ended with `result` cost. `bound` is None where nothing was reserved and nothing bounds it."""
    usage, known = result.usage, result.cost_nanousd
    if usage is None:
        if known == 0:
            return FREE
        if price is None:
            return UNKNOWN
        return _without_usage(call, result, price, bound)
    if price is None:
        return Charge(None, usage.is_estimated)
    if not usage.is_estimated:
        if usage.tool_calls == UNREAD_CALLS and bound is not None and known is not None and bound.tool_nanousd:
            return Charge(known + bound.tool_nanousd, True)
        return Charge(known, False)
    if bound is None:
        return Charge(known, True)
    if may_think(call, result):
        return Charge(bound.amount_nanousd, True)
    return Charge(_seen(price, bound, usage.output_tokens), True)


def _without_usage(call: Call, result: Result, price: Price, bound: Bound | None) -> Charge:
    attempt = result.attempt
    is_whole = attempt is not None and attempt.is_complete and attempt.error is None
    if is_whole and price.call_nanousd and not price.has_token_price:
        return Charge(price.call_nanousd, False)
    if bound is None:
        return UNKNOWN
    reply = attempt.reply if attempt is not None and is_whole else None
    if reply is not None and isinstance(reply.body, bytes) and reply.json() is not None and not may_think(call, result):
        return Charge(_seen(price, bound, len(reply.body)), True)
    return Charge(bound.amount_nanousd, True)


def _seen(price: Price, bound: Bound, output_tokens: int) -> int:
    seen = price.bound_nanousd(bound.input_tokens, output_tokens) + bound.tool_nanousd
    return min(seen, bound.amount_nanousd) if bound.is_firm else seen


def may_think(call: Call, result: Result) -> bool:
    """Whether tokens may have been made that no byte was seen of."""
    payload = call.payload or {}
    effort = payload.get("reasoning_effort")
    if (
        (effort is not None and effort != "none")
        or payload.get("reasoning")
        or payload.get("thinking")
        or payload.get("prediction")
    ):
        return True
    return result.attempt is not None and _THINKS.search(result.attempt.deployment.model) is not None
