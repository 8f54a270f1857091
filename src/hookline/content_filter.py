"""Content filters: an answer that the provider's own filter stopped, though its status is 200.

Lives here: how a whole reply and an event say so. Elsewhere: whether that counts as a failure (`attempt.is_failed_by_filter`, set by builtins/fallback), how far a stream is read for it (peek.py).
Idea: it is a failure only while nothing has been said; text that a filter cut is an answer, with its finish_reason."""

from __future__ import annotations

from typing import Any, Literal

from hookline.openai_wire import member_of

REASON = "content_filter"
FILTERED: dict[str, Any] = {
    "message": "the answer was stopped by the provider's content filter",
    "type": "invalid_request_error",
    "param": None,
    "code": REASON,
}
"""The error object that such an answer becomes."""


def is_filtered(reply: Any) -> bool:
    """Whether a whole reply of chat, completions or responses was stopped by a filter, all of it."""
    choices = member_of(reply, "choices")
    if isinstance(choices, list) and choices:
        return all(member_of(choice, "finish_reason") == REASON for choice in choices)
    return bool(member_of(member_of(reply, "incomplete_details"), "reason") == REASON)


def verdict_of(event: Any) -> Literal["said", "filtered"] | None:
    """Whether an event says something, or that nothing will be said; None: neither."""
    if not isinstance(event, dict):
        return "said"
    kind = event.get("type")
    if isinstance(kind, str):
        if is_filtered(event.get("response")):
            return "filtered"
        is_end = kind in ("error", "response.completed", "response.incomplete", "response.failed")
        return "said" if is_end or kind.endswith(".delta") else None
    choices = event.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        delta = member_of(choice, "delta")
        said = delta if isinstance(delta, dict) else {"text": member_of(choice, "text")}
        if any(value for name, value in said.items() if name != "role"):
            return "said"
        if (reason := member_of(choice, "finish_reason")) is not None:
            return "filtered" if reason == REASON else "said"
    return None
