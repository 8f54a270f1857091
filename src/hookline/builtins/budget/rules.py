"""Rules: what bounds the cost of a call, and what a hard budget refuses because nothing does.

Lives here: the bound of an attempt, refusals that name a field. Elsewhere: tokens (hookline.bound_input), what an attempt cost in the end (charges.py), the table
for people (docs/reference/money.md).
Idea: pure functions of request and deployment. A bound never depends on what is left, so the same request is bounded alike on a full and on an empty budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from hookline import BadRequest, Call, Deployment, InputBound, bound_output

ENDPOINTS_WITH_OUTPUT = frozenset({"chat", "completions", "responses"})
OWN_TOOLS = frozenset({"function", "custom", "local_shell", "apply_patch"})
"""Tools that the client runs itself."""
COUNTS = frozenset({"max_completion_tokens", "max_output_tokens", "max_tokens", "n", "best_of", "max_tool_calls"})
"""What multiplies the cost. A laxer reader than ours takes "100000" and 100.0 for numbers."""
CHARGED_APART = {
    "background": "its cost is known only after the reply",
    "web_search_options": "searches cost money of their own",
    "search_parameters": "searches cost money of their own",
    "plugins": "they cost money of their own",
    "models": "other models have other prices",
    "service_tier": "other tiers have other prices",
}
HARMLESS = (None, False, "auto", "default")
COSTLY = frozenset({*COUNTS, *CHARGED_APART, "tools"})
"""Members that are looked at; most requests have at most a limit of them."""

TYPICAL_OUTPUT_TOKENS = 500
"""What an answer is expected to have, where prices are compared and nothing says more: some paragraphs."""
AMOUNT_MAX = 1 << 52
"""4.5 million USD: what a client asks for is no number of SQLite's or Redis's beyond that (`max_tokens = 10**18`), and no call costs it."""
_new = tuple.__new__
"""Half the cost of a NamedTuple's own constructor."""


class Bound(NamedTuple):
    """What an attempt can be at most."""

    input_tokens: int
    output_tokens: int
    tool_nanousd: int
    """Of hosted tools."""
    amount_nanousd: int
    """All of it: what is reserved."""
    is_firm: bool
    """The answer has a limit that the upstream is told, or that is the model's own."""


def bound_of(call: Call, deployment: Deployment, measured: InputBound, cap_tokens: int, *, is_capped: bool) -> Bound:
    """The bound of a call at a deployment, where an answer without a limit of its own has `cap_tokens`. Only a bound if `find_unbounded` has nothing to say.

    Where the cap is not sent (`is_capped` False), what the model can write stands in its place, as far as that is known."""
    price = deployment.price
    if price is None:
        return Bound(measured.tokens, 0, 0, 0, True)
    input_tokens, open_field, inputs, has_audio = measured
    context = deployment.context_tokens
    if context is not None and (open_field is not None or input_tokens > context * inputs):
        input_tokens = context * inputs
    tool_nanousd = 0
    payload = call.payload
    if payload is not None and "tools" in payload and (tools := hosted_tools(payload)):
        times = _tool_calls_max(payload)
        input_tokens = (context or input_tokens) * (1 + times)  # the model reads anew after each call
        tool_nanousd = times * max(price.tool_nanousd(tool) or 0 for tool in tools)
    model_max_tokens = deployment.max_output_tokens
    if not is_capped:
        cap_tokens = model_max_tokens or context or cap_tokens
        is_capped = model_max_tokens is not None or call.chat.max_output_tokens is not None
    output_tokens = bound_output(call, default_tokens=cap_tokens, model_max_tokens=model_max_tokens)
    amount = price.bound_nanousd(input_tokens, output_tokens, has_audio=has_audio) + tool_nanousd
    if amount > AMOUNT_MAX:
        amount = AMOUNT_MAX
    return _new(Bound, (input_tokens, output_tokens, tool_nanousd, amount, is_capped))


def find_unbounded(call: Call, deployment: Deployment, measured: InputBound) -> BadRequest | None:
    """Why a hard budget can't take this call: nothing bounds its cost. None if something does."""
    price = deployment.price
    if price is None:
        more = "with `input` and `output`" if call.endpoint != "relay" and deployment.model else "with `call`, in USD"
        return BadRequest(
            f"{deployment.id} has no price for {call.method} {call.path}, and a hard budget pays for this key; "
            f"add {_line_for(call, deployment)} {more}",
            code="unpriced_route",
        )
    payload: Mapping[str, Any] = call.payload or {}
    if call.endpoint in ENDPOINTS_WITH_OUTPUT:
        if not COSTLY.isdisjoint(payload) and (problem := _find_costly(payload, deployment, call)) is not None:
            return problem
    elif call.endpoint == "relay" and price.has_token_price:
        message = (
            f"{call.method} {call.path} has no bound by tokens; add {_line_for(call, deployment)} with `call`, in USD"
        )
        return BadRequest(message, code="unpriced_route")
    if not price.has_token_price:
        return None
    _, field, _, has_audio = measured
    if has_audio and price.audio_input_picousd is None and price.audio_output_picousd is None:
        line = f'[prices."{deployment.model}"]'
        return _unpriced(
            "audio",
            f"what audio tokens of {deployment.id} cost is not known",
            f"add audio_input and audio_output to {line}",
        )
    if field is not None and deployment.context_tokens is None:
        return BadRequest(
            f'"{field}" has no bound within the request, and the context window of {deployment.id} is not known, so nothing bounds the cost; '
            "set context_tokens on the deployment, or send the content itself as text",
            code="unbounded_cost",
            param=field,
        )
    return None


def hosted_tools(payload: Mapping[str, Any]) -> list[str]:
    """The kinds of tools that the provider runs."""
    tools = payload.get("tools")
    if not isinstance(tools, list):
        return []
    kinds = [tool.get("type", "function") for tool in tools if isinstance(tool, dict)]
    return [str(kind)[:60] for kind in kinds if kind not in OWN_TOOLS]


def _find_costly(payload: Mapping[str, Any], deployment: Deployment, call: Call) -> BadRequest | None:
    for name in payload.keys() & COSTLY:
        value = payload[name]
        if name in COUNTS:
            if value is not None and (type(value) is not int or value < 0):
                told = f'"{name}" on a hard budget must be a whole number, not negative: nothing else bounds the cost'
                return BadRequest(told, code="unbounded_cost", param=name)
            if (
                value == 0
                and name != "max_tool_calls"
                and not (call.endpoint == "completions" and name == "max_tokens")
            ):
                told = f'"{name}" on a hard budget must be 1 or more: some providers read 0 as no limit'
                return BadRequest(told, code="unbounded_cost", param=name)
        elif name in CHARGED_APART:
            if value not in HARMLESS:
                return _unpriced(name, CHARGED_APART[name], f"send it without {name}")
        elif tools := hosted_tools(payload):
            problem = _find_unbounded_tool(payload, tools, deployment, call)
            if problem is not None:
                return problem
    return None


def _find_unbounded_tool(
    payload: Mapping[str, Any], tools: list[str], deployment: Deployment, call: Call
) -> BadRequest | None:
    """Hosted tools need a price per call and a number of calls, and what they read fills at most the context window each time."""
    if call.endpoint != "responses":
        return _unpriced(
            "tools", "hosted tools cost money of their own", "use function tools, or /v1/responses with max_tool_calls"
        )
    assert deployment.price is not None
    for tool in tools:
        if deployment.price.tool_nanousd(tool) is None:
            return _unpriced(
                "tools",
                f'what a call of the hosted tool "{tool}" costs is not known',
                f'add [prices."tool:{tool}"] with `call`, in USD',
            )
    if payload.get("max_tool_calls") is None:
        told = f'"max_tool_calls" on a hard budget must be sent with the hosted tool "{tools[0]}": nothing else bounds how often it is called'
        return BadRequest(told, code="unbounded_cost", param="max_tool_calls")
    if deployment.context_tokens is None and deployment.price.has_token_price:
        told = (
            f'"tools": what the hosted tool "{tools[0]}" reads is bounded by the context window of {deployment.id}, which is not known; '
            "set context_tokens on the deployment"
        )
        return BadRequest(told, code="unbounded_cost", param="tools")
    return None


def _tool_calls_max(payload: Mapping[str, Any]) -> int:
    times = payload.get("max_tool_calls")
    return times if type(times) is int and times > 0 else 0


def _line_for(call: Call, deployment: Deployment) -> str:
    """The `[prices]` table to add."""
    is_by_model = deployment.model and call.endpoint != "relay"
    return f'[prices."{deployment.model}"]' if is_by_model else f'[prices."{call.method} {call.path}"]'


def _unpriced(field: str, why: str, what_to_do: str) -> BadRequest:
    return BadRequest(f'"{field}" on a hard budget: {why}; {what_to_do}', code="unpriced_route", param=field)
