"""Bounds: how many tokens a call can be at most, before anybody has counted.

Lives here: the input bound from the request's bytes, the output bound from its limits. Elsewhere: what they cost (money.py), who holds them (builtins/rate_limit.py,
builtins/budget.py).
Idea: a byte-level BPE never makes more tokens than UTF-8 bytes, so bytes plus a constant per message bound any text. What the request only refers to (a URL, a
file id, a stored conversation) has no such bound: then the model's context window is the bound, and the field that refers is named."""

from __future__ import annotations

from typing import Any, NamedTuple

from hookline.call import Call
from hookline.slots import Slot

MESSAGE_TOKENS = 8
"""What a chat format adds to each message: 3 to 4 tokens at OpenAI (their cookbook on counting tokens), doubled."""
INLINE_IMAGE_TOKENS = 48_169
"""The most that one image costs at OpenAI: gpt-4o-mini, high detail, 8 tiles (2,833 + 8 x 5,667; their guide to images and vision)."""
ENDPOINTS_WITH_OUTPUT = frozenset({"chat", "completions", "responses"})
REFERRING_MEMBERS = frozenset({"previous_response_id", "conversation"})
REFERRING_PARTS = {"file_id": "file_id", "file_url": "file_url", "file_data": "file_data"}


class InputBound(NamedTuple):
    """`tokens` bounds what is in the request's bytes; `open_field` names what refers beyond them, None if nothing does."""

    tokens: int
    open_field: str | None


INPUT_BOUND: Slot[InputBound] = Slot("input bound")


def bound_input(call: Call) -> InputBound:
    """The input bound of a call, worked out once. Uploads are bounded by nothing: their field is "file"."""
    bound = call.slots.get(INPUT_BOUND)
    if bound is None:
        bound = call.slots[INPUT_BOUND] = _bound_input(call)
    return bound


def bound_output(call: Call, *, default_tokens: int, model_max_tokens: int | None = None) -> int:
    """Tokens of one answer at most, times the answers asked for; 0 for endpoints that answer with no text of their own."""
    if call.endpoint not in ENDPOINTS_WITH_OUTPUT:
        return 0
    view = call.chat
    limit = view.max_output_tokens
    tokens = default_tokens if limit is None else limit
    if model_max_tokens is not None and tokens > model_max_tokens:
        tokens = model_max_tokens
    return tokens * view.choices if tokens > 0 else 0


def _bound_input(call: Call) -> InputBound:
    payload = call.payload
    if payload is None:
        return InputBound(0, "file" if call.upload is not None else None)
    open_field: str | None = None
    if not REFERRING_MEMBERS.isdisjoint(payload):
        open_field = next((name for name in sorted(REFERRING_MEMBERS) if payload.get(name)), None)
    if isinstance(payload.get("prompt"), dict):
        open_field = open_field or "prompt"
    items = payload.get("messages") if "messages" in payload else payload.get("input")
    count = images = 0
    if isinstance(items, list):
        count = len(items)
        for item in items:
            if not isinstance(item, dict):
                continue
            content = item.get("content") or item.get("output")
            if isinstance(content, dict):
                content = (content,)
            if isinstance(content, list | tuple):
                for part in content:
                    inline, referred = _read_part(part)
                    images += inline
                    open_field = open_field or referred
            elif item.get("type") == "item_reference":
                open_field = open_field or "input.item_reference"
    return InputBound(len(call.body) + MESSAGE_TOKENS * (count + 1) + INLINE_IMAGE_TOKENS * images, open_field)


def _read_part(part: Any) -> tuple[int, str | None]:
    """(inline images, the field that refers outside) of one content part."""
    if not isinstance(part, dict):
        return 0, None
    image = part.get("image_url")
    if image is not None:
        url = image.get("url") if isinstance(image, dict) else image
        is_inline = isinstance(url, str) and url.startswith("data:")
        return (1, None) if is_inline else (0, "image_url")
    inner = part.get("file") if isinstance(part.get("file"), dict) else part
    return 0, next(
        (told for member, told in REFERRING_PARTS.items() if isinstance(inner, dict) and inner.get(member)), None
    )
