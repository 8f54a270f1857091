"""Affinity: what makes two calls belong together.

Lives here: the name that "sticky" hashes. Elsewhere: the hashing (orders.py).
Idea: providers keep the beginning of a prompt in a cache of their own; the next call of a conversation finds it there only if it goes to the same deployment. A conversation
that names itself nowhere is known by how it begins, which stays the same as it grows."""

from __future__ import annotations

from typing import Any

import orjson
from multidict import istr

from hookline import END_USER, Call
from hookline.builtins.model_selection.needs import listed
from hookline.builtins.model_selection.options import StickyBy

CONVERSATION_HEADER = istr("x-hookline-conversation")
BEGINNING_CHARS = 4_000
FIRST_ROLES = ("system", "developer")


def affinity_of(call: Call, sticky_by: StickyBy) -> str:
    """The same for calls that belong together. Two tenants never share one."""
    principal = call.principal
    if sticky_by == "tenant":
        return principal.tenant
    if sticky_by == "user":
        who = principal.user or call.find(END_USER) or _text((call.payload or {}).get("user")) or principal.key_id
    elif sticky_by == "key":
        who = principal.key_id
    else:
        who = _conversation(call)
    return f"{principal.tenant}\0{who}"


def _conversation(call: Call) -> str:
    payload = call.payload or {}
    conversation = payload.get("conversation")
    if isinstance(conversation, dict):
        conversation = conversation.get("id")
    named = call.headers.get(CONVERSATION_HEADER) or _text(payload.get("prompt_cache_key")) or _text(conversation)
    return named or f"{call.principal.key_id}\0{_beginning(payload)}"


def _beginning(payload: dict[str, Any]) -> str:
    """The instructions and the first message that is none."""
    parts: list[Any] = [payload.get("instructions")]
    for top in (payload.get("messages"), payload.get("input"), payload.get("prompt")):
        if isinstance(top, str):
            parts.append(top)
        for item in listed(top):
            parts.append(item)
            if not (isinstance(item, dict) and item.get("role") in FIRST_ROLES):
                break
    return orjson.dumps(parts, default=str)[:BEGINNING_CHARS].decode("utf-8", "replace")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
