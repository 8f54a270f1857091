"""Anthropic thinking: `reasoning_effort` and the sampling fields, by what a Claude generation accepts.

Lives here: the generation of a model read from its name, the effort tables, the thinking configuration, temperature and top_p (which share one rule with it).
Elsewhere: thinking blocks in messages (anthropic_messages.py) and in replies (anthropic_reply.py, anthropic_stream.py); all other fields (anthropic_request.py).
Idea: the API has had three ways to think. Up to Claude 3.5: none. From 3.7 to 4.5: a token budget, below `max_tokens`. From 4.6: adaptive, steered by `output_config.effort`.
Sampling went the other way: models after 4.6 take no temperature and no top_p. Both lists are closed at their old end, so a model that is not out yet is treated as the newest.
A name that is not a Claude (another server that speaks this wire) gets budgets and sampling, which is what such servers know."""

from __future__ import annotations

import re

from hookline.providers.untranslatable import (
    JsonObject,
    Untranslatable,
    is_same,
    read_choice,
    read_number,
    read_object,
    read_positive_int,
    show,
)

MIN_BUDGET_TOKENS = 1024
"""The API refuses a smaller thinking budget."""

BUDGET_TOKENS: dict[str, int] = {
    "minimal": 1024,
    "low": 2048,
    "medium": 8192,
    "high": 16384,
    "xhigh": 32768,
    "max": 65536,
}
"""`reasoning_effort` -> `thinking.budget_tokens`, for models that think by budget; at most half of `max_tokens`, so that an answer fits behind it."""

ADAPTIVE_EFFORT: dict[str, str] = {
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "xhigh",
    "max": "max",
}
"""`reasoning_effort` -> `output_config.effort`, for models that think adaptively."""

ROOM_TOKENS_MAX = 32_000
"""What every Claude that thinks can write."""

_MIN_TOP_P_THINKING = 0.95
_EFFORTS = ("none", *BUDGET_TOKENS)
_VERSION = re.compile(r"claude-(?:[a-z]+-)*(\d)(?:[-.](\d{1,2})(?!\d))?")
_NEWEST = (99, 0)


def read_generation(model: str) -> tuple[int, int] | None:
    """The Claude generation in a model's name (`claude-opus-4-6` -> (4, 6)), a high one for a Claude without a number, None if it is not a Claude."""
    name = model.lower()
    if found := _VERSION.search(name):
        return int(found[1]), int(found[2] or 0)
    return _NEWEST if "claude" in name else None


def room_for_thinking(effort: object) -> int:
    """The output limit that leaves room for an answer behind this `reasoning_effort`: a default limit below it would quietly make every effort a low one."""
    return min(2 * BUDGET_TOKENS.get(effort, 0), ROOM_TOKENS_MAX) if isinstance(effort, str) else 0


def write_thinking(payload: JsonObject, request: JsonObject, *, model: str) -> None:
    """Put `thinking` and `output_config.effort` into `request`, whose `max_tokens` is already there. Raises `Untranslatable`."""
    native = payload.get("thinking")
    effort = payload.get("reasoning_effort")
    if native is not None:
        if effort is not None:
            raise Untranslatable(
                '"reasoning_effort" and "thinking" both say how much to think; send one of them',
                param="reasoning_effort",
            )
        request["thinking"] = _native_thinking(native, max_tokens=request["max_tokens"])
    elif effort is not None:
        _write_effort(read_choice(effort, "reasoning_effort", _EFFORTS), request, model=model)


def write_sampling(payload: JsonObject, request: JsonObject, *, model: str) -> None:
    """Put `temperature` and `top_p` into `request`, after `write_thinking`. A value of 1 is the default of both APIs and is not sent. Raises `Untranslatable`."""
    generation = read_generation(model)
    for field in ("temperature", "top_p"):
        value = payload.get(field)
        if value is None:
            continue
        number = read_number(value, field)
        if not 0 <= number <= 1:
            raise Untranslatable(
                f'"{field}" = {show(number)} cannot be sent to an Anthropic model: its range is 0 to 1', param=field
            )
        if is_same(number, 1):
            continue
        if generation is not None and generation > (4, 6):
            raise Untranslatable(
                f'"{field}" = {show(number)} cannot be sent to {model}: models after Claude 4.6 have no sampling fields; leave it out',
                param=field,
            )
        thinks = request.get("thinking", {}).get("type") in ("enabled", "adaptive")
        if thinks and (field == "temperature" or number < _MIN_TOP_P_THINKING):
            raise Untranslatable(
                f'"{field}" = {show(number)} cannot be sent together with thinking; leave out one of them',
                param=field,
            )
        request[field] = number


def thinks_by_budget(request: JsonObject) -> bool:
    """Whether this Anthropic request asks for thinking with a budget, the form that insists on getting its blocks back in a tool loop."""
    return "budget_tokens" in request.get("thinking", {})


def _native_thinking(value: object, *, max_tokens: int) -> JsonObject:
    thinking = read_object(value, "thinking")
    kind = read_choice(thinking.get("type"), "thinking.type", ("enabled", "adaptive", "between_tools", "disabled"))
    if kind == "enabled":
        budget = read_positive_int(thinking.get("budget_tokens"), "thinking.budget_tokens")
        if not MIN_BUDGET_TOKENS <= budget < max_tokens:
            raise Untranslatable(
                f'"thinking.budget_tokens" = {budget} must be at least {MIN_BUDGET_TOKENS} and less than max_tokens, here {max_tokens}',
                param="thinking.budget_tokens",
            )
    elif "budget_tokens" in thinking:
        raise Untranslatable(
            f'"thinking.budget_tokens" has no meaning with type "{kind}"; leave it out', param="thinking.budget_tokens"
        )
    return dict(thinking)


def _write_effort(effort: str, request: JsonObject, *, model: str) -> None:
    generation = read_generation(model)
    if generation is not None and generation >= (4, 6):
        if effort == "none":
            request["thinking"] = {"type": "disabled"}
            return
        request["thinking"] = {"type": "adaptive"}
        request.setdefault("output_config", {})["effort"] = ADAPTIVE_EFFORT[effort]
        return
    if effort == "none":
        return  # models that think by budget do not think unless told to
    if generation is not None and generation < (3, 7):
        raise Untranslatable(
            f'"reasoning_effort" = "{effort}" cannot be sent to {model}: it does not think; leave it out',
            param="reasoning_effort",
        )
    max_tokens: int = request["max_tokens"]
    if max_tokens <= MIN_BUDGET_TOKENS:
        raise Untranslatable(
            f'"reasoning_effort" = "{effort}" needs an output limit above {MIN_BUDGET_TOKENS} tokens on {model}, here {max_tokens}: raise max_completion_tokens or leave reasoning_effort out',
            param="reasoning_effort",
        )
    budget = min(BUDGET_TOKENS[effort], max(MIN_BUDGET_TOKENS, max_tokens // 2))
    request["thinking"] = {"type": "enabled", "budget_tokens": budget}
