"""Needs: what a request asks of a deployment, and what a deployment lacks.

Lives here: reading a request once; capabilities, context and output bounds against what a deployment declares. Elsewhere: how hard the request is (complexity.py), what it may cost (costs.py),
where it may go (rules in qualifying.py).
Idea: a deployment is only left out for what it declares: what is not known is the upstream's to refuse."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from hookline import Call, Deployment, Target

TEXT_CHARS_PER_TOKEN_MAX = 6
"""English text has about 4, others fewer; only a request that is too long even by this is left out."""
CAPABILITY_OF_PART = {"image_url": "vision", "input_image": "vision", "input_audio": "audio"}
"""Content part type -> what a deployment must be capable of."""


class Needs(NamedTuple):
    """What a request asks of a deployment. `input_tokens` is a lower bound."""

    input_tokens: int
    output_tokens: int | None
    capabilities: frozenset[str]


def surely_fit(call: Call, targets: Sequence[Target]) -> bool:
    """Whether no limit of any deployment can matter, without looking into the messages: a text never has more tokens than bytes."""
    tokens = len(call.body) + (call.chat.max_output_tokens or 0)
    for target in targets:
        deployment = target.deployment
        if deployment.capabilities is not None or deployment.max_output_tokens is not None:
            return False
        if deployment.context_tokens is not None and tokens > deployment.context_tokens:
            return False
    return True


def needs_of(call: Call) -> Needs:
    """Read the request once. Text counts, inline images and audio don't: their bytes say nothing about their tokens."""
    text_chars, capabilities = 0, set[str]()
    payload = call.payload or {}
    for part in content_parts(payload):
        if isinstance(part, str):
            text_chars += len(part)
        elif isinstance(text := part.get("text"), str):
            text_chars += len(text)
        elif (capability := CAPABILITY_OF_PART.get(str(part.get("type")))) is not None:
            capabilities.add(capability)
    if call.chat.tools or listed(payload.get("functions")) or any(map(tells_of_tools, _items(payload))):
        capabilities.add("tools")
    if wants_json_schema(payload):
        capabilities.add("json_schema")
    if "audio" in listed(payload.get("modalities")):
        capabilities.add("audio")
    return Needs(text_chars // TEXT_CHARS_PER_TOKEN_MAX, call.chat.max_output_tokens, frozenset(capabilities))


def content_parts(payload: dict[str, Any]) -> Iterator[str | dict[str, Any]]:
    """Every piece of content in a chat, completions, responses or embeddings payload, whatever its shape."""
    for top in (payload.get("messages"), payload.get("input"), payload.get("prompt"), payload.get("instructions")):
        for item in [top] if isinstance(top, str) else listed(top):
            content = item.get("content") if isinstance(item, dict) else item
            for part in [content] if isinstance(content, str) else listed(content):
                if isinstance(part, str | dict):
                    yield part


def tells_of_tools(item: Any) -> bool:
    """Whether a message or an input item is a tool's call or answer: only who knows tools can read it."""
    if not isinstance(item, dict):
        return False
    type_ = item.get("type")
    is_call = isinstance(type_, str) and type_.endswith(("_call", "_call_output"))
    return is_call or bool(item.get("tool_calls")) or item.get("role") in ("tool", "function")


def _items(payload: dict[str, Any]) -> Iterator[Any]:
    yield from listed(payload.get("messages"))
    yield from listed(payload.get("input"))


def wants_json_schema(payload: dict[str, Any]) -> bool:
    """Chat: `response_format.type`; responses: `text.format.type`."""
    text = payload.get("text")
    formats = (payload.get("response_format"), text.get("format") if isinstance(text, dict) else None)
    return any(isinstance(asked, dict) and asked.get("type") == "json_schema" for asked in formats)


def lacks_of(deployment: Deployment, needs: Needs) -> Iterator[str]:
    """Why a deployment can't take a request with these needs, by what it declares."""
    if deployment.capabilities is not None and (missing := needs.capabilities - deployment.capabilities):
        yield f"lacks {', '.join(sorted(missing))}"
    output_tokens = needs.output_tokens or 0
    if deployment.max_output_tokens is not None and output_tokens > deployment.max_output_tokens:
        yield f"writes at most {deployment.max_output_tokens} tokens, {output_tokens} asked for"
    wanted = needs.input_tokens + output_tokens
    if deployment.context_tokens is not None and wanted > deployment.context_tokens:
        yield f"{CONTEXT} of {deployment.context_tokens} tokens, at least {wanted} needed"


CONTEXT = "has a context"
"""How the one reason begins that SDKs have a code for."""


def listed(value: Any) -> Iterable[Any]:
    """A list's items; of anything else none."""
    return value if isinstance(value, list) else ()
