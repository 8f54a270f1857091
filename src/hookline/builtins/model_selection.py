"""Model selection: which deployments of a model can take a call, and in which order they are tried.

Lives here: aliases, what a request needs, the orders. Elsewhere: which deployments a name has (`[models]`, catalog.py), which of them are ill (circuit_breaker.py), going on to the next (fallback.py).
Idea: three pure steps: what does the request need, which deployments have it, who goes first. A deployment is only left out for what it declares: what is not known is the upstream's to refuse."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hookline import BadRequest, Call, Deployment, Host, Rejected, Target, Usage, hookimpl

TEXT_BYTES_PER_TOKEN_MAX = 6
"""Natural text has about 4; only a request that is too long even by this is left out."""
TYPICAL_OUTPUT_TOKENS = 500
"""To compare prices, where the request sets no limit."""
CAPABILITY_OF_PART = {"image_url": "vision", "input_image": "vision", "input_audio": "audio"}
"""Content part type -> what a deployment must be capable of."""


class SelectionOptions(BaseModel):
    """`[plugins.model_selection]`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    strategy: Literal["auto", "listed", "weighted", "cheapest"] = Field(
        "auto",
        description='"listed": as in the file; "weighted": the first drawn by weight, the others as listed; "cheapest": by what this call would cost; "auto": weighted where weights differ, else listed.',
    )
    aliases: dict[str, str] = Field(
        {},
        description="Other names for models: what the client asks for = the model it gets (limits and permissions too).",
    )

    @model_validator(mode="after")
    def _check_aliases(self) -> SelectionOptions:
        for name, target in self.aliases.items():
            if target in self.aliases:
                raise ValueError(f'alias "{name}" means "{target}", which is an alias too: name the model itself')
        return self


class Needs(NamedTuple):
    """What a request asks of a deployment. `input_tokens` is a lower bound."""

    input_tokens: int
    output_tokens: int | None
    capabilities: frozenset[str]


class Plugin:
    """Gives aliases their model, leaves out what can't serve, puts the rest in order."""

    Options = SelectionOptions
    supports_dry_run = True

    def __init__(self, options: SelectionOptions, host: Host) -> None:
        self._options = options
        self._aliases = options.aliases
        self._options_by_model = host.options_by_model
        self._draw = random.Random().random

    @hookimpl
    def prepare(self, call: Call) -> None:
        model = call.model
        if model is None or model not in self._aliases or call.payload is None:
            return
        target = self._aliases[model]
        call.note("model_selection", "alias", f'"{model}" means "{target}"')
        call.edit_payload()["model"] = call.model = target

    @hookimpl
    def select(self, call: Call, targets: list[Target]) -> list[Target]:
        if len(targets) < 2:
            return targets
        qualified = qualify(call, targets)
        options: SelectionOptions = self._options_by_model.get(call.model or "", self._options)
        strategy = options.strategy
        if strategy == "auto":
            strategy = "weighted" if have_different_weights(qualified) else "listed"
        if strategy == "weighted":
            return order_by_weight(qualified, self._draw())
        if strategy == "cheapest":
            return order_by_cost(qualified, needs_of(call))
        return qualified


def qualify(call: Call, targets: list[Target]) -> list[Target]:
    """The targets that can take the call. Raises Rejected, naming what excluded each, when there is none."""
    if surely_fit(call, targets):
        return targets
    needs = needs_of(call)
    lacks = [list(lacks_of(target.deployment, needs)) for target in targets]
    for target, reasons in zip(targets, lacks, strict=True):
        if reasons:
            call.note("model_selection", "left out", f"{target.deployment.id}: {', '.join(reasons)}")
    qualified = [target for target, reasons in zip(targets, lacks, strict=True) if not reasons]
    if not qualified:
        raise Rejected(none_qualifies(call.model, targets, lacks))
    return qualified


def surely_fit(call: Call, targets: Sequence[Target]) -> bool:
    """Whether no limit of any deployment can matter, without looking into the messages: a text never has more tokens than bytes."""
    tokens = len(call.body) + (call.chat.max_output_tokens or 0)
    for target in targets:
        deployment = target.deployment
        if deployment.capabilities or deployment.max_output_tokens is not None:
            return False
        context_tokens = deployment.context_tokens
        if context_tokens is not None and tokens > context_tokens:
            return False
    return True


def needs_of(call: Call) -> Needs:
    """Read the request once. Text counts, inline images and audio don't: their bytes say nothing about their tokens."""
    text_bytes, capabilities = 0, set[str]()
    payload = call.payload or {}
    for part in content_parts(payload):
        if isinstance(part, str):
            text_bytes += len(part)
        elif isinstance(text := part.get("text"), str):
            text_bytes += len(text)
        elif (capability := CAPABILITY_OF_PART.get(str(part.get("type")))) is not None:
            capabilities.add(capability)
    if call.chat.tools:
        capabilities.add("tools")
    if wants_json_schema(payload):
        capabilities.add("json_schema")
    if "audio" in _listed(payload.get("modalities")):
        capabilities.add("audio")
    return Needs(text_bytes // TEXT_BYTES_PER_TOKEN_MAX, call.chat.max_output_tokens, frozenset(capabilities))


def content_parts(payload: dict[str, Any]) -> Iterator[str | dict[str, Any]]:
    """Every piece of content in a chat, completions, responses or embeddings payload, whatever its shape."""
    for top in (payload.get("messages"), payload.get("input"), payload.get("prompt"), payload.get("instructions")):
        for item in [top] if isinstance(top, str) else _listed(top):
            content = item.get("content") if isinstance(item, dict) else item
            for part in [content] if isinstance(content, str) else _listed(content):
                if isinstance(part, str | dict):
                    yield part


def wants_json_schema(payload: dict[str, Any]) -> bool:
    """Chat: `response_format.type`; responses: `text.format.type`."""
    text = payload.get("text")
    formats = (payload.get("response_format"), text.get("format") if isinstance(text, dict) else None)
    return any(isinstance(asked, dict) and asked.get("type") == "json_schema" for asked in formats)


def lacks_of(deployment: Deployment, needs: Needs) -> Iterator[str]:
    """Why a deployment can't take a request with these needs, by what it declares."""
    if deployment.capabilities and (missing := needs.capabilities - deployment.capabilities):
        yield f"lacks {', '.join(sorted(missing))}"
    output_tokens = needs.output_tokens or 0
    if deployment.max_output_tokens is not None and output_tokens > deployment.max_output_tokens:
        yield f"writes at most {deployment.max_output_tokens} tokens, {output_tokens} asked for"
    wanted = needs.input_tokens + output_tokens
    if deployment.context_tokens is not None and wanted > deployment.context_tokens:
        yield f"has a context of {deployment.context_tokens} tokens, at least {wanted} needed"


def none_qualifies(model: str | None, targets: Sequence[Target], lacks: Sequence[Sequence[str]]) -> BadRequest:
    reasons = "; ".join(f"{t.deployment.id} {' and '.join(why)}" for t, why in zip(targets, lacks, strict=True))
    is_about_length = all(why[-1].startswith("has a context") for why in lacks)
    return BadRequest(
        f'no deployment of "{model}" can take this call: {reasons}',
        code="context_length_exceeded" if is_about_length else "no_qualified_deployment",
        param="messages" if is_about_length else None,
    )


def have_different_weights(targets: Sequence[Target]) -> bool:
    first = targets[0].deployment.weight
    for target in targets:  # noqa: SIM110 - a generator costs three times as much
        if target.deployment.weight != first:
            return True
    return False


def order_by_weight(targets: list[Target], draw: float) -> list[Target]:
    """The first by `draw` (0 <= draw < 1) in proportion to the weights, the others as listed. Weight 0 is only for when others fail."""
    left = draw * sum(target.deployment.weight for target in targets)
    for index, target in enumerate(targets):
        left -= target.deployment.weight
        if left < 0:
            target.reason = "drawn by weight"
            return [target, *targets[:index], *targets[index + 1 :]]
    return targets


def order_by_cost(targets: list[Target], needs: Needs) -> list[Target]:
    """Cheapest first; unknown prices last; equals as listed."""
    usage = Usage(needs.input_tokens, needs.output_tokens or TYPICAL_OUTPUT_TOKENS)
    ordered = sorted(targets, key=lambda target: cost_rank(target.deployment, usage))
    ordered[0].reason = "cheapest"
    return ordered


def cost_rank(deployment: Deployment, usage: Usage) -> tuple[bool, int]:
    price = deployment.price
    return (True, 0) if price is None else (False, price.cost_nanousd(usage))


def _listed(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else ()
